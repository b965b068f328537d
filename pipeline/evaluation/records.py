"""What an audit found, as records. JSON of a record is made and read here and nowhere else.

A field of a record is a key of the JSON. A field that is None is written as null, but left out where None is its
default. An :class:`~.Estimate` is ``{"value", "low", "high"}``.
"""

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..data.groups import MIN_CELL
from .resampling import CheckedEstimate, Estimate
from .wording import Verdict

SCHEMA_VERSION = 1  # of audit.json, described by audit.schema.json; audits of fairlung 0.1 say none and are alike
Confusion = list[list[list[int]]]
Record = TypeVar("Record")


class NoRecordError(ValueError):
    """A JSON file that holds something else than the record that was looked for, or a later version of it."""


class Chance(NamedTuple):
    """Mean of what chance alone gives, and what it stays below with the confidence of the audit."""

    mean: float
    p95: float  # called by the default confidence


class ReliabilityBin(NamedTuple):
    """Mean confidence, accuracy with its Wilson interval, and number of the scans of one bin."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Calibration:
    auc: Estimate | None  # macro one-against-rest ROC AUC; None when the group lacks a class
    brier: Estimate  # of all classes, in [0, 2]
    ece: Estimate  # expected calibration error
    ece_if_calibrated: Chance  # what a model shows on as many scans whose confidences are exactly right
    mean_confidence: float  # of the predicted classes
    reliability: tuple[ReliabilityBin, ...]  # the bins that hold a scan
    ece_p_value: float | None = None  # of such a model's ECE; None in audits of earlier versions


@dataclass(frozen=True)
class GroupResult:
    """Macro F1 and accuracy of the ``n`` scans of a group, and the calibration where there are probabilities."""

    group: str
    n: int
    f1: CheckedEstimate
    accuracy: Estimate
    calibration: Calibration | None = field(default=None, metadata={"inline": True})


@dataclass(frozen=True)
class Cell:
    """The ``n`` scans of a class in a group, of which nothing is said when they are few (``small``)."""

    group: str
    class_name: str = field(metadata={"key": "class"})
    n: int
    n_predicted: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    small: bool
    recall_pooled: Estimate | None = None  # partly pooled with the other groups', where the cell has a scan


@dataclass(frozen=True)
class WorstCell:
    """The cell of the lowest F1 among those with a scan, and in what share of the resamples it is the lowest.

    What later versions say too is None in audits of earlier ones: its recall, how many cells have that F1, and its mean
    F1 under a perfectly fair model, with the share of that model's samples in which it is as low as observed.
    """

    group: str
    class_name: str = field(metadata={"key": "class"})
    n: int
    f1: Estimate
    small: bool
    share_of_resamples: float
    recall: Estimate | None = None
    n_tied: int | None = None
    fair_f1: float | None = None
    fair_p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Overall:
    """P, the signed gap (with two groups), |gap|, and the macro F1 of all groups pooled."""

    score: Estimate
    gap: Estimate | None = None
    abs_gap: Estimate
    f1_macro: Estimate

    def numbers(self) -> dict[str, Estimate]:
        """The estimates that there are, by key."""
        return {name: estimate for name, estimate in vars(self).items() if estimate is not None}


@dataclass(frozen=True)
class FairModel:
    """|gap| of a perfectly fair model: its mean and what it stays below with the confidence of the audit.

    With two groups also the mean of its gaps, and where they lie with that confidence.
    """

    abs_gap_mean: float
    abs_gap_p95: float  # called by the default confidence
    gap_mean: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None


@dataclass(frozen=True)
class Permutation:
    """p-value of the permutation test of ``gap`` or, with more than two groups, ``abs_gap``."""

    statistic: str
    p_value: float | None  # None where no scan or patient could change the group
    stayed: int | None = None  # scans of patients who could not; None where every scan is taken for another patient


@dataclass(frozen=True)
class Power:
    """The gap that 80 % of such studies show, and the scans that would show the observed one.

    Both are distances from what a fair model shows, or from 0 where that is further. ``scans`` is None where there is
    no such distance: no number of scans would show it.
    """

    detectable_gap: float
    scans: float | None


@dataclass(frozen=True, kw_only=True)
class SharedClasses:
    """What an audit says of the gap, over the scans of those classes alone that every group has."""

    class_names: tuple[str, ...]
    group_scans: tuple[int, ...]
    gap: Estimate | None = None
    abs_gap: Estimate
    fair_model: FairModel
    permutation: Permutation
    power: Power | None


@dataclass(frozen=True)
class RepeatedPatients:
    """Where patients have several scans: how many they are, and what their scans are worth."""

    n: int  # patients of known group
    correlation: float  # of two scans of a patient being right, within class and group
    effective_scans: float  # that tell as much, were each of another patient


@dataclass(frozen=True)
class BySite:
    """P and the gap where sites, not scans or patients, are what chance draws (:func:`~.over_sites`)."""

    n: int  # sites
    score: Estimate | None  # None where without some site a class and group has no scan, or every site has the same
    gap: Estimate | None  # None with more than two groups, too


@dataclass(frozen=True)
class Differences:
    """Largest difference between two groups, by class; a class without a rate in some group is left out."""

    equalized_odds: Mapping[str, float] = field(default_factory=dict)
    demographic_parity: Mapping[str, float] = field(default_factory=dict)
    equalized_odds_intervals: Mapping[str, Estimate] = field(default_factory=dict)  # empty in earlier audits
    demographic_parity_intervals: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Lowest:
    """The true lowest F1 of a cell and of a group, whichever has it.

    The value is the lowest observed one; the interval allows for its having been chosen among several.
    """

    cell_f1: Estimate
    group: str  # that has the lowest F1
    group_f1: Estimate


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """The gap were the classes in every group in the proportions ``mix``, and p of its permutation test."""

    mix: Mapping[str, float]  # class -> share of all scans of known group
    gap: Estimate | None = None
    abs_gap: Estimate
    p_value: float | None  # None where no patient could change the group


@dataclass(frozen=True)
class Equivalence:
    """Whether the gap lies inside -+ ``margin``, by its interval at 1 - 2 (1 - the confidence of the audit)."""

    confidence: float  # of that interval
    gap: Estimate | None  # with that interval; None with more than two groups
    smallest_margin: float  # beyond which every margin holds the gap, of all pairs of groups
    margin: float | None = None  # none was stated, and nothing is claimed
    equivalent: bool | None = None


@dataclass(frozen=True)
class WrongRecords:
    """The gap when a share of the groups, or of the labels, is recorded otherwise at random; mean over such tables."""

    what: str  # "group" or "label"
    share: float
    n: int  # records that were changed: scans, or patients and their group
    gap: Estimate
    p_value: float  # mean of that of the permutation test
    finding: bool  # whether the audit would call the gap a finding


@dataclass(frozen=True)
class TippingPoint:
    """How the verdict on the gap moves when records are changed."""

    rows: tuple[WrongRecords, ...]
    # the fewest changed groups of scans or patients, and labels of scans, found to turn a finding into none or back;
    # None where no such change of a tenth of them was found, or was looked for
    fewest_groups: int | None
    fewest_labels: int | None


@dataclass(frozen=True)
class GroupNumber:
    """A number of the ``n`` scans of a group that it is about; None without a scan, ``small`` with few."""

    group: str
    n: int
    value: Estimate | None
    small: bool


@dataclass(frozen=True)
class GroupContrast:
    """The number of ``first`` minus that of ``second``."""

    first: str
    second: str
    difference: Estimate


@dataclass(frozen=True)
class ByGroup:
    """A number of each group, and its difference between two groups that are not small.

    With more than two such groups it is that of the two furthest apart, with an interval that allows for the choice.
    """

    groups: tuple[GroupNumber, ...]
    difference: GroupContrast | None


@dataclass(frozen=True)
class Diagnosis:
    """What the answers do to those who are ill and to those who are not, with one class that is ``normal``."""

    normal: str
    underdiagnosis: ByGroup  # share of the scans of other classes that were called normal
    overdiagnosis: ByGroup  # share of the normal scans that were called another class


@dataclass(frozen=True)
class OperatingPoint:
    """Groups at the one threshold that gives all scans together a specificity."""

    target: str | None = field(metadata={"key": "class"})  # that is looked for; None: any class but the normal one
    specificity: float  # asked for
    reached: float  # of all scans together at the threshold, at least as asked for
    threshold: float  # a probability above it counts as the target
    sensitivities: ByGroup
    specificities: ByGroup


@dataclass(frozen=True)
class Retrieval:
    """Average precision (AUPRC) of a class against the rest in a group, and what chance gives: the prevalence."""

    group: str
    class_name: str = field(metadata={"key": "class"})
    n: int  # scans of the class in the group
    prevalence: float
    average_precision: Estimate
    auc: Estimate


@dataclass(frozen=True)
class EquityScaledAuc:
    """The AUC of all scans scaled by equity, as published by Luo et al. (FairVision); a point for comparison."""

    value: float
    auc: float  # of all scans together, macro one against rest


@dataclass(frozen=True)
class Clinical:
    """What a reader of clinical papers looks for; None and () are what classes or probabilities do not allow."""

    diagnosis: Diagnosis | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    retrieval: tuple[Retrieval, ...] = ()
    equity_scaled_auc: EquityScaledAuc | None = None


@dataclass(frozen=True)
class NearDuplicate:
    """A judged scan and one of another split that may be of one patient; distances are 1 - cosine of features."""

    scan: str
    other: str
    label: str
    distance: float
    next: float  # from either one to the nearest third scan of the class
    ratio: float  # distance / next
    two_patients: bool  # whether the cohort says that they are of two


@dataclass(frozen=True)
class NearDuplicates:
    """What a search for the judged patients among the scans of another split found (:func:`~.near_duplicates`)."""

    split: str  # of the others, or the folder of their evaluation
    n: int  # judged scans
    n_other: int
    ratio: float  # at most that of a pair
    pairs: tuple[NearDuplicate, ...]  # the likeliest first


@dataclass(frozen=True)
class AuditSettings:
    resamples: int
    permutations: int
    confidence: float
    method: str
    seed: int
    min_cell: int = MIN_CELL  # audits of earlier versions had no other


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything that :func:`~.audit` says of one table of predictions."""

    schema_version: int = SCHEMA_VERSION
    n: int  # scans of known group; every number is about them
    n_unknown: int
    postprocess: str = ""
    synthetic: bool = False  # whether the table says that scans are phantoms
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    absent_groups: tuple[str, ...] = ()  # without a scan, left out of group_names
    group_by: tuple[str, ...]
    settings: AuditSettings
    overall: Overall
    groups: tuple[GroupResult, ...]
    cells: tuple[Cell, ...]
    worst_cell: WorstCell
    fair_model: FairModel
    permutation: Permutation
    power: Power | None  # None with more than two groups
    shared_classes: SharedClasses | None = None  # None where every group has every class, or none is shared
    n_not_most_probable: int = 0  # predictions of another class than the most probable one
    differences: Differences
    clinical: Clinical | None = None  # None in audits of earlier versions
    lowest: Lowest | None = None  # None in audits of earlier versions, as the next two
    standardised: Standardised | None = None  # also where a group lacks a class
    equivalence: Equivalence | None = None
    tipping_point: TippingPoint | None = None  # of two groups that both have every class
    confusion: Confusion  # [G][C][C] counts, rows true, columns predicted
    patients: RepeatedPatients | None = None  # None: every scan is taken for another patient
    by_site: BySite | None = None  # None where nothing was asked of sites
    duplicates: NearDuplicates | None = None  # None where no other split was searched
    verdicts: tuple[Verdict, ...] = ()  # the most important first

    @property
    def n_patients(self) -> int | None:
        """Of the n scans, where some have several."""
        return self.patients.n if self.patients else None

    def to_frame(self) -> Any:
        """The estimates as a data frame of pandas, a row a number.

        Columns: ``number`` (its key in the JSON), ``group`` and ``class`` ("" where it is of all), ``n`` scans,
        ``small`` (too few to say anything), ``value``, and the ends ``low`` and ``high`` of its interval.
        """
        import pandas as pd

        rows: list[tuple[str, str, int, dict[str, Any]]] = [("", "", self.n, self.overall.numbers())]
        for group in self.groups:
            rows.append((group.group, "", group.n, {"f1": group.f1, "accuracy": group.accuracy}))
            if (found := group.calibration) is not None:
                auc = {} if found.auc is None else {"auc": found.auc}
                rows.append((group.group, "", group.n, {**auc, "brier": found.brier, "ece": found.ece}))
        for cell in self.cells:
            shares = {name: getattr(cell, name) for name in ("precision", "recall", "f1")}
            rows.append((cell.group, cell.class_name, cell.n, shares))
        table = [
            (name, group, of_class, n, n < self.settings.min_cell, number.value, number.low, number.high)
            for group, of_class, n, numbers in rows
            for name, number in numbers.items()
        ]
        return pd.DataFrame(table, columns=["number", "group", "class", "n", "small", "value", "low", "high"])


