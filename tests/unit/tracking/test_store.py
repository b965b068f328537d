"""What MLflow is told reaches it or is kept: mistyped addresses, stores that are locked or lack a part; logins."""

from __future__ import annotations

import http.server
import json
import logging
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED
from monai.bundle.scripts import _log_input_summary
from workflows import CLASSES, run_statuses

from fairlung.pipeline.common.errors import show_errors_in_a_line
from fairlung.pipeline.common.text import without_login
from fairlung.pipeline.data.cohort import Cohort, load_cohort
from fairlung.pipeline.studies.plan import StudyPlan
from fairlung.pipeline.studies.record import StudyError
from fairlung.pipeline.tracking import journal, run, store
from fairlung.pipeline.tracking.run import RunTracker
from fairlung.pipeline.tracking.store import TrackingError, bounded, connect, impatient
from fairlung.pipeline.tracking.sync import sync


@pytest.fixture(scope="module")
def cohort(small_cohort: Path) -> Cohort:
    return load_cohort(small_cohort, class_names=CLASSES, group_names=["male", "female"])


@pytest.fixture(scope="module")
def website() -> Iterator[str]:
    """The address of a server that is no MLflow."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, as MLflow keeps artifacts there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "fairlung" in r.name]


def tracker_of(folder: Path, **settings: object) -> RunTracker:
    return RunTracker(f"sqlite:///{folder}/m.db", "e", "r", folder / "out", folder, **settings)  # type: ignore[arg-type]


# ---- addresses -------------------------------------------------------------------------------------------------------
@pytest.mark.fault(
    "lost", "an address in which nothing can ever be stored", before="taken for a server that is away, kept for ever",
    now="an error before the first step",
)  # fmt: skip
@pytest.mark.parametrize(
    "address",
    [
        "sqlite://here/x.db", "sqlite:here.db", "sqlite:/here/x.db", "sqlite:///", "sqlite://", "sqlite:///:memory:",
        "sqlite:////tmp", "http://no-such-host.invalid:5000", "http://localhost:50o0", "http:/localhost:5000",
        "http:localhost", "http://127.0.0.1:99999", "http://{website}", "https://{website}", "databricks",
        "postgresql+psycopg2://no-such-host.invalid/db",
    ],
)  # fmt: skip
def test_a_mistyped_address_ends_the_start(
    address: str, website: str, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    record = tmp_path / "mlflow_run.json"
    record.write_text("{}")  # of an earlier training, which is to stay
    with pytest.raises(TrackingError) as caught:
        RunTracker(address.format(website=website), "e", "r", tmp_path, tmp_path).start({}, {}, cohort)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow_run.json"]


@pytest.mark.fault(
    "lost", "the host of a server that has answered before is not found", before="as any server that is away",
    now="as any server that is away",
)  # fmt: skip
def test_a_known_server_may_be_away(cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = "http://no-such-host.invalid:5000"
    with pytest.raises(TrackingError, match="no such host"):
        connect(uri, "e")
    (tmp_path / "mlflow_run.json").write_text(json.dumps({"tracking_uri": uri, "run_id": "0" * 32}))
    tracker = RunTracker(uri, "e", "r", tmp_path, tmp_path)
    tracker.start({}, {}, cohort)
    tracker.finish()
    assert "mlflow-sync" in said(caplog)[0]
    assert (tmp_path / "mlflow_pending").is_dir()


# ---- a store that waits, or lacks a part -----------------------------------------------------------------------------
@pytest.mark.fault(
    "lost", "another program keeps the store locked for minutes", before="each step may wait for it",
    now="waited for once, in bounded time; sent later",
)  # fmt: skip
def test_a_locked_store_does_not_stop_a_training(
    cohort: Cohort, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fairlung")
    tracker = tracker_of(place)
    tracker.start({"a": 1}, {}, cohort)
    run_id = tracker.run_id
    with closing(sqlite3.connect(place / "m.db", isolation_level=None)) as other, monkeypatch.context() as patch:
        for module in (journal, run):
            patch.setattr(module, "patience", lambda: 0.2)
        patch.setattr(store, "WAIT_FOR_TABLES", 0.2)
        other.execute("begin exclusive")
        for step in (1, 2, 3):
            tracker.log_metrics({"val_score": 0.5}, step)
        tracker.finish()
        other.execute("rollback")
    (warning,) = said(caplog)
    assert "no answer within" in warning and "mlflow-sync" in warning
    assert any("not complete" in record.getMessage() for record in caplog.records)
    (done,) = sync(place / "out")
    assert (done.run_id, done.status) == (run_id, "FINISHED")
    history = mlflow.MlflowClient(f"sqlite:///{place}/m.db").get_metric_history(run_id, "val/score")
    assert [m.step for m in history] == [1, 2, 3]


def test_bounded() -> None:
    assert bounded(10, int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        bounded(10, int, "x")
    with pytest.raises(TimeoutError, match="no answer within"):
        bounded(0.01, threading.Event().wait)


def test_an_upload_may_take_longer_than_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with impatient():
        with impatient(MLFLOW_HTTP_REQUEST_TIMEOUT="60"):
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.fault(
    "lost", "the store of artifacts does not take a picture", before="no number is sent either",
    now="said with the picture's name; numbers are sent, the run stays open until all is",
)  # fmt: skip
def test_what_is_not_stored_is_said(cohort: Cohort, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fairlung")
    uri = f"sqlite:///{place}/m.db"
    client = mlflow.MlflowClient(uri)
    client.create_experiment("e", artifact_location=str(place / "artifacts"))
    tracker = tracker_of(place)
    tracker.start({}, {}, cohort)
    run_id = tracker.run_id
    (place / "artifacts").rename(place / "moved")
    (place / "artifacts").write_text("no folder")
    for name in ("confusion.png", "report.html"):
        (place / name).write_text("x")
        tracker.log_file(place / name, "pictures")
    tracker.log_metrics({"val_score": 0.5}, 1)
    tracker.finish()
    (warning,) = said(caplog)
    assert "confusion.png" in warning and "mlflow-sync" in warning
    last = caplog.records[-1].getMessage()
    assert "lacks 2: confusion.png, report.html" in last
    found = client.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("RUNNING", {"val/score": 0.5})
    (place / "artifacts").unlink()
    (place / "moved").rename(place / "artifacts")
    (done,) = sync(place / "out")
    assert (done.run_id, done.status, done.refused) == (run_id, "FINISHED", ())
    assert len(client.list_artifacts(run_id, "pictures")) == 2


@pytest.mark.fault(
    "lost", "MLflow refuses one of many parameters", before="all of them are missing", now="that one, which is named"
)
def test_one_refused_value_does_not_take_others_along(
    cohort: Cohort, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracker_of(place)
    tracker.start({"a": 1, "b?c": 2, "d": 3, "e": 4}, {}, cohort)
    run_id = tracker.run_id
    tracker.finish()
    assert mlflow.MlflowClient(f"sqlite:///{place}/m.db").get_run(run_id).data.params == {"a": "1", "d": "3", "e": "4"}
    warning, end = said(caplog)
    assert "b?c" in warning and end.endswith(" lacks what MLflow refused, 1: b?c")
    assert run_statuses(place / "m.db") == ["FINISHED"]


@pytest.mark.parametrize("sent_by", ["the run", "mlflow-sync"])
@pytest.mark.fault(
    "lost", "MLflow refuses a picture", before="a line amid the log", now="counted and named at the end, and in a tag"
)
def test_what_is_refused_is_counted_at_the_end(
    cohort: Cohort, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sent_by: str
) -> None:
    def refuse(_: object, run_id: str, path: str, folder: str | None) -> None:
        raise MlflowException(f"not {Path(path).name}", INVALID_PARAMETER_VALUE)

    tracker = tracker_of(place)
    tracker.start({}, {}, cohort)
    run_id = tracker.run_id
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    if sent_by == "mlflow-sync":
        tracker._client = None
    for name in ("confusion.png", "report.html"):
        (place / name).write_text("x")
        tracker.log_file(place / name)
    if sent_by == "mlflow-sync":
        monkeypatch.setattr(store, "connect", lambda *_, **__: 1 / 0)
    tracker.finish()
    if sent_by == "mlflow-sync":
        (done,) = sync(place / "out")
        assert done.refused == ("confusion.png: not confusion.png", "report.html: not report.html")
    else:
        assert said(caplog)[-1].endswith(" lacks what MLflow refused, 2: confusion.png, report.html")
    found = mlflow.MlflowClient(f"sqlite:///{place}/m.db").get_run(run_id)
    assert (found.info.status, found.data.tags["fairlung.refused"]) == ("FINISHED", "2: confusion.png, report.html")


@pytest.mark.fault(
    "lost", "a run that MLflow lets nobody make", before="taken for a server that is away, kept for ever",
    now="an error before the first step",
)  # fmt: skip
def test_a_run_that_is_refused_ends_the_start(cohort: Cohort, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no permission to make runs", PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", refuse)
    with pytest.raises(TrackingError, match="no permission"):
        tracker_of(place).start({}, {}, cohort)
    assert not (place / "out" / "mlflow_pending").exists()


# ---- the experiment --------------------------------------------------------------------------------------------------
def test_the_experiment_says_what_its_numbers_are(place: Path) -> None:
    client = mlflow.MlflowClient(uri := f"sqlite:///{place}/m.db")
    client.create_experiment("mine", tags={store.NOTE: "my own"})
    client.create_experiment("bare")
    for name, note in (("new", store.LEGEND), ("bare", store.LEGEND), ("mine", "my own")):
        connect(uri, name)
        assert client.get_experiment_by_name(name).tags[store.NOTE] == note
    client.set_experiment_tag(client.get_experiment_by_name("new").experiment_id, store.NOTE, "")
    connect(uri, "new")
    assert client.get_experiment_by_name("new").tags[store.NOTE] == ""


# ---- logins ----------------------------------------------------------------------------------------------------------
ADDRESSES = [
    "https://user:hunter2@host/x", "https://hunter2@host", "https://host/x?token=hunter2",
    "https://host?a=1&api_key=hunter2", "postgresql+psycopg2://user:hun/ter2@host/db?sslpassword=hunter2",
]  # fmt: skip


@pytest.mark.fault(
    "leaked", "a login in --tracking_uri", before="in MONAI's list of its arguments, in every library's log",
    now="left out of every line and stack",
)  # fmt: skip
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_login_is_logged_or_printed(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    caplog.set_level(logging.INFO)
    try:
        show_errors_in_a_line()
        _log_input_summary("run", {"tracking_uri": address, "tags": {"a": address}})
        for traced in ("0", "1"):
            monkeypatch.setenv("FAIRLUNG_TRACEBACK", traced)
            try:
                raise TrackingError(f"no answer from {address}") from OSError(address)
            except TrackingError as error:
                logging.getLogger("some.library").exception("%s failed", address)
                sys.excepthook(type(error), error, error.__traceback__)
    finally:
        logging.setLogRecordFactory(factory)
    printed = capsys.readouterr().err + caplog.text
    assert "host" in printed and "Traceback" in printed and "error: no answer from" in printed
    assert "hunter2" not in printed and "ter2" not in printed


@pytest.mark.fault(
    "leaked", "a login in the settings of a study", before="in study.json and every run.json", now="refused"
)
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_study_takes_no_login(address: str) -> None:
    assert without_login(address) != address
    with pytest.raises(StudyError, match="MLFLOW_TRACKING_URI") as caught:
        StudyPlan(name="s", cohort="c.csv", systems=[{"system": "ce"}], settings={"tracking_uri": address})
    assert "hunter2" not in str(caught.value)
