"""What an evaluation left behind: which epoch is marked, and what does not fit together is refused."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from evaluations import (
    make_run,
)

from fairlung.pipeline.reports.evaluation_report import (
    write_report,
)
from fairlung.pipeline.reports.evidence import EvidenceError, read_evidence


@pytest.mark.parametrize(
    ("checkpoint", "record", "expected"),
    [
        ("models/best.pt", None, (3, "the one of the highest P")),
        ("models/best.pt", {"best_epoch": 4}, (4, "the best one")),
        ("models/checkpoint_epoch=2.pt", {"best_epoch": 4}, (2, "the judged checkpoint's")),
        ("elsewhere.pt", {"best_epoch": 4}, (None, "")),
    ],
)
def test_the_epoch_of_the_judged_checkpoint_is_marked(tmp_path, checkpoint, record, expected):
    folder = make_run(tmp_path, checkpoint=tmp_path / checkpoint)
    if record is not None:
        (tmp_path / "mlflow_run.json").write_text(json.dumps(record))
    evidence = read_evidence(folder)
    assert (evidence.marked_epoch, evidence.marked_by) == expected
    assert (evidence.history is None) == (checkpoint == "elsewhere.pt")  # whose training is not known


def test_an_evaluation_of_another_training_shows_that_training(tmp_path):
    make_run(tmp_path / "trained")
    best = tmp_path / "trained" / "models" / "best.pt"
    best.parent.mkdir()
    best.touch()
    pd.DataFrame([(7, "val_score", 0.5)], columns=["epoch", "metric", "value"]).to_csv(best.parents[1] / "history.csv")
    folder = make_run(tmp_path / "here", checkpoint=best)
    history = read_evidence(folder).history
    assert history is not None and list(history["epoch"]) == [7]


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(EvidenceError, match="holds no evaluation"):
        write_report(tmp_path)
    folder = make_run(tmp_path)
    good = (folder / "audit.json").read_text()
    other = json.loads(good)
    other["confusion"][0][0][0] += 1
    (folder / "audit.json").write_text(json.dumps(other))
    with pytest.raises(EvidenceError, match="not of the same predictions"):
        write_report(folder)
    (folder / "audit.json").write_text(good[:100])
    with pytest.raises(EvidenceError, match=r"audit\.json cannot be read"):
        write_report(folder)
    (folder / "audit.json").write_text(good)
    (folder / "errors" / "0001.png").write_text("no picture")
    with pytest.raises(EvidenceError, match=r"0001\.png is no PNG"):
        write_report(folder)
    (folder / "errors" / "0001.png").unlink()
    with pytest.raises(EvidenceError, match=r"names 0001\.png, which cannot be read"):
        write_report(folder)
    shutil.rmtree(folder / "errors")
    (folder / "cells.csv").write_text("split,label,group\n")
    with pytest.raises(EvidenceError, match=r"cells\.csv cannot be read: no column n"):
        write_report(folder)
    with pytest.raises(ValueError, match=r"report is an \.html file.*got report\.pdf"):
        write_report(folder, tmp_path / "report.pdf")
