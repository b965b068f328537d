"""Runs in a real MLflow store on SQLite, made by the shipped training."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
import yaml
from workflows import CLASSES, SHRUNK, Start, run, run_statuses

from fairlung.pipeline.tracking import RunTracker

SECRET = "DOE^JANE-19470211"


@pytest.fixture(scope="module")
def tracked(start: Start, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tracked training and evaluation of a cohort with patient names in it."""
    folder = tmp_path_factory.mktemp("tracked")
    table = pd.read_csv(small_cohort, dtype=str)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table["patient"] = [f"{SECRET}-{i}" for i in range(len(table))]
    table["name"] = SECRET
    table.to_csv(folder / "cohort.csv", index=False)
    settings = {
        "cohort": str(folder / "cohort.csv"),
        "output_dir": str(folder / "run"),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "cache_dir": str(folder / "cache"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        training = run(start("train", **settings, run_name="first"))
        run(start("train", "evaluate", **settings))
    client = mlflow.MlflowClient(tracking_uri=settings["tracking_uri"])
    (experiment,) = [e for e in client.search_experiments() if e.name == "fair-lung-ct"]
    runs = {r.data.tags["fairlung.kind"]: r for r in client.search_runs([experiment.experiment_id])}
    return SimpleNamespace(folder=folder, settings=settings, client=client, training=training, runs=runs)


def test_a_run_says_every_setting(tracked: SimpleNamespace, bundle_dir: Path) -> None:
    params = tracked.runs["train"].data.params
    config = yaml.safe_load((bundle_dir / "configs" / "train.yaml").read_text())
    plain = {k for k, v in config.items() if isinstance(v, (int, float, bool)) or k in ("class_names", "gradient")}
    assert plain <= set(params)
    assert params["alpha"] == "0.8"
    assert params["num_slices"] == str(SHRUNK["num_slices"])
    assert json.loads(params["class_counts"]) == dict.fromkeys(CLASSES, 4)


def test_a_run_says_where_it_comes_from(tracked: SimpleNamespace, bundle_dir: Path) -> None:
    tags = tracked.runs["train"].data.tags
    head = subprocess.run(
        ["git", "-C", str(bundle_dir), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert tags.get("mlflow.source.git.commit", "") == head
    digest = tracked.training.parser.get_parsed_content("cohort_data").digest
    assert tags["fairlung.cohort_digest"] == digest
    (data,) = tracked.runs["train"].inputs.dataset_inputs
    assert data.dataset.name == "cohort"
    assert digest.startswith(data.dataset.digest)


def test_a_run_has_the_curves(tracked: SimpleNamespace) -> None:
    run_id = tracked.runs["train"].info.run_id
    metrics = tracked.runs["train"].data.metrics
    wanted = {"lr", "train_loss", "val_score", "val_gap", "val_abs_gap", "val_f1_macro", "best_val_score"}
    for sex in ("male", "female"):
        wanted |= {f"val_f1_{sex}", f"train_loss_{sex}", f"train_cvar_weight_{sex}"}
        wanted |= {f"val_{s}_{sex}_squamous_cell" for s in ("f1", "precision", "recall")}
    assert wanted <= set(metrics)
    for name in ("train_loss", "val_score", "lr"):
        assert [m.step for m in tracked.client.get_metric_history(run_id, name)] == [1, 2]
    first, second = (m.value for m in tracked.client.get_metric_history(run_id, "lr"))
    assert (first, second) == (pytest.approx(1e-4), pytest.approx(0.5e-4))  # cosine over two epochs
    assert metrics["val_gap"] == pytest.approx(metrics["val_f1_male"] - metrics["val_f1_female"])
    assert metrics["train_cvar_weight_male"] + metrics["train_cvar_weight_female"] == pytest.approx(1)


def test_a_run_keeps_its_artifacts(tracked: SimpleNamespace) -> None:
    run_id = tracked.runs["train"].info.run_id

    def names(folder: str | None = None) -> set[str]:
        found = tracked.client.list_artifacts(run_id, folder)
        return {n for f in found for n in (names(f.path) if f.is_dir else {f.path})}

    evaluation = {f"evaluation/val/{name}" for name in ("predictions.csv", "metrics.json", "confusion.png")}
    assert names() == {
        *evaluation, "model/best.pt", "config/config.yaml", "config/settings.json", "cohort/cells.csv",
    }  # fmt: skip
    copy = Path(tracked.client.download_artifacts(run_id, "config/config.yaml", str(tracked.folder)))
    config = yaml.safe_load(copy.read_text())
    assert config["num_slices"] == SHRUNK["num_slices"]
    assert config["train"]["trainer"]["_target_"] == "SupervisedTrainer"


def test_runs_end_finished_and_the_evaluation_names_its_training(tracked: SimpleNamespace) -> None:
    assert {r.info.status for r in tracked.runs.values()} == {"FINISHED"}
    tags = tracked.runs["evaluate"].data.tags
    assert tags["fairlung.training_run_id"] == tracked.runs["train"].info.run_id
    assert "val_score" in tracked.runs["evaluate"].data.metrics


def test_runs_of_one_name_never_merge_and_a_crash_ends_failed(
    tracked: SimpleNamespace,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tracked.folder)
    settings = tracked.settings | {"output_dir": str(tmp_path), "run_name": "first"}
    workflow = start("train", **settings)
    workflow.initialize()
    loss = workflow.parser.get_parsed_content("loss")
    monkeypatch.setattr(loss, "forward", lambda *_: (_ for _ in ()).throw(FloatingPointError("loss is not finite")))
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, FloatingPointError)
    with sqlite3.connect(tracked.folder / "mlflow.db") as store:
        rows = store.execute("select name, status from runs where name like 'first-%' order by start_time").fetchall()
    store.close()
    assert [status for _, status in rows] == ["FINISHED", "FAILED"]
    assert len({name for name, _ in rows}) == 2


def test_no_patient_reaches_any_output(tracked: SimpleNamespace) -> None:
    for path in tracked.folder.rglob("*"):
        if path.is_file() and path != tracked.folder / "cohort.csv":
            assert SECRET.encode() not in path.read_bytes(), path


def test_the_default_store_is_mlflows_own(
    small_cohort: Path,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Null means what a plain `mlflow ui` in the same folder shows."""
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts in the working directory
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    workflow = start("train", cohort=str(small_cohort))
    cohort = workflow.parser.get_parsed_content("cohort_data")
    tracker = RunTracker(None, "e", "r", tmp_path / "out", tmp_path)
    tracker.start({"a": 1}, {}, cohort)
    tracker.finish()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/elsewhere.db")
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert [r.info.status for r in found] == ["FINISHED"]


OPEN_RUN = """
import sys
from fairlung.pipeline.cohort import load_cohort
from fairlung.pipeline.tracking import RunTracker
cohort = load_cohort(sys.argv[1], class_names={classes!r}, group_names=["male", "female"])
tracker = RunTracker("sqlite:///m.db", "e", "r", sys.argv[2])
tracker.start({{}}, {{}}, cohort)
{then}
"""


def program(then: str, small_cohort: Path, output: str = "out") -> list[str]:
    """The command line of a process that opens a run in m.db of its working directory, and then ..."""
    return [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        OPEN_RUN.format(classes=CLASSES, then=then),
        str(small_cohort),
        output,
    ]


def test_an_open_run_is_closed_when_the_process_ends_otherwise(tmp_path: Path, small_cohort: Path) -> None:
    ends = program("raise SystemExit('the cluster says goodbye')", small_cohort)
    done = subprocess.run(ends, capture_output=True, text=True, cwd=tmp_path)
    assert "goodbye" in done.stderr
    assert run_statuses(tmp_path / "m.db") == ["FAILED"]


def test_processes_that_start_together_share_a_new_store(tmp_path: Path, small_cohort: Path) -> None:
    started = [subprocess.Popen(program("tracker.finish()", small_cohort, str(i)), cwd=tmp_path) for i in range(3)]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert run_statuses(tmp_path / "m.db") == ["FINISHED"] * 3


def test_sigterm_closes_the_run(tmp_path: Path, small_cohort: Path) -> None:
    waits = program("print('ready', flush=True)\nimport time\ntime.sleep(100)", small_cohort)
    with subprocess.Popen(waits, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(60) == 128 + 15
    assert run_statuses(tmp_path / "m.db") == ["FAILED"]


def test_names_and_addresses_are_made_fit_to_log(
    small_cohort: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/m.db"
    tracker = RunTracker(uri, "e", "r", tmp_path / "out", tmp_path)
    cohort = start("train", cohort=str(small_cohort)).parser.get_parsed_content("cohort_data")
    address = "postgresql://user:secret@host/db"
    tracker.start({"tracking_uri": address}, {"tracking_uri": address}, cohort)
    tracker.log_metrics({"val_f1_<65": 0.5, "val_f1_>=65": 0.6, "val_f1_A+B (mild)": 0.7}, 1)
    run_id = tracker.run_id
    tracker.finish()
    logged = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)
    assert set(logged.data.metrics) == {"val_f1__65", "val_f1___65", "val_f1_A_B _mild_"}
    assert logged.data.params["tracking_uri"] == "postgresql://host/db"
    assert logged.data.tags["fairlung.synthetic"] == "true"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"user:secret" not in path.read_bytes(), path
