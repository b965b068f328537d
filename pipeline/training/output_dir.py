"""The begin and the end of a training: its output folder refused or emptied, its best checkpoint published."""

import logging
import shutil
from pathlib import Path
from typing import Any

from fairlung.transforms.checks import check_setting

from ..common.claims import claim, release
from ..common.config import resolved_config, resolved_settings, write_settings
from ..common.distributed import barrier, is_primary
from ..common.run_folder import EVALUATION_FILES, REVIEW_FILES, SETTINGS, best_checkpoint, is_resumed, resume_point
from ..data.cohort import Cohort
from ..data.cohort_checks import SPLITS
from ..networks.checkpoint import CheckpointError
from .resume import ResumePoint

logger = logging.getLogger(__name__)


def check_run(epochs: int, val_interval: int, output_dir: str | Path, overwrite: bool, resume: bool) -> None:
    """Refuse, before anything is built, a training without a validation or into a used folder (:func:`require_new`).

    The folder is this training's until :func:`end`: a second one there is a :class:`~.FolderError`.
    """
    check_setting("val_interval", val_interval, 1 <= val_interval <= epochs, f"in [1, epochs = {epochs}]")
    claim(output_dir)
    try:
        require_new(output_dir, overwrite, resume)
    except CheckpointError:
        release(output_dir)
        raise


def begin(tracker: Any, cohort: Cohort, output_dir: str | Path, resume: bool = False) -> None:
    """Open a training's run (:class:`~.RunTracker`), remove what an earlier one left in the folder, write settings."""
    tracker.start(resolved_settings(), resolved_config(), cohort, is_resumed(output_dir, resume))
    discard_previous(output_dir, resume)
    write_settings(Path(output_dir, SETTINGS))


def end(resume_point: ResumePoint, output_dir: str | Path) -> None:
    """A training has come to its end: nothing is left to resume, and the folder is free."""
    resume_point.remove()
    release(output_dir)


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
    """Remove an earlier training's files, by their names: two models' results must not mix. What is resumed stays."""
    if is_primary() and not is_resumed(output_dir, resume):
        patterns = ["models/checkpoint_epoch=*.pt", "models/best.pt", "val/latest.csv"]
        for folder in ("val", *(f"{split}/evaluation" for split in SPLITS)):
            patterns += [f"{folder}/{pattern}" for pattern in (*EVALUATION_FILES, *REVIEW_FILES)]
        for path in (resume_point(output_dir), *(path for p in patterns for path in Path(output_dir).glob(p))):
            path.unlink(missing_ok=True)
    barrier()


def publish(checkpoint: str | Path, model_file: str | Path) -> None:
    """Copy a checkpoint to where inference looks for it; an empty ``model_file`` copies nothing."""
    if model_file and is_primary():
        Path(model_file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, model_file)
        logger.info("best checkpoint %s published as %s", checkpoint, model_file)
