"""The begin and the end of a training: its output folder refused or emptied, its best checkpoint published."""

import logging
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from torch import nn

from fairlung.transforms.checks import check_setting

from ..common.bundle import BUNDLE, INSTALLED
from ..common.claims import claim, release
from ..common.config import resolved_config, resolved_settings, write_settings
from ..common.distributed import barrier, is_primary
from ..common.errors import UserError
from ..common.files import FULL, REFUSED
from ..common.names import TRAINING_SETTINGS
from ..common.run_folder import EVALUATION_FILES, REVIEW_FILES, SETTINGS, best_checkpoint, is_resumed, resume_point
from ..data.cohort import Cohort
from ..data.cohort_checks import SPLITS
from ..networks.checkpoint import (
    INFERENCE_NETWORK,
    NETWORK,
    CheckpointError,
    model_settings,
    said_of,
    training_record,
    write_weights,
)
from ..networks.frozen import FrozenHead, write_whole
from .record import TrainingRecord

logger = logging.getLogger(__name__)

# what a process that was killed was about to write: ignite's, ours, and the tables of a validation
LEFTOVERS = ("models/tmp????????", "models/.*.pt", "val/*.part*", ".history.csv")


class OutputDirError(UserError, OSError):
    """The folder of a training cannot be written; says why, and what of the training is kept."""


def unwritable(error: BaseException | None, folder: str | Path) -> str | None:
    """Why a folder cannot be written, when an error or one of its causes says so; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            inside = Path(os.path.abspath(error.filename or folder)).is_relative_to(os.path.abspath(folder))
            if error.errno in FULL or (error.errno in REFUSED and inside):
                return os.strerror(error.errno)
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):  # torch says no more
            return "a file could not be written as a whole: is the disk full?"
        error = error.__cause__ or error.__context__
    return None


def check_run(epochs: int, val_interval: int, output_dir: str | Path, overwrite: bool, resume: bool) -> None:
    """Refuse, before anything is built, a training without a validation, or into a folder that is used
    (:func:`require_new`) or cannot be written.

    The folder is this training's until :func:`~.end`: a second one there is a :class:`~.FolderError`.
    """
    check_setting("val_interval", val_interval, 1 <= val_interval <= epochs, f"in [1, epochs = {epochs}]")
    claim(output_dir)
    try:
        require_new(output_dir, overwrite, resume)
    except CheckpointError:
        release(output_dir)
        raise


def begin(
    tracker: Any, cohort: Cohort, output_dir: str | Path, resume: bool = False, record: TrainingRecord | None = None,
    trainer: Engine | None = None,
) -> None:  # fmt: skip
    """Open a training's run (:class:`~.RunTracker`), remove what an earlier one left in the folder, write settings.

    The ``record`` is told the settings that name the objective, and attached to the trainer.
    """
    settings = resolved_settings()
    tracker.start(settings, resolved_config(), cohort, is_resumed(output_dir, resume))
    if record is not None and trainer is not None:
        record.attach(trainer)
        record.describe({name: settings[name] for name in TRAINING_SETTINGS if settings.get(name) is not None})
    discard_previous(output_dir, resume)
    write_settings(Path(output_dir, SETTINGS))


def require_new(output_dir: str | Path, overwrite: bool, resume: bool = False) -> None:
    """CheckpointError when a folder already holds a training, unless it may be overwritten or is to be resumed."""
    if overwrite and resume:
        raise CheckpointError("--overwrite and --resume exclude each other")
    interrupted = resume_point(output_dir).is_file()
    if overwrite or (resume and interrupted) or not (interrupted or best_checkpoint(output_dir).exists()):
        return
    state, also = "a training that is complete" if resume else "a training", ""
    if interrupted:
        state, also = "a training that was interrupted", "--resume True to go on with it, or "
    other = f"choose another --output_dir, or pass {also}--overwrite True"
    raise CheckpointError(f"{output_dir} already holds {state}; {other}")


def discard_previous(output_dir: str | Path, resume: bool = False) -> None:
    """Remove an earlier training's files, by their names: two models' results must not mix. What is resumed stays.

    What a killed process left half written goes in either case.
    """
    if is_primary():
        patterns = [*LEFTOVERS]
        if not is_resumed(output_dir, resume):
            patterns += ["models/checkpoint_epoch=*.pt", "models/best.pt", "models/resume*.pt", "val/latest.csv"]
            for folder in ("val", *(f"{split}/evaluation" for split in SPLITS)):
                patterns += [f"{folder}/{pattern}" for pattern in (*EVALUATION_FILES, *REVIEW_FILES)]
        for path in (path for p in patterns for path in Path(output_dir).glob(p)):
            path.unlink(missing_ok=True)
    barrier()


def publish(
    checkpoint: str | Path, model_file: str | Path, replace: bool = False, classifier: nn.Module | None = None
) -> None:  # fmt: skip
    """Write a checkpoint's weights to where inference looks for them, unless another run's are there; an empty path:
    nowhere.

    With ``replace`` another run's model gives way and is kept beside it (:func:`previous_model`). A network that
    inference.yaml does not run is not published. Of a ``classifier`` on frozen features the whole network is written
    beside the checkpoint, and published. The log says in a line what was done.
    """
    if not model_file or not is_primary():
        return
    if isinstance(classifier, FrozenHead):
        checkpoint = write_whole(classifier, checkpoint, Path(checkpoint).with_name("whole.pt"))
    if INSTALLED and Path(model_file).resolve().is_relative_to(BUNDLE):
        text = "the bundle of an installed fairlung takes no model: answer new scans with --checkpoint %s, or train "
        logger.info(text + "with a bundle of your own (`fairlung bundle --copy DIR`) or --model_file FILE", checkpoint)
        return
    model_file, record, done = Path(model_file), training_record(checkpoint), ""
    mine = said_of(record)
    if (network := model_settings(checkpoint, "")[NETWORK]) != INFERENCE_NETWORK:
        text = "%s is not published as %s: it holds a %s, and inference.yaml runs %s"
        logger.warning(text, checkpoint, model_file, network, INFERENCE_NETWORK)
        return
    if model_file.exists():
        there = _record_of_published(model_file)
        if not record or there.get("run") != record["run"]:
            if not replace:
                text = "%s stays the model of another training: %s. To answer with this one, %s, pass --checkpoint %s, "
                logger.warning(
                    text + "or publish with --replace_model True", model_file, said_of(there), mine, checkpoint
                )
                return
            model_file.replace(previous_model(model_file))
            done = f"; the one before, {said_of(there)}, is now {previous_model(model_file)}"
    model_file.parent.mkdir(parents=True, exist_ok=True)
    write_weights(checkpoint, model_file)
    logger.info("%s published as %s: %s%s", checkpoint, model_file, mine, done)


def previous_model(model_file: Path) -> Path:
    """Where a published model goes that another run's replaces."""
    return model_file.with_name(f"{model_file.stem}.previous{model_file.suffix}")


def _record_of_published(model_file: Path) -> dict[str, Any]:
    try:
        return training_record(model_file)
    except CheckpointError:  # a file of something else is another's too
        return {}
