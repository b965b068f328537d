"""The records of a study: what version 0.1 wrote is read, what is damaged is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fairlung.pipeline.studies.record import (
    PlannedRun,
    Study,
    StudyError,
    load_study,
    parse_record,
    read_record,
    status_text,
)
from fairlung.pipeline.studies.results import read_results

RUN = {"system": "CE", "label": "CE", "alpha": None, "fold": None, "repeat": None, "device": "cpu"}
RUN |= {"status": "finished", "reason": ""}
STUDY: dict[str, Any] = {
    "name": "a study", "protocol": "given", "reported_split": "val", "chosen_on": "val", "judged_on": "val",
    "runs": [{"id": f"CE-{seed}", "seed": seed, "output_dir": f"runs/CE-{seed}"} | RUN for seed in range(9)],
}  # fmt: skip


@pytest.fixture
def old_study(data_dir: Path) -> Path:
    return data_dir / "study_0_1"


def test_a_study_of_version_0_1_is_read_and_written_the_same(old_study: Path) -> None:
    study = load_study(old_study)
    assert (study.name, study.synthetic, study.optimistic, study.repeats) == ("small", True, True, 0)
    assert study.labels == ("CE", "LA+CVaR alpha 0.5", "LA+CVaR alpha 0.8")
    assert Counter(run.family for run in study.runs) == {("CE", "CE"): 2, ("LA+CVaR", "LA+CVaR"): 4}
    assert status_text(study) == "4 of 6 runs finished, 1 failed, 1 pending"
    assert study.runs[-1].reason == "CUDA out of memory" and study.runs[0].device == "a device"
    results = read_results(study)
    assert not results.problems and {label: len(made) for label, made in results.replicates.items()} == {
        "CE": 2, "LA+CVaR alpha 0.5": 1, "LA+CVaR alpha 0.8": 1,
    }  # fmt: skip
    text = (old_study / "study.json").read_text()
    assert json.loads(json.dumps(read_record(Study, old_study / "study.json").as_json())) == json.loads(text)


def test_a_run_of_version_0_1_is_read(old_study: Path) -> None:
    run = read_record(PlannedRun, old_study / "runs" / "LA+CVaR_alpha_0.5_seed_1" / "run.json")
    assert (run.alpha, run.seed, run.fold) == (0.5, 1, None)
    assert run.configs == ("train", "systems/la_cvar") and run.evaluate == ("val",)
    assert run.settings["epochs"] == 2 and run.evaluation["resamples"] == 200
    assert run.parent_run == "0123456789abcdef0123456789abcdef" and run.tracking_uri is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("name"), "name is missing"),
        (
            lambda r: r.update(protocol="new"),
            "protocol must be 'given', 'nested', 'cross_validation', 'leave_site_out' or 'final', got 'new'",
        ),
        (lambda r: r.update(folds="3"), "folds must be a valid integer, got '3'"),
        (lambda r: r.update(synthetic=1), "synthetic must be a valid boolean, got 1"),
        (lambda r: r.update(runs=[]), "no run in it"),
        (lambda r: r["runs"][1].update(status="done"), "runs.1.status must be .*got 'done'"),
        (lambda r: r["runs"][0].update(alpha="0.7"), "runs.0.alpha must be a valid number, got '0.7'"),
        (lambda r: r["runs"][0].update(seed=True), "runs.0.seed must be a valid integer, got True"),
        (lambda r: r["runs"][0].update(id=r["runs"][1]["id"]), "is there twice"),
        (lambda r: r["runs"][0].update(seed=2), "are the same: CE, seed 2"),
        (lambda r: r.update(quoted={"CE": {"score": "high"}}), "quoted.CE.score must be a valid number, got 'high'"),
        (lambda r: r["runs"].append(3), "runs.9 must be an object, got 3"),
    ],
)
def test_a_damaged_study_json_is_named(edit: Any, message: str) -> None:
    record = json.loads(json.dumps(STUDY))
    assert len(parse_record(Study, json.dumps(record), "study.json").runs) == 9
    edit(record)
    with pytest.raises(StudyError, match=f"study.json: .*{message}"):
        parse_record(Study, json.dumps(record), "study.json")


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"it has no study.json"):
        load_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path)
