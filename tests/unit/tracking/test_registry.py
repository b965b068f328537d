"""The MLflow model for real: logged and registered in a SQLite store, loaded, served, and made champion by the rule."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner
from workflows import CLASSES, Start, Trained, run

from fairlung.pipeline import __version__
from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.evaluation.records import json_text
from fairlung.pipeline.evaluation.resampling import Estimate
from fairlung.pipeline.networks.checkpoint import CheckpointError, training_record
from fairlung.pipeline.tracking import bundle_model, registry
from fairlung.pipeline.tracking.bundle_model import EXAMPLE
from fairlung.pipeline.tracking.champion import (
    RULE,
    Judgement,
    RegistryError,
    read_judgement,
)
from fairlung.pipeline.tracking.registry import CHAMPION, register_evaluation, register_output, require_tracking

NAME = "fair-lung-ct"
PROBABILITIES = [f"prob_{name}" for name in CLASSES]


def write_audit(evaluation: Path, **overall: Estimate | None) -> None:
    """The audit of an evaluation, in which some numbers are others; P is above chance."""
    found = audit(load_predictions(evaluation / "predictions.csv"), 100, 100)
    overall = {"score": found.overall.score._replace(low=0.3)} | overall
    (evaluation / "audit.json").write_text(json_text(replace(found, overall=replace(found.overall, **overall))))


@pytest.fixture(scope="module")
def store(
    trained_once: Trained, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """A copy of the tracked training and its evaluation, its model registered there by the command line, once."""
    folder = trained_once.copy(tmp_path_factory.mktemp("registry") / "store")
    uri = f"sqlite:///{folder}/mlflow.db"
    output = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow keeps artifacts in the working directory
        # the store is the one that the run names, not the one that happens to be the default
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/elsewhere.db")
        write_audit(output / "val" / "evaluation", gap=Estimate(0.0, -0.3, 0.2))
        arguments = ["register", str(output), "--name", NAME, "--split", "val", "--bundle-root", str(bundle_dir)]
        printed = CliRunner().invoke(app, arguments)
        assert printed.exit_code == 0, printed.output
        assert not (folder / "elsewhere.db").exists()
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        client = mlflow.MlflowClient()
        model = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{CHAMPION}", dst_path=str(folder / "copy")))
        yield SimpleNamespace(folder=folder, uri=uri, output=output, client=client, printed=printed.output, model=model)


@pytest.fixture(scope="module")
def scans(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice folder, a DICOM series, a NIfTI file, and one that cannot be read."""
    root = tmp_path_factory.mktemp("new")
    rows = pd.read_csv(small_cohort)
    paths = [small_cohort.parent / scan for scan in rows[rows["split"] == "val"]["scan"]]
    for path in paths[:3]:
        target = root / path.name
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    found = {"".join({p.suffix for p in path.iterdir()}) if path.is_dir() else "file" for path in root.iterdir()}
    assert found == {".jpg", ".dcm", "file"}
    (root / "broken.nii.gz").write_bytes(b"no volume")
    return root


@pytest.fixture(scope="module")
def expected(store: SimpleNamespace, start: Start, scans: Path) -> pd.DataFrame:
    """What inference.yaml writes about these scans, by absolute path."""
    checkpoint = str(store.output / "models" / "best.pt")
    with pytest.raises(SystemExit):  # one scan failed
        run(start("inference", scans=str(scans), output_dir=str(store.folder / "out"), checkpoint=checkpoint))
    table = pd.read_csv(store.folder / "out" / "predictions.csv", keep_default_na=False)
    table["scan"] = [str(scans / scan) for scan in table["scan"]]
    return table.drop(columns="study")  # it joins the rows of one run, and a served model has none


