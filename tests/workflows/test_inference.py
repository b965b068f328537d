"""Inference as a hospital uses it: studies of several series, archives, several checkpoints, pictures, DICOM, a folder
that fills. The shipped configs, shrunk."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from typer.testing import CliRunner
from workflows import CLASSES, SMALL_SETTINGS, Start, cause, run

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.data.pseudonyms import PseudonymKeyError
from fairlung.pipeline.networks.checkpoint import CheckpointError, ModelSettings
from fairlung.pipeline.networks.r3d18 import R3D18Classifier
from fairlung.pipeline.phantoms.writers import write_dicom_series, write_nifti

NAME, PATIENT = "SECRET^PATIENT", "SECRET-ID-77"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of untrained networks that answer differently."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = R3D18Classifier(num_classes=4)
        torch.nn.init.normal_(network.backbone.fc[-1].bias, std=0.5)
        settings = ModelSettings(network="R3D18Classifier", **SMALL_SETTINGS).state_dict()
        path = folder / f"seed{seed}" / "models" / "best.pt"
        path.parent.mkdir(parents=True)
        even = {"run": f"seed {seed}", "mlflow_run": None, "date": "2026-11-30 07:00", "epoch": 3, "metrics": {}}
        even["class_frequencies"] = dict.fromkeys(CLASSES, 0.25)
        torch.save({"model": network.state_dict(), "settings": settings, "training": even}, path)
    return folder


def _localizer(folder: Path, source: Path) -> None:
    dataset = pydicom.dcmread(next(source.iterdir()))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesNumber = 9
    folder.mkdir(exist_ok=True)
    dataset.save_as(folder / "scout")


@pytest.fixture(scope="module")
def hospital(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree as it is exported: a study with a localizer in it, archives, a folder with a localizer alone."""
    root = tmp_path_factory.mktemp("hospital")
    study = root / "study one"
    shutil.copytree(data_dir / "chest_ct_dicom", study)
    for path in study.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = NAME, PATIENT, "SECRET-ACC"
        dataset.save_as(path)
    _localizer(study, data_dir / "chest_ct_dicom")
    _localizer(root / "scout", data_dir / "chest_ct_dicom")
    packed = root.parent / "packed"
    (packed / "inner").mkdir(parents=True)
    shutil.copy(data_dir / "chest_ct.nrrd", packed / "inner" / "ct.nrrd")
    shutil.make_archive(str(root / "more"), "zip", packed)
    (packed / "notes").mkdir()
    (packed / "notes" / "viewer.txt").write_text("no scan")
    shutil.make_archive(str(root / "viewer"), "tar", packed / "notes")
    (root / "torn.zip").write_bytes((root / "more.zip").read_bytes()[:5000])
    (root / "report.txt").write_text("not a scan")
    return root


