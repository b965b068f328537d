"""Going on with a training that was interrupted: everything it needs, saved after each epoch, and on SIGTERM in one.

An epoch draws what seed and epoch say (:mod:`~.data.sampling`), so between epochs no state of a random generator is
kept: on the same machine a training that is resumed gives the same numbers, to the bit, as one that was never
interrupted.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data.utils import worker_init_fn
from monai.engines import SupervisedTrainer
from monai.handlers import CheckpointSaver
from torch.nn.parallel import DistributedDataParallel

from ..common.claims import release
from ..common.config import training_config
from ..common.distributed import is_primary, rank, world_size
from ..common.files import replacing, why_unreadable
from ..data.cohort import Cohort
from ..data.sampling import EpochSampler
from ..networks.checkpoint import CheckpointError
from .output_dir import OutputDirError, unwritable

logger = logging.getLogger(__name__)

EXIT_SIGTERM = 128 + signal.SIGTERM  # as a shell says that a process was ended by it


def made_for(cohort: Cohort, items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """All that the numbers of a training depend on: the running config, the cohort, the order of its items."""
    # what the index of a draw means, and what a site head learns of it
    scans = json.dumps([[item["scan"], item["source"]] if "source" in item else item["scan"] for item in items])
    return {**training_config(), "cohort": cohort.digest, "order": hashlib.sha256(scans.encode()).hexdigest()}


class ResumePoint:
    """Handler of the trainer that saves before the first and after each epoch, and goes on in another process.

    It has to come last among the trainer's handlers: what others do at the end of an epoch belongs to the epoch. The
    file before the newest is kept too: where the newest cannot be read, the training goes on from that one.

    Args:
        parts: what has a ``state_dict``: network, optimizer, scheduler, loss.
        savers: of checkpoints, which know the files they keep and the best score.
        made_for: settings and data of the training; going on under others is an error.
        counts: what has a ``state_dict`` and adds up over the steps of an epoch.
        sampler: of the training, which passes over the draws of the steps that were done.
        save_on_sigterm: under :meth:`stopping_on_sigterm` save after the next step, inside the epoch.
    """

    def __init__(
        self, path: str | Path, parts: Mapping[str, Any], evaluator: Engine, savers: Sequence[CheckpointSaver] = (),
        resume: bool = False, made_for: Mapping[str, Any] | None = None, counts: Sequence[Any] = (),
        sampler: EpochSampler | None = None, save_on_sigterm: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.evaluator, self.savers, self.resume = Path(path), evaluator, tuple(savers), resume
        self.before = self.path.with_name(f"{self.path.stem}_before{self.path.suffix}")
        self.counts, self.sampler, self.save_on_sigterm = tuple(counts), sampler, save_on_sigterm
        self.stopped = False  # by SIGTERM
        self.saved: tuple[int, int] | None = None  # epochs, and steps of the next one, that the file has
        self._within: dict[str, Any] | None = None  # what is to be restored inside an epoch
        self._fell_back = False  # to the file before the newest
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
        engine.add_event_handler(Events.EPOCH_STARTED, self._restore_within)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_within)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop)

    def _save(self, engine: SupervisedTrainer, steps: int = 0) -> None:
        """Save what has been done: ``epoch`` whole epochs and ``steps`` steps of the next."""
        within = self._state_within(engine) if steps else None
        of_processes = [within] if world_size() == 1 else idist.all_gather(within)
        if not is_primary():
            return
        content = {
            "epoch": engine.state.epoch - (1 if steps else 0),
            "steps": steps,
            "within": of_processes,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "scaler": engine.scaler.state_dict() if engine.scaler is not None else None,
            "best": [self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch],
            "saved": [kept.state_dict()["_saved"] for kept in self._kept()],
            "made_for": self.made_for,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as part:
            torch.save(content, part)
            if self.path.is_file():
                _link(self.path, self.before)
        self.saved = content["epoch"], steps

    def _state_within(self, engine: SupervisedTrainer) -> dict[str, Any]:
        """This process's state that an epoch's beginning would set anew."""
        device = torch.device(engine.state.device)
        drawn = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {
            "random": [torch.get_rng_state(), drawn],
            "counts": [count.state_dict() for count in self.counts],
        }

    @contextmanager
    def stopping_on_sigterm(self) -> Iterator[None]:
        """SIGTERM, as a scheduler sends it, ends the training after the step, saved; a second one ends it at once."""
        if not self.save_on_sigterm or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            if self.stopped:
                sys.exit(EXIT_SIGTERM)
            self.stopped = True

        earlier = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, earlier)

    def _stop_within(self, engine: SupervisedTrainer) -> None:
        if not self._stopped_anywhere():
            return
        steps = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        if self.sampler is not None and steps < engine.state.epoch_length:  # else the epoch is about to be complete
            self._save(engine, steps)
            self._stop(engine)

    def _stop(self, engine: SupervisedTrainer) -> None:
        if self._stopped_anywhere():
            logger.warning("stopped by SIGTERM, saved in %s; go on with --resume True", self.path)
            sys.exit(EXIT_SIGTERM)

    def _stopped_anywhere(self) -> bool:
        """In any process: all of them have to stop after the same step."""
        if not self.save_on_sigterm or world_size() == 1:
            return self.stopped
        return bool(idist.all_reduce(int(self.stopped), "MAX"))

    def read(self) -> None:
        """Read the file if the training is to go on from it; CheckpointError if it cannot be read, or is of another."""
        if not self.resume or not self.path.is_file():
            return
        try:
            content = _load(self.path)
        except Exception as error:  # torch raises many kinds for files that are none of its own
            said = f"{self.path} cannot be read: {why_unreadable(self.path, error)}"
            try:
                content = _load(self.before)
            except Exception:
                raise CheckpointError(f"{said}; remove it to begin anew") from error
            logger.warning("%s; going on from the one before, after epoch %d", said, content["epoch"])
            self._fell_back = True
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
        if self._fell_back and is_primary():
            self.before.replace(self.path)  # the newest is none to keep as the one before
        steps = content["steps"]
        engine.state.epoch = content["epoch"]
        engine.state.iteration = content["epoch"] * engine.state.epoch_length + steps
        if steps:
            assert self.sampler is not None
            self.sampler.skip = steps * self.sampler.batch_size
            self._within = content["within"][rank()]
        logger.info("resumed after epoch %d%s", content["epoch"], f" and {steps} steps" if steps else "")

    def _restore_within(self, engine: SupervisedTrainer) -> None:
        within, self._within = self._within, None
        if within is None:
            return
        drawn, drawn_on_device = within["random"]
        torch.set_rng_state(drawn)
        if drawn_on_device is not None:
            torch.cuda.set_rng_state(drawn_on_device, torch.device(engine.state.device))
        for count, state in zip(self.counts, within["counts"], strict=True):
            count.load_state_dict(state)

    def _kept(self) -> list[Any]:
        """Ignite's checkpoint handlers in MONAI's, which shows only how to load the state of one of them."""
        names = ("_key_metric_checkpoint", "_interval_checkpoint")
        return [kept for saver in self.savers for name in names if (kept := getattr(saver, name)) is not None]

    def remove(self) -> None:
        """Remove the files when the training is complete."""
        if is_primary():
            self.path.unlink(missing_ok=True)
            self.before.unlink(missing_ok=True)


def train(trainer: SupervisedTrainer, resume_point: ResumePoint, output_dir: str | Path) -> None:
    """Run the trainer; a SIGTERM saves first, and a folder that cannot be written ends it with an OutputDirError."""
    try:
        with resume_point.stopping_on_sigterm():
            trainer.run()
    except Exception as error:
        if (reason := unwritable(error, output_dir)) is None:
            raise
        kept, begun = "nothing is kept", "begin anew"
        if resume_point.saved is not None:
            epoch, steps = resume_point.saved
            kept, begun = f"it is kept as it was after epoch {epoch}", "go on with --resume True"
            kept += f" and {steps} steps" if steps else ""
        place = f"{output_dir} cannot be written ({reason})"
        raise OutputDirError(f"{place}: the training ended in epoch {trainer.state.epoch}, {kept}; {begun}") from error


def outlive_sigterm(worker: int) -> None:
    """For a loader's processes: a scheduler sends SIGTERM to all, and without them the last step could not be done."""
    worker_init_fn(worker)  # what MONAI's loader would run in its place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all too: what is said of it is the loader's to say
    if hasattr(signal, "sigwaitinfo"):  # which macOS lacks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()  # the loader's own; a server of processes may lie between
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (parent.pid if parent else os.getppid()):
        pass
    os._exit(0)  # the loader's own process ends it


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _link(path: Path, other: Path) -> None:
    """Let another name stand for the same content, which costs no space where the file system has hard links."""
    with replacing(other) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)


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


def end(resume_point: ResumePoint, output_dir: str | Path) -> None:
    """A training has come to its end: nothing is left to resume, and the folder is free."""
    resume_point.remove()
    release(output_dir)
