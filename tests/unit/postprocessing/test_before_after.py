"""Before and after: scikit-learn's numbers, paired intervals, and the cost in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from noisy_predictions import CLASSES, predictions, refused, score_and_gap
from sklearn.metrics import f1_score, log_loss

from fairlung.pipeline.evaluation.calibration import expected_calibration_error
from fairlung.pipeline.evaluation.fairness_criteria import summaries
from fairlung.pipeline.evaluation.resampling import Estimate, resample_counts
from fairlung.pipeline.postprocessing.before_after import BeforeAfter, Change, GroupChange, Moved, before_after, cost
from fairlung.pipeline.postprocessing.fit import apply
from fairlung.pipeline.postprocessing.offsets import fit_offsets
from fairlung.pipeline.postprocessing.prior import fit_prior


def test_before_and_after_equal_scikit_learn() -> None:
    before = predictions(19, 120)
    group = before.group.copy()
    group[100:] = -1
    before = replace(before, group=group)
    after = apply(fit_offsets(predictions(20, 120)), before)
    result = before_after(before, after, resamples=100)
    assert result.n == 100 and result.n_unknown == 20
    for when, table in (("before", before), ("after", after)):
        known = table.known()
        assert known.probabilities is not None
        p, gap = score_and_gap(known.label, known.prediction, known.group, 4)
        assert getattr(result.numbers["score"], when) == pytest.approx(p, abs=1e-12)
        assert getattr(result.numbers["abs_gap"], when) == pytest.approx(gap, abs=1e-12)
        assert abs(getattr(result.numbers["gap"], when)) == pytest.approx(gap, abs=1e-12)
        parts = (result.numbers, *(group.numbers for group in result.groups))
        for entry, inside in zip(parts, (known.group >= 0, known.group == 0, known.group == 1), strict=True):
            label, said, rows = known.label[inside], known.prediction[inside], known.probabilities[inside]
            assert getattr(entry["nll"], when) == pytest.approx(log_loss(label, rows, labels=range(4)), abs=1e-12)
            brier = ((rows - np.eye(4)[label]) ** 2).sum(1).mean()
            assert getattr(entry["brier"], when) == pytest.approx(brier, abs=1e-12)
            ece = expected_calibration_error(rows[np.arange(len(rows)), said], said == label)
            assert getattr(entry["ece"], when) == pytest.approx(float(ece), abs=1e-12)
        for g, entry in enumerate(result.groups):
            inside = known.group == g
            f1 = f1_score(known.label[inside], known.prediction[inside], labels=range(4), average="macro")
            assert getattr(entry.numbers["f1"], when) == pytest.approx(f1, abs=1e-12)
    a, b = before.known(), after.known()
    for g, entry in enumerate(result.groups):
        rows = (a.group == g) & (a.prediction != b.prediction)
        assert entry.moved.changed == rows.sum() > 0
        assert entry.moved.mended == (rows & (b.prediction == b.label)).sum()
        assert entry.moved.broken == (rows & (a.prediction == a.label)).sum()


def test_intervals_are_those_of_resampled_scans_taken_one_by_one() -> None:
    before = predictions(21, 60)
    after = apply(fit_prior(target=dict(zip(CLASSES, (1, 2, 3, 4), strict=True))), before)
    result = before_after(before, after, resamples=100, confidence=0.8, seed=5)
    counts = resample_counts(before.group * 4 + before.label, 100, np.random.default_rng(5)).astype(int)
    changes: dict[str, list[float]] = {"score": [], "abs_gap": [], "nll": [], "ece": []}
    for row in counts:
        drawn = np.repeat(np.arange(60), row)
        a, b = before.take(drawn), after.take(drawn)
        numbers = []
        for part in (a, b):
            assert part.probabilities is not None
            sure = part.probabilities[np.arange(60), part.prediction]
            ece = float(expected_calibration_error(sure, part.prediction == part.label))
            p, gap = score_and_gap(part.label, part.prediction, part.group, 4)
            numbers.append((p, gap, log_loss(part.label, part.probabilities, labels=range(4)), ece))
        for name, old, new in zip(changes, *numbers, strict=True):
            changes[name].append(new - old)
    for name, draws in changes.items():
        found = result.numbers[name].change
        value = found.value
        low, high = 2 * value - np.quantile(draws, [0.9, 0.1])
        assert (found.low, found.high) == pytest.approx((min(low, value), max(high, value)), abs=1e-12)


def test_intervals_of_patients_are_those_of_patients_drawn_one_by_one() -> None:
    """An oracle in loops: the scans of the drawn patients, as often as they were drawn."""
    rng = np.random.default_rng(4)
    patient = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    before = predictions(21, len(patient))
    label = np.where(patient % 5 == 0, before.label, patient % 4)  # every fifth of several classes
    before = replace(before, label=label, group=patient % 2, patient=patient)
    after = apply(fit_prior(target=dict(zip(CLASSES, (1, 2, 3, 4), strict=True))), before)
    result = before_after(before, after, resamples=3000, confidence=0.8)
    assert result.n_patients == 40
    classes = [set(label[patient == one].tolist()) for one in range(40)]
    strata: dict[tuple[int, int], list[int]] = {}
    for one, has in enumerate(classes):
        strata.setdefault((one % 2, min(has) if len(has) == 1 else -1), []).append(one)
    changes: dict[str, list[float]] = {"score": [], "nll": []}
    for _ in range(300):
        chosen = np.concatenate([rng.choice(part, len(part)) for part in strata.values()])
        drawn = np.concatenate([np.flatnonzero(patient == one) for one in chosen])
        a, b = before.take(drawn), after.take(drawn)
        numbers = [
            (summaries(p.confusion()[:-1])["score"], -np.log(p.probabilities[np.arange(len(drawn)), p.label]).mean())
            for p in (a, b)
        ]
        for name, old, new in zip(changes, *numbers, strict=True):
            changes[name].append(new - old)
    scans = before_after(replace(before, patient=None), after, resamples=3000, confidence=0.8)
    for name, draws in changes.items():
        ours, theirs = result.numbers[name].change, np.quantile(draws, [0.1, 0.9])
        assert ours.high - ours.low == pytest.approx(theirs[1] - theirs[0], rel=0.15)
        assert scans.numbers[name].change.value == ours.value


def test_with_one_scan_a_patient_nothing_changes() -> None:
    before = predictions(21, 60)
    after = apply(fit_prior(target=dict(zip(CLASSES, (1, 2, 3, 4), strict=True))), before)
    several = replace(before, patient=np.random.default_rng(0).permutation(60))
    assert before_after(several, after, resamples=100) == before_after(before, after, resamples=100)


def test_the_same_scan_several_times_says_what_one_says() -> None:
    before = predictions(21, 60)
    after = apply(fit_prior(target=dict(zip(CLASSES, (1, 2, 3, 4), strict=True))), before)
    rows = np.repeat(np.arange(60), 3)
    often = [replace(part.take(rows), patient=rows) for part in (before, after)]
    once, thrice = before_after(before, after, resamples=100), before_after(*often, resamples=100)
    assert (thrice.n, thrice.n_patients) == (180, 60)
    for name, number in once.numbers.items():
        assert tuple(thrice.numbers[name].change) == pytest.approx(tuple(number.change)), name


def test_nothing_changed_costs_nothing() -> None:
    given = predictions(22, 60)
    result = before_after(given, given, resamples=100)
    assert {number.change for number in result.numbers.values()} == {(0.0, 0.0, 0.0)}
    assert result.moved.changed == result.moved.broken == 0
    assert result.cost == ("None of these numbers got worse on the 60 scans.",)


def test_the_cost_names_what_got_worse_the_clear_first() -> None:
    def number(before: float, after: float, low: float, high: float) -> Change:
        return Change(before, after, Estimate(after - before, low, high))

    same, moved = number(0.5, 0.5, 0, 0), Moved(3, 1, 2)
    of_group = {"f1": number(0.8, 0.6, -0.3, -0.1), "nll": same, "brier": same, "ece": same}
    result = BeforeAfter(
        n=19,
        n_unknown=0,
        synthetic=False,
        class_names=CLASSES,
        group_names=("female",),
        confidence=0.9,
        numbers={
            "score": number(0.7, 0.9, 0.1, 0.3),  # better
            "gap": number(0.0, -0.3, -0.4, -0.2),  # has no worse side
            "abs_gap": number(0.0, 0.3, -0.1, 0.4),
        },
        groups=(GroupChange("female", 19, of_group, moved),),
        moved=moved,
    )
    assert cost(result) == (
        "F1 of female scans falls from 0.800 to 0.600 (90 % interval of the change -0.300 to -0.100).",
        "Right before and wrong now: 2 of the 19 scans (female 2); wrong before and right now: 1.",
        "|gap| rises from 0.000 to 0.300 (90 % interval of the change -0.100 to +0.400): "
        "cannot be told from no change.",
    )


@pytest.mark.fault(
    "wrong", "before and after a post-processing, on scans of men only", before="P .440 and gap +.879 of an F1 of .879",
    now="P .879 and no gap",
)  # fmt: skip
def test_a_group_without_a_scan_counts_in_no_number() -> None:
    given = predictions(28, 60)
    wider = replace(given, group_names=("male", "female", "third"))
    after = wider.with_probabilities(np.roll(wider.probabilities, 1, axis=1))
    result = before_after(wider, after, resamples=100)
    narrow = before_after(given, replace(after, group_names=given.group_names), resamples=100)
    assert [group.group for group in result.groups] == ["male", "female"]
    assert (result.numbers, result.groups) == (narrow.numbers, narrow.groups) and "gap" in result.numbers
    assert result.absent_groups == ("third",)
    assert "There is no scan of group third: no statement." in result.cost
    men = given.take(given.group == 0)
    alone = before_after(men, men, resamples=100)
    f1 = f1_score(men.label, men.prediction, labels=range(4), average="macro")
    assert alone.numbers["score"].before == pytest.approx(f1, abs=1e-12) == alone.groups[0].numbers["f1"].before
    assert not {"gap", "abs_gap"} & set(alone.numbers)
    assert (alone.group_names, alone.absent_groups) == (("male",), ("female",))


def test_before_and_after_must_be_the_same_scans() -> None:
    given = predictions(23, 60)
    refused("the same scans", lambda: before_after(given, predictions(24, 60)))
    refused("resamples must be at least 100, got 5", lambda: before_after(given, given, resamples=5))
    refused(r"confidence must be in \(0, 1\), got 95", lambda: before_after(given, given, confidence=95))
    unknown = replace(given, group=np.full(60, -1))
    refused("no scan has a known group", lambda: before_after(unknown, unknown))
