"""Files that others may have made are read as data: a pickle in them that would run code does not run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.common.files import json_or_nothing
from fairlung.pipeline.common.run_folder import RECORD, SETTINGS
from fairlung.pipeline.data.archives import unpack
from fairlung.pipeline.data.dataset import scan_finder
from fairlung.pipeline.data.volume_cache import VolumeCache
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.inference.members import load_members
from fairlung.pipeline.networks.catalogue import OF_NETWORK
from fairlung.pipeline.networks.checkpoint import model_settings, training_record
from fairlung.pipeline.networks.weights import load_published_weights
from fairlung.pipeline.postprocessing.fitted import load_fitted
from fairlung.pipeline.reports.evidence import optional_json
from fairlung.pipeline.studies.record import STUDY_FILE, load_study
from fairlung.pipeline.tracking.journal import JOURNAL, Written
from fairlung.pipeline.training.output_dir import publish
from fairlung.pipeline.training.resume import ResumePoint
from fairlung.transforms import LoadScan
from fairlung.transforms.scan import ScanError


class Planted:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def as_torch_saves(path: Path, content: Any) -> None:
    torch.save(content, path)


def as_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def as_torch_saved_once(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def cache_entry(path: Path) -> None:
    def transform(item: dict[str, Any]) -> dict[str, Any]:
        return {"image": torch.zeros(1), "scan": item["scan"]}

    data = [{"image": "x", "scan": "x"}]
    cache = VolumeCache(data, transform, path.parent / "cache", lambda _: "", lambda *_: b"digest")
    entry = cache.path(0)
    assert entry is not None
    path.rename(entry)
    assert torch.equal(cache[0]["image"], torch.zeros(1))  # made anew


def resume_point(path: Path) -> None:
    evaluator = SimpleNamespace(state=None)
    ResumePoint(path, {}, evaluator, resume=True).read()  # type: ignore[arg-type]


def published_weights(path: Path) -> None:
    load_published_weights(resnet18(), OF_NETWORK["R3D18Classifier"], path)


def archive_member(path: Path) -> None:
    with zipfile.ZipFile(path.with_name("scans.zip"), "w") as archive:
        for name in ("scan.pkl", "scan.pt", "scan.npy", "scan.nii.gz", "0001.png"):
            archive.write(path, f"scan/{name}")
    unpack(path.with_name("scans.zip"), path.parent / "unpacked")
    for item in scan_finder()(path.parent / "unpacked"):
        with pytest.raises(ScanError):
            LoadScan()(item["image"])


def saved_settings(path: Path) -> None:
    assert json_or_nothing(path.rename(path.with_name(RECORD))) == {}
    optional_json(path.with_name(RECORD).rename(path.with_name(SETTINGS)))


def study_record(path: Path) -> None:
    load_study(path.rename(path.with_name(STUDY_FILE)).parent)


def journal(path: Path) -> None:
    assert Written.read(path.rename(path.with_name(JOURNAL)).parent).entries == []


# what reads the file, and whether it is refused in a line; else it is passed over
READERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "checkpoint": (lambda path: model_settings(path, ""), True),
    "checkpoint's record": (training_record, True),
    "checkpoint in a network": (lambda path: load_members([path], torch.nn.Linear(1, 1), None), True),  # type: ignore[arg-type]
    "checkpoint to publish": (lambda path: publish(path, path.with_name("model.pt")), True),
    "published weights": (published_weights, True),
    "resume point": (resume_point, True),
    "post-processing fit": (load_fitted, True),
    "predictions": (load_predictions, True),
    "study record": (study_record, True),
    "saved settings": (saved_settings, True),
    "cache entry": (cache_entry, False),
    "archive member": (archive_member, False),
    "journal": (journal, False),
}  # fmt: skip


@pytest.mark.fault(
    "wrong", "a file with a pickle that runs code, where checkpoints, caches, fits, records and archives are read",
    before="not run; the error was twenty lines and advised to read it all the same", now="not run, one line",
)  # fmt: skip
@pytest.mark.parametrize("save", [as_torch_saves, as_pickle, as_torch_saved_once])
@pytest.mark.parametrize("reader", READERS)
def test_a_planted_pickle_is_not_run(
    reader: str, save: Callable[[Path, Any], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "file" / "planted"
    path.parent.mkdir()
    save(path, {"model": {}, "settings": Planted(marker), "training": Planted(marker)})
    read, refused = READERS[reader]
    if refused:
        with pytest.raises(UserError) as caught:
            read(path)
        said = str(caught.value)
        assert "\n" not in said and "weights_only" not in said
        assert any(name in said for name in ("planted", STUDY_FILE, SETTINGS))
    else:
        read(path)
    assert not marker.exists()
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("save", [as_torch_saves, as_pickle, as_torch_saved_once])
def test_the_pickle_is_one_that_would_run(save: Callable[[Path, Any], None], tmp_path: Path) -> None:
    save(tmp_path / "planted", Planted(tmp_path / "it ran"))
    torch.load(tmp_path / "planted", weights_only=False).close() if save is not as_pickle else pickle.loads(
        (tmp_path / "planted").read_bytes()
    ).close()
    assert (tmp_path / "it ran").exists()
