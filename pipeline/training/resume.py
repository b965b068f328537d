"""Going on with a training that was interrupted: everything it needs, saved after each epoch.

An epoch draws what seed and epoch say (:mod:`~.data.sampling`), so no state of a random generator is kept: on the same
machine a training that is resumed gives the same numbers, to the bit, as one that was never interrupted.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import CheckpointSaver
from torch.nn.parallel import DistributedDataParallel

from ..common.config import training_config
from ..common.distributed import is_primary
from ..common.files import replacing, why_unreadable
from ..data.cohort import Cohort
from ..networks.checkpoint import CheckpointError

logger = logging.getLogger(__name__)


def made_for(cohort: Cohort, items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """All that the numbers of a training depend on: the running config, the cohort, the order of its items."""
    scans = json.dumps([item["scan"] for item in items])  # what the index of a draw means
    return {**training_config(), "cohort": cohort.digest, "order": hashlib.sha256(scans.encode()).hexdigest()}


class ResumePoint:
    """Handler of the trainer that saves before the first and after each epoch, and goes on in another process.

    It has to come last among the trainer's handlers: what others do at the end of an epoch belongs to the epoch.

    Args:
        parts: what has a ``state_dict``: network, optimizer, scheduler, loss.
        savers: of checkpoints, which know the files they keep and the best score.
        made_for: settings and data of the training; going on under others is an error.
    """

    def __init__(
        self, path: str | Path, parts: Mapping[str, Any], evaluator: Engine, savers: Sequence[CheckpointSaver] = (),
        resume: bool = False, made_for: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.evaluator, self.savers, self.resume = Path(path), evaluator, tuple(savers), resume
        wrapper = DistributedDataParallel
        self.parts = {name: part.module if isinstance(part, wrapper) else part for name, part in parts.items()}
        self.made_for = dict(made_for or {})
        self._content: dict[str, Any] | None = None  # read and not restored yet
        for kept in self._kept():
            _survive_kills(kept.save_handler)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer, and :meth:`read` at once."""
        self.read()
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: SupervisedTrainer) -> None:
        if not is_primary():
            return
        content = {
            "epoch": engine.state.epoch,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "scaler": engine.scaler.state_dict() if engine.scaler is not None else None,
            "best": [self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch],
            "saved": [kept.state_dict()["_saved"] for kept in self._kept()],
            "made_for": self.made_for,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as part:
            torch.save(content, part)

    def read(self) -> None:
        """Read the file if the training is to go on from it; CheckpointError if it cannot be read, or is of another."""
        if not self.resume or not self.path.is_file():
            return
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for files that are none of its own
            why = why_unreadable(self.path)
            raise CheckpointError(f"{self.path} cannot be read: {why}; remove it to begin anew") from error
        made_for = content["made_for"]
        names = {**made_for, **self.made_for}
        if differing := [name for name in names if made_for.get(name) != self.made_for.get(name)]:
            listed = "\n  ".join(f"{n}: was {made_for.get(n)}, is {self.made_for.get(n)}" for n in differing)
            raise CheckpointError(f"{self.path} is of a training with other settings:\n  {listed}")
        self._content = content

    def _restore(self, engine: SupervisedTrainer) -> None:
        content, self._content = self._content, None
        if content is None:
            self._save(engine)  # so that a folder without this file holds no training that was interrupted
            return
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        if engine.scaler is not None and content["scaler"] is not None:
            engine.scaler.load_state_dict(content["scaler"])
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = content["best"]
        for kept, saved in zip(self._kept(), content["saved"], strict=True):
            kept.load_state_dict({"_saved": saved})
        engine.state.epoch = content["epoch"]
        engine.state.iteration = content["epoch"] * engine.state.epoch_length
        logger.info("resumed after epoch %d", content["epoch"])

    def _kept(self) -> list[Any]:
        """Ignite's checkpoint handlers in MONAI's, which shows only how to load the state of one of them."""
        names = ("_key_metric_checkpoint", "_interval_checkpoint")
        return [kept for saver in self.savers for name in names if (kept := getattr(saver, name)) is not None]

    def remove(self) -> None:
        """Remove the file when the training is complete."""
        if is_primary():
            self.path.unlink(missing_ok=True)


def _survive_kills(saver: Any) -> None:
    """Let a saver of files write one as a whole, and forget one that is gone.

    Ignite removes a checkpoint before it writes the next one: a process killed in between leaves neither, and the
    resumed one would fail on removing it once more.
    """
    saver._atomic = True
    remove, fixed = saver.remove, saver.filename is not None

    def forgiving(filename: str) -> None:
        if not fixed:  # a file of a fixed name is replaced, not removed
            with suppress(FileNotFoundError):
                remove(filename)

    saver.remove = forgiving
