"""The plan of a study: a grid of systems, seeds and folds, each of them a run of the bundle.

In the folder of a study, ``study.json`` says what there is to run and how far it is, ``folds/`` holds the cohort of
each fold, and ``runs/<id>/`` is the output_dir of a run. Files say what is finished, so a killed study goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ..common.bundle import STUDIES, bundle_folder, merged
from ..common.references import unread_by_objective
from ..common.text import did_you_mean, without_login
from ..data.cohort import Cohort, load_cohort
from ..data.folds import fold_tables, patient_folds, site_folds, write_folds
from .record import STUDY_FILE, PlannedRun, Protocol, StudyError, load_study, parse_record

COHORT_SETTINGS = (
    "class_names",
    "group_names",
    "group_by",
    "unknown_groups",
    "age_bands",
    "allow_empty_cells",
    "columns",
)
OWN_SETTINGS = ("bundle_root", "cohort", "output_dir", "seed", "resume", "overwrite", "parent_run", "run_name", "split")
# For each protocol: the split that is reported, and in words which scans choose and which scans judge.
PROTOCOLS: Mapping[Protocol, tuple[str, str, str]] = {
    "given": ("val", "the val split (epoch and configuration)", "the same val split"),
    "nested": ("test", "the val part of each fold (epoch and configuration)", "the test part of each fold"),
    "cross_validation": ("val", "no scans: the epoch is the last one", "the part of each fold that did not train"),
    "leave_site_out": ("test", "a val part of the other sites (epoch and configuration)", "the site that was left out"),
    "final": ("test", "the val split (epoch) and the study (configuration)", "the held-out test split"),
}
Part = tuple[int | None, int | None, str, str]  # repeat, fold, cohort file and its digest: what a run trains on


@dataclass(frozen=True)
class StudyPlan:
    """A study as its YAML says it; StudyError when a value is out of range."""

    name: str
    # In the order of the tables: ``system`` (an overlay in configs/systems) and settings of train.yaml, where a list of
    # values is a row for each; ``label`` names the rows instead of system and settings.
    systems: tuple[Mapping[str, Any], ...]
    cohort: str = "cohort.csv"
    bundle_root: str | None = None  # of a bundle; None is the one that came with fairlung
    overlays: tuple[str, ...] = ()  # on train.yaml for all systems, such as demo; read before the system's
    seeds: tuple[int, ...] = (42,)  # a run each
    # given: trains on train, reports val, as the paper does. nested: folds of all scans but a test split's; one part
    # chooses (val), another is reported (test). cross_validation: as many folds as patients at most, each reported by
    # models of the others after their last epoch; nothing chooses, for cohorts that are too small for nested.
    # leave_site_out: a fold a site, whose scans are reported (test); a part of the other sites' scans chooses (val).
    # final: the cohort's own test split, which the others never touch.
    protocol: Protocol = "given"
    folds: int = (
        5  # of nested and cross_validation; of leave_site_out the parts of the other sites, one of which is val
    )
    repeats: int = 1  # of the folds, each time split otherwise
    fold_seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # of train.yaml, for all runs
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # of evaluate.yaml alone, such as resamples

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise StudyError(f"name must be a word without /, got {self.name!r}")
        if not (self.systems and self.seeds):
            raise StudyError(f"{'seeds' if self.systems else 'systems'} must hold one at least")
        if len(set(self.seeds)) < len(self.seeds):
            raise StudyError(f"seeds must differ, got {', '.join(map(str, self.seeds))}")
        if self.folds < 2 or self.repeats < 1:
            raise StudyError(f"folds must be at least 2 and repeats at least 1, got {self.folds} and {self.repeats}")
        written = json.dumps([self.settings, self.systems, self.evaluation], default=str)
        if without_login(written) != written:
            way = "give it in the environment, as MLFLOW_TRACKING_URI, and leave tracking_uri out"
            raise StudyError(f"a setting holds an address with a login, which every run's file would show: {way}")


@dataclass(frozen=True)
class Configuration:
    """A row of the tables: what its runs have in common."""

    label: str
    system: str
    alpha: float | None  # of CVaR; None where the system has none
    overlays: tuple[str, ...]
    settings: Mapping[str, Any]  # of train.yaml, its own


def read_study(path: str | Path, **changes: Any) -> StudyPlan:
    """Read a study's YAML, or one that came with fairlung by its name; ``changes`` replace entries (None leaves them).

    StudyError: the file cannot be read, or holds an unknown entry.
    """
    if not Path(path).exists() and (STUDIES / f"{path}.yaml").is_file():
        path = STUDIES / f"{path}.yaml"
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no study: it holds no entries")
    content = {"name": Path(path).stem} | content | {k: v for k, v in changes.items() if v is not None}
    known = [f.name for f in fields(StudyPlan)]
    if name := next((name for name in content if name not in known), None):
        raise StudyError(f"{path}: {name!r} is no entry of a study{did_you_mean(str(name), known)}")
    if content.get("protocol") == "final":
        raise StudyError(
            f"{path}: protocol must be given, nested, cross_validation or leave_site_out; the held-out split is judged "
            "with --final"
        )
    return parse_record(StudyPlan, json.dumps(content, default=str), str(path))


def plan(study: StudyPlan, folder: str | Path, only: str | None = None) -> list[PlannedRun]:
    """Every run of a study, or ``only`` of one label, in the order of running; writes the cohorts of its folds.

    Raises:
        StudyError: an overlay or setting that does not exist, or two runs that are the same.
        CohortError: the cohort cannot be used.
    """
    root = bundle_folder(study.bundle_root)
    parts = _parts(study, Path(folder))
    configurations = list(_configurations(study, root))
    labels = list(dict.fromkeys(configuration.label for configuration in configurations))
    if only is not None and only not in labels:
        hint = did_you_mean(only, labels)
        raise StudyError(f"the study has no configuration {only!r}{hint}; it has {', '.join(labels)}")
    # Seed by seed: a study that is stopped early then has runs of all systems.
    wanted = [row for row in configurations if only in (None, row.label)]
    found = [_planned_run(study, root, row, seed, part) for part, seed, row in product(parts, study.seeds, wanted)]
    ids = [planned.id for planned in found]
    if twice := sorted({planned.label for planned in found if ids.count(planned.id) > 1}):
        raise StudyError(f"the systems hold {twice[0]!r} twice; give one of them another label")
    return found


def _planned_run(study: StudyPlan, root: Path, row: Configuration, seed: int, part: Part) -> PlannedRun:
    repeat, fold, cohort, cohort_digest = part
    at = [row.label, f"seed {seed}", *([f"repeat {repeat} fold {fold}"] if fold is not None else [])]
    tags = {**study.settings.get("tags", {}), **row.settings.get("tags", {}), "study": study.name}
    tags |= {"fairlung.fold": fold, "repeat": repeat} if fold is not None else {}
    settings = {"model_file": "", "keep_checkpoints": 1, **study.settings, **row.settings, "seed": seed}
    if fold is not None:
        settings.pop("columns", None)
    if study.protocol == "cross_validation":
        settings["val_interval"] = "@epochs"  # the first validation is of the last epoch, which is then the best
    configs = ("train", *row.overlays)
    read = b"".join((root / "configs" / f"{name}.yaml").read_bytes() for name in (*configs, "evaluate"))
    return PlannedRun(
        id=_slug(" ".join(at)), system=row.system, label=row.label, alpha=row.alpha, seed=seed, fold=fold,
        repeat=repeat, configs=configs, configs_digest=hashlib.sha256(read).hexdigest(), cohort=cohort,
        cohort_digest=cohort_digest, bundle_root=str(root.resolve()),
        settings=settings | {"run_name": ", ".join(at), "tags": tags}, evaluate=(PROTOCOLS[study.protocol][0],),
        evaluation={"run_name": f"evaluate {', '.join(at)}", **study.evaluation},
    )  # fmt: skip


def final_study(study: StudyPlan, folder: Path, label: str) -> tuple[StudyPlan, Path]:
    """The last step of a study and its folder: one configuration, judged on the held-out test split.

    StudyError: a run is not finished, so that the choice could still change, or the split judged another configuration.
    """
    runs = load_study(folder).runs if (folder / STUDY_FILE).is_file() else ()
    finished = {run.id for run in runs if run.status == "finished"}
    planned = [run.id for run in plan(study, folder)]
    if unfinished := [run_id for run_id in planned if run_id not in finished]:
        what = f"{len(unfinished)} of its {len(planned)} runs are not"
        raise StudyError(f"the held-out split is judged when the study in {folder} is finished: {what}")
    last = folder / "final"
    judged = set(load_study(last).labels if (last / STUDY_FILE).is_file() else ()) - {label}
    if judged:
        said = "another configuration would be a choice on it"
        raise StudyError(f"the held-out split was judged by {judged.pop()}: {said}")
    return replace(study, name=f"{study.name} final", protocol="final"), last


def _parts(study: StudyPlan, folder: Path) -> list[Part]:
    needed = ("train", "val") if study.protocol in ("given", "cross_validation") else ("train", "val", "test")
    settings = cohort_settings(study)
    if study.protocol in ("given", "final"):
        digest = load_cohort(study.cohort, require_splits=needed, **settings).digest
        return [(None, None, str(Path(study.cohort).resolve()), digest)]
    cohort = read_whole(study.cohort, settings)
    if study.protocol == "nested":
        folds = fold_tables(cohort, study.folds, study.repeats, study.fold_seed)
    elif study.protocol == "cross_validation":
        folds = patient_folds(cohort, study.folds, study.repeats, study.fold_seed)
    else:
        folds = site_folds(cohort, study.repeats, study.fold_seed, inner_folds=study.folds)
    paths = [path.resolve() for path in write_folds(cohort, folds, folder / "folds")]
    settings = {**settings, "columns": ""}  # the folds' files call them as a cohort file does
    digests = [load_cohort(path, require_splits=needed, **settings).digest for path in paths]
    return [(f.repeat, f.fold, str(p), digest) for f, p, digest in zip(folds, paths, digests, strict=True)]


def cohort_settings(study: StudyPlan) -> dict[str, Any]:
    """The settings with which all runs read the cohort file; StudyError when the systems differ in them."""
    root = bundle_folder(study.bundle_root)
    rows = list(_configurations(study, root))
    settings = [{**_settings_of(root, row.overlays), **study.settings, **row.settings} for row in rows]
    found = [{name: row[name] for name in COHORT_SETTINGS} for row in settings]
    if any(other != found[0] for other in found):
        raise StudyError(f"the systems of a study must have the same {', '.join(COHORT_SETTINGS)}")
    return found[0]


def read_whole(path: str | Path, settings: Mapping[str, Any]) -> Cohort:
    """Read a cohort file that may have empty cells; ``settings`` are those of :func:`cohort_settings`."""
    return load_cohort(path, **{**settings, "allow_empty_cells": True})


def _configurations(study: StudyPlan, root: Path) -> Iterator[Configuration]:
    for entry in study.systems:
        if "system" not in entry:
            raise StudyError(f"systems: {entry!r} names no system")
        overlays = (*study.overlays, f"systems/{entry['system']}")
        known = _settings_of(root, overlays)
        grid = {k: v for k, v in entry.items() if k not in ("system", "label")}
        _check_settings(study, entry["system"], grid, known, _settings_of(root, (*overlays, "evaluate")))
        for values in product(*(v if isinstance(v, list) else [v] for v in grid.values())):
            settings = dict(zip(grid, values, strict=True))
            system = str(settings.get("system", known["system"]))
            named = "label" in entry  # a label needs only the settings that differ between its rows
            shown = [f"{k} {v}" for k, v in settings.items() if isinstance(grid[k], list) or not named]
            alpha = settings.get("alpha", {**known, **study.settings}.get("alpha"))
            label = " ".join([str(entry.get("label") or system), *shown])
            alpha = float(alpha) if isinstance(alpha, (int, float)) else None
            yield Configuration(label, system, alpha, overlays, settings)


def _check_settings(
    study: StudyPlan, system: str, grid: Mapping[str, Any], known: Mapping[str, Any], of_evaluation: Mapping[str, Any]
) -> None:
    """StudyError for a setting that a training or an evaluation of the system does not have."""
    for name in (*grid, *study.settings):
        if name in OWN_SETTINGS or (name == "val_interval" and study.protocol == "cross_validation"):
            raise StudyError(f"{name} is the study's own to say, not a setting of {system}")
        if name.split("::")[0] not in known:
            also = "; it belongs under evaluation" if name in of_evaluation else did_you_mean(name, list(known))
            raise StudyError(f"{system}: {name!r} is no setting of its training{also}")
    for name in study.evaluation:
        if name in OWN_SETTINGS or name.split("::")[0] not in of_evaluation:
            raise StudyError(f"evaluation: {name!r} is no setting{did_you_mean(name, list(of_evaluation))}")


def _settings_of(root: Path, names: Sequence[str]) -> dict[str, Any]:
    """The top-level entries of train.yaml under overlays."""
    paths = [root / "configs" / f"{name}.yaml" for name in ("train", *names)]
    for path in paths:
        if not path.is_file():
            folder, there = path.parent, sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise StudyError(f"{folder} has no {path.name}{did_you_mean(path.stem, there)}; it has {', '.join(there)}")
    entries = merged(paths)
    return entries | dict.fromkeys(unread_by_objective(entries))


def _slug(text: str) -> str:
    """A folder name; what is no letter, digit or one of ``-+._`` is written as its code, a space as ``_``."""
    return "".join(c if c.isalnum() or c in "-+._" else "_" if c == " " else f"%{ord(c):x}" for c in text)
