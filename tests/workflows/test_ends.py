"""Inference in processes of its own, ended by signals: what was answered is kept, and nothing else stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from programs import Program, until_the_module_ends
from workflows import SMALL_SETTINGS

from fairlung.pipeline.networks.checkpoint import ModelSettings
from fairlung.pipeline.networks.r3d18 import R3D18Classifier
from fairlung.pipeline.phantoms.writers import write_nifti

pytestmark = pytest.mark.slow
programs = pytest.fixture(scope="module", autouse=True)(until_the_module_ends)
NAME = "DOE^JANE"
SCANS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    settings = ModelSettings(network="R3D18Classifier", **SMALL_SETTINGS).state_dict()
    torch.save({"model": R3D18Classifier(num_classes=4).state_dict(), "settings": settings}, path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small scans in folders that name a patient, packed."""
    folder = tmp_path_factory.mktemp("scans")
    volume = np.random.default_rng(0).integers(-1000, 400, (12, 16, 16)).astype(np.int16)
    for i in range(SCANS):
        (folder / "packed" / f"{NAME} {i:03d}").mkdir(parents=True)
        write_nifti(folder / "packed" / f"{NAME} {i:03d}" / "ct.nii", volume, (2.5, 1.0, 1.0))
    assert nibabel.load(folder / "packed" / f"{NAME} 000" / "ct.nii").shape == (16, 16, 12)
    return Path(shutil.make_archive(str(folder / "scans"), "zip", folder / "packed"))


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: the readers' sockets lie below it, and a socket's path has 107 bytes at most."""
    return tmp_path_factory.mktemp("t")


class Inference:
    """``python -m monai.bundle run``, with a temporary folder of its own."""

    def __init__(self, bundle: Path, folder: Path, model: Path, scans: Path, *settings: str) -> None:
        self.temporary, self.output = folder / "tmp", folder / "out"
        self.temporary.mkdir(exist_ok=True)
        config = bundle / "configs" / "inference.yaml"
        arguments = ["run", "--config_file", str(config), "--bundle_root", str(bundle), "--checkpoint", str(model)]
        arguments += ["--scans", str(scans), "--output_dir", str(self.output), "--num_workers", "1", *settings]
        self.log = folder / f"log{len(list(folder.glob('log*')))}.txt"
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        self.process = Program("monai.bundle", arguments, self.log, folder, environment)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def ends(self, number: int = 0) -> int:
        """Its exit code, and after that of all processes that it began."""
        below = psutil.Process(self.process.pid).children(recursive=True) if number else []
        if number:
            self.process.send_signal(number)
        code = self.process.wait(300)
        psutil.wait_procs(below, timeout=60)
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below)
        return code

    def rows(self, table: str = "predictions.csv") -> list[str]:
        path = self.output / table
        return path.read_text().splitlines()[1:] if path.exists() else []

    def left(self) -> list[Path]:
        return [*self.temporary.rglob("*")]


def errors(inference: Inference) -> list[str]:
    said = inference.log.read_text()
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error: ")]


@pytest.mark.fault(
    "lost", "SIGTERM while scans are answered", before="no table, and the unpacked scans stay in the temporary folder",
    now="a table of what was answered, and nothing stays",
)  # fmt: skip
def test_sigterm_keeps_what_was_answered(bundle_dir: Path, model: Path, archive: Path, tmp_path: Path) -> None:
    inference = Inference(bundle_dir, tmp_path, model, archive)
    inference.until(lambda: len(inference.rows("predictions.csv.part")) > 2)
    assert any(NAME in str(path) for path in inference.left())
    assert inference.ends(signal.SIGTERM) == 128 + signal.SIGTERM
    table = pd.read_csv(inference.output / "predictions.csv")
    assert 2 < len(table) < SCANS and set(table["status"]) == {"ok"}
    found = json.loads((inference.output / "predictions.json").read_text())
    assert [entry["scan"] for entry in found] == [*table["scan"]]
    assert inference.left() == []
    assert "stopped by signal 15" in inference.log.read_text()


@pytest.mark.fault(
    "leaked", "SIGKILL while scans of an archive are answered", before="the unpacked scans stay for ever",
    now="the next process removes them, and goes on from what was answered",
)  # fmt: skip
def test_after_a_kill_the_next_process_tidies_up_and_goes_on(
    bundle_dir: Path, model: Path, archive: Path, tmp_path: Path
) -> None:
    killed = Inference(bundle_dir, tmp_path, model, archive)
    killed.until(lambda: len(killed.rows("predictions.csv.part")) > 2)
    assert killed.ends(signal.SIGKILL) == -signal.SIGKILL
    assert any(NAME in str(path) for path in killed.left())
    answered = killed.rows("predictions.csv.part")
    second = Inference(bundle_dir, tmp_path, model, archive, "--append", "True")
    assert second.ends() == 0
    assert second.left() == [] and errors(second) == []
    assert second.rows()[: len(answered)] == answered and len(second.rows()) == SCANS
    assert f"{len(answered)} of {SCANS} scans have a row in" in second.log.read_text()
    assert sorted(path.name for path in second.output.glob("[!.]*")) == ["predictions.csv", "predictions.json"]


@pytest.mark.fault(
    "lost", "two inferences into one output folder", before="a KeyError, or rows that are doubled",
    now="the second stops and names the first",
)  # fmt: skip
def test_two_watchers_do_not_write_one_table(bundle_dir: Path, model: Path, archive: Path, tmp_path: Path) -> None:
    scans = archive.parent / "packed" / f"{NAME} 000"
    watching = ["--watch", "True", "--quiet_seconds", "1", "--poll_seconds", "0.2"]
    first = Inference(bundle_dir, tmp_path, model, scans, *watching)
    first.until(lambda: (first.output / ".fairlung.owner.json").exists())
    second = Inference(bundle_dir, tmp_path, model, scans, *watching)
    assert second.ends() == 1
    (error,) = errors(second)
    assert f"out is in use by process {first.process.pid} on" in error
    first.until(lambda: len(first.rows()) == 1)
    assert first.ends(signal.SIGTERM) == 0
    assert first.left() == [] and len(first.rows()) == 1
    assert not (first.output / ".fairlung.owner.json").exists()
