"""Runs in a real MLflow store on SQLite, made by the shipped training."""

from __future__ import annotations

import atexit
import errno
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import quick_stores
import yaml
from workflows import CLASSES, SECRET, SHRUNK, SMALL_NETWORK, Start, Trained, run_statuses

from fairlung.pipeline.common.text import without_login
from fairlung.pipeline.data.cohort import Cohort, load_cohort
from fairlung.pipeline.evaluation.resampling import Estimate
from fairlung.pipeline.evaluation.wording import Verdict
from fairlung.pipeline.tracking.loggable import note_markdown, shown_name
from fairlung.pipeline.tracking.run import RunTracker
from fairlung.pipeline.tracking.store import TrackingError, impatient
from fairlung.pipeline.tracking.sync import sync


@pytest.fixture(scope="module")
def tracked(trained_once: Trained) -> SimpleNamespace:
    """The runs of the shipped training and of its evaluation, of a cohort with patient names in it."""
    client = mlflow.MlflowClient(tracking_uri=trained_once.tracking_uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "fair-lung-ct"]
    runs = {r.data.tags["fairlung.kind"]: r for r in client.search_runs([experiment.experiment_id])}
    return SimpleNamespace(folder=trained_once.folder, digest=trained_once.cohort_digest, client=client, runs=runs)


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
    digest = tracked.digest
    assert tags["fairlung.cohort_digest"] == digest
    (data,) = tracked.runs["train"].inputs.dataset_inputs
    assert data.dataset.name == "cohort"
    assert digest.startswith(data.dataset.digest)


def test_a_run_has_the_curves(tracked: SimpleNamespace) -> None:
    run_id = tracked.runs["train"].info.run_id
    metrics = tracked.runs["train"].data.metrics
    wanted = {"train/lr", "train/loss", "val/score", "val/gap", "val/abs_gap", "val/f1_macro", "val/best_score"}
    for sex in ("male", "female"):
        wanted |= {f"val/f1/{sex}", f"train/loss_{sex}", f"train/cvar_weight_{sex}", f"val/best_f1_{sex}"}
        wanted |= {f"val/cells/{s}_{sex}_squamous_cell" for s in ("f1", "precision", "recall")}
    assert wanted <= set(metrics)
    for name in ("train/loss", "val/score", "train/lr"):
        assert [m.step for m in tracked.client.get_metric_history(run_id, name)] == [1, 2]
    first, second = (m.value for m in tracked.client.get_metric_history(run_id, "train/lr"))
    assert (first, second) == (pytest.approx(1e-4), pytest.approx(0.5e-4))  # cosine over two epochs
    assert metrics["val/gap"] == pytest.approx(metrics["val/f1/male"] - metrics["val/f1/female"])
    assert metrics["train/cvar_weight_male"] + metrics["train/cvar_weight_female"] == pytest.approx(1)


def test_a_run_keeps_its_artifacts(tracked: SimpleNamespace, tmp_path: Path) -> None:
    run_id = tracked.runs["train"].info.run_id

    def names(folder: str | None = None) -> set[str]:
        found = tracked.client.list_artifacts(run_id, folder)
        return {n for f in found for n in (names(f.path) if f.is_dir else {f.path})}

    evaluation = {f"evaluation/val/{name}" for name in ("predictions.csv", "metrics.json", "confusion.png")}
    assert names() == {
        *evaluation, "model/best.pt", "config/config.yaml", "config/settings.json", "cohort/cells.csv",
    }  # fmt: skip
    copy = Path(tracked.client.download_artifacts(run_id, "config/config.yaml", str(tmp_path)))
    config = yaml.safe_load(copy.read_text())
    assert config["num_slices"] == SHRUNK["num_slices"]
    assert config["train"]["trainer"]["_target_"] == "SupervisedTrainer"


def test_runs_end_finished_and_the_evaluation_names_its_training(tracked: SimpleNamespace) -> None:
    assert {r.info.status for r in tracked.runs.values()} == {"FINISHED"}
    tags = tracked.runs["evaluate"].data.tags
    assert tags["fairlung.training_run_id"] == tracked.runs["train"].info.run_id
    assert "val/score" in tracked.runs["evaluate"].data.metrics


