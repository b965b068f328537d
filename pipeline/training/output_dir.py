"""The output folder of a training: refused, emptied, its best checkpoint published."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..common.distributed import barrier, is_primary
from ..common.run_folder import EVALUATION_FILES, REVIEW_FILES, best_checkpoint, is_resumed, resume_point
from ..data.cohort_checks import SPLITS
from ..networks.checkpoint import CheckpointError

logger = logging.getLogger(__name__)


def require_new(output_dir: str | Path, overwrite: bool, resume: bool = False) -> None:
    """CheckpointError when a folder already holds a training, unless it may be overwritten or is to be resumed."""
    if overwrite and resume:
        raise CheckpointError("--overwrite and --resume exclude each other")
    interrupted = resume_point(output_dir).is_file()
    if overwrite or (resume and interrupted) or not (interrupted or best_checkpoint(output_dir).exists()):
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
            best_checkpoint(output_dir),
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
