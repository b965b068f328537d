"""One floor under every verdict: of a group of few scans nothing is said, and no number is planned that cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairlung.pipeline.cli.console import console, show_audit, show_before_after, show_comparison
from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.audit_words import verdicts
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import Power
from fairlung.pipeline.postprocessing.before_after import before_after
from fairlung.pipeline.reports.evidence import Evidence
from fairlung.pipeline.reports.model_card import model_card

GROUPS, CLASSES = ("male", "female"), ("covid", "normal")
DRAWS = {"resamples": 200, "permutations": 200}
LEVELS = ("finding", "inconclusive")


def table(women: int, right: float = 0.7, seed: int = 0) -> Predictions:
    """80 men and some women, answered with a probability that says too much."""
    group = np.repeat([0, 1], [80, women])
    rng = np.random.default_rng(seed)
    label = np.arange(len(group)) % 2
    said = np.where(rng.random(len(group)) < right, label, 1 - label)
    sure = np.where(np.arange(2) == said[:, None], 0.95, 0.05)
    names = np.array([f"s{i}" for i in range(len(group))])
    return Predictions(names, label, said, group, sure, CLASSES, GROUPS, ("sex",))


@pytest.mark.fault(
    "words", "verdicts on a group of one scan",
    before="ECE 0.616 (0.616 to 0.616), a gap and its test, as of any group", now="no statement, with the scans",
)  # fmt: skip
@pytest.mark.parametrize("women", [1, 2, 9])
def test_of_a_group_of_few_scans_nothing_is_said(women: int) -> None:
    few = table(women)
    judged, small = audit(few, **DRAWS), f"ewer than 10 scans of female ({women}): no statement"
    assert [v.text for v in judged.verdicts if v.level == "no-statement" and small in v.text] != []
    said = [verdict for verdict in judged.verdicts if verdict.level in LEVELS]
    assert len(said) == 1 and "of male scans are over-confident" in said[0].text  # of the 80 men there is something
    assert not any("female" in v.text for v in judged.verdicts if v.level != "no-statement")
    compared = compare({"a": [few], "b": [table(women, seed=1)]}, **DRAWS)
    assert [verdict.level for verdict in compared.verdicts] == ["no-statement"]
    assert small in compared.verdicts[0].text
    changed = before_after(few, few.with_probabilities(few.probabilities[:, ::-1]), resamples=200)
    assert any(small in sentence for sentence in changed.cost)
    assert not any(name in sentence for sentence in changed.cost[:-1] for name in ("P falls", "|gap|", "of female"))
    assert any("of male scans falls" in sentence for sentence in changed.cost)
    card = model_card(Evidence(judged))
    assert small in card.replace("\\", "") and "Permutation test of the gap: p" not in card
    with console.capture() as printed:
        show_audit(judged)
        show_comparison(compared)
        show_before_after(changed)
    assert printed.get().count(small) == 4  # the gap, the calibration, the comparison, the cost


def test_of_ten_scans_it_is() -> None:
    enough = table(10)
    assert {verdict.level for verdict in audit(enough, **DRAWS).verdicts[:1]} <= set(LEVELS)
    assert "no statement" not in model_card(Evidence(audit(enough, **DRAWS, min_cell=5)))
    assert compare({"a": [enough], "b": [table(10, seed=1)]}, **DRAWS).verdicts[0].level in LEVELS
    assert compare({"a": [table(9)], "b": [table(9, seed=1)]}, **DRAWS, min_cell=9).verdicts[0].level in LEVELS


@pytest.mark.fault(
    "words", "a planned gap above 1, which no gap can be",
    before="12 scans show a gap of 1.067 or more", now="no gap, however large, is seen",
)  # fmt: skip
@pytest.mark.parametrize("detectable", [1.0000001, 1.067, 3.0])
def test_no_gap_above_one_is_planned_for(detectable: float) -> None:
    result = replace(audit(table(20), **DRAWS), power=Power(detectable, 5000.0))
    (text,) = [verdict.text for verdict in verdicts(result) if "of studies" in verdict.text]
    assert text.startswith("On 100 scans no gap, however large, is seen in 80 % of studies; one of the observed size")
    assert f"{detectable:.3f}" not in text
    (text,) = [v.text for v in verdicts(replace(result, power=Power(0.999, 5000.0))) if "of studies" in v.text]
    assert "0.999 or more" in text
