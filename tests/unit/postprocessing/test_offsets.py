"""Offsets are as good as the best of a grid, and gain less on new scans."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from noisy_predictions import predictions, score_and_gap
from scipy.special import log_softmax

from fairlung.pipeline.postprocessing.fit import apply
from fairlung.pipeline.postprocessing.fitted import (
    Fitted,
)
from fairlung.pipeline.postprocessing.offsets import best_offsets, fit_offsets


@pytest.mark.parametrize(("seed", "groups"), list(product(range(4), (1, 2, 3))))
def test_offsets_of_two_classes_are_the_best_threshold(seed: int, groups: int) -> None:
    given = predictions(seed, 30, 2, groups)
    assert given.probabilities is not None
    odds = np.log(given.probabilities[:, 1] / given.probabilities[:, 0])
    edges = np.sort(odds)
    thresholds = [edges[0] - 1, *(edges[:-1] + edges[1:]) / 2, edges[-1] + 1]
    best = max(score_and_gap(given.label, (odds > t).astype(int), given.group, 2)[0] for t in thresholds)
    fitted = fit_offsets(given)
    after = fitted.transform(given.probabilities, given.class_names).argmax(1)
    assert score_and_gap(given.label, after, given.group, 2)[0] == pytest.approx(best, abs=1e-12)
    assert fitted.validation["score_after"] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_offsets_of_three_classes_are_as_good_as_any_of_a_fine_grid(seed: int) -> None:
    given = predictions(seed, 24, 3)
    assert given.probabilities is not None
    log_p = np.log(given.probabilities)
    line = np.arange(-6, 6, 0.06)
    grid = np.array([(0, b, c) for b, c in product(line, line)])
    said = (log_p[None] + grid[:, None]).argmax(2)  # [grid, scan]
    macro = []
    for g in range(2):
        true = given.label[given.group == g]
        part = said[:, given.group == g]
        hits = [((part == c) & (true == c)).sum(1) for c in range(3)]
        sums = [(part == c).sum(1) + (true == c).sum() for c in range(3)]
        macro.append(np.mean([2 * h / np.maximum(s, 1) for h, s in zip(hits, sums, strict=True)], axis=0))
    found = fit_offsets(given)
    assert found.validation["score_after"] >= np.mean(macro, axis=0).max() - 1e-12
    assert sum(found.offsets.values()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("seed", "groups"), list(product(range(2), (2, 3))))
def test_offsets_for_the_gap_keep_to_the_allowed_loss(seed: int, groups: int) -> None:
    given = predictions(seed, 80, 4, groups)
    assert given.probabilities is not None
    p, gap = score_and_gap(given.label, given.prediction, given.group, 4)
    gaps = [gap]
    for max_loss in (0.0, 0.02, 0.2):
        fitted = fit_offsets(given, "gap", max_loss)
        said = fitted.transform(given.probabilities, given.class_names).argmax(1)
        after, smaller = score_and_gap(given.label, said, given.group, 4)
        assert after >= p - max_loss - 1e-9
        assert fitted.validation["abs_gap_after"] == pytest.approx(smaller, abs=1e-12)
        assert smaller <= gaps[0] + 1e-12
        gaps.append(smaller)
    assert gaps[-1] < gaps[0]  # with that much to lose there is something to win on these data


def test_offsets_stay_at_zero_where_nothing_is_better() -> None:
    given = predictions(8, 60)
    assert set(fit_offsets(replace(given, label=given.prediction)).offsets.values()) == {0.0}


def test_offsets_are_the_same_each_time_and_whatever_the_order_of_the_scans() -> None:
    given = predictions(9, 60)
    first = fit_offsets(given)
    assert first == fit_offsets(given)
    turned = fit_offsets(given.take(np.arange(60)[::-1].copy()))
    assert turned.digest == first.digest and turned.scans == first.scans
    assert turned.validation["score_after"] == pytest.approx(first.validation["score_after"], abs=1e-12)


def test_offsets_ignore_scans_of_unknown_group() -> None:
    given = predictions(10, 60)
    group = given.group.copy()
    group[20:40] = -1
    given = replace(given, group=group)
    assert fit_offsets(given) == fit_offsets(given.known())


def test_offsets_gain_less_on_new_scans_than_on_those_they_were_chosen_on() -> None:
    gains = []
    for seed in range(8):
        given, new = predictions(seed, 100), predictions(1000 + seed, 4000)
        fitted = fit_offsets(given)
        after = apply(fitted, new)
        before_new, after_new = (score_and_gap(p.label, p.prediction, p.group, 4)[0] for p in (new, after))
        gains.append((fitted.validation["score_after"] - fitted.validation["score_before"], after_new - before_new))
    on_fitted, on_new = np.mean(gains, axis=0)
    assert on_fitted > 0.02 and on_new < 0


def test_offsets_are_found_by_the_pure_function_alone() -> None:
    log_p = log_softmax(np.array([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0], [-1.0, 0.0]]), axis=1)
    label, group = np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64)
    offsets = best_offsets(log_p, label, group)
    assert offsets[1] - offsets[0] == pytest.approx(0.75)  # halfway between the log odds 0.5 and 1
    assert offsets.sum() == pytest.approx(0)


def test_a_fit_is_plain_data() -> None:
    fitted = fit_offsets(predictions(27, 40))
    assert isinstance(fitted, Fitted)
    assert all(type(value) is float for value in fitted.offsets.values())
