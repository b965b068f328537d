"""Plans: the power that other libraries compute, more scans for smaller gaps, patients, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from statsmodels.stats.power import normal_power
from statsmodels.stats.proportion import power_ztost_prop
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.fairness_criteria import (
    confusion_intervals,
    fair_model,
    permutation_test,
    summaries,
)
from fairlung.pipeline.evaluation.metrics import class_scores
from fairlung.pipeline.evaluation.planning import Design

MIX = {"covid": {"men": 3, "women": 3}, "normal": {"men": 2, "women": 4}, "cancer": {"men": 4, "women": 1}}
RECALL = {"covid": 0.9, "normal": 0.8, "cancer": 0.7}


def design(mix: Mapping[str, Mapping[str, float]] = MIX, **settings: Any) -> Design:
    return Design(mix, RECALL, **settings)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_error_asked_for_has_the_power_that_statsmodels_says(confidence: float) -> None:
    even = design({name: {"men": 1, "women": 1} for name in MIX}, confidence=confidence)
    error = even.needed_error("difference", 0.1)
    assert normal_power(0.1 / error, 1, 1 - confidence) == pytest.approx(0.8, abs=1e-3)  # the other tail is nothing
    error = even.needed_error("equivalence", 0.1)
    shown = power_ztost_prop(0.4, 0.6, 0.25 / error**2, 0.5, 1 - confidence, variance_prop=0.5, discrete=False)[0]
    assert shown == pytest.approx(0.8, abs=1e-3)  # a proportion of .5 with that standard error


def test_the_expected_gap_is_the_one_asked_for() -> None:
    plan = design()
    for losing, sign in enumerate((-1, 1)):
        gap, fair = plan.gaps(plan.with_gap(0.1, losing))
        assert sign * gap > 0
        assert sign * gap - max(0, sign * fair) == pytest.approx(0.1, abs=1e-9)


def test_smaller_sizes_need_more_scans_in_the_proportions_of_the_mix() -> None:
    for purpose in ("difference", "equivalence"):
        plans = [design().plan(purpose, size) for size in (0.2, 0.1, 0.07)]
        assert all(few.scans < many.scans for few, many in pairwise(plans))
        scans = {(cell.class_name, cell.group): cell.scans for cell in plans[-1].cells}
        for (name, group), count in scans.items():
            assert count == pytest.approx(sum(scans.values()) * MIX[name][group] / 17, abs=1.5)


@pytest.mark.parametrize(("correlation", "times"), [(0, 1), (0.5, 2), (1, 3)])
def test_scans_of_one_patient_tell_less(correlation: float, times: float) -> None:
    one, three = (design(scans_per_patient=k, correlation=correlation).plan("difference", 0.1) for k in (1, 3))
    assert three.scans == pytest.approx(times * one.scans, abs=3 * len(one.cells))
    assert all(cell.scans == 3 * cell.patients for cell in three.cells)


@pytest.mark.slow
@pytest.mark.parametrize("purpose", ["difference", "equivalence"])
def test_four_of_five_studies_of_the_planned_size_succeed(purpose: Any) -> None:
    rng, found, plan = np.random.default_rng(0), 0, design().plan(purpose, 0.1)
    scans = np.array([cell.scans for cell in plan.cells]).reshape(2, 3)
    answers = design().with_gap(0.1, 1) if purpose == "difference" else design().answers()
    for _ in range(150):
        counts = rng.multinomial(scans, answers)
        if purpose == "equivalence":
            _, low, high = confusion_intervals(counts, rng, 400, 0.9)[0]["gap"]
            found += low > -0.1 and high < 0.1
        else:
            _, low, high = confusion_intervals(counts, rng, 400)[0]["gap"]
            fair = fair_model(counts, 200, rng)["gap"].mean()
            apart = low > max(0, fair) or high < min(0, fair)
            found += apart and permutation_test(counts, 199, rng) <= 0.05
    assert 0.68 < found / 150 < 0.92


def test_expected_counts_may_be_fractions() -> None:
    counts = torch.tensor([[5.0, 1, 0], [2, 3, 0], [0, 0, 4]])
    whole, parts = class_scores(counts), class_scores(counts / 1000)
    for name in ("precision", "recall", "f1"):
        torch.testing.assert_close(parts[name], whole[name])
    assert class_scores(torch.zeros(2, 2))["f1"].tolist() == [0, 0]
    assert summaries(np.array([[[9, 1], [1, 9]], [[5, 5], [5, 5]]]) / 100)["gap"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mix": {"covid": {"men": 3, "women": 3}}}, "two classes at least"),
        ({"mix": MIX | {"covid": {"men": 3}}}, "mix of normal must be a number above 0 for men|two groups"),
        ({"mix": MIX | {"normal": {"men": 0, "women": 4}}}, "mix of normal must be a number above 0 for men and women"),
        ({"recall": RECALL | {"covid": 1.0}}, r"recall of covid must be in \(0, 1\), got 1.0"),
        ({"recall": {"covid": 0.9}}, "recall must name covid, normal, cancer, got covid"),
        ({"scans_per_patient": 0.5}, "scans_per_patient must be at least 1, got 0.5"),
        ({"correlation": 2}, r"correlation must be in \[0, 1\], got 2"),
        ({"confidence": 0.4}, r"confidence must be in \(0.5, 1\), got 0.4"),
    ],
)
def test_a_design_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Design(**{"mix": MIX, "recall": RECALL} | change)


def test_sizes_that_no_study_can_show_are_refused() -> None:
    with pytest.raises(ValueError, match="gap must be below .* with these recalls and this mix, got 0.9"):
        design().plan("difference", 0.9)
    fair = abs(design().gaps(design().answers())[1])
    with pytest.raises(ValueError, match=f"margin must be above {fair:.3f}, the gap of a fair model"):
        design().plan("equivalence", fair / 2)


COMMAND = ["plan", "--mix", "covid:men=3,women=3", "--mix", "normal:men=2,women=4", "--recall"]


def test_the_command_shows_scans_and_patients_and_draws_them(tmp_path: Any) -> None:
    options = ["covid=.9,normal=.8", "--gap", "0.2", "--margin", "0.2", "--scans-per-patient", "2"]
    done = CliRunner().invoke(app, [*COMMAND, *options, "-o", str(tmp_path / "plan.png")])
    assert done.exit_code == 0, done.output
    assert "A gap of 0.2 is found by 80 % of studies of" in done.output
    assert "within +-0.2 by 80 %" in done.output
    assert "Scans (patients)" in done.output
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([".8"], "give --gap, --margin, or both"),
        (["covid", "--gap", ".1"], "recall must be 0.8 or CLASS=0.8"),
        ([".8", "--gap", ".1", "--mix", "covid:men=1,women=1"], "mix must be CLASS:GROUP=NUMBER"),
    ],
)
def test_the_command_says_what_it_cannot_read(options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, [*COMMAND, *options])
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
