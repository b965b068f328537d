"""The rule by which a registered model becomes the champion."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlung.pipeline.tracking.champion import Candidate, Judgement, challenge, champion

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
