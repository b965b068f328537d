"""The records of a study: ``study.json`` says what there is to run and how far it is, ``run.json`` what one run is."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ..common.errors import UserError

STUDY_FILE = "study.json"
ALPHA = re.compile(r"[\s,;(]*\b(?:alpha|\u03b1)\s*=?\s*\d*\.?\d+\)?", re.IGNORECASE)  # as a label names it

Protocol = Literal[
    "given", "nested", "cross_validation", "leave_site_out", "final"
]  # final is the last step of a study
Status = Literal["finished", "failed", "pending", "running"]
Record = TypeVar("Record")


class StudyError(UserError, ValueError):
    """A study that cannot be run as it is written, cannot be read, or has nothing to show yet; says where and why."""


@dataclass(frozen=True)
class Place:
    id: str  # in the study, and name of its folder
    system: str  # the way of training without alpha and seed
    label: str  # what the configuration is called in tables
    alpha: float | None  # of CVaR; None where there is none
    seed: int
    fold: int | None  # which fold judged, or the index of the site that was left out; None without folds
    repeat: int | None  # of the repeated k-fold; None without

    @property
    def family(self) -> tuple[str, str]:
        """The same for runs that differ in alpha only."""
        return self.system, ALPHA.sub("", self.label).strip() or self.system


@dataclass(frozen=True)
class PlannedRun(Place):
    """One run as it is to be carried out: run.json."""

    configs: tuple[str, ...]  # config files of the bundle, in order, by name
    configs_digest: str  # of their content
    cohort: str
    cohort_digest: str  # which scan has which label, group and split in it
    bundle_root: str
    settings: Mapping[str, Any]  # overrides of train.yaml
    evaluate: tuple[str, ...]  # splits
    evaluation: Mapping[str, Any]  # overrides of evaluate.yaml, beside settings
    parent_run: str | None = None  # the study's run in MLflow
    tracking_uri: str | None = None  # the store that holds it; None leaves the choice to settings and MLflow


@dataclass(frozen=True)
class StudyRun(Place):
    status: Status
    output_dir: Path  # in the study's folder
    device: str | None = None  # what it ran on; None when nobody said
    reason: str = ""  # why it failed


@dataclass(frozen=True)
class Study:
    """What study.json says; StudyError without a run, and for two equal runs, which would be taken for two seeds."""

    name: str
    protocol: Protocol
    reported_split: str  # whose evaluations are reported; val is the split that chose, if any did
    chosen_on: str  # which scans chose epoch and alpha, in words
    judged_on: str  # which scans judged, in words
    runs: tuple[StudyRun, ...]  # all that were planned
    synthetic: bool = False
    folds: int = 0  # 0 or 1 without
    repeats: int = 1
    sites: tuple[str, ...] = ()  # of leave_site_out: the site that each fold left out, by the fold's index
    warnings: tuple[str, ...] = ()  # what a reader must know first
    parent_run: str | None = None  # the study's run in MLflow
    quoted: Mapping[str, Mapping[str, float]] | None = None  # numbers of others by label; None takes the paper's
    folder: Path = Path()  # not in study.json

    def __post_init__(self) -> None:
        if not self.runs:
            raise StudyError("no run in it")
        run_id, times = Counter(run.id for run in self.runs).most_common(1)[0]
        if times > 1:
            raise StudyError(f"run {run_id!r} is there twice")
        seen: dict[Any, str] = {}
        for run in self.runs:
            key = run.label, run.seed, run.repeat, run.fold, run.device
            if seen.setdefault(key, run.id) != run.id:
                what = f"{run.label}, seed {run.seed}, fold {run.fold}, repeat {run.repeat}, device {run.device}"
                raise StudyError(f"the runs {seen[key]!r} and {run.id!r} are the same: {what}")

    @property
    def optimistic(self) -> bool:
        """Whether the scans that are reported have chosen the epoch, and alpha."""
        return self.reported_split == "val" and not self.fixed_epoch

    @property
    def fixed_epoch(self) -> bool:
        """Whether no scans choose: the epoch is the last one."""
        return self.protocol == "cross_validation"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.label for run in self.runs))

    def counts(self) -> dict[Status, int]:
        statuses = Counter(run.status for run in self.runs)
        return {status: statuses[status] for status in get_args(Status)}

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        del content["folder"]
        runs = [run | {"output_dir": str(run["output_dir"])} for run in content["runs"]]
        return {
            name: value
            for name, value in (content | {"runs": runs}).items()
            if (name, value) not in (("quoted", None), ("sites", ()))
        }


def load_study(folder: str | Path) -> Study:
    """Read and check ``study.json`` of a study's folder; the output_dirs of its runs are then paths to their folders.

    StudyError: it is missing or damaged, or a value in it is of the wrong kind.
    """
    path = Path(folder) / STUDY_FILE
    if not path.is_file():
        raise StudyError(f"{folder} is no study: it has no {STUDY_FILE}")
    study = read_record(Study, path)
    runs = tuple(replace(run, output_dir=path.parent / run.output_dir) for run in study.runs)
    return replace(study, runs=runs, folder=path.parent)


def read_record(kind: type[Record], path: Path) -> Record:
    """A dataclass from a JSON file; StudyError when it cannot be read, or a value is missing or of the wrong kind."""
    try:
        return parse_record(kind, path.read_bytes(), str(path))
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error}") from error


def parse_record(kind: type[Record], content: str | bytes, where: str) -> Record:
    """A dataclass from JSON of which ``where`` says what it is; see :func:`read_record`."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), StudyError):
            raise StudyError(f"{where}: {cause}") from None
        if first["type"] == "json_invalid":
            raise StudyError(f"{where} cannot be read: {first['msg']}") from error
        name = ".".join(map(str, first["loc"]))
        said = first["msg"].replace("Input should be", "must be")
        what = "is missing" if first["type"] == "missing" else f"{said}, got {first['input']!r}"
        raise StudyError(f"{where}: {name} {what}") from error


def status_text(study: Study) -> str:
    """Such as ``12 of 15 runs finished, 1 failed, 2 pending``."""
    finished, *others = study.counts().items()
    said = [f"{count} {status}" for status, count in others if count]
    return ", ".join([f"{finished[1]} of {len(study.runs)} runs finished", *said])
