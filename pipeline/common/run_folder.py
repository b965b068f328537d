"""Where things lie in the folder of a run."""

from pathlib import Path

PREDICTIONS, METRICS, AUDIT, CONFUSION = "predictions.csv", "metrics.json", "audit.json", "confusion.png"
REPORT, CELLS, INTAKE = "report.html", "cells.csv", "intake.csv"
FEATURES, PROBE, DUPLICATES = "features.npz", "probe.json", "duplicates.csv"  # of an evaluation, on request
SETTINGS, HISTORY = "settings.json", "history.csv"  # of a training
RECORD = "mlflow_run.json"  # in an output_dir: the run of its training

EVALUATION_FILES = (PREDICTIONS, METRICS, AUDIT, CONFUSION)
# patterns of what is made of them later; with the files above, all that an evaluation leaves
REPORT_FILES = (REPORT, "report.md", "report_files/*.png")
REVIEW_FILES = (
    CELLS, INTAKE, "intake.json", *REPORT_FILES, "errors/errors.json", "errors/*.png", FEATURES, PROBE, DUPLICATES,
)  # fmt: skip


def best_checkpoint(output_dir: str | Path) -> Path:
    """The checkpoint of the best epoch of a training."""
    return Path(output_dir, "models", "best.pt")


def resume_point(output_dir: str | Path) -> Path:
    """Where an unfinished training keeps its state (:class:`~.ResumePoint`)."""
    return Path(output_dir, "models", "resume.pt")


def is_resumed(output_dir: str | Path, resume: bool) -> bool:
    """Whether a training continues an interrupted one in its folder."""
    return resume and resume_point(output_dir).is_file()


def is_complete(output_dir: str | Path) -> bool:
    """Whether a folder holds a training that came to its end."""
    return best_checkpoint(output_dir).is_file() and not resume_point(output_dir).exists()


def training_dir(checkpoint: str | Path | None, output_dir: Path) -> Path | None:
    """The output_dir of the training that a checkpoint is from; None when it lies in no folder ``models``.

    It is the evaluation's own ``output_dir`` when there is no checkpoint, or when the checkpoint is no longer where it
    was, as after a move of the whole folder.
    """
    if checkpoint and Path(checkpoint).parent.name != "models":
        return None
    return Path(checkpoint).parents[1] if checkpoint and Path(checkpoint).exists() else output_dir