def test_runs_of_one_name_never_merge_and_a_crash_ends_failed(
    trained_once: Trained, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained_once.copy(tmp_path / "copy")
    monkeypatch.chdir(folder)
    settings = {"cohort": str(folder / "cohort.csv"), "output_dir": str(tmp_path / "again")}
    settings |= {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "network_def": SMALL_NETWORK}
    workflow = start("train", **settings, run_name="first")
    workflow.initialize()
    loss = workflow.parser.get_parsed_content("loss")
    monkeypatch.setattr(loss, "forward", lambda *_: (_ for _ in ()).throw(FloatingPointError("loss is not finite")))
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, FloatingPointError)
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        rows = store.execute("select name, status from runs where name like 'first %' order by start_time").fetchall()
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
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.tracking.run import RunTracker
cohort = load_cohort(sys.argv[1], class_names={classes!r}, group_names=["male", "female"])
tracker = RunTracker("sqlite:///m.db", "e", "r", sys.argv[2])
tracker.start({{}}, {{}}, cohort)
{then}
"""


def program(then: str, small_cohort: Path) -> list[str]:
    """The command line of a process that opens a run in m.db of its working directory, and then ..."""
    code = OPEN_RUN.format(classes=CLASSES, then=then)
    return [sys.executable, "-W", "ignore", "-c", code, str(small_cohort), "out"]


@pytest.mark.slow
def test_an_open_run_is_closed_when_the_process_ends_otherwise(tmp_path: Path, small_cohort: Path) -> None:
    ends = program("raise SystemExit('the cluster says goodbye')", small_cohort)
    done = subprocess.run(ends, capture_output=True, text=True, cwd=tmp_path)
    assert "goodbye" in done.stderr
    assert run_statuses(tmp_path / "m.db") == ["FAILED"]


@pytest.mark.slow
def test_sigterm_closes_the_run(tmp_path: Path, small_cohort: Path) -> None:
    waits = program("print('ready', flush=True)\nimport time\ntime.sleep(600)", small_cohort)
    with subprocess.Popen(waits, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(300) == 128 + 15
    assert run_statuses(tmp_path / "m.db") == ["FAILED"]


@pytest.fixture
def cohort(small_cohort: Path) -> Cohort:
    return load_cohort(small_cohort, class_names=CLASSES, group_names=["male", "female"])


def full(*arguments: object, **settings: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def pending(folder: Path) -> Path:
    (journal,) = folder.glob("mlflow_pending/*/journal.jsonl")
    return journal


def test_a_full_disk_of_mlflow_is_a_warning(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/m.db"
    tracker = RunTracker(uri, "e", "r", tmp_path / "out", tmp_path)
    tracker.start({"a": 1}, {"address": "http://user:secret@host"}, cohort)
    (tmp_path / "file.txt").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifact", full)
        tracker.log_file(tmp_path / "file.txt", "folder")
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.finish()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "fairlung" in r.name]
    assert "No space left" in warning
    assert b"secret" not in pending(tmp_path / "out").read_bytes()
    # marks that a full disk cut off: everything is sent again, and nothing is there twice
    kept = [line for line in pending(tmp_path / "out").read_text().splitlines() if '"sent"' not in line]
    pending(tmp_path / "out").write_text("\n".join([*kept, '{"sent": [1, 2']))
    (done,) = sync(tmp_path / "out")
    assert (done.status, done.refused) == ("FINISHED", ())
    client = mlflow.MlflowClient(uri)
    assert [(m.step, m.value) for m in client.get_metric_history(done.run_id, "loss")] == [(1, 1.0)]
    assert client.get_run(done.run_id).data.params == {"a": "1"}
    assert len(client.get_run(done.run_id).inputs.dataset_inputs) == 1
    assert [file.path for file in client.list_artifacts(done.run_id, "folder")] == ["folder/file.txt"]
    assert run_statuses(tmp_path / "m.db") == ["FINISHED"]
    assert sync(tmp_path / "out") == []


def test_a_full_disk_everywhere_does_not_stop_a_training(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = RunTracker(f"sqlite:///{tmp_path}/m.db", "e", "r", tmp_path / "out", tmp_path)
    tracker.start({}, {}, cohort)
    assert tracker._journal is not None
    (tmp_path / "file.txt").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", full)
        patch.setattr("fairlung.pipeline.tracking.journal.shutil.copyfile", full)
        patch.setattr(tracker._journal, "folder", tmp_path / "file.txt")  # cannot be written to
        for step in range(3):
            tracker.log_metrics({"loss": 1.0}, step)
        tracker.log_file(tmp_path / "file.txt")
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "fairlung" in r.name]
    assert len(messages) == 2
    assert "cannot be kept either" in messages[1]
    tracker.finish()  # there is space again: what memory holds is sent
    assert run_statuses(tmp_path / "m.db") == ["FINISHED"]


def forked(target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 about a fork beside threads
        process.start()
    return process  # type: ignore[return-value]


@pytest.mark.parametrize("end", ["exit", "SIGTERM"])
def test_what_a_process_does_at_its_end_closes_its_run(cohort: Cohort, tmp_path: Path, end: str) -> None:
    process = forked(_track_and_end, cohort, tmp_path, end)
    process.join(300)
    assert process.exitcode == (1 if end == "exit" else 128 + signal.SIGTERM)
    assert run_statuses(tmp_path / "m.db") == ["FAILED"]


def _track_and_end(cohort: Cohort, folder: Path, end: str) -> None:
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    atexit._clear()  # what this process is to do at its end is not the child's
    try:
        RunTracker(f"sqlite:///{folder}/m.db", "e", "r", folder / "out", folder).start({}, {}, cohort)
        if end == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        raise SystemExit(1)
    finally:
        atexit._run_exitfuncs()  # a fork would end without


def test_processes_that_start_together_share_a_new_store(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alembic.command.upgrade", quick_stores.migrate)
    started = [forked(_track, cohort, tmp_path, str(i)) for i in range(3)]
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert run_statuses(tmp_path / "m.db") == ["FINISHED"] * 3


def _track(cohort: Cohort, folder: Path, name: str) -> None:
    os.chdir(folder)
    tracker = RunTracker(f"sqlite:///{folder}/m.db", "e", "r", folder / name, folder)
    tracker.start({}, {}, cohort)
    tracker.finish()


def test_a_killed_process_leaves_what_it_wrote(cohort: Cohort, tmp_path: Path) -> None:
    process = forked(_track_and_die, cohort, tmp_path)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    (done,) = sync(tmp_path / "out", f"sqlite:///{tmp_path}/m.db")
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db").get_run(done.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FAILED", 0.5)


def _track_and_die(cohort: Cohort, folder: Path) -> None:
    os.chdir(folder)
    tracker = RunTracker("http://127.0.0.1:9", "e", "r", folder / "out", folder)
    tracker.start({"a": 1}, {}, cohort)
    tracker.log_metrics({"loss": 0.5}, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_goes_on_is_not_sent(cohort: Cohort, tmp_path: Path) -> None:
    tracker = RunTracker("http://127.0.0.1:9", "e", "r", tmp_path / "out", tmp_path)
    tracker.start({}, {}, cohort)
    (left,) = sync(tmp_path / "out", f"sqlite:///{tmp_path}/m.db")
    assert left.run_id is None
    tracker.finish()
    assert pending(tmp_path / "out").is_file()


def test_a_deleted_run_is_made_anew(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/m.db"
    tracker = RunTracker(uri, "e", "r", tmp_path / "out", tmp_path)
    tracker.start({"a": 1}, {}, cohort)
    client = mlflow.MlflowClient(uri)
    first = client.get_run(tracker.run_id)
    client.delete_run(first.info.run_id)
    tracker.log_metrics({"loss": 0.5}, 3)
    tracker.finish()
    (done,) = sync(tmp_path / "out")
    run = client.get_run(done.run_id)
    assert run.info.run_id != first.info.run_id
    assert (run.info.start_time, run.info.run_name) == (first.info.start_time, first.info.run_name)
    assert (run.data.params, run.data.metrics) == ({"a": "1"}, {"loss": 0.5})
    record = json.loads((tmp_path / "out" / "mlflow_run.json").read_text())
    assert record["run_id"] == done.run_id


def test_mistakes_are_errors_at_the_start(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/m.db"
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    (tmp_path / "no.db").write_text("this is no database, but a text of some length")

    def start_run(address: str, experiment: str = "e", **settings: str) -> None:
        RunTracker(address, experiment, "r", tmp_path / "out", tmp_path, **settings).start({}, {}, cohort)

    with pytest.raises(TrackingError, match="unsupported URI 'htp://"):
        start_run("htp://user:secret@host")
    with pytest.raises(TrackingError, match="'gone' is deleted"):
        start_run(uri, "gone")
    with pytest.raises(TrackingError, match="no run 'abc'"):
        start_run(uri, parent_run="abc")
    with pytest.raises(TrackingError, match="not a database"):
        start_run(f"sqlite:///{tmp_path}/no.db")
    twice = replace(cohort, class_names=("COVID+", "COVID-", "COVID="), group_names=("m",))
    with pytest.raises(TrackingError, match=r"'COVID\+' and 'COVID=' would both be 'COVID_' in MLflow"):
        RunTracker(uri, "e", "r", tmp_path / "out", tmp_path).start({}, {}, twice)
    assert not (tmp_path / "out" / "mlflow_pending").exists()


def test_what_the_user_set_for_http_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with impatient():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_run_is_nested_and_shows_the_load(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    uri = f"sqlite:///{tmp_path}/m.db"
    study = RunTracker(uri, "e", "study", tmp_path / "study", tmp_path)
    study.start({"system": "CE", "alpha": None}, {}, cohort)
    settings = {"parent_run": study.run_id, "tags": {"study": 7}, "system_metrics": True}
    tracker = RunTracker(uri, "e", "r", tmp_path / "out", tmp_path, **settings)
    tracker.start({"system": "LA", "alpha": 1.0, "seed": 3, "fold": 2}, {}, cohort)
    run_id = tracker.run_id
    client, until = mlflow.MlflowClient(uri), time.monotonic() + 60
    tracker.log_metrics({"train_loss": 1.0}, 1)  # the load comes after the model's own
    while len(client.get_metric_history(run_id, "workload/cpu_utilization_percentage")) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    tracker.finish()
    study.finish()
    assert "fairlung-system-metrics" not in {thread.name for thread in threading.enumerate()}
    run = client.get_run(run_id)
    tags = {"fairlung.system": "LA", "fairlung.alpha": "1.0", "fairlung.seed": "3", "fairlung.fold": "2"}
    tags |= {"mlflow.parentRunId": settings["parent_run"], "study": "7"}
    assert tags.items() <= run.data.tags.items()
    assert "fairlung.alpha" not in client.get_run(settings["parent_run"]).data.tags  # plain cross-entropy has none
    assert run.data.tags["fairlung.device"]
    assert "workload/system_memory_usage_percentage" in run.data.metrics


def test_logging_an_evaluation_writes_nothing(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """metrics.json is there before, or it is an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "predictions.csv").write_text("scan,label,sex,prediction\n")
    RunTracker("", "e", "r", tmp_path / "out", tmp_path).log_evaluation(tmp_path / "val", "val")
    tracker = RunTracker(f"sqlite:///{tmp_path}/m.db", "e", "r", tmp_path / "out", tmp_path)
    tracker.start({}, {}, cohort)
    with pytest.raises(FileNotFoundError, match="metrics.json"):
        tracker.log_evaluation(tmp_path / "val", "val")
    tracker.finish()
    assert [path.name for path in (tmp_path / "val").iterdir()] == ["predictions.csv"]