def assert_same(answers: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal to what inference.yaml wrote, row by row."""
    answers = answers.fillna("")
    assert list(answers.columns) == list(expected.columns)
    for name in ("scan", "prediction", "status", "reason", "warnings"):
        assert list(answers[name]) == list(expected[name])
    done = expected["status"] == "ok"
    assert done.sum() == 3
    numbers = (table.loc[done, PROBABILITIES].to_numpy(dtype=float) for table in (answers, expected))
    np.testing.assert_allclose(*numbers, atol=1e-6)
    assert (answers.loc[~done, PROBABILITIES] == "").all(axis=None)


# ---- logged and registered -----------------------------------------------------------------------------------------
def test_the_version_says_how_it_was_judged(store: SimpleNamespace) -> None:
    metrics = json.loads((store.output / "val" / "evaluation" / "metrics.json").read_text())["metrics"]
    version = store.client.get_model_version_by_alias(NAME, CHAMPION)
    assert version.run_id == json.loads((store.output / "mlflow_run.json").read_text())["run_id"]
    assert json.loads(version.tags["fairlung.score"]) == metrics["score"]
    assert json.loads(version.tags["fairlung.gap"]) == metrics["gap"]
    assert (version.tags["fairlung.gap_low"], version.tags["fairlung.gap_high"]) == ("-0.3", "0.2")
    assert (version.tags["fairlung.split"], version.tags["fairlung.synthetic"]) == ("val", "true")
    assert "SYNTHETIC" in version.description
    begin = f"F1 male {metrics['f1_male']:.3f}, F1 female {metrics['f1_female']:.3f}\n"
    assert version.description.startswith(begin)  # which the list of versions shows
    for group in ("male", "female"):
        assert json.loads(version.tags[f"fairlung.f1.{group}"]) == metrics[f"f1_{group}"]
        assert f"{metrics[f'f1_{group}']:.4f}" in version.description
    evaluation = store.client.get_run(version.tags["fairlung.evaluation_run_id"])
    assert evaluation.data.tags["fairlung.kind"] == "evaluate"
    assert f"runs/{evaluation.info.run_id})" in version.description
    assert RULE in store.client.get_registered_model(NAME).description
    assert f"{NAME} version 1: now the champion (no version holds the alias)" in store.printed
    (output,) = store.client.get_run(version.run_id).outputs.model_outputs
    assert store.client.get_logged_model(output.model_id).status == "READY"


def test_the_model_has_signature_and_example_and_no_pickle(store: SimpleNamespace) -> None:
    info = mlflow.models.get_model_info(str(store.model))
    assert info.signature.inputs.input_names() == ["scan"]
    assert info.signature.outputs.input_names() == [
        *("scan", "prediction", *PROBABILITIES, "status", "reason", "warnings")
    ]
    assert json.loads((store.model / "input_example.json").read_text())["data"] == [EXAMPLE["scan"]]
    assert info.flavors["python_function"]["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    suffixes = {path.suffix for path in store.model.rglob("*") if path.is_file()}
    # no pickle: .pt is read with weights_only
    assert suffixes <= {"", ".pt", ".py", ".typed", ".yaml", ".json", ".txt", ".css", ".jinja"}


def test_nothing_in_the_model_names_the_machine(
    store: SimpleNamespace, trained_once: Trained, bundle_dir: Path, small_cohort: Path
) -> None:
    places = {str(path) for path in (trained_once.folder, bundle_dir.parents[1], small_cohort.parent, Path.home())} | {
        str(store.folder)
    }
    places = {place for place in places if len(place) > 1} | {sys.prefix, "/tmp/"}
    for path in store.model.rglob("*"):
        if path.is_file() and "source" not in path.parts:
            content = path.read_bytes()
            found = [place for place in places if place.encode() in content]
            assert not found, (path, found)


def test_the_metadata_of_the_model_has_the_numbers_of_its_audit(store: SimpleNamespace, bundle_dir: Path) -> None:
    (path,) = store.model.rglob("metadata.json")
    shipped = json.loads((bundle_dir / "configs" / "metadata.json").read_text())
    assert shipped["eval_metrics"] == {}  # what the repository has stays
    metadata = json.loads(path.read_text())
    found, judged = metadata.pop("eval_metrics"), json.loads((store.output / "val/evaluation/audit.json").read_text())
    assert metadata == {name: value for name, value in shipped.items() if name != "eval_metrics"}
    few = any(group["n"] < judged["settings"]["min_cell"] for group in judged["groups"])
    assert ("score" in found) != few and found["split"] == "val" and found["synthetic"] is judged["synthetic"]
    assert found.get("run") == training_record(store.output / "models" / "best.pt")["run"]
    assert found["verdict"] == judged["verdicts"][0]["text"] and found["scans"] == judged["n"]


def test_requirements_are_those_of_the_package(bundle_dir: Path) -> None:
    config = ConfigParser()
    config.read(bundle_dir.parents[1] / "setup.cfg")
    needed = {re.split(r"[\[<>=]", line)[0] for line in config["options"]["install_requires"].split()}
    pinned = dict(line.split("==") for line in bundle_model.pip_requirements())
    assert set(pinned) <= needed
    assert not any("+" in number for number in pinned.values())  # a local build is on no index


# ---- loaded --------------------------------------------------------------------------------------------------------
def test_it_answers_as_inference_does(store: SimpleNamespace, expected: pd.DataFrame) -> None:
    """JPEG folder, DICOM, NIfTI, and a broken file; in one batch or several."""
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}")
    assert_same(model.predict(expected[["scan"]]), expected)
    assert_same(model.predict(expected[["scan"]], params={"batch_size": 4}), expected)


def test_one_bad_scan_never_stops_the_others(store: SimpleNamespace, expected: pd.DataFrame) -> None:
    """Also paths that MONAI would run as an expression of the config, or look up in it."""
    model = mlflow.pyfunc.load_model(str(store.model))
    bad = ["$__import__('os').mkdir('gotcha')", "@batch_size", "%checkpoint", "", None, EXAMPLE["scan"][0]]
    good = expected.loc[expected["status"] == "ok", "scan"].iloc[0]
    answers = model.predict(pd.DataFrame({"scan": [*bad, good]}))
    assert list(answers["status"]) == ["failed"] * len(bad) + ["ok"]
    assert list(answers["reason"].iloc[3:5]) == ["no path"] * 2
    assert answers["reason"].iloc[0] == f"{bad[0]}: does not exist"
    assert answers[["prediction", *PROBABILITIES]].iloc[:-1].isna().all(axis=None)
    assert not Path("gotcha").exists()
    assert list(model.predict(pd.DataFrame({"scan": []}, dtype=str)).columns) == list(answers.columns)


def test_another_fairlung_is_refused_by_name(store: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match=f"fairlung 9.1.0, but fairlung {__version__} is installed"):
        mlflow.pyfunc.load_model(str(store.model), model_config={"fairlung_version": "9.1.0"})


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}


WITHOUT_FAIRLUNG = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [path for path in sys.path if path and "editable" not in path]
import importlib.util
assert importlib.util.find_spec("fairlung") is None, "fairlung is installed"
import mlflow, pandas
import os, torch
torch.set_num_threads(1)
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(pandas.DataFrame({"scan": [sys.argv[2]]})).to_json(orient="records"))
import fairlung.pipeline
assert fairlung.pipeline.__file__.startswith(os.path.abspath(sys.argv[1])), fairlung.pipeline.__file__
"""


@pytest.mark.slow
def test_where_fairlung_is_not_installed_the_model_brings_it(store: SimpleNamespace, expected: pd.DataFrame) -> None:
    row = expected[expected["status"] == "ok"].iloc[0]
    command = [sys.executable, "-c", WITHOUT_FAIRLUNG, str(store.model), row["scan"]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=store.folder, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    (answer,) = json.loads(done.stdout.splitlines()[-1])
    assert answer["prediction"] == row["prediction"]
    assert [answer[name] for name in PROBABILITIES] == pytest.approx(list(row[PROBABILITIES].astype(float)), abs=1e-6)


# ---- served --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_served_on_loopback(store: SimpleNamespace, expected: pd.DataFrame) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@{CHAMPION}"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1], "--workers", "1"]
    log = store.folder / "serve.log"
    settings = environment() | {"MLFLOW_TRACKING_URI": store.uri, "OMP_NUM_THREADS": "1"}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"  # `local` finds uvicorn there
    with log.open("w") as file:
        server = subprocess.Popen(
            command, cwd=store.folder, env=settings, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while not answers(f"{address}/ping"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.25)
        body = {"dataframe_split": {"columns": ["scan"], "data": [[scan] for scan in expected["scan"]]}}
        request = urllib.request.Request(
            f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            text = response.read().decode()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # mlflow, its shell and its server
        server.wait(120)
    assert "NaN" not in text  # which is no JSON
    assert_same(pd.DataFrame(json.loads(text)["predictions"], dtype=object), expected)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


# ---- registered again ----------------------------------------------------------------------------------------------
@pytest.fixture
def again(store: SimpleNamespace, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A copy of the output, to be judged otherwise, and models that are registered without their 130 MB."""
    output = tmp_path / "moved"
    shutil.copytree(store.output, output)
    run_id = json.loads((output / "mlflow_run.json").read_text())["run_id"]
    logged = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    monkeypatch.setattr(registry, "log_bundle_model", lambda *_, **__: logged)
    evaluation = output / "val" / "evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    (evaluation / "metrics.json").write_text(json.dumps(metrics | {"checkpoint": str(output / "models" / "best.pt")}))

    def register(name: str, score: float, low: float, high: float) -> tuple[int, bool, str]:
        result = json.loads((evaluation / "metrics.json").read_text())
        result["metrics"]["score"] = score
        (evaluation / "metrics.json").write_text(json.dumps(result))
        write_audit(evaluation, gap=Estimate(0.0, low, high))
        _, version, decision = register_output(output, name, bundle_dir, "val")
        return version, *decision

    return SimpleNamespace(output=output, evaluation=evaluation, register=register, client=store.client)


@pytest.mark.slow
def test_the_alias_follows_the_rule(again: SimpleNamespace) -> None:
    def held() -> str:
        return again.client.get_model_version_by_alias("m", CHAMPION).version

    assert again.register("m", 0.5, -0.2, 0.3)[:2] == (1, True)
    version, took, reason = again.register("m", 0.6, -0.1, 0.4)
    assert (version, took, str(held())) == (2, False, "1")
    assert "gap's interval is worse" in reason
    assert again.register("m", 0.6, -0.25, 0.1)[:2] == (3, True)
    assert str(held()) == "3"
    again.client.set_registered_model_alias("m", CHAMPION, "2")  # by hand
    assert "the champion was version 2" in again.register("m", 0.55, -0.1, 0.1)[2]
    again.client.delete_registered_model_alias("m", CHAMPION)
    assert "would not win" in again.register("m", 0.4, 0.0, 0.1)[2]
    assert again.register("m", 0.7, 0.0, 0.1)[1]


def test_what_is_missing_is_said(again: SimpleNamespace, bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="holds no evaluation"):
        register_output(again.output, "m", bundle_dir, "test")
    other = tmp_path / "other.pt"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        register_output(again.output, "m", bundle_dir, "val", other)
    torch.save({"model": {"weight": torch.zeros(1)}, "settings": {}}, other)
    with pytest.raises(RegistryError, match="differs"):
        register_output(again.output, "m", bundle_dir, "val", other)
    with pytest.raises(RegistryError, match="no MLflow store"):
        register_output(again.output, "m", bundle_dir, "val", tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    record = again.output / "mlflow_run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"run_id": None}))
    with pytest.raises(RegistryError, match="first: fairlung mlflow-sync"):
        register_output(again.output, "m", bundle_dir, "val")
    record.unlink()
    with pytest.raises(RegistryError, match="without tracking"):
        register_output(again.output, "m", bundle_dir, "val")
    failed = CliRunner().invoke(app, ["register", str(again.output), "--name", "m"])
    assert failed.exit_code == 1
    assert "error:" in failed.output


def test_an_evaluation_elsewhere_registers_in_the_run_of_its_training(
    again: SimpleNamespace, bundle_dir: Path, tmp_path: Path
) -> None:
    own = tmp_path / "evaluations"
    shutil.copytree(again.evaluation, own / "val" / "evaluation")
    registered = register_output(own, "elsewhere", bundle_dir, "val")
    run_id = json.loads((again.output / "mlflow_run.json").read_text())["run_id"]
    assert again.client.get_model_version("elsewhere", str(registered.version)).run_id == run_id


def test_a_folder_that_is_no_bundle_leaves_a_failed_model(store: SimpleNamespace, tmp_path: Path) -> None:
    run_id = json.loads((store.output / "mlflow_run.json").read_text())["run_id"]
    with pytest.raises(RegistryError, match=r"configs/inference.yaml"):
        bundle_model.log_bundle_model(store.client, run_id, store.output / "models" / "best.pt", tmp_path, "broken")
    experiment = store.client.get_run(run_id).info.experiment_id
    (model,) = store.client.search_logged_models([experiment], filter_string="name = 'broken'")
    assert model.status == "FAILED"


def test_an_evaluation_registers_in_its_own_run(again: SimpleNamespace, store: SimpleNamespace) -> None:
    client, experiment = store.client, "evaluations"
    tags = {"fairlung.kind": "evaluate", "fairlung.cohort_digest": "d"}
    run_id = client.create_run(client.create_experiment(experiment), tags=tags).info.run_id
    finished: list[str] = []
    tracker = SimpleNamespace(run_id=run_id, tracking_uri=store.uri, finish=lambda: finished.append("FINISHED"))
    arguments = ("best.pt", "bundle", again.evaluation)
    registered = register_evaluation("own", tracker, *arguments)  # type: ignore[arg-type]
    assert registered is not None
    version = client.get_model_version("own", str(registered.version))
    assert (version.run_id, version.tags["fairlung.cohort_digest"]) == (run_id, "d")
    assert register_evaluation("", tracker, *arguments) is None  # type: ignore[arg-type]
    tracker.run_id = None
    assert not finished
    with pytest.raises(RegistryError, match="does not have the evaluation's run.* Later.*fairlung register"):
        register_evaluation("own", tracker, *arguments)  # type: ignore[arg-type]
    assert finished == ["FINISHED"]  # the evaluation, whose results are there
    require_tracking("", "")
    require_tracking("own", None)
    with pytest.raises(RegistryError, match="--register needs MLflow"):
        require_tracking("own", "")


def test_the_judgement_is_of_the_judged_scans(again: SimpleNamespace) -> None:
    first = read_judgement(again.evaluation)
    assert (first.gap_low, first.gap_high, first.confidence) == (-0.3, 0.2, 0.95)
    assert Judgement.from_tags(first.tags()) == first
    table = pd.read_csv(again.evaluation / "predictions.csv", dtype=str, keep_default_na=False)
    table.sample(frac=1, random_state=0).assign(prediction=CLASSES[0]).to_csv(
        again.evaluation / "predictions.csv", index=False
    )
    assert read_judgement(again.evaluation) == first  # order and answers make no difference, labels do
    table.assign(label=CLASSES[0]).to_csv(again.evaluation / "predictions.csv", index=False)
    assert read_judgement(again.evaluation).scans_digest != first.scans_digest
    write_audit(again.evaluation, gap=None, abs_gap=Estimate(0.1, 0.0, 0.4))  # as of three groups
    assert read_judgement(again.evaluation).bound == 0.4
    (again.evaluation / "audit.json").unlink()
    assert read_judgement(again.evaluation).bound == math.inf
