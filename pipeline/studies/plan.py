"""A study: a grid of systems, seeds and folds, each of them a run of the bundle; planned, run, resumed.

A study lies in a folder: ``study.json`` says what there is to run and how far it is, ``folds/`` holds the cohort of
each fold, ``runs/<id>/`` is the output_dir of a run. What is finished is found by its files, so whatever was killed
goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ..common.references import unread_by_objective
from ..common.text import did_you_mean
from ..data.cohort import Cohort, load_cohort
from ..data.folds import fold_tables, write_folds
from .record import STUDY_FILE, StudyError, read_json

Protocol = Literal["given", "nested", "final"]  # the last one only as the end of a study
COHORT_SETTINGS = ("class_names", "group_names", "group_by", "unknown_groups", "age_bands", "allow_empty_cells")
OWN_SETTINGS = ("bundle_root", "cohort", "output_dir", "seed", "resume", "overwrite", "parent_run", "run_name", "split")
# by protocol: the split that is reported, and in words which scans choose and which judge
PROTOCOLS = {
    "given": ("val", "the val split (epoch and configuration)", "the same val split"),
    "nested": ("test", "the val part of each fold (epoch and configuration)", "the test part of each fold"),
    "final": ("test", "the val split (epoch) and the study (configuration)", "the held-out test split"),
}


@dataclass(frozen=True)
class Study:
    """A study as it is written.

    Args:
        name: of the study.
        systems: what to train, in the order of the tables: each a mapping of ``system`` (an overlay in the bundle's
            configs/systems) and settings of train.yaml; a list of values is a row for each. ``label`` names the rows
            instead of system and settings.
        cohort: the cohort file.
        bundle_root: folder of the bundle.
        overlays: overlays on train.yaml for all systems, such as ``demo``; read before the system's.
        seeds: a run each.
        protocol: ``given`` trains on the cohort's train split and reports its val split, as the paper does; ``nested``
            makes folds of all scans but a test split's, of which one part chooses (val) and another one is reported
            (test); ``final`` reports the cohort's own test split, which neither of the others touches.
        folds: of ``nested``.
        repeats: of the folds, each time split otherwise.
        fold_seed: of the folds.
        settings: of train.yaml, for all runs.
        evaluation: settings of evaluate.yaml alone, such as ``resamples``, for all runs.
    """

    name: str
    systems: tuple[Mapping[str, Any], ...]
    cohort: str = "cohort.csv"
    bundle_root: str = "bundles/fair_lung_ct"
    overlays: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (42,)
    protocol: Protocol = "given"
    folds: int = 5
    repeats: int = 1
    fold_seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise StudyError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {self.protocol!r}")
        if not self.name or "/" in self.name:
            raise StudyError(f"name must be a word without /, got {self.name!r}")
        for what, kind in (("settings", Mapping), ("evaluation", Mapping), ("overlays", tuple), ("seeds", tuple)):
            if not isinstance(getattr(self, what), kind):
                raise StudyError(
                    f"{what} must be a {'mapping' if kind is Mapping else 'list'}, got {getattr(self, what)!r}"
                )
        if not all(isinstance(seed, int) for seed in self.seeds):
            raise StudyError(f"seeds must be whole numbers, got {', '.join(map(str, self.seeds))}")
        for what in ("systems", "seeds"):
            if not getattr(self, what):
                raise StudyError(f"{what} must hold one at least")
        if len(set(self.seeds)) < len(self.seeds):
            raise StudyError(f"seeds must differ, got {', '.join(map(str, self.seeds))}")
        if self.folds < 2 or self.repeats < 1:
            raise StudyError(f"folds must be at least 2 and repeats at least 1, got {self.folds} and {self.repeats}")


@dataclass(frozen=True)
class Planned:
    """One run of a study: what its run.json says.

    Args:
        id: folder name.
        label: its configuration, in words: a row of the tables.
        system: what the overlay calls it.
        alpha: None where the system has none.
        seed: of the training.
        fold: None without folds, as is ``repeat``.
        configs: config files of the bundle, in order, by name.
        configs_digest: of their content.
        cohort: the cohort file.
        cohort_digest: which scan has which label, group and split in it.
        bundle_root: folder of the bundle.
        settings: overrides.
        evaluate: splits.
        evaluation: overrides of their evaluations, beside ``settings``.
    """

    id: str
    label: str
    system: str
    alpha: float | None
    seed: int
    fold: int | None
    repeat: int | None
    configs: tuple[str, ...]
    configs_digest: str
    cohort: str
    cohort_digest: str
    bundle_root: str
    settings: Mapping[str, Any]
    evaluate: tuple[str, ...]
    evaluation: Mapping[str, Any]


def read_study(path: str | Path, **changes: Any) -> Study:
    """Read a study's YAML; ``changes`` replace its entries (None leaves them).

    Raises:
        StudyError: the file cannot be read, or holds an entry that is none.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no study: it holds no entries")
    content = {"name": Path(path).stem} | content | {k: v for k, v in changes.items() if v is not None}
    known = [f.name for f in fields(Study)]
    for name in content:
        if name not in known:
            raise StudyError(f"{path}: {name!r} is no entry of a study{did_you_mean(str(name), known)}")
    if content.get("protocol") == "final":
        raise StudyError(f"{path}: protocol must be given or nested; the held-out split is judged with --final")
    if "systems" not in content:
        raise StudyError(f"{path}: systems is missing")
    lists = {k: tuple(v) for k, v in content.items() if isinstance(v, list)}
    try:
        return Study(**content | lists)
    except TypeError as error:
        raise StudyError(f"{path}: {error}") from error


