"""Inference on a Ray cluster: the rows of one process, whatever ends meanwhile. The shipped configs, shrunk."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
import yaml
from troubled_scans import TROUBLED
from workflows import SMALL_SETTINGS, Start, cause, run

from fairlung.pipeline.common.claims import release
from fairlung.pipeline.common.ray_cluster import EngineError, ray_cluster
from fairlung.pipeline.inference import on_ray
from fairlung.pipeline.networks.checkpoint import ModelSettings
from fairlung.pipeline.networks.r3d18 import R3D18Classifier

TABLES = ("predictions.csv", "predictions.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    settings = ModelSettings(network="R3D18Classifier", **SMALL_SETTINGS).state_dict()
    torch.save({"model": R3D18Classifier(num_classes=4).state_dict(), "settings": settings}, path)
    return str(path)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two cores, which all tests here share."""
    from ray.cluster_utils import Cluster

    helpers = str(Path(__file__).parents[1] / "helpers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", helpers, prepend=os.pathsep)  # all processes of a cluster need what a config names
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for every other test of a busy machine
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        yield cluster.address
        cluster.shutdown()


def write_scans(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        volume = np.random.default_rng(number).integers(-1000, 200, (40, 40, 12), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-9.0, -9.0, 10.0, 1.0])), folder / f"{name}.nii.gz")
    return folder


def content(path: Path) -> bytes:
    """What a file says, but for the time at which it was written."""
    if path.suffix == ".dcm":
        return str(pydicom.dcmread(path).SOPInstanceUID).encode()  # it follows from the rest
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("plain_log_entries")
def test_rows_pictures_and_reports_are_those_of_one_process(
    start: Start, address: str, checkpoint: str, data_dir: Path, tmp_path: Path
) -> None:
    """Also when a process that reads and the one with the network are killed on the way."""
    scans = write_scans(tmp_path / "scans", "a#b", "killed")
    shutil.copytree(data_dir / "chest_ct_dicom", scans / "study")
    shutil.make_archive(str(scans / "more"), "zip", write_scans(tmp_path / "packed", "inner"))
    (tmp_path / "key").write_text("0123456789abcdef" * 2)
    settings = {"scans": str(scans), "checkpoint": checkpoint, "pseudonymize": str(tmp_path / "key")}
    settings |= {"overlay": True, "dicom_out": True} | TROUBLED
    settings |= {"handlers::3": {"_target_": "troubled_scans.EndsOnce", "marker": str(tmp_path / "network killed")}}
    for name in ("ray", "local"):  # in this order: a process is killed once
        more = {"ray_address": address} if name == "ray" else {}
        configs = ["inference", *(["ray_inference"] if more else [])]
        run(start(*configs, **settings, **more, output_dir=str(tmp_path / name)))
        assert (tmp_path / "reader killed").exists() and (tmp_path / "network killed").exists()
    files = [path.relative_to(tmp_path / "local") for path in sorted((tmp_path / "local").rglob("*.*"))]
    assert {path.suffix for path in files} >= {".csv", ".json", ".png", ".gz", ".dcm"}
    assert files == [path.relative_to(tmp_path / "ray") for path in sorted((tmp_path / "ray").rglob("*.*"))]
    for path in (path for path in files if path.suffix != ".lock"):
        assert (tmp_path / "local" / path).is_dir() or content(tmp_path / "ray" / path) == content(
            tmp_path / "local" / path
        ), path


def rows(table: Path) -> int:
    return max(0, len(table.read_bytes().splitlines()) - 1) if table.exists() else 0


