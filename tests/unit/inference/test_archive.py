"""What an archive makes of the DICOM that is written: Orthanc, where it is installed, with a store of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairlung.pipeline.common.names import CLASS_NAMES
from fairlung.pipeline.inference.answers import Answer
from fairlung.pipeline.inference.dicom_objects import Model
from fairlung.pipeline.inference.dicom_report import write_dicom_answers

SECONDS = 60  # that it may take to start

Ask = Callable[..., Any]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Ask]:
    """Ask a fresh archive: ``ask("studies")``, ``ask("instances", content)``."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (package orthanc)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = str(tmp_path / "store")
    settings = {"HttpPort": port, "StorageDirectory": store, "IndexDirectory": store, "DicomServerEnabled": False}
    settings |= {"RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": []}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))

    def ask(what: str, content: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{what}", content, timeout=SECONDS) as answer:
            return json.loads(answer.read())

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, tmp_path / "orthanc.json"], stdout=log, stderr=log)
    try:
        for _ in range(10 * SECONDS):
            try:
                ask("system")
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        yield ask
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.mark.slow
@pytest.mark.fault(
    "lost", "report and montage sent to Orthanc, which has the study",
    before="a second patient and a second study", now="one patient and one study with --dicom_identity keep",
)  # fmt: skip
@pytest.mark.parametrize("identity, count", [("keep", 1), ("remove", 2)])
def test_an_archive_files_an_answer_with_its_study(
    orthanc: Ask, data_dir: Path, tmp_path: Path, identity: str, count: int
) -> None:
    files = sorted((data_dir / "chest_ct_dicom").iterdir())[:3]
    intake = {"kind": "dicom", "files": [str(file) for file in files], "shape": None, "indices": []}
    answer = Answer("scan", "ok", "", CLASS_NAMES[0], dict.fromkeys(CLASS_NAMES, 0.25), None, [], intake)
    picture = np.zeros((8, 8, 3), np.uint8)
    written = write_dicom_answers(tmp_path / "out", answer, Model("m", "1", "d"), picture, identity)
    for path in [*files, *written]:
        assert orthanc("instances", path.read_bytes())["Status"] == "Success"
    assert (len(orthanc("patients")), len(orthanc("studies"))) == (count, count)
    assert len(orthanc("series")) == 3
    for path in written:  # a repetition is the instance that the archive has
        assert orthanc("instances", path.read_bytes())["Status"] == "AlreadyStored"
