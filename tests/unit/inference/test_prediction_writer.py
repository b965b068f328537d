"""Prediction tables: what they hold, and that one odd scan does not cost the others."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine, Events

from fairlung.pipeline.common.errors import EXIT_SOME_FAILED, UserError, user_error
from fairlung.pipeline.common.files import WriteError, whole_records
from fairlung.pipeline.common.names import SEXES
from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.data.cohort import Cohort
from fairlung.pipeline.data.pseudonyms import Pseudonyms
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import PredictionsError, load_predictions
from fairlung.pipeline.inference import parts, prediction_writer
from fairlung.pipeline.inference.about_scans import AboutScans
from fairlung.pipeline.inference.answers import Answer, AnswerEvents, answer_scans
from fairlung.pipeline.inference.labelled_writer import LabelledPredictionWriter
from fairlung.pipeline.inference.prediction_writer import (
    AppendingPredictionWriter,
    PredictionTableError,
    PredictionWriter,
    csv_bytes,
    csv_rows,
    prediction_writer_of,
)
from fairlung.pipeline.postprocessing.fitted import PostprocessError
from fairlung.pipeline.postprocessing.prior import fit_prior
from fairlung.pipeline.postprocessing.tables import load_unlabelled, write_table
from fairlung.pipeline.reports.evaluation_report import evaluation_report
from fairlung.pipeline.reports.evidence import evidence_of_table, write_evaluation


def answer(writer: PredictionWriter, batches: list[dict]) -> None:
    engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
    writer.attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "best_metric_epoch", -1))
    engine.run(batches)


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_table_says_itself_that_its_scans_are_phantoms(tmp_path: Path, synthetic: bool) -> None:
    batch = {"logits": torch.eye(2), "scan": ["x", "y"], "label": torch.tensor([0, 1]), "group_values": [SEXES]}
    path = tmp_path / "p.csv"
    answer(LabelledPredictionWriter(path, ["a", "b"], "sex", synthetic=synthetic), [batch])
    table = load_predictions(path, group_by=["sex"])
    assert table.synthetic is synthetic
    judged = audit(table, 100, 100)
    assert judged.synthetic is synthetic
    assert compare({"A": [table], "B": [table]}, 100, 100).synthetic is synthetic
    assert write_evaluation(path, ["a", "b"], ["male", "female"])["synthetic"] is synthetic
    write_table(tmp_path / "after.csv", path, table, "temperature")
    assert load_predictions(tmp_path / "after.csv").synthetic is synthetic
    assert bool(evaluation_report(evidence_of_table(table, "p.csv")).badge) is synthetic


def test_patients_and_sites_of_a_cohort_stand_beside_the_answers(tmp_path: Path) -> None:
    batch = {"logits": torch.eye(2), "scan": ["x", "y"], "label": torch.tensor([0, 1]), "group_values": [SEXES]}
    about = {"patient": ["=DOE", ""], "site": ["A", "B"]}
    cohort = pd.DataFrame({"scan": ["x", "y"], "sex": SEXES, **about})
    path = tmp_path / "p.csv"
    found = AboutScans(Cohort(cohort, tmp_path, ("a", "b"), SEXES, ("sex",)))
    answer(LabelledPredictionWriter(path, ["a", "b"], "sex", synthetic=True, about=found), [batch])
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(table) == ["scan", "label", "sex", "prediction", "prob_a", "prob_b", "synthetic", "patient", "site"]
    assert table["site"].tolist() == ["A", "B"] and re.fullmatch("[0-9a-f]{16}", table["patient"][0])
    assert table["patient"][1] == ""
    judged = load_predictions(path)
    assert judged.patient is not None and not judged.repeated
    write_table(tmp_path / "after.csv", path, judged, "temperature")
    after = pd.read_csv(tmp_path / "after.csv", dtype=str, keep_default_na=False)
    assert after["patient"].equals(table["patient"]) and "site" not in after


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


@pytest.mark.fault(
    "wrong",
    "an evaluation with an output that is not finite",
    before="gave the scan the first class",
    now="names the scan, and gives no numbers",
)
def test_a_labelled_scan_whose_output_is_not_finite_has_no_answer(tmp_path: Path) -> None:
    logits = torch.tensor([[float("nan"), 0.0], [0.0, 1.0]])
    batch = {"logits": logits, "scan": ["x", "y"], "label": torch.tensor([0, 1]), "group_values": [SEXES]}
    path = tmp_path / "p.csv"
    (tmp_path / "metrics.json").write_text("{}")  # of an earlier evaluation
    answer(LabelledPredictionWriter(path, ["a", "b"], "sex"), [batch])
    assert list(pd.read_csv(path, keep_default_na=False)["prediction"]) == ["", "b"]
    with pytest.raises(PredictionsError, match="x: column 'prediction' is empty"):
        write_evaluation(path, ["a", "b"], ["male", "female"])
    assert not (tmp_path / "metrics.json").exists()


def test_rows_of_a_broken_run_are_kept_apart(tmp_path: Path) -> None:
    good = {"logits": torch.zeros(1, 2), "scan": ["x"], "reason": [""]}
    with pytest.raises(KeyError):
        answer(PredictionWriter(tmp_path / "p.csv", ["a", "b"]), [good, {"scan": ["y"]}])
    assert not (tmp_path / "p.csv").exists()
    assert len(pd.read_csv(tmp_path / "p.csv.part")) == 1


# ---- new scans -----------------------------------------------------------------------------------------------------
def new_scans(scans: list[str], logits: Any, reasons: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {"scan": scans, "logits": torch.as_tensor(logits), "reason": reasons or [""] * len(scans)} | more


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


def test_the_json_says_what_the_table_says_and_more(tmp_path: Path) -> None:
    intake = {"kind": "dicom", "status": "ok", "reason": "", "files": ["/archive/1.dcm"], "tilt_degrees": float("nan")}
    intake |= {
        "spacing": [2.5, 0.7, 0.7],
        "warnings": ["missing_slices: 2 of 80 slices are missing", "tilt: 3 degrees"],
    }
    batches = [
        new_scans(["x", "y"], [[0.0, 1.0], [2.0, 0.0]], intake=[intake, {}]),
        new_scans(["z"], [[0.5, 0.0]], ["cannot be\nread"], intake=[intake | {"status": "refused"}]),
    ]
    answer(PredictionWriter(tmp_path / "p.csv", ["a", "b"]), batches)
    rows, objects = read(tmp_path / "p.csv"), json.loads((tmp_path / "p.json").read_text())
    assert list(rows[0]) == ["scan", "prediction", "prob_a", "prob_b", "status", "reason", "warnings"]
    assert [row["warnings"] for row in rows] == ["; ".join(intake["warnings"]), "", "; ".join(intake["warnings"])]
    for row, found in zip(rows, objects, strict=True):
        for name in ("scan", "status", "reason"):
            assert row[name] == found[name]
        assert row["prediction"] == (found["prediction"] or "")
        assert {n: row[f"prob_{n}"] for n in found["probabilities"]} == {
            n: f"{p:.6f}" for n, p in found["probabilities"].items()
        }
        assert found["spread"] is found["agreement"] is found["prevalence"] is found["uncorrected"] is None
    assert objects[2]["reason"] == "cannot be read"
    assert objects[2]["probabilities"] == {}
    assert objects[0]["warnings"] == intake["warnings"]
    expected = {name: value for name, value in intake.items() if name != "files"} | {"tilt_degrees": None}
    assert objects[0]["intake"] == expected
    assert sum(objects[0]["probabilities"].values()) == pytest.approx(1, abs=1e-12)  # in full, not in six digits
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.json"]


def test_a_scan_that_is_no_chest_ct_is_skipped_and_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    skipped = {"status": "skipped", "reason": "a localizer", "warnings": []}
    batch = new_scans(["x", "y"], torch.zeros(2, 2), ["", ""], intake=[{"warnings": ["tilt: 3 degrees"]}, skipped])
    writer = PredictionWriter(tmp_path / "p.csv", ["a", "b"])
    answer(writer, [batch])
    row = read(tmp_path / "p.csv")[1]
    assert (row["status"], row["reason"], row["prediction"], row["prob_a"]) == ("skipped", "a localizer", "", "")
    writer.report()  # no exit
    assert "1 scans answered (1 of them with warnings), 1 skipped, 0 failed" in caplog.text
    assert list(load_unlabelled(tmp_path / "p.csv").scan) == ["x"]


@pytest.mark.parametrize("statuses", [["skipped"], ["ok", "failed"], ["failed"], ["skipped", "failed"]])
def test_when_the_exit_code_is_3(tmp_path: Path, statuses: list[str]) -> None:
    reasons = ["broken" if status == "failed" else "" for status in statuses]
    intake = [{"status": {"failed": "refused"}.get(status, status), "reason": "r"} for status in statuses]
    writer = PredictionWriter(tmp_path / "p.csv", ["a", "b"])
    answer(writer, [new_scans(statuses, torch.zeros(len(statuses), 2), reasons, intake=intake)])
    assert [row["status"] for row in read(tmp_path / "p.csv")] == statuses
    with pytest.raises(SystemExit) as stopped:
        writer.report()
    assert stopped.value.code == EXIT_SOME_FAILED


def test_a_refused_scan_is_never_answered_even_without_a_reason() -> None:
    batch = new_scans(["x"], torch.zeros(1, 2), intake=[{"status": "refused", "reason": "thick slices"}])
    (found,) = answer_scans(batch, batch["logits"], ["a", "b"])
    assert (found.status, found.reason, found.prediction) == ("failed", "thick slices", None)


def test_later_handlers_get_the_same_answers(tmp_path: Path) -> None:
    batches = [new_scans(["x", "y"], torch.randn(2, 3, 2)), new_scans(["z"], torch.randn(1, 3, 2), ["broken"])]
    batches[0]["intake"] = [{"files": ["f"]}, {}]
    engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
    PredictionWriter(tmp_path / "p.csv", ["a", "b"], members=3).attach(engine)
    seen: list[list[Answer]] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.answers))
    engine.run(batches)
    assert [[found.scan for found in answers] for answers in seen] == [["x", "y"], ["z"]]
    assert seen[0][0].intake == {"files": ["f"]}  # whoever draws or encapsulates needs them
    for row, found in zip(read(tmp_path / "p.csv"), [*seen[0], *seen[1]], strict=True):
        assert row["prediction"] == (found.prediction or "")
        for name, value in found.probabilities.items():
            assert row[f"prob_{name}"] == f"{value:.6f}"
        for name, value in (found.spread or {}).items():
            assert row[f"spread_{name}"] == f"{value:.6f}"


# ---- several networks ----------------------------------------------------------------------------------------------
def test_what_later_handlers_lack_is_in_the_row_and_counted_also_by_the_next_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def lack(engine: Engine) -> None:
        for answer in engine.state.answers:
            answer.lacks("report", ValueError(f"{answer.scan}: it has no UID"))
            answer.lacks("overlay", OSError(28, "No space left on device", f"/out/{answer.scan}.png"))

    for number, scan in enumerate(("x", "y"), start=1):
        engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
        writer = prediction_writer_of(tmp_path / "p.csv", ["a", "b"], append=True)
        writer.attach(engine)
        engine.add_event_handler(AnswerEvents.ANSWERED, lack)
        engine.run([new_scans([scan], torch.zeros(1, 2), intake=[{"warnings": ["odd: some; 3: text"]}])])
        caplog.clear()
        writer.report()
        told = f"{number} no_overlay, {number} no_report, {number} odd"
        assert caplog.messages[-2].startswith(f"{number} scans answered ({number} of them with warnings)")
        assert caplog.messages[-1].endswith(f": {told}")
    expected = "odd: some; 3: text; no_report: it has no UID; no_overlay: No space left on device"
    assert [row["warnings"] for row in read(tmp_path / "p.csv")] == [expected] * 2
    assert json.loads((tmp_path / "p.json").read_text())[1]["warnings"][1:] == expected.split("; ")[2:]


def test_a_table_without_the_column_study_is_gone_on_with(tmp_path: Path) -> None:
    add(tmp_path / "old.csv", [new_scans(["x"], torch.zeros(1, 2))])
    before = (tmp_path / "old.csv").read_bytes()
    for path, columns in ((tmp_path / "old.csv", [*csv_rows(before)[0]]), (tmp_path / "new.csv", None)):
        writer = AppendingPredictionWriter(path, ["a", "b"], pseudonyms=Pseudonyms())
        answer(writer, [new_scans(["y"], torch.zeros(1, 2))])
        assert csv_rows(path.read_bytes())[0] == (columns or writer.columns)
        assert path.read_bytes().startswith(before) or columns is None
    assert writer.columns[-1] == "study"
    assert [row["scan"] for row in read(tmp_path / "old.csv")] == ["x", "y"]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def test_members_are_averaged_as_numpy_does(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 3, 4)).astype(np.float32)
    names = ["a", "b", "c", "d"]
    batch = new_scans([f"s{i}" for i in range(5)], logits)
    answer(PredictionWriter(tmp_path / "p.csv", names, members=3), [batch])
    table = pd.read_csv(tmp_path / "p.csv")
    spread = [f"spread_{name}" for name in names]
    assert list(table.columns[2:]) == [
        *(f"prob_{name}" for name in names), *spread, "agreement", "status", "reason", "warnings"
    ]  # fmt: skip
    own = softmax(logits.astype(float))
    np.testing.assert_allclose(table[[f"prob_{name}" for name in names]], own.mean(1), atol=6e-7)
    np.testing.assert_allclose(table[spread], np.sqrt(((own - own.mean(1)[:, None]) ** 2).sum(1) / 2), atol=6e-7)
    winner = own.mean(1).argmax(1)
    assert list(table["prediction"]) == [names[i] for i in winner]
    assert list(table["agreement"]) == pytest.approx((own.argmax(2) == winner[:, None]).mean(1), abs=1e-6)
    assert 0 < table["agreement"].min() < 1  # the example has members that disagree
    found = load_unlabelled(tmp_path / "p.csv")  # readers are not confused by the columns
    assert found.class_names == ("a", "b", "c", "d")


def test_a_mean_of_logits_would_be_another_answer() -> None:
    logits = torch.tensor([[[10.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])
    (found,) = answer_scans(new_scans(["x"], logits), logits, ["a", "b"])
    assert logits.mean(1).argmax() == 0
    assert found.probabilities["a"] == pytest.approx((1 + 2 / (1 + np.e)) / 3, abs=1e-4)
    two_of_three = torch.tensor([[[3.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]]])
    (found,) = answer_scans(new_scans(["x"], two_of_three), two_of_three, ["a", "b"])
    assert (found.prediction, found.agreement) == ("b", pytest.approx(2 / 3))


def test_one_member_that_is_not_finite_fails_the_scan_alone(tmp_path: Path) -> None:
    logits = torch.zeros(3, 2, 2)
    logits[1, 1, 0] = float("nan")
    logits[2, 0, 1] = float("inf")
    answer(PredictionWriter(tmp_path / "p.csv", ["a", "b"], members=2), [new_scans(["x", "y", "z"], logits)])
    rows = read(tmp_path / "p.csv")
    assert [row["status"] for row in rows] == ["ok", "failed", "failed"]
    assert all(rows[1][name] == "" for name in ("prediction", "prob_a", "spread_a", "agreement"))
    assert "NaN" not in (tmp_path / "p.json").read_text()


def test_logits_of_another_shape_are_refused() -> None:
    writer = PredictionWriter("p.csv", ["a", "b"], members=3)
    for logits, said in (
        (torch.zeros(1, 2), "members is 3, but the logits [1, 2] are of 1"),
        (torch.zeros(1, 2, 2), "members is 3, but the logits [1, 2, 2] are of 2"),
        (torch.zeros(1, 3, 4), r"got [1, 3, 4]"),
        (torch.zeros(2, 3, 2), r"got [2, 3, 2]"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            writer.answer(new_scans(["x"], logits), logits)
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="members must be at least 1, got 0"):
        PredictionWriter("p.csv", ["a", "b"], members=0)
    with pytest.raises(ValueError, match="for new scans"):
        prediction_writer_of("p.csv", ["a", "b"], "sex", append=True)


# ---- a correction --------------------------------------------------------------------------------------------------
def test_a_prior_is_bayes_by_hand_on_the_mean(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(0, 1, (6, 3, 2))
    correction = fit_prior(target={"a": 9, "b": 1}, source={"a": 0.25, "b": 0.75})
    writer = PredictionWriter(tmp_path / "p.csv", ["a", "b"], members=3, correction=correction)
    answer(writer, [new_scans([f"s{i}" for i in range(6)], logits)])
    rows, objects = read(tmp_path / "p.csv"), json.loads((tmp_path / "p.json").read_text())
    own = softmax(logits)

    def bayes(p: np.ndarray) -> np.ndarray:
        joint = p * np.array([0.9 / 0.25, 0.1 / 0.75])
        return joint / joint.sum(-1, keepdims=True)

    final = bayes(own.mean(1))
    changed = bayes(own)
    for i, (row, found) in enumerate(zip(rows, objects, strict=True)):
        assert [found["uncorrected"][name] for name in "ab"] == pytest.approx(own[i].mean(0), abs=1e-12)
        assert [found["probabilities"][name] for name in "ab"] == pytest.approx(final[i], abs=1e-12)
        assert [found["spread"][name] for name in "ab"] == pytest.approx(changed[i].std(0, ddof=1), abs=1e-12)
        assert found["agreement"] == pytest.approx((changed[i].argmax(1) == final[i].argmax()).mean())
        assert found["prevalence"] == pytest.approx({"a": 0.9, "b": 0.1})
        assert row["prediction"] == found["prediction"] == "ab"[final[i].argmax()]
        assert row["postprocess"] == "prior a=0.9 b=0.1 from a=0.25 b=0.75"
    assert (final.argmax(1) != own.mean(1).argmax(1)).any()  # the correction changes an answer here
    with pytest.raises(PostprocessError, match="post-processed before"):  # nobody corrects it a second time
        load_unlabelled(tmp_path / "p.csv")


def test_even_to_even_changes_nothing() -> None:
    logits = torch.randn(4, 3)
    batch, names = new_scans(list("wxyz"), logits), ["a", "b", "c"]
    plain = answer_scans(batch, logits, names)
    same = answer_scans(batch, logits, names, fit_prior(target=dict.fromkeys(names, 5)))
    for one, other in zip(plain, same, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-12)
        assert other.uncorrected == one.probabilities
        assert one.uncorrected is None


# ---- rows added to a table that is there ---------------------------------------------------------------------------
ODD = ['with "quotes", commas', "two\nlines", "é—漢\u2028", os.fsdecode(b"bytes-\xff"), "\r", "plain", "last"]


def odd_batches(scans: list[str]) -> list[dict[str, Any]]:
    """In batches of three, with logits that depend on the name alone."""
    values = {name: [i / 3, 1.0] for i, name in enumerate(ODD)}
    reasons = {"plain": 'no, "none"'}
    parts = [scans[i : i + 3] for i in range(0, len(scans), 3)]
    return [
        new_scans(p, [values[n] for n in p], [reasons.get(n, "") for n in p], intake=[{"series": n} for n in p])
        for p in parts
    ]


class Killed(Exception):
    pass


def add(path: Path, batches: list[dict[str, Any]], kill: bool = False) -> PredictionWriter:
    """One process: it adds batches, and is killed before the epoch ends."""
    writer = AppendingPredictionWriter(path, ["a", "b"])
    engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
    writer.attach(engine)
    if kill:
        last = len(batches)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=last), lambda: (_ for _ in ()).throw(Killed))
    if batches:
        try:
            engine.run(batches)
        except Killed:
            assert kill
    return writer


def rest(path: Path) -> list[str]:
    writer = AppendingPredictionWriter(path, ["a", "b"])
    writer.recover()
    return [name for name in ODD if name not in writer.answered]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    """Table and objects of one undisturbed run without append."""
    path = tmp_path_factory.mktemp("reference") / "p.csv"
    answer(PredictionWriter(path, ["a", "b"]), odd_batches(ODD))
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def assert_complete(path: Path, reference: tuple[bytes, list[dict[str, Any]]]) -> None:
    assert path.read_bytes() == reference[0]
    assert json.loads(path.with_suffix(".json").read_text()) == reference[1]
    assert sorted(file.name for file in path.parent.iterdir()) == ["p.csv", "p.json"]


def test_rounds_and_restarts_give_the_table_of_one_run(
    tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]]
) -> None:
    path = tmp_path / "p.csv"
    assert rest(path) == ODD
    writer = add(path, odd_batches(ODD[:2]))
    assert [found["status"] for found in json.loads(path.with_suffix(".json").read_text())] == ["ok", "ok"]
    engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
    writer.attach(engine)
    engine.run(odd_batches(ODD[2:5]))  # the same process, the next round
    assert set(ODD[:5]) <= writer.answered
    assert rest(path) == ODD[5:]
    writer = add(path, odd_batches(rest(path)))
    assert_complete(path, reference)
    assert rest(path) == []
    assert writer.counts == {"ok": 6, "failed": 1, "with warnings": 0}
    with pytest.raises(SystemExit):  # the table has a scan that failed, if in an earlier process
        AppendingPredictionWriter(path, ["a", "b"]).report()


def test_a_kill_at_any_byte_of_the_table_loses_the_row_in_work_alone(
    tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds of runs
    path, part = tmp_path / "p.csv", tmp_path / "p.jsonl.part"
    add(path, odd_batches(ODD), kill=True)
    table, journal = path.read_bytes(), part.read_bytes()
    assert table == reference[0]
    ends = record_ends(list(csv.reader(io.StringIO(table.decode(), newline=""))))
    for cut in range(len(table) + 1):
        path.write_bytes(table[:cut])
        part.write_bytes(journal)
        kept = max(0, sum(end <= cut for end in ends) - 1)  # less the header
        assert rest(path) == ODD[kept:]
        assert json.loads(path.with_suffix(".json").read_text()) == reference[1][:kept]  # up to date before any round
        add(path, odd_batches(ODD[kept:]))
        assert_complete(path, reference)


def test_a_kill_anywhere_in_the_journal_loses_the_batch_in_work_alone(
    tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    path, part = tmp_path / "p.csv", tmp_path / "p.jsonl.part"
    add(path, odd_batches(ODD[:3]), kill=True)
    table, first = path.read_bytes(), part.read_bytes()
    path.unlink()
    part.unlink()
    add(path, odd_batches(ODD[:6]), kill=True)
    second = part.read_bytes()
    assert second.startswith(first)
    for cut in range(len(first), len(second) + 1, 3):
        path.write_bytes(table)  # the rows of a batch are written after its objects
        part.write_bytes(second[:cut])
        assert rest(path) == ODD[3:]
        add(path, odd_batches(ODD[3:]))
        assert_complete(path, reference)


def record_ends(rows: list[list[str]]) -> list[int]:
    """Where each row of a CSV file ends, in bytes."""
    return np.cumsum([len(csv_bytes([row])) for row in rows]).tolist()


CELLS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('",\r\n'), max_size=6
)


@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=5), data=st.data())
def test_whole_records_are_those_that_a_csv_reader_finds(rows: list[list[str]], data: st.DataObject) -> None:
    content = csv_bytes(rows)
    cut = data.draw(st.integers(0, len(content)))
    ends = [0, *record_ends(rows)]
    whole = max(end for end in ends if end <= cut)
    assert whole_records(content[:cut]) == whole
    kept = csv_rows(content[:whole])
    assert kept == rows[: ends.index(whole)]


@pytest.mark.parametrize("full_at", ["p.jsonl.part", "p.csv"])
def test_a_full_disk_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str) -> None:
    path = tmp_path / "p.csv"
    writer = add(path, odd_batches(ODD[:3]))
    before = path.read_bytes()

    def fill(file: int) -> None:
        if os.path.samestat(os.fstat(file), os.stat(tmp_path / full_at)):
            raise OSError(28, "No space left on device")

    def go_on() -> None:
        engine = Engine(lambda engine, batch: {"pred": batch["logits"]})
        writer.attach(engine)
        engine.run(odd_batches(ODD[3:]))

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match="No space"):
        go_on()
    assert path.read_bytes() == before
    monkeypatch.undo()
    go_on()  # what has no row is not taken for answered
    assert [row["scan"] for row in read(path)] == [name.encode("utf-8", "backslashreplace").decode() for name in ODD]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 30, 100, 200, 300, 450, 600, 900])
@pytest.mark.parametrize("append", [True, False])
@pytest.mark.fault(
    "lost", "a disk that gets full while scans are answered", before="a traceback of 50 lines and more",
    now="one line that names the file and what is kept; the next run with append goes on from there",
)  # fmt: skip
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]], append: bool, size: int
) -> None:
    path = tmp_path / "p.csv"
    writer = (AppendingPredictionWriter if append else PredictionWriter)(path, ["a", "b"])
    with files_up_to(size), pytest.raises(WriteError) as full:
        answer(writer, odd_batches(ODD))
    assert str(full.value).startswith(str(tmp_path)) and "cannot be written: File too large" in str(full.value)
    assert "\n" not in str(full.value) and user_error(full.value) is full.value
    add(path, odd_batches(rest(path)))
    assert_complete(path, reference)


def test_an_append_that_fails_leaves_table_and_json_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, batches = tmp_path / "p.csv", odd_batches(ODD)
    add(path, batches[:1])

    def fill(file: int) -> None:
        if os.path.samestat(os.fstat(file), os.stat(path)) and len(read(path)) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(WriteError, match=f"{path} cannot be written: No space .* kept in {path}; the same command"):
        add(path, batches[1:])
    scans = [row["scan"] for row in read(path)]
    assert len(scans) == 6
    assert [found["scan"] for found in json.loads(path.with_suffix(".json").read_text())] == scans


def test_a_run_that_was_broken_off_is_taken_up_by_append(
    tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.csv"
    for _ in range(2):
        with pytest.raises(KeyError):
            answer(PredictionWriter(path, ["a", "b"]), [*odd_batches(ODD[:3]), {"scan": ["y"]}])
        add(path, odd_batches(rest(path)))
        assert_complete(path, reference)
    assert "p.csv.part, of a run that was to replace the table and was broken off, is removed" in caplog.text


def test_a_scan_keeps_the_row_that_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.csv"
    add(path, [new_scans(["x"], [[1.0, 0.0]])])
    add(path, [new_scans(["x", "y", "y"], [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])])
    assert [(row["scan"], row["prediction"]) for row in read(path)] == [("x", "a"), ("y", "b")]
    assert [found["prediction"] for found in json.loads(path.with_suffix(".json").read_text())] == ["a", "b"]
    assert "x has a row" in caplog.text


def test_objects_that_are_gone_are_made_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    warned = [{"warnings": ["tilt: 3 degrees", "missing_slices: 1"], "series": "s"}]
    logits = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    made = [new_scans([name], logits, intake=warned) for name in ("x", "y")]

    def writer() -> PredictionWriter:
        return AppendingPredictionWriter(path, ["a", "b"], members=2)

    answer(writer(), made[:1])
    whole = json.loads(path.with_suffix(".json").read_text())[0]
    path.with_suffix(".json").write_text("[{")  # spoilt by somebody
    answer(writer(), made[1:])
    first, second = json.loads(path.with_suffix(".json").read_text())
    for name in ("probabilities", "spread"):
        assert first.pop(name) == pytest.approx(whole.pop(name), abs=1e-6)
    assert first == whole | {"intake": {}}
    assert second["intake"]["series"] == "s"


PRIOR = fit_prior(target={"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"class_names": ["a", "c"]}, "prob_a, prob_c"),
        ({"class_names": ["b", "a"]}, "other columns"),
        ({"members": 2}, "spread_a, spread_b, agreement"),
        ({"correction": PRIOR}, "postprocess"),
    ],
)
def test_a_table_of_something_else_is_refused_and_stays(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    path = tmp_path / "p.csv"
    add(path, odd_batches(ODD[:2]))
    before = path.read_bytes()
    other = AppendingPredictionWriter(path, **{"class_names": ["a", "b"]} | settings)
    with pytest.raises(PredictionTableError) as caught:
        other.recover()
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert path.read_bytes() == before


def test_rows_of_two_prevalences_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    answer(AppendingPredictionWriter(path, ["a", "b"], correction=PRIOR), odd_batches(ODD[:2]))
    again = AppendingPredictionWriter(path, ["a", "b"], correction=PRIOR)
    assert not again.answered  # asking reads nothing
    again.recover()
    assert again.answered >= set(ODD[:2])
    for other in (fit_prior(target={"a": 3, "b": 1}), fit_prior(target={"a": 1, "b": 3}, source={"a": 1, "b": 2})):
        with pytest.raises(PredictionTableError, match="corrected otherwise"):
            AppendingPredictionWriter(path, ["a", "b"], correction=other).recover()


@pytest.mark.parametrize(
    "content", [b"what is this", b"scan,label\r\n", b"\xff\xfe\r\n", b"scan,prediction\r\nx,a\r\n"]
)
def test_a_file_that_is_no_table_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(PredictionTableError):
        add(path, odd_batches(ODD[:1]))
    assert path.read_bytes() == content


def test_without_append_an_old_table_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    add(path, odd_batches(ODD[:2]))
    writer = PredictionWriter(path, ["a", "b"])
    assert writer.answered == set()
    answer(writer, [new_scans(["x"], torch.zeros(1, 2))])
    assert [row["scan"] for row in read(path)] == ["x"]
    assert [found["scan"] for found in json.loads(path.with_suffix(".json").read_text())] == ["x"]


@contextmanager
def process(number: int, of: int = 2) -> Iterator[None]:
    """Play one of several processes; the others have come as far as this one where it waits for them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (prediction_writer, parts):
            patch.setattr(module, "world_size", lambda: of, raising=False)
            patch.setattr(module, "rank", lambda: number, raising=False)
        patch.setattr(prediction_writer, "is_primary", lambda: number == 0)
        patch.setattr(prediction_writer, "barrier", lambda: None)
        yield


