"""Several trainings that answer together: the mean of their probabilities, and of each one's over mirrored volumes.

Checkpoints of several folds or seeds become one module with logits [N, M, C], whose members
:class:`~.PredictionWriter` combines: softmax of each member, then the mean over members (a deep ensemble,
Lakshminarayanan et al. 2017, Sec. 2.4). MONAI's ``EnsembleEvaluator`` would give a prediction each under a key of its
own; with one tensor, one writer, one engine and its other handlers serve one network and many.
"""

import glob
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..networks.checkpoint import (
    MODEL_SETTINGS,
    NETWORK,
    CheckpointError,
    ModelSettings,
    checkpoint_content,
    model_settings,
    said_of,
    training_record,
)
from ..networks.checkpoint import require_checkpoint as _require
from ..networks.ensemble import members_of

logger = logging.getLogger(__name__)

# What a training aggregated its loss over. Members may differ in it: the network's input and output do not depend on
# it, and folds differ unasked, as group_names are the groups that occur.
GROUP_SETTINGS = ("group_by", "group_names", "age_bands")
COMMON_SETTINGS = (*(name for name in MODEL_SETTINGS if name not in GROUP_SETTINGS), NETWORK)


def checkpoint_paths(checkpoint: str | Path | Sequence[str | Path]) -> list[str]:
    """The files of a path, a pattern (``*``, ``?``, ``[...]``, ``**`` for any folders; sorted) or a list of these.

    A path that exists is taken as it is, and one without pattern also when nothing is there. A pattern that matches no
    file, an empty list or a file that is there twice is a CheckpointError.
    """
    given = [checkpoint] if isinstance(checkpoint, (str, Path)) else list(checkpoint)
    paths: list[str] = []
    for entry in map(str, given):
        if glob.has_magic(entry) and not Path(entry).exists():
            matches = sorted(path for path in glob.glob(entry, recursive=True) if Path(path).is_file())
            if not matches:
                raise CheckpointError(f"no checkpoint matches {entry}")
            paths += matches
        else:
            paths.append(entry)
    if not paths:
        raise CheckpointError("checkpoint is an empty list; name at least one file")
    seen: dict[Path, str] = {}
    for path in paths:
        file = Path(path).resolve()
        if file in seen:
            raise CheckpointError(f"{path} is named twice (also as {seen[file]}): it would count twice in the mean")
        seen[file] = path
    return paths


def require_checkpoints(paths: Sequence[str | Path]) -> None:
    """CheckpointError, with what to do, when one of them is not there."""
    for path in paths:
        _require(path)


def common_settings(paths: Sequence[str | Path], train_config: str | Path) -> dict[str, Any]:
    """The settings that all checkpoints were trained with (:func:`~.model_settings`); groups are the first one's.

    The values of ``train_config``, the path of train.yaml, stand for a single checkpoint that is not there yet. A
    CheckpointError names the file that is missing or none of this bundle, or the settings in which it differs.
    """
    if len(paths) == 1:
        return model_settings(paths[0], train_config)
    require_checkpoints(paths)
    first, *others = (model_settings(path, train_config) for path in paths)
    for path, found in zip(paths[1:], others, strict=True):
        if differing := [name for name in COMMON_SETTINGS if found.get(name) != first.get(name)]:
            what = f"{path} was trained with other settings than {paths[0]}, they cannot answer together:"
            listed = (f"{name}: {found.get(name)!r}, there {first.get(name)!r}" for name in differing)
            raise CheckpointError("\n  ".join([what, *listed]))
    return first


def model_runs(paths: Sequence[str | Path]) -> list[str]:
    """Which run each checkpoint is of, a line each (:func:`~.said_of`)."""
    return [said_of(training_record(path)) for path in paths]


def load_members(paths: Sequence[str | Path], network: nn.Module, settings: ModelSettings) -> None:
    """Load a checkpoint into each member, strictly, after its settings are compared.

    Weights are read from the file into the member, one member at a time: no second copy of a network is held. Members
    of an ensemble may differ from the run's settings in :data:`GROUP_SETTINGS`.

    Raises:
        ValueError: there are not as many checkpoints as members.
        CheckpointError: names a checkpoint that was made under other settings, does not fit the network, or holds the
            weights of another one, as a training's best.pt and the checkpoint of its best epoch do.
    """
    members = members_of(network)
    if len(paths) != len(members):
        raise ValueError(f"{len(paths)} checkpoints for {len(members)} networks")
    require_checkpoints(paths)
    for number, (path, member) in enumerate(zip(paths, members, strict=True)):
        found = model_settings(path, "")
        if len(members) > 1:
            found |= {name: settings.settings[name] for name in GROUP_SETTINGS}
        state = checkpoint_content(path)["model"]
        try:
            settings.load_state_dict(found)
            member.load_state_dict(state)
        except (CheckpointError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        for other, before in zip(paths[:number], members, strict=False):
            weights = before.state_dict()
            if all(torch.equal(value, weights[name]) for name, value in member.state_dict().items()):
                raise CheckpointError(f"{path} holds the same weights as {other}: they would count twice in the mean")
        logger.info("loaded %s: %s", path, said_of(training_record(path)))


class MemberLoader:
    """Ignite handler: :func:`load_members` at the first start; MONAI's ``CheckpointLoader`` reads one file at each."""

    def __init__(self, paths: Sequence[str | Path], network: nn.Module, settings: ModelSettings) -> None:
        self.paths, self.network, self.settings = list(paths), network, settings
        self._loaded = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if not self._loaded:
            load_members(self.paths, self.network, self.settings)
            self._loaded = True
