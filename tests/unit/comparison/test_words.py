"""What a comparison says in words fits its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paired_runs import FEW, runs

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.words import verdicts
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


def test_several_runs_are_about_the_ways_of_training() -> None:
    found = compare({"A": runs(0, 3, 0.4), "B": runs(1, 3, 0.95)}, resamples=1000, permutations=1000).verdicts
    assert [verdict.level for verdict in found] == ["finding", "inconclusive", "note", "note"]
    assert "interval over scans and seeds" in found[0].text and "the ways of training differ" in found[0].text
    assert "chance in the scans only" in found[2].text and "larger than chance explains" in found[2].text
    one = compare({"A": runs(0), "B": runs(1, 3)}, **FEW).verdicts
    assert "A has one run: how much its numbers change with the seed is not known" in one[-1].text
    assert "over scans and seeds" not in one[0].text


def test_one_plan_for_runs_and_none_where_scans_are_too_few() -> None:
    result = compare({"A": runs(0, 2, 0.7), "B": runs(1, 2, 0.76)}, **FEW)
    (pair,) = result.comparisons
    for needed, said in ((7, "it takes about 7 runs each on these scans"), (None, "on so few scans no number of runs")):
        planned = replace(pair, power=replace(pair.power, runs=needed))
        texts = [verdict.text for verdict in verdicts(replace(result, comparisons=(planned,)))]
        assert sum("in 80 % of studies, after Holm" in text for text in texts) == 1 and said in texts[-1]


def test_unequal_numbers_of_runs_that_all_agree_are_a_finding() -> None:
    systems = {name: runs(seed, number, right) for seed, (name, number, right) in enumerate(
        [("A", 5, 0.5), ("B", 20, 0.9), ("C", 20, 0.5), ("D", 20, 0.5), ("E", 5, 0.5)])}  # fmt: skip
    first = compare(systems, **FEW).verdicts[0]
    assert first.text.startswith("P of B is") and first.level == "finding"


def test_what_holm_takes_away_and_what_disagrees_is_said() -> None:
    result = compare({"A": runs(0, right=0.4), "B": runs(1, right=0.95)}, **FEW)
    (comparison,) = result.comparisons
    doubtful = replace(comparison.tests["score"], p_holm=0.2)
    comparison = replace(comparison, tests={**comparison.tests, "score": doubtful})
    first = verdicts(replace(result, comparisons=(comparison,)))[0]
    assert first.level == "inconclusive" and "alone it would be larger than chance explains (p = 0.00498)" in first.text
    doubtful = replace(comparison.tests["score"], p_value=0.1)
    comparison = replace(comparison, tests={**comparison.tests, "score": doubtful})
    first = verdicts(replace(result, comparisons=(comparison,)))[0]
    assert first.level == "inconclusive" and "the interval and the test do not agree" in first.text
