"""Repeated, nested splits of a cohort, stratified k-fold or site by site, with every patient on one side only.

The outer fold, or the site that is left out, judges (``test``). Of the rest, one inner part chooses epoch and settings
(``val``) and the others train (``train``): what chooses has not seen what judges. Where patients are too few for that,
:func:`patient_folds` chooses nothing. A cohort's own ``test`` split is held out of all of it.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from fairlung.transforms.addresses import located
from fairlung.transforms.checks import check_whole

from ..common.errors import UserError
from ..common.names import JOIN, SITE, UNKNOWN
from ..common.text import quoted, spelling_key
from .cohort import Cohort
from .cohort_checks import SPLITS
from .cohort_folders import write_cohort
from .groups import AGE, AGE_BAND, doubtful_values, group_values, joined, natural_order

Ints = NDArray[np.int64]
Parts = list[tuple[Ints, Ints]]  # for each part the rows outside and inside it
HELD_OUT = "test"  # the split of a cohort that no fold has


class FoldsError(UserError, ValueError):
    """The cohort cannot be split as asked; the message says why."""


class Fold(NamedTuple):
    """A split of a cohort; its table has what a training needs, patients as numbers: ids stay in the cohort."""

    repeat: int
    fold: int  # within the repeat; the outer fold that is test
    table: pd.DataFrame  # the cohort's rows but those held out, in its order
    warnings: tuple[str, ...]  # cells of the cohort that have no scan in a part of this fold


def fold_tables(
    cohort: Cohort, folds: int = 5, repeats: int = 1, seed: int = 0, inner_folds: int | None = None
) -> list[Fold]:
    """Split a cohort ``repeats`` times into ``folds``, each with its own validation part; listed repeat by repeat.

    Strata are class and group, an unknown group being one of its own. Where each patient has one scan, the folds of a
    repeat differ by at most one scan in every cell; else cells are as even as
    :class:`sklearn.model_selection.StratifiedGroupKFold` makes them. Each scan that is not held out is in ``test``
    exactly once a repeat. The same seed gives the same folds, in whatever order the rows stand.

    The rest of an outer fold is split into ``inner_folds`` parts, and the one with the fewest cells empty in it or in
    the others is ``val``. None: ``folds - 1``, at least 2; then val is as large as test, and with three folds and more
    a cell of at least ``folds`` scans is in all three parts. FoldsError when scans or patients are too few, or a class
    would not be in a train part.
    """
    inner_folds = _checked(folds, repeats, seed, inner_folds)

    def outer(_: pd.DataFrame, stratum: Ints, patient: Ints, repeat: int) -> Parts:
        return _split(stratum, patient, folds, (seed, repeat))

    def least(label: str, table: pd.DataFrame) -> str:
        patients = len(set(_patients(table)[(table["label"] == label).to_numpy()]))
        count = _plural(patients, "patient or single scan", "patients or single scans")
        return f"take fewer folds than the {count} it has"

    places = [f"fold {fold}" for fold in range(folds)]
    return _nested(cohort, outer, places, least, repeats, seed, inner_folds)


def site_folds(cohort: Cohort, repeats: int = 1, seed: int = 0, inner_folds: int = 5) -> list[Fold]:
    """A fold for each of :func:`site_names`, in which its scans are ``test``; listed repeat by repeat.

    The scans of the other sites are split into ``inner_folds`` parts, stratified by site too, one of which is ``val``,
    as :func:`fold_tables` does it; repeats differ in this alone. FoldsError as of :func:`site_names`, and where a class
    would not be in a train part, as of a class that one site alone has.
    """
    inner_folds = _checked(2, repeats, seed, inner_folds)
    sites = site_names(cohort)

    def outer(table: pd.DataFrame, *_: Any) -> Parts:
        inside = [(group_values(table, [SITE])[SITE] == site).to_numpy() for site in sites]
        return [(np.flatnonzero(~part), np.flatnonzero(part)) for part in inside]

    places = [f"without site {quoted(site)}" for site in sites]
    return _nested(cohort, outer, places, lambda *_: "no other site has one", repeats, seed, inner_folds, True)


def patient_folds(cohort: Cohort, folds: int, repeats: int = 1, seed: int = 0) -> list[Fold]:
    """``folds`` parts, no patient in two, each in turn ``val`` while all others train; listed repeat by repeat.

    As many folds as patients leave out one patient each (a scan without an id is its own patient); fewer are stratified
    as those of :func:`fold_tables`. No part is left to choose on, so ``val`` must not choose an epoch. FoldsError
    for more folds than patients, as of :func:`fold_tables`, and where a class would not be in a train part, as of a
    class of one patient.
    """
    _checked(folds, repeats, seed, None)
    units = len(set(_patients(_table(cohort))))
    if folds > units:
        raise FoldsError(f"{_plural(units, 'patient')} are too few for {folds} folds: take {units}, one patient each")

    def outer(_: pd.DataFrame, stratum: Ints, patient: Ints, repeat: int) -> Parts:
        if folds == units:
            return [(np.flatnonzero(patient != one), np.flatnonzero(patient == one)) for one in range(units)]
        return _split(stratum, patient, folds, (seed, repeat))

    places = [f"fold {fold}" for fold in range(folds)]
    return _nested(cohort, outer, places, lambda *_: "a class needs patients in two folds", repeats, seed, None)


def site_names(cohort: Cohort) -> tuple[str, ...]:
    """The sites that can be left out one by one, in natural order: those with a scan that is not held out.

    FoldsError: no column ``site``, scans without one, one site only, a name that is spelt in two ways, or a patient
    with scans of two sites, whom a model that is to judge one would know from the other.
    """
    if SITE not in cohort.table:
        raise FoldsError(f"leaving a site out needs the column {SITE!r}, which says where a scan was made")
    table = _table(cohort)
    of_scan = group_values(table, [SITE])[SITE]
    if without := table["scan"][of_scan == ""].tolist():
        which = quoted(without[0]) + (f" and {len(without) - 1} more" if len(without) > 1 else "")
        raise FoldsError(f"no site is given of {which}: a model that is to judge their site could have seen them")
    if faults := [text for _, text, _ in doubtful_values(of_scan)]:
        raise FoldsError(faults[0])
    sites = sorted(set(of_scan), key=natural_order)
    if len(sites) < 2:
        raise FoldsError(f"all scans are of one site, {quoted(sites[0])}: none is left to train on without it")
    several = of_scan.groupby(_patients(table)).unique()
    if len(several := several[several.map(len) > 1]):
        both = " and ".join(map(quoted, sorted(several.iloc[0])))
        raise FoldsError(f"{_plural(len(several), 'patient')} with scans of several sites, such as {both}")
    return tuple(sites)


def site_warnings(cohort: Cohort) -> list[str]:
    """A text for each site of which less can be said than of the others, or nothing."""
    texts, table = [], _table(cohort)
    of_scan = group_values(table, [SITE])[SITE]
    others = [column for column in cohort.group_by if column != SITE]
    group = joined(group_values(table, others)) if others else pd.Series("", index=table.index)
    for site in site_names(cohort):
        seen = {name: set(table["label"][(of_scan == site) & (group == name)]) for name in sorted(set(group) - {""})}
        labels = set(table["label"][of_scan == site])
        none = "its scans count over all sites, but there is no P of it alone"
        if absent := [label for label in cohort.class_names if label not in labels]:
            here = f"scans of one class only, {labels.pop()}" if len(labels) == 1 else f"no {', '.join(absent)}"
            texts.append(f"site {site} has {here}: {none}")
        elif few := [name for name, found in seen.items() if len(found) < len(cohort.class_names)]:
            texts.append(f"site {site} lacks a class of {', '.join(few)}: {none}")
    held = set(group_values(cohort.table, [SITE])[SITE]) - {"", *of_scan}
    what = f"all its scans are in the split {HELD_OUT!r}, so that it neither trains nor judges"
    return texts + [f"site {site}: {what}" for site in sorted(held, key=natural_order)]


def _nested(
    cohort: Cohort, outer: Callable[[pd.DataFrame, Ints, Ints, int], Parts], places: Sequence[str],
    lacking: Callable[[str, pd.DataFrame], str], repeats: int, seed: int, inner_folds: int | None,
    by_site: bool = False,
) -> list[Fold]:  # fmt: skip
    """The folds of an outer split; ``lacking`` says why a class cannot be trained on.

    Each has a validation part of the rest, or without ``inner_folds`` the outer part in its place.
    """
    table = _table(cohort)
    # in the order of the paths: sklearn's folds depend on the order of rows
    paths = [os.path.normpath(located(cohort.root, scan)) for scan in table["scan"]]
    order = np.array(sorted(range(len(table)), key=paths.__getitem__))
    cells = _cells(cohort, table)
    strata = cells + JOIN + group_values(table, [SITE])[SITE] if by_site else cells
    stratum = pd.factorize(strata.iloc[order])[0]
    patient = _patients(table.iloc[order])
    if "patient" in table:
        known = (table["patient"] != "").to_numpy()
        codes = np.empty(len(table), dtype=object)
        codes[order] = patient.astype(str)
        table["patient"] = np.where(known, codes, "")
    # the columns that a training needs: any other may name patients
    groups = [AGE if column == AGE_BAND else column for column in cohort.group_by]
    needed = ("scan", "label", "split", "patient", SITE, "synthetic", *groups)
    kept = table[[name for name in table if name in needed]]
    result = []
    for repeat in range(repeats):
        for fold, (rest, test) in enumerate(outer(table.iloc[order], stratum, patient, repeat)):
            split = np.full(len(table), "train", dtype=object)
            split[order[test]] = "val" if inner_folds is None else "test"
            if inner_folds is not None:
                inner = _validation(stratum[rest], patient[rest], inner_folds, (seed, repeat, fold + 1))
                split[order[rest[inner]]] = "val"
            place = f"repeat {repeat}, {places[fold]}"
            for label in cohort.class_names:
                if label not in set(table["label"][split == "train"]):
                    raise FoldsError(f"{place}: no {label} scan is left to train on; {lacking(label, table)}")
            parts = SPLITS if inner_folds is not None else ("train", "val")
            empty = [(cell, part) for part in parts for cell in sorted(set(cells) - set(cells[split == part]))]
            missing = tuple(f"{place}: no {cell} scan in {part}" for cell, part in empty)
            result.append(Fold(repeat, fold, kept.assign(split=split), missing))
    return result


def fold_warnings(cohort: Cohort, folds: int = 5, inner_folds: int | None = None) -> list[str]:
    """A text for each cell that is too small for so many folds, before any is made.

    A cell of n patients (scans, where patients are unknown) is in the test part of at most n folds of a repeat, and a
    fold that tests it needs two more of them for validation and training.
    """
    inner_folds = _checked(folds, 1, 0, inner_folds)
    table = _table(cohort)
    cells, patient = _cells(cohort, table), _patients(table)
    texts = []
    for label in cohort.class_names:
        for group in (*cohort.group_names, UNKNOWN):
            inside = (cells == f"{group} {label}").to_numpy()
            scans, units = int(inside.sum()), len(set(patient[inside]))
            if not scans:
                texts += [f"{group} {label}: no scan at all; nothing can be said of it"] if group != UNKNOWN else []
                continue
            has = f"{group} {label}: {_plural(scans, 'scan')}"
            has += f" of {_plural(units, 'patient')}" if units < scans else ""
            left = units - -(-units // folds)  # of the fold that tests the most of them
            if units < folds:
                none = folds - units
                texts.append(f"{has} for {folds} folds: {none if units > 1 else 'all but one'} test none of it")
            if left < 2:
                both = "or" if left else "and"
                texts.append(f"{has}: a fold that tests it lacks it in validation {both} in training")
            elif left < inner_folds:
                texts.append(f"{has} for {inner_folds} inner parts: validation may hold none of it")
    return texts


def patient_warnings(cohort: Cohort) -> list[str]:
    """A text where a class of a group is of one patient, as a model that is to judge them has then seen none, or none.

    Patients without an id are counted by scan.
    """
    table = _table(cohort)
    patients = pd.Series(_patients(table)).groupby(_cells(cohort, table)).nunique()
    if single := [cell for cell, count in patients.items() if count == 1]:
        which = ", ".join(map(str, single))
        return [f"one patient only, so that the models that judge this patient have seen no other: {which}"]
    return []


def write_folds(cohort: Cohort, folds: Sequence[Fold], folder: str | os.PathLike[str]) -> list[Path]:
    """Write each fold as a cohort file ``repeat<R>_fold<F>.csv``, with the scans relative to ``folder``."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, f"repeat{fold.repeat}_fold{fold.fold}.csv") for fold in folds]
    return [write_cohort(fold.table, path, root=cohort.root) for fold, path in zip(folds, paths, strict=True)]