def shared(path: Path, scans: list[list[str]], append: bool, join: bool = True) -> None:
    """Processes begin, answer a list of scans each, and join the rows unless they are killed before."""
    writers = [prediction_writer_of(path, ["a", "b"], append=append) for _ in scans]
    for number, writer in enumerate(writers):
        with process(number, len(scans)):
            writer.begin()
    for number, writer in enumerate(writers):
        left = [name for name in scans[number] if name not in writer.answered]
        with process(number, len(scans)):
            if left:  # an engine does not run over nothing
                answer(writer, odd_batches(left))
    if join:
        with process(0, len(scans)):
            writers[0].join(ODD)


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("processes", [2, 3, len(ODD) + 2])
def test_processes_write_one_table_in_the_order_of_the_data(
    append: bool, processes: int, tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]]
) -> None:
    dealt = [ODD[number::processes] for number in range(processes)]
    shared(tmp_path / "p.csv", dealt, append)
    assert_complete(tmp_path / "p.csv", reference)
    shared(tmp_path / "p.csv", dealt, append)  # anew, or nothing is left to do
    assert_complete(tmp_path / "p.csv", reference)


@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_rows_of_processes_that_were_killed_are_taken_up(
    appended: bool, after: int, tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]]
) -> None:
    """By as many processes as before, by more, and by a single one; a row that was cut off is answered again."""
    path = tmp_path / "p.csv"
    shared(path, [ODD[0:3:2], ODD[1:4:2]], appended, join=False)
    cut = max(tmp_path.glob("p.csv.*1"))
    cut.write_bytes(cut.read_bytes()[:-3])
    writer = AppendingPredictionWriter(path, ["a", "b"])
    writer.recover()
    assert [name for name in ODD if name not in writer.answered] == ODD[3:]
    shared(path, [ODD[number::after] for number in range(after)], append=True)
    if after > 1:
        assert_complete(path, reference)
    else:  # in the order in which they were answered
        assert sorted(csv_rows(path.read_bytes())) == sorted(csv_rows(reference[0]))