@pytest.mark.fault(
    "wrong", "parameters of an evaluation, and its number of scans", before="config defaults; all scans of the cohort",
    now="those of the training that it judges; the judged ones",
)  # fmt: skip
def test_an_evaluation_says_what_was_trained(tracked: SimpleNamespace) -> None:
    training, evaluation = tracked.runs["train"], tracked.runs["evaluate"]
    settings = json.loads((tracked.folder / "run" / "settings.json").read_text())
    own = {"run_name", "required_splits", "cohort"}
    differing = {k for k, v in training.data.params.items() if evaluation.data.params.get(k) != v}
    assert differing <= own
    assert (evaluation.data.params["epochs"], evaluation.data.params["split"]) == (str(settings["epochs"]), "val")
    for one in (training, evaluation):
        assert one.data.params["network"] == one.data.tags["fairlung.network"] == "R3D18Classifier"
    confusion = json.loads((tracked.folder / "run/val/evaluation/metrics.json").read_text())["confusion"]
    judged = sum(map(sum, [row for matrix in confusion for row in matrix]))
    note = evaluation.data.tags["mlflow.note.content"]
    assert f"on {judged} SYNTHETIC scans" in note
    assert evaluation.data.tags["mlflow.parentRunId"] == training.info.run_id
    assert evaluation.data.params["alpha"] == "0.8"
    for one in (training, evaluation):
        assert one.data.tags["fairlung.system"] == "LA+CVaR"
        note = one.data.tags["mlflow.note.content"]
        ends = " (" if one is evaluation else " |"  # of its interval, or of the number's cell in the table
        assert f"| {one.data.metrics['val/score' if one is evaluation else 'val/best_score']:.4f}{ends}" in note
        assert note.startswith("| F1 male | F1 female | P |")
        assert "checkpoint best.pt of epoch" in note
        assert "SYNTHETIC" in note