def when(condition: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 600
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_that_is_stopped_and_killed_goes_on_and_bad_scans_cost_no_other(
    start: Start, address: str, checkpoint: str, bundle_dir: Path, tmp_path: Path
) -> None:
    good = [f"fine{number}" for number in range(3)]
    scans = write_scans(tmp_path / "scans", "crash", *good, "hang")  # the run lasts as long as the one that hangs
    output, table = tmp_path / "out", tmp_path / "out" / "predictions.csv"
    settings: dict[str, Any] = {"scans": str(scans), "checkpoint": checkpoint, "output_dir": str(output)}
    settings |= {"read_timeout": 30, "ray_address": address}

    part = table.with_name("predictions.csv.part")
    stopping = when(lambda: rows(part) > 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run(start("inference", "ray_inference", **settings, **TROUBLED))
    stopping.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    kept = rows(table)
    assert 0 < kept < 5 and not part.exists()
    release(output)  # this process lives on

    (tmp_path / "troubled.yaml").write_text(yaml.safe_dump(TROUBLED))
    words = ["infer", str(scans), "-o", str(output), "-c", str(tmp_path / "troubled.yaml"), "--append", "True"]
    words += ["--checkpoint", checkpoint, "--engine", "ray", "--address", address, "--read_timeout", "30"]
    killed = subprocess.Popen([sys.executable, "-m", "fairlung.pipeline", *words], cwd=tmp_path)
    when(lambda: rows(table) > kept or killed.poll() is not None, killed.kill).join()
    assert killed.wait() == -signal.SIGKILL
    taken_up = table.read_text().splitlines()[: kept + 2]

    with pytest.raises(SystemExit) as ended:
        run(start("inference", "ray_inference", **settings, **TROUBLED, append=True))
    assert ended.value.code == 3
    found = pd.read_csv(table, keep_default_na=False).set_index("scan")
    assert list(found.index) == [f"{name}.nii.gz" for name in ("crash", *good, "hang")]
    assert {name.split(".")[0] for name in found.index[found["status"] == "failed"]} == {"crash", "hang"}
    assert found.loc["hang.nii.gz", "reason"].startswith("the reader crashed twice, or took more than 30 s")
    run(start("inference", scans=str(scans), checkpoint=checkpoint, output_dir=str(tmp_path / "local")))
    local = (tmp_path / "local" / "predictions.csv").read_text().splitlines()
    lines = table.read_text().splitlines()
    assert [line for line in lines if line.startswith("fine")] == [line for line in local if line.startswith("fine")]
    assert set(taken_up) <= set(lines)


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_a_ray_that_is_missing_or_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(EngineError, match="Ray at 127.0.0.1:1 does not answer: .*refused") as caught,
        ray_cluster("127.0.0.1:1"),
    ):
        pass
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'fairlung\[ray\]'"), ray_cluster():
        pass


def test_no_cluster_watches_a_folder(start: Start, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    settings = {"scans": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out"), "checkpoint": checkpoint}
    error = cause(start("inference", "ray_inference", **settings, watch=True))
    assert isinstance(error, EngineError) and "a folder is watched by the engine local alone" in str(error)


NODES = ({"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0})


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "models", "found"),
    [
        (NODES, 1, None, None, (1, 2)),
        (NODES, 1, 0, None, (0, 6)),
        (NODES[1:], 0.5, None, 3, (0, 3)),
        (({"CPU": 2.0},), 1, None, None, (0, 1)),
        (NODES, 1, 1, 3, "models 3 of gpus_per_model 1 and a reader of cpus_per_reader 1 need 3 GPUs, and the cluster"),
        (NODES[1:], 1, 1, None, "need 1 GPUs, and the cluster has 0"),
        (({"CPU": 1.0},), 1, None, None, "need 2 CPUs, and the cluster has 1"),
        (NODES, 9, None, None, "cpus_per_reader must be at most 8, the CPUs of the largest machine, got 9"),
    ],
)  # fmt: skip
def test_a_cluster_that_is_too_small_is_not_waited_for(
    nodes: Any, cpus: float, gpus: int | None, models: int | None, found: Any
) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    ray: Any = SimpleNamespace(nodes=lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
    if isinstance(found, tuple):
        assert on_ray._shares(ray, cpus, gpus, models) == found
    else:
        with pytest.raises(EngineError, match=found):
            on_ray._shares(ray, cpus, gpus, models)


def test_ends_are_counted_for_each_scan() -> None:
    ends = on_ray.Ends()
    ends.begin([1, 2])  # this process ends
    ends.begin([2])
    ends.done([2])
    ends.begin([1])  # and this one
    assert (ends.most([1]), ends.most([2]), ends.most([3]), ends.most([2, 3])) == (2, 1, 0, 1)
