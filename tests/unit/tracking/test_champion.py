"""The rule by which a registered model becomes the champion."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlung.pipeline.evaluation.predictions import PredictionsError
from fairlung.pipeline.reports.evidence import write_evaluation
from fairlung.pipeline.tracking.champion import Candidate, Judgement, challenge, champion, read_judgement

FAIR = Judgement(0.6, 0.0, "test", "scans", -0.1, 0.2, 0.95)


@pytest.mark.parametrize(
    ("change", "takes", "why"),
    [
        ({}, False, "P is not higher"),
        ({"score": 0.7}, True, "not worse"),
        ({"score": 0.7, "gap_low": -0.2, "gap_high": 0.1}, True, "not worse"),
        ({"score": 0.7, "gap_high": 0.21}, False, "is worse"),
        ({"score": 0.7, "gap_low": -0.21}, False, "is worse"),
        ({"score": 0.5, "gap_high": 0.1}, False, "P is not higher"),
        ({"score": 0.7, "split": "val"}, False, "not compared"),
        ({"score": 0.7, "scans_digest": "others"}, False, "not compared"),
        ({"score": 0.7, "confidence": 0.5}, False, "not compared"),
        ({"score": 0.7, "gap_low": None}, False, "no interval"),
        ({"score": math.nan}, False, "not a number"),
        (
            {"score": 0.7, "score_low": 0.25, "chance": 0.25},
            False,
            "P is not above chance (P 0.7000, its interval from",
        ),
        ({"score": 0.7, "score_low": 0.26, "chance": 0.25}, True, "not worse"),
    ],
)
def test_a_challenge(change: dict, takes: bool, why: str) -> None:
    decision = challenge(FAIR, replace(FAIR, **change))
    assert decision.champion is takes
    assert why in decision.reason


def test_an_interval_beats_none() -> None:
    without = replace(FAIR, score=0.9, gap_low=None, gap_high=None, confidence=None)
    assert challenge(without, FAIR).champion
    assert champion([Candidate(1, without), Candidate(2, FAIR), Candidate(3, replace(without, score=1.0))]) == 2
    assert champion([Candidate(1, without)]) == 1
    assert champion([]) is None
    assert champion([Candidate(1, replace(FAIR, score=math.nan))]) is None


@pytest.mark.fault(
    "wrong",
    "a model at chance level, registered first",
    before="became the champion",
    now="registered, and not champion",
)
@pytest.mark.parametrize("low", [None, 0.1, 0.25])
def test_a_model_at_chance_level_is_no_champion(low: float | None) -> None:
    guess = replace(FAIR, score=0.25, score_low=low, chance=0.25)
    assert champion([Candidate(1, guess)]) is None
    assert "not above chance" in guess.unfit and "0.2500" in guess.unfit
    assert champion([Candidate(1, guess), Candidate(2, replace(guess, score=0.5, score_low=0.3))]) == 2
    assert Judgement.from_tags(guess.tags()) == guess
    assert champion([Candidate(1, replace(guess, chance=None))]) == 1  # of 0.1, which did not say what chance is


def test_no_answer_without_a_look_at_the_scans_is_above_chance() -> None:
    """Macro F1 of classes said at random is at most 1 / C, whatever their frequencies and how often each is said."""
    rng = np.random.default_rng(0)
    for classes in (2, 4, 7):
        true, said = rng.dirichlet(np.full(classes, 0.5), (2, 2000))
        assert (2 * true * said / (true + said + 1e-300)).mean(1).max() <= 1 / classes + 1e-12


@pytest.mark.fault(
    "wrong", "a network whose outputs are not finite, registered",
    before="registered, as always saying the first class", now="refused, with the scan",
)  # fmt: skip
@pytest.mark.parametrize("value", ["nan", "inf", ""])
def test_a_network_whose_outputs_are_not_finite_is_not_judged(value: str, tmp_path: Path) -> None:
    path, head = tmp_path / "predictions.csv", "scan,label,sex,prediction,prob_a,prob_b\n"
    rows = [f"s{i},{'ab'[i % 2]},{('male', 'female')[i // 2]},a,0.75,0.25\n" for i in range(4)]
    path.write_text(head + "".join(rows))
    write_evaluation(path, ["a", "b"], ["male", "female"], split="test", checkpoint="best.pt")
    assert read_judgement(tmp_path).chance == 0.5
    path.write_text(head + "".join(rows).replace("s2,a,female,a,0.75,0.25", f"s2,a,female,a,{value},{value}"))
    with pytest.raises(PredictionsError, match="s2"):
        read_judgement(tmp_path)


ENDS = st.none() | st.sampled_from([-0.4, -0.2, 0.0, 0.2, 0.4])
JUDGEMENTS = st.builds(
    Judgement,
    score=st.sampled_from([0.1, 0.2, 0.3, 0.4]),
    gap=st.just(0.0),
    split=st.sampled_from(["val", "test"]),
    scans_digest=st.sampled_from(["a", "b"]),
    gap_low=ENDS,
    gap_high=ENDS,
    confidence=st.just(0.95),
)


@given(st.lists(JUDGEMENTS, min_size=1, max_size=8))
def test_champions_only_get_better(judgements: list[Judgement]) -> None:
    candidates = [Candidate(i + 1, judgement) for i, judgement in enumerate(judgements)]
    held = [champion(candidates[:n]) for n in range(1, len(candidates) + 1)]
    assert held[0] == 1
    assert champion(reversed(candidates)) == held[-1]  # the order given makes no difference
    for before, after in pairwise(held):
        if before != after:
            old, new = judgements[before - 1], judgements[after - 1]
            assert after > before
            assert (new.split, new.scans_digest) == (old.split, old.scans_digest)
            assert new.bound < math.inf
            assert new.bound <= old.bound
            assert new.score > old.score or old.bound == math.inf


@given(JUDGEMENTS)
def test_tags_say_everything(judgement: Judgement) -> None:
    assert Judgement.from_tags(judgement.tags()) == judgement
    assert not challenge(judgement, judgement).champion
    assert Judgement.from_tags({"fairlung.score": "0.5"}) is None
