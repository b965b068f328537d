"""What a comparison says in words fits its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paired_runs import FEW, runs

from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.compare_words import verdicts
from fairlung.pipeline.evaluation.wording import Verdict


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By statsmodels at each Holm adjustment: among this many modules it takes longer than the comparison."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def test_a_clear_difference_is_a_finding_about_these_models() -> None:
    result = compare({"old": runs(0, right=0.4), "new": runs(1, right=0.95)}, resamples=1000, permutations=1000)
    first, _, last = result.verdicts
    value = result.comparisons[0].differences["score"].value
    assert first.level == "finding"
    assert first.text.startswith(f"P of new is {value:.3f} higher than that of old (95 % interval ")
    assert "these models differ on scans like these" in first.text
    assert last == Verdict("note", "One run each: says nothing about other seeds.")


def test_a_small_difference_cannot_be_told_from_none() -> None:
    first, _, last = compare({"A": runs(0), "B": runs(3)}, **FEW).verdicts
    assert first.level == "inconclusive"
    assert "a difference of this size cannot be told from none on these data" in first.text
    assert "takes about" in last.text and "scans in the same proportions" in last.text


def test_too_few_runs_give_no_statement_about_seeds() -> None:
    found = compare({"A": runs(0, 3, 0.4), "B": runs(1, 3, 0.95)}, resamples=1000, permutations=1000).verdicts
    assert [verdict.level for verdict in found] == ["inconclusive", "inconclusive", "no-statement", "note", "note"]
    assert "so few runs cannot tell a difference of any size from none" in found[0].text
    assert "the smallest p that they can give is 0.2 after Holm; it takes 5 runs each" in found[2].text
    assert "chance in the scans only" in found[3].text and "larger than chance explains" in found[3].text
    enough = compare({"A": runs(0, 5, 0.4), "B": runs(1, 5, 0.95)}, resamples=1000, permutations=1000).verdicts
    assert enough[0].level == "finding" and "the ways of training differ" in enough[0].text
    one = compare({"A": runs(0), "B": runs(1, 3)}, **FEW).verdicts
    assert "A has one run: how much its numbers change with the seed is not known" in one[-1].text


def test_an_interval_and_a_test_that_disagree_are_said_to() -> None:
    result = compare({"A": runs(0, right=0.4), "B": runs(1, right=0.95)}, **FEW)
    (comparison,) = result.comparisons
    doubtful = replace(comparison.tests["score"], p_holm=0.2)
    comparison = replace(comparison, tests={**comparison.tests, "score": doubtful})
    first = verdicts(replace(result, comparisons=(comparison,)))[0]
    assert first.level == "inconclusive" and "the interval and the test do not agree" in first.text