@pytest.mark.fault(
    "words", "the scans that MLflow's description names", before="all of the cohort, of each split", now="those judged"
)
@pytest.mark.parametrize(("kind", "scans"), [("train", 16), ("evaluate", 8)])
def test_the_description_counts_the_scans_of_the_run(tracked: SimpleNamespace, kind: str, scans: int) -> None:
    assert f", on {scans} SYNTHETIC scans" in tracked.runs[kind].data.tags["mlflow.note.content"]


def test_the_note() -> None:
    result = {
        "split": "test",
        "checkpoint": "runs/a/best.pt",
        "synthetic": False,
        "class_names": ["x|y", "z"],
        "group_names": ["m", "f"],
        "confusion": [[[1, 1], [0, 2]], [[3, 0], [0, 1]], [[0, 0], [0, 0]]],
        "metrics": {"score": 0.85, "gap": -0.25, "abs_gap": 0.25, "f1_m": 0.7, "f1_f": 1.0}
        | {"f1_m_x|y": 0.6667, "f1_m_z": 0.8, "f1_f_x|y": 1.0, "f1_f_z": 1.0},
    }
    assert note_markdown(result).splitlines() == [
        "| F1 m | F1 f | P | gap (m minus f) | \\|gap\\| |",
        "| --- | --- | --- | --- | --- |",
        "| 0.7000 | 1.0000 | 0.8500 | -0.2500 | 0.2500 |",
        "",
        "| F1 of class | m | f |",
        "| --- | --- | --- |",
        "| x\\|y | 0.6667 (n=2) | 1.0000 (n=3) |",
        "| z | 0.8000 (n=2) | 1.0000 (n=1) |",
        "",
        "Split test, checkpoint best.pt.",
    ]
    gap, f1 = Estimate(-0.25, -0.5, 0.125), Estimate(0.7, 0.5, 0.75)
    audit = SimpleNamespace(
        verdicts=(Verdict("no-statement", "Too few scans."), Verdict("note", "No leak.")),
        overall=SimpleNamespace(numbers=lambda: {"gap": gap}),
        groups=(SimpleNamespace(group="m", f1=f1),),
    )
    note = note_markdown({**result, "audit": audit, "epoch": 3, "synthetic": True})
    row = "| 0.7000 (0.500 to 0.750) | 1.0000 | 0.8500 | -0.2500 (-0.500 to +0.125) | 0.2500 |"
    assert note.splitlines()[2:6] == [row, "", "- Too few scans.", "- No leak."]
    assert "best.pt of epoch 3." in note
    assert "SYNTHETIC" in note