def plan(study: Study, folder: str | Path, only: str | None = None) -> list[Planned]:
    """Every run of a study, in the order in which they are run; writes the cohorts of its folds.

    Args:
        study: what to run.
        folder: of the study.
        only: a label; other configurations are left out.

    Raises:
        StudyError: an overlay or setting that does not exist, or two runs that are the same.
        CohortError: the cohort cannot be used.
    """
    root = Path(study.bundle_root)
    parts = _parts(study, Path(folder))
    found: list[Planned] = []
    configurations = list(_configurations(study, root))
    labels = list(dict.fromkeys(label for label, *_ in configurations))
    if only is not None:
        if only not in labels:
            raise StudyError(
                f"the study has no configuration {only!r}{did_you_mean(only, labels)}; it has {', '.join(labels)}"
            )
        configurations = [configuration for configuration in configurations if configuration[0] == only]
    # seed by seed: a study that is stopped early has all systems
    for (repeat, fold, path, digest), seed in product(parts, study.seeds):
        for label, system, alpha, names, settings in configurations:
            at = [label, f"seed {seed}", *([f"repeat {repeat} fold {fold}"] if fold is not None else [])]
            tags = {"study": study.name} | ({"fairlung.fold": fold, "repeat": repeat} if fold is not None else {})
            found.append(
                Planned(
                    _slug(" ".join(at)),
                    label,
                    system,
                    alpha,
                    seed,
                    fold,
                    repeat,
                    ("train", *names),
                    _digest(root, ("train", *names, "evaluate")),
                    path,
                    digest,
                    str(root.resolve()),
                    {"model_file": "", "keep_checkpoints": 1, **study.settings, **settings}
                    | {"seed": seed, "run_name": ", ".join(at)}
                    | {"tags": {**study.settings.get("tags", {}), **settings.get("tags", {}), **tags}},
                    (PROTOCOLS[study.protocol][0],),
                    {"run_name": f"evaluate {', '.join(at)}", **study.evaluation},
                )
            )
    ids = [planned.id for planned in found]
    twice = sorted({planned.label for planned in found if ids.count(planned.id) > 1})
    if twice:
        raise StudyError(f"the systems hold {twice[0]!r} twice; give one of them another label")
    return found


def final_study(study: Study, folder: Path, label: str) -> tuple[Study, Path]:
    """The last step of a study, and its folder: one configuration, judged on the cohort's held-out test split.

    Args:
        study: as it was run.
        folder: of the study.
        label: of the configuration.

    Raises:
        StudyError: a run of the study is not finished, so that what it shows could still change the choice, or the
            split was judged already by another configuration.
    """
    runs = read_json(folder / STUDY_FILE).get("runs", [])
    finished = {run["id"] for run in runs if run["status"] == "finished"}
    planned = [run.id for run in plan(study, folder)]
    unfinished = [run_id for run_id in planned if run_id not in finished]
    if unfinished:
        what = f"{len(unfinished)} of its {len(planned)} runs are not"
        raise StudyError(f"the held-out split is judged when the study in {folder} is finished: {what}")
    judged = {run["label"] for run in read_json(folder / "final" / STUDY_FILE).get("runs", [])}
    if judged - {label}:
        raise StudyError(
            f"the held-out split was judged by {judged.pop()}: another configuration would be a choice on it"
        )
    return replace(study, name=f"{study.name} final", protocol="final"), folder / "final"


