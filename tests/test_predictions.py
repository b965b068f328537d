"""Prediction tables: what they hold, and that one odd scan does not cost the others."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events

from fairlung.pipeline.predictions import EXIT_SOME_FAILED, PredictionWriter


def answer(writer: PredictionWriter, batches: list[dict]) -> None:
    engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
    writer.attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "best_metric_epoch", -1))
    engine.run(batches)


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