@pytest.mark.fault(
    "words", "a number has two names in MLflow, and the groups' F1 stand among others", before="val_f1_m and val/f1_m",
    now="one name, and a section of the groups' F1 alone",
)  # fmt: skip
def test_a_number_has_one_name() -> None:
    names = {
        "train_loss": "train/loss", "lr": "train/lr", "train_loss_m": "train/loss_m", "val_score": "val/score",
        "test_gap": "test/gap", "val_f1_m": "val/f1/m", "val_f1_f": "val/f1/f", "val_f1_macro": "val/f1_macro",
        "val_f1_m_x": "val/cells/f1_m_x", "best_val_score": "val/best_score", "best_val_f1_m": "val/best_f1_m",
        "val/best_gap": "val/best_gap", "mine": "mine",
    }  # fmt: skip
    assert {name: shown_name(name, ["m", "f"]) for name in names} == names


def test_names_and_addresses_are_made_fit_to_log(
    small_cohort: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/m.db"
    tracker = RunTracker(uri, "e", "r", tmp_path / "out", tmp_path)
    cohort = start("train", cohort=str(small_cohort)).parser.get_parsed_content("cohort_data")
    address = "postgresql://user:secret@host/db"
    tracker.start({"tracking_uri": address}, {"tracking_uri": address}, cohort)
    tracker.log_metrics({"f1_<65": 0.5, "f1_>=65": 0.6, "f1_A+B (mild)": 0.7, "f1_肺癌": 0.8}, 1)
    run_id = tracker.run_id
    tracker.finish()
    logged = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)
    assert set(logged.data.metrics) == {"f1_under 65", "f1_from 65", "f1_A_B _mild_", "f1_肺癌"}
    assert logged.data.params["tracking_uri"] == "postgresql://host/db"
    assert logged.data.tags["fairlung.synthetic"] == "true"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"user:secret" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://u:p@h:5000/x", "http://h:5000/x"),
        ("http://u:p@ss@h", "http://h"),
        ("postgresql+psycopg2://u:pa/ss@h/db", "postgresql+psycopg2://h/db"),
        ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?user=&password="),
        ("https://token@h/x", "https://h/x"),
        ("http://h:5000/a@b", "http://h:5000/a@b"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
    ],
)
def test_no_login_of_an_address_is_shown(address: str, shown: str) -> None:
    assert without_login(address) == shown