def _parts(study: Study, folder: Path) -> list[tuple[int | None, int | None, str, str]]:
    """Repeat, fold, cohort file and its digest of every part that is trained on."""
    needed = ("train", "val", "test") if study.protocol != "given" else ("train", "val")
    settings = cohort_settings(study)
    if study.protocol != "nested":
        digest = load_cohort(study.cohort, require_splits=needed, **settings).digest
        return [(None, None, str(Path(study.cohort).resolve()), digest)]
    cohort = read_whole(study.cohort, settings)
    folds = fold_tables(cohort, study.folds, study.repeats, study.fold_seed)
    paths = write_folds(cohort, folds, folder / "folds")
    return [
        (fold.repeat, fold.fold, str(path.resolve()), load_cohort(path, require_splits=needed, **settings).digest)
        for fold, path in zip(folds, paths, strict=True)
    ]


def cohort_settings(study: Study) -> dict[str, Any]:
    """How a study's runs read a cohort file; StudyError when its systems differ in that."""
    root = Path(study.bundle_root)
    found: list[dict[str, Any]] = []
    for _, _, _, names, settings in _configurations(study, root):
        merged = {**_settings_of(root, names), **study.settings, **settings}
        found.append({name: merged[name] for name in COHORT_SETTINGS})
    if any(other != found[0] for other in found):
        raise StudyError(f"the systems of a study must have the same {', '.join(COHORT_SETTINGS)}")
    return found[0]


def read_whole(path: str | Path, settings: Mapping[str, Any]) -> Cohort:
    """A cohort file for a look at what there is, empty cells included; ``settings`` of :func:`cohort_settings`."""
    return load_cohort(path, **{**settings, "allow_empty_cells": True})


def _digest(root: Path, names: Sequence[str]) -> str:
    content = b"".join((root / "configs" / f"{name}.yaml").read_bytes() for name in names)
    return hashlib.sha256(content).hexdigest()


def _configurations(
    study: Study, root: Path
) -> Iterator[tuple[str, str, float | None, tuple[str, ...], dict[str, Any]]]:
    """Label, system, alpha, overlays and settings of each row of the tables."""
    for entry in study.systems:
        if not isinstance(entry, Mapping) or "system" not in entry:
            raise StudyError(f"systems: {entry!r} names no system")
        names = (*study.overlays, f"systems/{entry['system']}")
        known = _settings_of(root, names)
        of_evaluation = _settings_of(root, (*names, "evaluate"))
        grid = {k: v for k, v in entry.items() if k not in ("system", "label")}
        for name in (*grid, *study.settings):
            if name in OWN_SETTINGS:
                raise StudyError(f"{name} is the study's own to say, not a setting of {entry['system']}")
            if name.split("::")[0] not in known:
                also = "; it belongs under evaluation" if name in of_evaluation else did_you_mean(name, list(known))
                raise StudyError(f"{entry['system']}: {name!r} is no setting of its training{also}")
        for name in study.evaluation:
            if name in OWN_SETTINGS or name.split("::")[0] not in of_evaluation:
                raise StudyError(f"evaluation: {name!r} is no setting{did_you_mean(name, list(of_evaluation))}")
        listed = [v if isinstance(v, list) else [v] for v in grid.values()]
        for values in product(*listed):
            settings = dict(zip(grid, values, strict=True))
            named = "label" in entry  # then only what differs between its rows is added
            shown = [f"{k} {v}" for k, v in settings.items() if isinstance(grid[k], list) or not named]
            label = " ".join([str(entry.get("label") or settings.get("system", known["system"])), *shown])
            alpha = settings.get("alpha", {**known, **study.settings}.get("alpha"))
            alpha = float(alpha) if isinstance(alpha, (int, float)) else None
            yield label, str(settings.get("system", known["system"])), alpha, names, settings


def _settings_of(root: Path, names: Sequence[str]) -> dict[str, Any]:
    """The top-level entries of train.yaml under overlays."""
    merged: dict[str, Any] = {}
    for name in ("train", *names):
        path = root / "configs" / f"{name}.yaml"
        if not path.is_file():
            folder, there = path.parent, sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise StudyError(f"{folder} has no {path.name}{did_you_mean(path.stem, there)}; it has {', '.join(there)}")
        merged |= yaml.safe_load(path.read_text())
    return merged | dict.fromkeys(unread_by_objective(merged))


def _slug(text: str) -> str:
    """A folder name; what is no letter, digit or one of ``-+._`` is written as its code, a space as ``_``."""
    return "".join(c if c.isalnum() or c in "-+._" else "_" if c == " " else f"%{ord(c):x}" for c in text)
