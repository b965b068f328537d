"""What post-processing changes: each number before and after, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.groups import MIN_CELL
from ..evaluation.calibration import BINS, bin_of
from ..evaluation.fairness_criteria import summaries
from ..evaluation.patient_column import warn_of_repeated
from ..evaluation.patients import resample_scans
from ..evaluation.predictions import Predictions
from ..evaluation.resampling import Estimate, check_resampling, estimate
from ..evaluation.wording import few_scans, in_percent, number_name, span
from .fitted import Floats, PostprocessError, given_probabilities, log_probabilities

OF_GROUP = ("f1", "nll", "brier", "ece")
BETTER_HIGH = ("score", "f1")


class Change(NamedTuple):
    """A number before and after, and the estimate of its change."""

    before: float
    after: float
    change: Estimate


class Moved(NamedTuple):
    """Predictions that changed, among them from wrong to right (``mended``) and from right to wrong (``broken``)."""

    changed: int
    mended: int
    broken: int


class GroupChange(NamedTuple):
    """The changes of ``f1``, ``nll``, ``brier`` and ``ece`` on the ``n`` scans of a group."""

    group: str
    n: int
    numbers: Mapping[str, Change]
    moved: Moved


@dataclass(frozen=True)
class BeforeAfter:
    n: int  # scans of known group
    n_unknown: int
    synthetic: bool
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    confidence: float
    numbers: Mapping[str, Change]  # score, gap (of two groups), abs_gap (of two or more), nll, brier, ece
    groups: tuple[GroupChange, ...]
    moved: Moved
    cost: tuple[str, ...] = ()
    absent_groups: tuple[str, ...] = ()  # without a scan, left out of group_names and of every number
    n_patients: int | None = None  # of the n scans, where some have several: then patients were resampled


def before_after(
    before: Predictions, after: Predictions, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> BeforeAfter:
    """What a post-processing changed on the same scans of known group, with paired bootstrap intervals of the changes.

    Scans are resampled within class and group, or patients where some have several (:func:`~.resample_scans`), the same
    ones before and after. The interval is the basic bootstrap's, twice the observed change minus the percentiles
    (Davison and Hinkley 1997, Sec. 5.2.1): ECE and |gap| are biased upward on a sample, and resamples are biased once
    more, which the percentile interval would count twice. How often it holds the truth: benchmarks/postprocessing.py,
    docs/postprocessing.md.

    Raises:
        ValueError: a setting is out of range, or the scans, labels or groups differ.
        PostprocessError: no probabilities, or no scan of known group.
    """
    check_resampling(confidence, resamples)
    alike = ("scan", "label", "group", "class_names", "group_names")
    if not all(np.array_equal(getattr(before, name), getattr(after, name)) for name in alike):
        raise ValueError("before and after must hold the same scans, labels, groups and classes in the same order")
    scans = len(before.label)
    names = before.group_names
    before, after = before.known().present_groups(), after.known().present_groups()
    if not len(before.label):
        raise PostprocessError("no scan has a known group")
    if before.patient is None:
        warn_of_repeated(before.scan.tolist())
    rng, patient = np.random.default_rng(seed), before.patient if before.repeated else None
    # the first row is the scans themselves, so that one formula gives the value and its resamples
    counts = np.ones((1 + resamples, len(before.label)))
    for inside in (before.group == g for g in range(len(before.group_names))):
        of = None if patient is None else patient[inside]
        counts[1:, inside] = resample_scans(before.label[inside], of, resamples, rng)
    numbers = [_numbers(part, counts, len(before.group_names)) for part in (before, after)]
    tail = (1 - confidence) / 2

    def change(name: str) -> Change:
        old, new = (part[name] for part in numbers)
        value = float(new[0] - old[0])
        low, high = 2 * value - np.quantile((new - old)[1:], [1 - tail, tail])
        return Change(float(old[0]), float(new[0]), estimate(value, min(low, value), max(high, value)))

    def moved(inside: NDArray[np.bool_]) -> Moved:
        was, now = before.prediction == before.label, after.prediction == after.label
        other = inside & (before.prediction != after.prediction)
        return Moved(*(int(rows.sum()) for rows in (other, other & now, other & was)))

    result = BeforeAfter(
        n=len(before.label), n_unknown=scans - len(before.label), synthetic=before.synthetic,
        class_names=before.class_names, group_names=before.group_names, confidence=confidence,
        numbers={n: change(n) for n in ("score", "gap", "abs_gap", "nll", "brier", "ece") if n in numbers[0]},
        groups=tuple(
            GroupChange(name, int(inside.sum()), {key: change(f"{key} {g}") for key in OF_GROUP}, moved(inside))
            for g, name in enumerate(before.group_names)
            for inside in [before.group == g]
        ),
        moved=moved(np.ones(len(before.label), dtype=bool)),
        n_patients=before.n_patients,
    )  # fmt: skip
    absent = tuple(name for name in names if name not in before.group_names)
    return replace(result, absent_groups=absent, cost=cost(replace(result, absent_groups=absent)))


def _numbers(predictions: Predictions, counts: Floats, groups: int) -> dict[str, Floats]:
    """Each number [B] on resamples given as counts [B, N]; those of group g are called ``<number> <g>``."""
    probabilities = given_probabilities(predictions)
    label, said = predictions.label, predictions.prediction
    scan, classes = np.arange(len(label)), len(predictions.class_names)
    cell = np.ravel_multi_index((predictions.group, label, said), (groups, classes, classes))
    confusion = (counts @ np.eye(groups * classes**2)[cell]).reshape(-1, groups, classes, classes)
    found = summaries(confusion)
    names = ("score", "gap", "abs_gap") if groups > 1 else ("score",)  # a group alone is no further from any other
    numbers: dict[str, Floats] = {name: found[name] for name in names if name in found}
    numbers |= {f"f1 {g}": found["group_f1"][:, g] for g in range(groups)}
    nll = -log_probabilities(probabilities)[scan, label]
    brier = ((probabilities - np.eye(classes)[label]) ** 2).sum(1)
    sure = probabilities[scan, said]
    surplus = ((said == label) - sure)[:, None] * np.eye(BINS)[bin_of(sure)]
    parts = {f" {g}": predictions.group == g for g in range(groups)} | {"": np.ones(len(label), dtype=bool)}
    for suffix, inside in parts.items():
        drawn = counts[:, inside]
        n = drawn.sum(1)
        numbers[f"nll{suffix}"] = drawn @ nll[inside] / n
        numbers[f"brier{suffix}"] = drawn @ brier[inside] / n
        numbers[f"ece{suffix}"] = np.abs(drawn @ surplus[inside]).sum(1) / n
    return numbers


def cost(result: BeforeAfter) -> tuple[str, ...]:
    """What got worse, in words, the clearest first; one sentence that says so if nothing did.

    Larger is worse for |gap|, NLL, Brier score and ECE, smaller for P and F1; the signed gap has no worse side. Nothing
    is said of the numbers of a group of few scans, nor of P and |gap|, which depend on them.
    """
    few = few_scans({group.group: group.n for group in result.groups}, MIN_CELL)
    unsaid = ("gap", "score", "abs_gap") if few else ("gap",)
    parts = [(name, "", number) for name, number in result.numbers.items() if name not in unsaid]
    for group in (group for group in result.groups if group.n >= MIN_CELL):
        parts += [(name, f" of {group.group} scans", number) for name, number in group.numbers.items()]
    clear: list[str] = []
    unclear: list[str] = []
    for name, whose, (before, after, change) in parts:
        rises = name not in BETTER_HIGH
        if change.value == 0 or (change.value > 0) != rises:
            continue
        text = f"{number_name(name)}{whose} {'rises' if rises else 'falls'} from {before:.3f} to {after:.3f} "
        text += f"({in_percent(result.confidence)} interval of the change {span(change, signed=True)})"
        told = change.low > 0 or change.high < 0
        (clear if told else unclear).append(f"{text}{'.' if told else ': cannot be told from no change.'}")
    if result.moved.broken:
        by_group = ", ".join(f"{group.group} {group.moved.broken}" for group in result.groups)
        text = f"Right before and wrong now: {result.moved.broken} of the {result.n} scans ({by_group}); wrong before "
        clear.append(f"{text}and right now: {result.moved.mended}.")
    if few:
        clear.append(f"{few[0].upper()}{few[1:]}: no statement on P, the gap and the numbers of such a group.")
    clear += [f"There is no scan of group {name}: no statement." for name in result.absent_groups]
    return (*clear, *unclear) or (f"None of these numbers got worse on the {result.n} scans.",)
