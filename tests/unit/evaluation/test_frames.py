"""Results as data frames: the numbers of the records, each once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fairlung.pipeline import audit, compare, load_predictions


@pytest.fixture
def table() -> pd.DataFrame:
    """A hundred answers, with the women's worse, and three scans of nobody knows whom."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"label": rng.choice(["covid", "normal"], 100), "sex": ["male", "female"] * 50})
    covid = np.where(frame["label"] == "covid", 0.7, 0.3) + rng.normal(0, np.where(frame["sex"] == "male", 0.1, 0.4))
    frame["prob_covid"] = covid.clip(0.01, 0.99)
    frame["prob_normal"] = 1 - frame["prob_covid"]
    return frame.assign(sex=frame["sex"].where(frame.index > 2))


def test_an_audit_as_a_frame_holds_what_scikit_learn_finds(table: pd.DataFrame) -> None:
    result = audit(table, resamples=200, permutations=200)
    found = result.to_frame().set_index(["number", "group", "class"])
    known = table.dropna(subset="sex")
    said = np.where(known["prob_covid"] > 0.5, "covid", "normal")
    assert found.index.is_unique and (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    assert found.loc[("score", "", ""), "n"] == 97 == result.n
    for sex in ("male", "female"):
        rows = (known["sex"] == sex).to_numpy()
        true, answer = known["label"][rows], said[rows]
        for number, expected in (
            ("f1", f1_score(true, answer, average="macro")),
            ("accuracy", accuracy_score(true, answer)),
        ):
            assert found.loc[(number, sex, ""), "value"] == pytest.approx(expected)
        recalls = recall_score(true, answer, average=None, labels=["covid", "normal"])
        assert found.loc[[("recall", sex, "covid"), ("recall", sex, "normal")], "value"].tolist() == pytest.approx(
            recalls
        )
        assert ("auc", sex, "") in found.index
    assert not found["small"].any()
    few = audit(table, resamples=200, permutations=200, min_cell=97).to_frame()
    assert few["small"].tolist() == (few["n"] < 97).tolist() and few["small"].any()


def test_a_comparison_takes_frames_one_or_several_a_system(table: pd.DataFrame) -> None:
    table = table.assign(scan=[f"s{i}" for i in range(100)])
    better = table.assign(prob_covid=np.where(table["label"] == "covid", 0.9, 0.1))
    better["prob_normal"] = 1 - better["prob_covid"]
    draws = {"resamples": 200, "permutations": 200}
    result = compare({"old": table, "new": better[::-1]}, **draws)
    assert result == compare({"old": [load_predictions(table)], "new": [load_predictions(better)]}, **draws)
    found = result.to_frame().set_index(["system", "number"])
    (pair,) = result.comparisons
    assert found.loc[("new", "score")].tolist()[:3] == list(pair.differences["score"])[:3]
    assert found.loc[("new", "score"), "p_holm"] == pair.tests["score"].p_holm
    assert found.loc[("new", "gap"), ["p_value", "p_holm"]].isna().all()
    several = compare({"old": [table, table], "new": [better, better[:]]}, **draws)
    assert several.comparisons[0].seeds and several.to_frame()["value"][0] == found.loc[("new", "score"), "value"]