def to_plain(value: Any) -> Any:
    """Plain data for JSON of a record, and of what it holds."""
    if is_dataclass(value):
        found: dict[str, Any] = {}
        for part in fields(value):
            content = getattr(value, part.name)
            if content is None and part.default is None:
                continue
            found |= to_plain(content) if part.metadata.get("inline") else {_key(part): to_plain(content)}
        return found
    if isinstance(value, Mapping):
        return {name: to_plain(content) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return value._asdict() if hasattr(value, "_asdict") else [to_plain(content) for content in value]
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """What :func:`to_plain` made of a ``kind``, as that again; keys that it does not know are passed over.

    LookupError, TypeError or AttributeError say that something is missing, or of another kind.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else from_plain(parts[0], value)
    if origin is tuple:
        return tuple(from_plain(parts[0], content) for content in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: from_plain(parts[1], content) for name, content in value.items()}
    if isinstance(kind, type) and issubclass(kind, tuple):
        return kind(**value)
    if not is_dataclass(kind):
        return value
    hints, found = get_type_hints(kind), {}
    for part in fields(kind):
        if part.metadata.get("inline"):
            inner = get_args(hints[part.name])[0]
            found[part.name] = from_plain(inner, value) if fields(inner)[0].name in value else None
        elif _key(part) in value:
            found[part.name] = from_plain(hints[part.name], value[_key(part)])
    return cast(Any, kind)(**found)


def _key(part: Field[Any]) -> str:
    return part.metadata.get("key", part.name)


def json_text(record: Any) -> str:
    """The content of audit.json or compare.json."""
    return json.dumps(to_plain(record), indent=2) + "\n"


def read_record(kind: type[Record], path: str | Path) -> Record:
    """The record, such as an :class:`Audit`, in a JSON file; an audit of fairlung 0.1 has no ``schema_version``.

    OSError or ValueError say that it cannot be read, :class:`NoRecordError` that it holds something else.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        if content.get("schema_version", 0) > SCHEMA_VERSION:
            raise NoRecordError(f"schema_version {content['schema_version']}, and this fairlung reads {SCHEMA_VERSION}")
        return from_plain(kind, content)
    except (LookupError, TypeError, AttributeError) as error:
        raise NoRecordError(f"no {kind.__name__.lower()}: {error}") from error