@pytest.fixture(scope="module")
def answered(start: Start, models: Path, hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The tree, answered by both checkpoints with everything that can be asked for."""
    output = tmp_path_factory.mktemp("answered")
    settings = {"overlay": True, "dicom_out": True, "flip_tta": True, "read_timeout": 120}
    settings |= {"prevalence": {"adenocarcinoma": 0.1, "squamous_cell": 0.1, "covid19": 0.2, "normal": 0.6}}
    settings |= {"checkpoint": str(models / "*" / "models" / "best.pt"), "num_workers": 1, "batch_size": 2}
    with pytest.raises(SystemExit) as stopped:
        run(start("inference", scans=str(hospital), output_dir=str(output), **settings))
    table = pd.read_csv(output / "predictions.csv", keep_default_na=False).set_index("scan")
    entries = {entry["scan"]: entry for entry in json.loads((output / "predictions.json").read_text())}
    return SimpleNamespace(code=stopped.value.code, table=table, entries=entries, output=output)


def test_every_scan_has_its_answer_or_its_reason(answered: SimpleNamespace) -> None:
    assert answered.code == 3
    status = answered.table["status"].to_dict()
    expected = {"scout": "skipped", "study one": "ok", "more.zip/inner/ct.nrrd": "ok", "torn.zip": "failed"}
    assert status == expected | {"viewer.tar": "skipped"}
    assert "localizer" in answered.table.loc["scout", "reason"]
    said = [f"run seed {seed} (epoch 3, 2026-11-30 07:00)" for seed in (0, 1)]
    assert all(entry["models"] == said for entry in answered.entries.values())
    assert "torn.zip" in answered.entries and answered.entries["torn.zip"]["reason"]
    assert list(answered.entries) == list(answered.table.index)


def test_the_twins_get_one_answer_of_both_models(answered: SimpleNamespace, models: Path, data_dir: Path) -> None:
    """The mean over checkpoints and mirrored volumes, corrected by Bayes' rule, recomputed without the bundle."""
    from monai.transforms import CenterSpatialCrop, Resize

    from fairlung.transforms import LoadScan, SampleSlices, TrimSlices

    names = [f"prob_{name}" for name in CLASSES]
    found = answered.table.loc[["study one", "more.zip/inner/ct.nrrd"], names].astype(float).to_numpy()
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    volume = LoadScan(select=[TrimSlices(0.1), SampleSlices(8)])(data_dir / "chest_ct.nrrd")
    volume = (Resize((8, 32, 32), mode="area")(volume) * 255 + 0.5).clamp(0.5, 255.5).floor() / 255
    volume = torch.as_tensor(CenterSpatialCrop((8, 24, 24))(volume))[None]
    members = []
    for path in sorted(models.glob("*/models/best.pt")):
        network = R3D18Classifier(num_classes=4)
        network.load_state_dict(torch.load(path, weights_only=True)["model"])
        with torch.no_grad():
            both = [network.eval()(each).softmax(1)[0].numpy() for each in (volume, volume.flip(-1))]
        members.append(np.mean(both, axis=0))
    expected = np.mean(members, axis=0) * [0.1, 0.1, 0.2, 0.6]
    np.testing.assert_allclose(found[0], expected / expected.sum(), atol=1e-4)


def test_the_chosen_series_is_told(answered: SimpleNamespace) -> None:
    intake = answered.entries["study one"]["intake"]
    assert intake["series"].endswith("not 1: localizer") and intake["series"].startswith("2 of 2 (79 slices")
    assert answered.table.loc["study one", "warnings"] == ""  # a localizer beside it is nothing unusual


def test_pictures_and_maps(answered: SimpleNamespace, data_dir: Path) -> None:
    folder = answered.output / "overlay"
    with Image.open(folder / "study one.png") as montage:
        assert montage.size[0] > 300
    series = sitk.ImageSeriesReader()
    series.SetFileNames(series.GetGDCMSeriesFileNames(str(data_dir / "chest_ct_dicom")))
    scan = series.Execute()
    explained = sitk.ReadImage(str(folder / "study one_map.nii.gz"))
    assert explained.GetSize() == scan.GetSize()
    for index in [(0, 0, 0), (63, 10, 78)]:  # the same voxel lies at the same place
        place = scan.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(explained.TransformIndexToPhysicalPoint(index), place, atol=1e-2)
    assert 0 < sitk.GetArrayFromImage(explained).max() <= 1
    assert nibabel.load(folder / "more.zip" / "inner" / "ct.nrrd_map.nii.gz").shape == (64, 64, 79)


def test_dicom_objects_refer_to_the_study_and_name_nobody(answered: SimpleNamespace, hospital: Path) -> None:
    folder = answered.output / "dicom"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.dcm")) == [
        "study one/montage.dcm",
        "study one/report.dcm",
    ]
    source = pydicom.dcmread(hospital / "study one" / "IMG0001.dcm")
    report = pydicom.dcmread(folder / "study one" / "report.dcm")
    assert report.Modality == "SR" and report.StudyInstanceUID == source.StudyInstanceUID
    montage = pydicom.dcmread(folder / "study one" / "montage.dcm")
    assert montage.SOPClassUID.name.endswith("Secondary Capture Image Storage")


def test_nobody_is_named_anywhere(answered: SimpleNamespace) -> None:
    for path in answered.output.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path


