"""Checkpoints carry the settings that a network's input and output depend on, and refuse to be loaded under others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from .cohort import SPLITS
from .distributed import barrier, is_primary
from .errors import UserError
from .predictions import EVALUATION_FILES, REVIEW_FILES

logger = logging.getLogger(__name__)

# settings of train.yaml that give a checkpoint its meaning
MODEL_SETTINGS = (
    "class_names",
    "group_by",
    "group_names",
    "age_bands",
    "window",
    "trim_fraction",
    "num_slices",
    "image_size",
    "fast_decode",
    "crop_size",
)
NETWORK = "network"  # saved beside them: the class of the network, which a config says with network_def
INFERENCE_NETWORK = "R3D18Classifier"  # the one that inference.yaml runs
# of checkpoints from before these were saved
FIRST_SETTINGS = {"age_bands": None, "fast_decode": False, NETWORK: "R3D18Classifier"}

_OTHER_NETWORK = (
    "\nevaluate it with the configs of its own network, such as ['train.yaml','systems/cnn_rnn.yaml','evaluate.yaml']; "
    f"inference.yaml runs {INFERENCE_NETWORK} alone"
)


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing, is none of this bundle, or was made under other settings; a training would be lost."""


class ModelSettings:
    """The settings saved beside the weights; loading compares instead of overwriting.

    Has the ``state_dict`` interface of whatever MONAI's ``CheckpointSaver`` and ``CheckpointLoader`` handle.
    """

    def __init__(self, **settings: Any) -> None:
        names = (*MODEL_SETTINGS, NETWORK)
        missing = set(names) - set(settings)
        unknown = set(settings) - set(names)
        if missing or unknown:
            raise ValueError(f"model settings: missing {sorted(missing)}, unknown {sorted(unknown)}")
        self.settings = {name: _plain(settings[name]) for name in names}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = {**FIRST_SETTINGS, **state}
        differing = [
            f"{name}: checkpoint {state.get(name)!r}, run {value!r}"
            for name, value in self.settings.items()
            if _plain(state.get(name)) != value
        ]
        if differing:
            raise CheckpointError(
                "the checkpoint was trained with other settings:\n  "
                + "\n  ".join(differing)
                + (_OTHER_NETWORK if state[NETWORK] != self.settings[NETWORK] else "")
            )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def require_checkpoint(path: str | Path) -> None:
    """CheckpointError, with what to do, when there is no checkpoint."""
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint at {path}: train first (train.yaml writes it), or pass --checkpoint FILE")


def model_settings(checkpoint: str | Path, train_config: str | Path) -> dict[str, Any]:
    """The settings a checkpoint was trained with.

    Args:
        checkpoint: file written by train.yaml.
        train_config: path of train.yaml. Where there is no checkpoint yet, its values describe the untrained network
            (for tools that only build it); running anything still needs the checkpoint.

    Returns:
        a value for each of :data:`MODEL_SETTINGS`, and of a checkpoint also ``network``.

    Raises:
        CheckpointError: the file is not a checkpoint of this bundle.
    """
    if not Path(checkpoint).is_file():
        config = yaml.safe_load(Path(train_config).read_text())
        return {name: config[name] for name in MODEL_SETTINGS}
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise CheckpointError(f"{checkpoint} cannot be read as a checkpoint ({error})") from error
    if not isinstance(content, dict) or not {"model", "settings"} <= set(content):
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of this bundle: it holds no 'model' with its 'settings'"
        )
    return {**FIRST_SETTINGS, **content["settings"]}


def resume_point(output_dir: str | Path) -> Path:
    """Where a training that is going on keeps what it needs to be resumed (:class:`~.resume.ResumePoint`)."""
    return Path(output_dir, "models", "resume.pt")


def is_resumed(output_dir: str | Path, resume: bool) -> bool:
    """Whether a training goes on with one that was interrupted in its folder."""
    return resume and resume_point(output_dir).is_file()


def is_complete(output_dir: str | Path) -> bool:
    """Whether a folder holds a training that came to its end."""
    return Path(output_dir, "models", "best.pt").is_file() and not resume_point(output_dir).exists()


def require_new(output_dir: str | Path, overwrite: bool, resume: bool = False) -> None:
    """CheckpointError when a folder already holds a training, unless it may be overwritten or is to be resumed."""
    if overwrite and resume:
        raise CheckpointError("--overwrite and --resume exclude each other")
    interrupted = resume_point(output_dir).is_file()
    if overwrite or (resume and interrupted) or not (interrupted or Path(output_dir, "models", "best.pt").exists()):
        return
    if interrupted:
        state, also = "a training that was interrupted", "--resume True to go on with it, or "
    else:
        state, also = "a training that is complete" if resume else "a training", ""
    raise CheckpointError(
        f"{output_dir} already holds {state}; choose another --output_dir, or pass {also}--overwrite True"
    )


def discard_previous(output_dir: str | Path, resume: bool = False) -> None:
    """Remove the files that an earlier training and its evaluations wrote: results of two models must not mix.

    Only files by the names we give them; the folder may hold anything else. What is resumed stays.
    """
    if is_primary() and not is_resumed(output_dir, resume):
        written = list(Path(output_dir, "models").glob("checkpoint_epoch=*.pt"))
        written += [
            resume_point(output_dir),
            Path(output_dir, "models", "best.pt"),
            Path(output_dir, "val", "latest.csv"),
        ]
        for folder in ("val", *(f"{split}/evaluation" for split in SPLITS)):
            for pattern in (*EVALUATION_FILES, *REVIEW_FILES):
                written += Path(output_dir, folder).glob(pattern)
        for path in written:
            path.unlink(missing_ok=True)
    barrier()


def publish(checkpoint: str | Path, model_file: str | Path) -> None:
    """Copy a checkpoint to where inference looks for it; an empty ``model_file`` copies nothing."""
    if model_file and is_primary():
        Path(model_file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, model_file)
        logger.info("best checkpoint %s published as %s", checkpoint, model_file)


def training_dir(checkpoint: str | Path | None, output_dir: Path) -> Path | None:
    """The output_dir of the training that a checkpoint is from; None when the checkpoint's place does not say.

    Args:
        checkpoint: in the folder ``models`` of its training; None or empty stands for the training in ``output_dir``.
        output_dir: of the evaluation; its own training counts when the checkpoint is no longer where it was, as after
            a move of the whole folder.
    """
    if not checkpoint:
        return output_dir
    path = Path(checkpoint)
    if path.parent.name != "models":
        return None
    return path.parent.parent if path.exists() else output_dir
