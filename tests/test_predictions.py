"""Prediction tables: what they hold, and that one odd scan does not cost the others."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events

from fairlung.pipeline.audit import audit
from fairlung.pipeline.compare import compare
from fairlung.pipeline.evidence import evidence_of_table
from fairlung.pipeline.labelled_predictions import load_predictions
from fairlung.pipeline.names import SEXES
from fairlung.pipeline.postprocess import write_table
from fairlung.pipeline.predictions import EXIT_SOME_FAILED, PredictionWriter, write_evaluation
from fairlung.pipeline.report import evaluation_report


def answer(writer: PredictionWriter, batches: list[dict]) -> None:
    engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
    writer.attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "best_metric_epoch", -1))
    engine.run(batches)


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_table_says_itself_that_its_scans_are_phantoms(tmp_path: Path, synthetic: bool) -> None:
    batch = {"logits": torch.eye(2), "scan": ["x", "y"], "label": torch.tensor([0, 1]), "group_values": [SEXES]}
    path = tmp_path / "p.csv"
    answer(PredictionWriter(path, ["a", "b"], "sex", synthetic=synthetic), [batch])
    table = load_predictions(path, group_by=["sex"])
    assert table.synthetic is synthetic
    judged = audit(table, 100, 100)
    assert judged["synthetic"] is synthetic
    assert compare({"A": [table], "B": [table]}, 100, 100)["synthetic"] is synthetic
    assert write_evaluation(path, ["a", "b"], ["male", "female"])["synthetic"] is synthetic
    write_table(tmp_path / "after.csv", path, table, "temperature")
    assert load_predictions(tmp_path / "after.csv").synthetic is synthetic
    assert bool(evaluation_report(evidence_of_table(table, "p.csv")).badge) is synthetic


def test_a_name_that_is_not_unicode_costs_nobody_an_answer(tmp_path: Path) -> None:
    odd = os.fsdecode(b"scan-\xff\xfe")
    batch = {"logits": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "scan": [odd, "plain"], "reason": ["", ""]}
    writer = PredictionWriter(tmp_path / "p.csv", ["a", "b"])
    answer(writer, [batch])
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table["prediction"]) == ["b", "a"]
    assert table["scan"][1] == "plain"
    writer.report()  # nothing failed: no exit


def test_a_failed_scan_has_a_reason_and_no_prediction(tmp_path: Path) -> None:
    batch = {"logits": torch.zeros(2, 3), "scan": ["x", "y"], "reason": ["", 'cannot be read, "at all"']}
    writer = PredictionWriter(tmp_path / "p.csv", ["a", "b", "c"])
    answer(writer, [batch])
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert list(table["status"]) == ["ok", "failed"]
    assert table["reason"][1] == 'cannot be read, "at all"'
    assert table["prediction"][1] == table["prob_a"][1] == ""
    with pytest.raises(SystemExit) as stopped:
        writer.report()
    assert stopped.value.code == EXIT_SOME_FAILED


def test_an_output_that_is_not_finite_is_no_answer(tmp_path: Path) -> None:
    batch = {"logits": torch.tensor([[float("nan"), 0.0]]), "scan": ["x"], "reason": [""]}
    answer(PredictionWriter(tmp_path / "p.csv", ["a", "b"]), [batch])
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert (table["status"][0], table["prediction"][0]) == ("failed", "")
    assert "not finite" in table["reason"][0]


def test_rows_of_a_broken_run_are_kept_apart(tmp_path: Path) -> None:
    good = {"logits": torch.zeros(1, 2), "scan": ["x"], "reason": [""]}
    with pytest.raises(KeyError):
        answer(PredictionWriter(tmp_path / "p.csv", ["a", "b"]), [good, {"scan": ["y"]}])
    assert not (tmp_path / "p.csv").exists()
    assert len(pd.read_csv(tmp_path / "p.csv.part")) == 1