def test_a_checkpoint_of_other_settings_is_refused(start: Start, models: Path, hospital: Path, tmp_path: Path) -> None:
    content = torch.load(models / "seed0" / "models" / "best.pt", weights_only=True)
    content["settings"]["num_slices"] = 16
    torch.save(content, tmp_path / "other.pt")
    paths = [str(models / "seed1" / "models" / "best.pt"), str(tmp_path / "other.pt")]
    error = cause(start("inference", scans=str(hospital), checkpoint=paths, output_dir=str(tmp_path / "out")))
    assert isinstance(error, CheckpointError)
    assert "other.pt" in str(error) and "num_slices" in str(error)


def test_a_csv_of_paths_is_answered_row_by_row(start: Start, models: Path, data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(data_dir / "chest_ct.nrrd", tmp_path / "a.nrrd")
    (tmp_path / "list.csv").write_text("scan,note\na.nrrd,here\ngone.nrrd,not here\n")
    checkpoint = str(models / "seed0" / "models" / "best.pt")
    settings = {"checkpoint": checkpoint, "output_dir": str(tmp_path / "out")}
    with pytest.raises(SystemExit):
        run(start("inference", scans=str(tmp_path / "list.csv"), **settings))
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("scan")
    assert table["status"].to_dict() == {"a.nrrd": "ok", "gone.nrrd": "failed"}
    assert "does not exist" in table.loc["gone.nrrd", "reason"]


KILLER = """
import os, signal
from fairlung.pipeline.inference.answers import AnswerEvents

class EndOnce:
    \"\"\"The second process is killed when it has answered its first scan, and has not written the second.\"\"\"

    def attach(self, engine):
        engine.add_event_handler(AnswerEvents.ANSWERED, self)

    def __call__(self, engine):
        print("answered", *engine.state.batch["scan"], flush=True)
        first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if os.environ["RANK"] == "1" and engine.state.iteration == 2 and first_start:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def by_torchrun(bundle_dir: Path, folder: Path, scans: Path, models: Path, *more: str, restarts: int = 0) -> str:
    """Answer scans with two processes by the documented command; what was printed."""
    (folder / "killer.py").write_text(KILLER)
    (folder / "kill.yaml").write_text("+handlers:\n- _target_: killer.EndOnce\n")
    configs = [bundle_dir / "configs" / name for name in ("inference.yaml", "multi_gpu_inference.yaml")]
    configs += [folder / "kill.yaml"] if restarts else []
    settings = {"bundle_root": bundle_dir, "scans": scans, "output_dir": folder / "out", "num_workers": 0}
    settings |= {"checkpoint": models / "seed0" / "models" / "best.pt"}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            f"--max_restarts={restarts}", "-m", "monai.bundle", "run",
            "--config_file", str([str(path) for path in configs]),
            *(f"--{name}={value}" for name, value in settings.items()), *more,
        ],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_answer_as_one_does_also_when_one_is_killed(
    start: Start, bundle_dir: Path, models: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Every scan once, in their order, with the very numbers; what was written before the kill is not read again."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(5):
        volume = np.random.default_rng(number).integers(-1000, 200, (40, 40, 12), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-9.0, -9.0, 10.0, 1.0])), scans / f"ct{number}.nii.gz")
    packed = tmp_path / "packed"
    packed.mkdir()
    shutil.copy(data_dir / "chest_ct.nrrd", packed / "ct.nrrd")
    shutil.make_archive(str(scans / "more"), "zip", packed)
    checkpoint = str(models / "seed0" / "models" / "best.pt")
    run(start("inference", scans=str(scans), output_dir=str(tmp_path / "one"), checkpoint=checkpoint))
    for name, more, restarts in (("two", (), 0), ("killed", ("--append=True",), 1)):
        folder = tmp_path / name
        folder.mkdir()
        printed = by_torchrun(bundle_dir, folder, scans, models, *more, restarts=restarts)
        for file in ("predictions.csv", "predictions.json"):
            assert (folder / "out" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), (name, file)
        assert not [path for path in (folder / "out").iterdir() if path.suffix.startswith((".part", ".new"))]
        assert "6 scans answered" in printed and printed.count("scans answered (") == 1
    kept = int(re.search(r"(\d) of 6 scans have a row", printed)[1])  # type: ignore[index]
    assert kept > 0
    counts = Counter(re.findall(r"answered (ct\d.nii.gz|more.zip/ct.nrrd)", printed))
    assert len(counts) == 6 and max(counts.values()) == 2 and counts["ct1.nii.gz"] == 1  # its row was there


@pytest.mark.parametrize(("setting", "said"), [({"watch": True}, "by one process"), ({}, "by torchrun")])
def test_what_several_processes_cannot_do_is_refused(
    start: Start, models: Path, tmp_path: Path, setting: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scans").mkdir()
    checkpoint = str(models / "seed0" / "models" / "best.pt")
    names = ["inference", *([] if setting else ["multi_gpu_inference"])]
    if setting:
        monkeypatch.setattr("fairlung.pipeline.inference.watch.world_size", lambda: 2)
    workflow = start(*names, scans=str(tmp_path / "scans"), output_dir=str(tmp_path), checkpoint=checkpoint, **setting)
    error = cause(workflow)
    assert isinstance(error, UserError) and said in str(error)


@pytest.mark.slow
def test_a_folder_that_fills_is_answered_as_it_fills(
    start: Start, models: Path, data_dir: Path, odd_hu: tuple, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(data_dir / "chest_ct.nrrd", scans / "first.nrrd")

    def slowly() -> None:
        (scans / "second").mkdir()
        for path in sorted((data_dir / "chest_ct_dicom").iterdir()):
            shutil.copy(path, scans / "second")
            time.sleep(0.03)

    settings = {"watch": True, "quiet_seconds": 2.5, "poll_seconds": 0.2, "idle_seconds": 4.0}
    settings |= {"output_dir": str(tmp_path / "out")}
    settings |= {"scans": str(scans), "checkpoint": str(models / "seed0" / "models" / "best.pt")}
    copying = threading.Thread(target=slowly)
    copying.start()
    run(start("inference", **settings))
    copying.join()
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("scan")
    assert table["status"].to_dict() == {"first.nrrd": "ok", "second": "ok"}
    names = [f"prob_{name}" for name in CLASSES]
    np.testing.assert_allclose(*table[names].astype(float).to_numpy(), atol=1e-5)  # never half of the study
    write_nifti(scans / "third.nii.gz", np.tile(odd_hu[0], (2, 1, 1)), odd_hu[1])
    run(
        start("inference", **settings | {"quiet_seconds": 1.0, "idle_seconds": 2.0})
    )  # a new process picks up where the first stopped
    again = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    assert list(again["scan"]) == ["first.nrrd", "second", "third.nii.gz"]


# --- names of scans ---------------------------------------------------------------------------------------------------
@pytest.fixture
def named_after_people(data_dir: Path, tmp_path: Path) -> Path:
    """Scans whose files and folders are named by patients: two CTs of a study, a volume, and what cannot be read."""
    root = tmp_path / "scans"
    shutil.copytree(data_dir / "chest_ct_dicom", root / "DOE JANE" / "DOE CT")
    (root / "DOE JANE" / "DOE THIN").mkdir()
    for path in (data_dir / "chest_ct_dicom").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2.3", 7
        dataset.SOPInstanceUID = pydicom.uid.generate_uid()
        dataset.save_as(root / "DOE JANE" / "DOE THIN" / path.name)
    shutil.copy(data_dir / "chest_ct.nrrd", root / "DOE^JOHN.nrrd")
    (root / "DOE PICTURES").mkdir()
    for number in range(12):
        (root / "DOE PICTURES" / f"DOE{number}.png").write_bytes(b"no picture")
    shutil.make_archive(str(root / "DOE_ZIP"), "zip", data_dir, "chest_ct.nrrd")
    (root / "DOE_ZIP.zip").write_bytes((root / "DOE_ZIP.zip").read_bytes()[:5000])
    shutil.copy(data_dir / "golden" / "jpg_scan" / "0.jpg", root / "DOE JANE" / "DOE.jpg")
    return root


@pytest.mark.fault(
    "leaked", "scans in folders named by patients", before="their names in tables, pictures, reports and the log",
    now="keyed digests everywhere with --pseudonymize",
)  # fmt: skip
@pytest.mark.usefixtures("plain_log_entries")
@pytest.mark.slow
def test_names_of_scans_are_replaced_wherever_they_are_written(
    start: Start, models: Path, named_after_people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, output = tmp_path / "key", tmp_path / "out"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    settings = {"checkpoint": str(models / "seed0" / "models" / "best.pt"), "overlay": True, "dicom_out": True}
    settings |= {"scans": str(named_after_people), "pseudonymize": str(key), "output_dir": str(output)}
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        run(start("inference", **settings))
    table = pd.read_csv(output / "predictions.csv", keep_default_na=False).set_index("scan")
    assert sorted(table["status"]) == ["failed", "failed", "ok", "ok", "ok"]
    assert table.index.str.fullmatch("scan-[0-9a-f]{16}").all() and table.index.is_unique
    (study,) = set(table["study"]) - {""}
    joined = table[table["study"] == study]
    assert len(joined) == 2 and joined["warnings"].str.contains("same_study: one of 2").all()
    reasons = set(table.loc[table["status"] == "failed", "reason"])
    assert any("file-" in reason and "cannot be decoded" in reason for reason in reasons)
    for path in output.rglob("*"):
        assert "DOE" not in str(path.relative_to(output))
        assert not path.is_file() or b"DOE" not in path.read_bytes(), path
    assert "DOE" not in caplog.text and "failed" in caplog.text
    assert len([*(output / "overlay").glob("scan-*.png")]) == 3


@pytest.mark.slow
def test_an_ensemble_is_judged_by_what_it_answers(
    start: Start, models: Path, small_cohort: Path, tmp_path: Path
) -> None:
    """Two checkpoints and mirrored volumes: the evaluation's probabilities are the inference's."""
    together = {"checkpoint": str(models / "*" / "models" / "best.pt"), "flip_tta": True}
    judged = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "cache_dir": "", "min_cell": 1}
    run(start("train", "evaluate", **together, **judged))
    evaluation = tmp_path / "val" / "evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["checkpoint"] == sorted(map(str, models.glob("*/models/best.pt")))
    assert "seed0" in (evaluation / "report.md").read_text() and "seed1" in (evaluation / "report.md").read_text()
    said = pd.read_csv(evaluation / "predictions.csv").set_index("scan")
    said[["image"]] = said.index.to_series().map(lambda scan: small_cohort.parent / scan).to_frame()
    said[["image"]].rename(columns={"image": "scan"}).to_csv(tmp_path / "new.csv", index=False)
    run(start("inference", **together, scans=str(tmp_path / "new.csv"), output_dir=str(tmp_path / "new")))
    answers = pd.read_csv(tmp_path / "new" / "predictions.csv")
    columns = [f"prob_{name}" for name in CLASSES]
    np.testing.assert_allclose(said[columns].to_numpy(), answers[columns].to_numpy(), atol=2e-6)
    assert list(said["prediction"]) == list(answers["prediction"])
    error = cause(
        start("train", "evaluate", **together, **judged, register="m", tracking_uri=f"sqlite:///{tmp_path}/m.db")
    )
    assert "--register takes one checkpoint, and 2 are judged together" in str(error)


def test_a_key_that_cannot_be_used_ends_the_run_before_a_scan_is_read(
    start: Start, models: Path, hospital: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "key").write_bytes(b"k" * 32)
    (tmp_path / "short").write_bytes(b"k" * 15)
    settings = {"scans": str(hospital), "checkpoint": str(models / "seed0" / "models" / "best.pt")}
    for name, said in (("out/key", "lies in"), ("short", "at least 16 bytes"), ("none", "cannot be read")):
        settings |= {"output_dir": str(tmp_path / "out"), "pseudonymize": str(tmp_path / name)}
        error = cause(start("inference", **settings))
        assert isinstance(error, PseudonymKeyError) and said in str(error)
        assert not (tmp_path / "none").exists() and not (tmp_path / "out" / "predictions.csv").exists()


# --- fairlung check ---------------------------------------------------------------------------------------------------
def test_check_says_the_same_without_a_network(hospital: Path, bundle_dir: Path, tmp_path: Path, odd_hu: tuple) -> None:
    output = tmp_path / "check"
    arguments = ["check", str(hospital), "-o", str(output), "--workers", "0", "--bundle-root", str(bundle_dir)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3, result.output
    table = pd.read_csv(output / "intake.csv", keep_default_na=False).set_index("scan")
    status = {"scout": "skipped", "study one": "ok", "more.zip/inner/ct.nrrd": "ok", "torn.zip": "refused"}
    assert table["status"].to_dict() == status | {"viewer.tar": "skipped"}
    assert (output / "pictures" / "study one.png").is_file()
    assert "torn.zip" in (output / "index.html").read_text()
    assert "SECRET" not in (output / "index.html").read_text() + (output / "intake.json").read_text()
    # as a program, which does not have MONAI import what our own bundle does without, and whose readers are its forks
    code = "import sys; sys.argv[0] = 'fairlung'; from fairlung.pipeline.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments[:2], "-o", str(tmp_path / "program"), "--workers", "2"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3
    assert (tmp_path / "program" / "intake.csv").read_bytes() == (output / "intake.csv").read_bytes()
    pictures = sorted(path.relative_to(output) for path in output.glob("pictures/**/*.png"))
    assert pictures and all((tmp_path / "program" / p).read_bytes() == (output / p).read_bytes() for p in pictures)
    every = tmp_path / "every"
    result = CliRunner().invoke(app, [*arguments[:2], "-o", str(every), *arguments[4:], "--all-series"])
    names = list(pd.read_csv(every / "intake.csv")["scan"])
    assert {"study one#1", "study one#2"} <= set(names) and "study one" not in names


def test_check_of_nothing_is_a_user_error(bundle_dir: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tmp_path / "none"), "--bundle-root", str(bundle_dir)])
    assert result.exit_code == 1 and "does not exist" in result.output
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--bundle-root", str(tmp_path)])
    assert result.exit_code == 1 and "--bundle-root" in result.output


def test_a_prevalence_without_the_training_prior_is_refused(
    start: Start, models: Path, hospital: Path, tmp_path: Path
) -> None:
    """A checkpoint of 0.1 says nothing of the frequencies that it answers under: Bayes' rule needs them."""
    content = torch.load(models / "seed0" / "models" / "best.pt", weights_only=True)
    del content["training"]
    torch.save(content, tmp_path / "model.pt")
    settings = {"scans": str(hospital), "checkpoint": str(tmp_path / "model.pt"), "output_dir": str(tmp_path)}
    error = cause(start("inference", prevalence=dict.fromkeys(CLASSES, 0.25), **settings))
    assert "trained_prevalence" in str(error)


def test_a_cohort_with_a_scan_that_inference_refuses_does_not_train(
    start: Start, small_cohort: Path, tmp_path: Path, odd_hu: tuple
) -> None:
    """The same intake serves training: the run stops with the list, and what was doubtful of the others is told."""
    series = write_dicom_series(tmp_path / "coronal", np.tile(odd_hu[0], (2, 1, 1)), odd_hu[1], sex="male", age=50)
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.save_as(path)
    table = pd.read_csv(small_cohort)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table.loc[0, "scan"] = str(series)
    table.to_csv(tmp_path / "cohort.csv", index=False)
    error = cause(start("train", cohort=str(tmp_path / "cohort.csv"), output_dir=str(tmp_path / "run")))
    assert "1 of 16 scans cannot be read" in str(error) and "coronal" in str(error)
    intake = pd.read_csv(tmp_path / "run" / "intake" / "train.csv")
    assert list(intake["status"]).count("refused") == 1 and len(intake) == 16
    assert "few_slices" in intake["warnings"].iloc[1]