def _checked(folds: int, repeats: int, seed: int, inner_folds: int | None) -> int:
    """The number of inner folds, after a check of all settings."""
    check_whole("folds", folds, least=2)
    inner_folds = max(2, folds - 1) if inner_folds is None else inner_folds
    for name, value, least in (("repeats", repeats, 1), ("seed", seed, 0), ("inner_folds", inner_folds, 2)):
        check_whole(name, value, least=least)
    return inner_folds


def _table(cohort: Cohort) -> pd.DataFrame:
    table = cohort.table[cohort.table["split"] != HELD_OUT] if "split" in cohort.table else cohort.table
    if table.empty:
        raise FoldsError(f"every scan is in the split {HELD_OUT!r}, which is held out: nothing is left to split")
    return table.reset_index(drop=True)


def _cells(cohort: Cohort, table: pd.DataFrame) -> pd.Series:
    return joined(group_values(table, cohort.group_by)).replace("", UNKNOWN) + " " + table["label"]


def _patients(table: pd.DataFrame) -> Ints:
    """A number for each scan's patient; a scan without an id is its own patient."""
    ids = table["patient"] if "patient" in table else [""] * len(table)
    keys = [("patient", spelling_key(name)) if name else ("scan", str(i)) for i, name in enumerate(ids)]
    return pd.factorize(pd.Index(keys, tupleize_cols=False))[0]


def _split(stratum: Ints, patient: Ints, parts: int, seed: tuple[int, ...]) -> Parts:
    """Stratified parts, no patient in two: for each part the rows outside and inside it."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    units = len(set(patient))
    grouped = units < len(patient)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(parts, shuffle=True, random_state=state)
    what = "patients" if grouped else "scans"
    largest = max(Counter(stratum).values())
    if units < parts or largest < parts:
        raise FoldsError(f"{units} {what}, at most {largest} scans in a class and group, are too few for {parts} parts")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class in y")  # fold_warnings names the cells
        found = list(splitter.split(np.zeros(len(stratum)), stratum, patient if grouped else None))
    if any(len(inside) == 0 for _, inside in found):
        raise FoldsError(f"{units} {what} do not fill {parts} parts: some patients have too many of the scans")
    return found


def _validation(stratum: Ints, patient: Ints, parts: int, seed: tuple[int, ...]) -> Ints:
    """The inner part that leaves the fewest strata empty, in itself or in the others; the first of equals."""
    found = _split(stratum, patient, parts, seed)
    return max(found, key=lambda part: len(set(stratum[part[0]])) + len(set(stratum[part[1]])))[1]


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
