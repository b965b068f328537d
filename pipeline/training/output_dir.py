"""The begin and the end of a training: its output folder refused or emptied, its best checkpoint published."""

import errno
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fairlung.transforms.checks import check_setting

from ..common.config import resolved_config, resolved_settings, write_settings
from ..common.distributed import barrier, is_primary
from ..common.errors import UserError
from ..common.run_folder import EVALUATION_FILES, REVIEW_FILES, SETTINGS, best_checkpoint, is_resumed, resume_point
from ..data.cohort import Cohort
from ..data.cohort_checks import SPLITS
from ..networks.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
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


def require_writable(folder: str | Path) -> None:
    """Make a folder if need be; OutputDirError if it cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OutputDirError(f"output_dir {folder} cannot be written: {error.strerror or error}") from error


def check_run(epochs: int, val_interval: int, output_dir: str | Path, overwrite: bool, resume: bool) -> None:
    """Refuse, before anything is built, a training without a validation, or into a folder that is used
    (:func:`require_new`) or cannot be written."""
    check_setting("val_interval", val_interval, 1 <= val_interval <= epochs, f"in [1, epochs = {epochs}]")
    require_new(output_dir, overwrite, resume)
    require_writable(output_dir)


def begin(tracker: Any, cohort: Cohort, output_dir: str | Path, resume: bool = False) -> None:
    """Open a training's run (:class:`~.RunTracker`), remove what an earlier one left in the folder, write settings."""
    tracker.start(resolved_settings(), resolved_config(), cohort, is_resumed(output_dir, resume))
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


def publish(checkpoint: str | Path, model_file: str | Path) -> None:
    """Copy a checkpoint to where inference looks for it; an empty ``model_file`` copies nothing."""
    if model_file and is_primary():
        Path(model_file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, model_file)
        logger.info("best checkpoint %s published as %s", checkpoint, model_file)