@pytest.mark.parametrize("appended", [False, True])
def test_a_run_without_append_removes_what_more_processes_left(
    appended: bool, tmp_path: Path, reference: tuple[bytes, list[dict[str, Any]]]
) -> None:
    path = tmp_path / "p.csv"
    shared(path, [[name] for name in ODD[:3]], appended, join=False)
    assert len(list(tmp_path.iterdir())) == 6
    shared(path, [ODD[::2], ODD[1::2]], append=False)
    assert_complete(path, reference)


def test_rows_of_other_classes_are_not_added(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    shared(path, [ODD[:2]], append=True)
    before = path.read_bytes()
    writer = PredictionWriter(tmp_path / "other.csv", ["a", "b", "c"])
    with process(1):
        writer.start()
    (tmp_path / "other.csv.part1").replace(tmp_path / "p.csv.new1")
    with pytest.raises(PredictionTableError, match="other columns"):
        AppendingPredictionWriter(path, ["a", "b"]).recover()
    assert path.read_bytes() == before


def test_a_restart_without_append_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(PredictionTableError, match="--append True"):
        PredictionWriter(tmp_path / "p.csv", ["a", "b"]).recover()
    AppendingPredictionWriter(tmp_path / "p.csv", ["a", "b"]).recover()


def test_processes_that_see_other_scans_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "gather_interleaved", lambda names: [*names, ["a", "c"]])
    with pytest.raises(parts.DealingError, match="the same scans"):
        parts.own_share(["a", "b"], str)
    assert parts.own_share(["a", "c"], str) == ["a", "c"]
