"""The shipped YAML, shrunk, run in process: training, evaluation and inference as one job."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from sklearn.metrics import f1_score
from workflows import CLASSES, EXPLAINED_NETWORK, SHRUNK, Start, Trained, cause, run

from fairlung.pipeline import __version__
from fairlung.pipeline.common.config import UnknownSettingError
from fairlung.pipeline.common.errors import EXIT_SOME_FAILED, user_error
from fairlung.pipeline.data.cohort_checks import CohortError
from fairlung.pipeline.data.dataset import UnreadableScansError, transform_digest
from fairlung.pipeline.networks.checkpoint import (
    MODEL_SETTINGS,
    CheckpointError,
    checkpoint_content,
    same_checkpoint,
)
from fairlung.pipeline.networks.weights import PretrainedWeightsError
from fairlung.transforms import LoadScan, SampleSlices, TrimSlices


@pytest.fixture(scope="session")
def trained(trained_once: Trained) -> Trained:
    return trained_once


# ---- the job -------------------------------------------------------------------------------------------------------
def test_training_keeps_every_checkpoint_and_publishes_the_best(trained: Trained) -> None:
    saved = sorted(path.name for path in (trained.output / "models").iterdir())
    assert saved == ["best.pt", "checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"]
    assert same_checkpoint(trained.model, trained.output / "models" / "best.pt")
    assert all(map(torch.is_tensor, torch.load(trained.model, weights_only=True).values()))  # a plain state dict
    content = checkpoint_content(trained.model)
    assert set(content) == {"model", "settings", "training"}
    record, scores = content["training"], json.loads((trained.output / "val" / "metrics.json").read_text())["metrics"]
    assert (record["epoch"], record["run"].split()[0]) == (trained.best_epoch, "first")
    assert record["mlflow_run"] == json.loads((trained.output / "mlflow_run.json").read_text())["run_id"]
    assert record["metrics"] == {f"val_{n}": scores[n] for n in ("score", "gap", "abs_gap", "f1_male", "f1_female")}
    assert record["settings"]["aggregation"] == "GroupCVaR" and record["settings"]["alpha"] == 0.8
    shares = record["class_frequencies"]
    assert list(shares) == CLASSES and sum(shares.values()) == pytest.approx(1)
    assert content["settings"]["class_names"] == CLASSES
    assert content["settings"]["num_slices"] == SHRUNK["num_slices"]


def test_best_is_the_epoch_of_the_highest_key_metric(trained: Trained) -> None:
    best = torch.load(trained.output / "models" / "best.pt", weights_only=True)["model"]
    epoch = torch.load(trained.output / "models" / f"checkpoint_epoch={trained.best_epoch}.pt", weights_only=True)
    assert all(torch.equal(best[name], value) for name, value in epoch["model"].items())
    assert json.loads((trained.output / "val" / "metrics.json").read_text())["metrics"]["score"] == trained.best_metric


def test_evaluation_equals_the_best_epoch_and_scikit_learn(trained: Trained) -> None:
    folder = trained.output / "val" / "evaluation"
    result = json.loads((folder / "metrics.json").read_text())
    assert result["metrics"] == json.loads((trained.output / "val" / "metrics.json").read_text())["metrics"]
    table = pd.read_csv(folder / "predictions.csv")
    by_sex = [
        f1_score(rows["label"], rows["prediction"], labels=CLASSES, average="macro", zero_division=0)
        for rows in (table[table["sex"] == sex] for sex in ("male", "female"))
    ]
    assert [result["metrics"]["f1_male"], result["metrics"]["f1_female"]] == pytest.approx(by_sex, abs=1e-12)
    assert result["metrics"]["score"] == pytest.approx(np.mean(by_sex), abs=1e-12)
    assert result["metrics"]["gap"] == pytest.approx(by_sex[0] - by_sex[1], abs=1e-12)
    probabilities = table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert [CLASSES[i] for i in probabilities.argmax(1)] == list(table["prediction"])
    assert (folder / "confusion.png").stat().st_size > 1000


@pytest.mark.slow
def test_training_is_reproducible(trained: Trained, start: Start, tmp_path: Path) -> None:
    run(start("train", **trained.settings | {"output_dir": str(tmp_path)}))
    again = torch.load(tmp_path / "models" / "best.pt", weights_only=True)["model"]
    first = torch.load(trained.output / "models" / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(first[name], value) for name, value in again.items())


# ---- inference -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def scans(small_cohort: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """New scans of every kind, a real one among them, and two that cannot be answered."""
    root = tmp_path_factory.mktemp("scans")
    rows = pd.read_csv(small_cohort)
    for i, scan in enumerate(rows[rows["split"] == "val"]["scan"]):
        source = small_cohort.parent / scan
        target = root / f"{i}-{source.name}"
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(data_dir / "chest_ct_dicom", root / "real" / "dicom")
    shutil.copy(data_dir / "chest_ct.nrrd", root / "real" / "ct.nrrd")
    (root / "broken").mkdir()
    for number in range(12):
        (root / "broken" / f"{number}.jpg").write_bytes(b"no picture")
    (root / "broken.nii.gz").write_bytes(b"no volume")
    shutil.copytree(data_dir / "chest_ct_dicom", root / "two")
    shutil.copy(next((data_dir / "tcga_lung_slices").glob("*.dcm")), root / "two")
    return root


@pytest.fixture(scope="session")
def answers(
    trained: Trained, start: Start, scans: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, pd.DataFrame]:
    """Exit code and predictions.csv of an inference over all of them."""
    output = tmp_path_factory.mktemp("answers")
    with pytest.raises(SystemExit) as stopped:
        run(start("inference", scans=str(scans), output_dir=str(output), checkpoint=str(trained.model)))
    table = pd.read_csv(output / "predictions.csv", keep_default_na=False)
    return stopped.value.code, table


def test_inference_answers_what_it_can_and_says_why_not(answers: tuple[int, pd.DataFrame], scans: Path) -> None:
    code, table = answers
    assert code == EXIT_SOME_FAILED
    probabilities = [f"prob_{name}" for name in CLASSES]
    assert list(table.columns) == ["scan", "prediction", *probabilities, "status", "reason", "warnings", "study"]
    failed = table[table["status"] == "failed"].set_index("scan")
    assert set(failed.index) == {"broken", "broken.nii.gz"}
    assert (failed["prediction"] == "").all()
    assert (failed[[f"prob_{name}" for name in CLASSES]] == "").all().all()
    assert "cannot be decoded" in failed.loc["broken", "reason"]
    assert "cannot be read as nifti" in failed.loc["broken.nii.gz", "reason"]
    done = table[table["status"] == "ok"]
    assert len(done) == 11
    two = table.set_index("scan").loc[["two", "real/dicom"], [f"prob_{name}" for name in CLASSES]]
    assert two.nunique().max() == 1  # a stray slice of another series changes no answer
    assert set(done["prediction"]) <= set(CLASSES)
    assert (done["reason"] == "").all()


def test_inference_gives_the_probabilities_of_the_evaluation(
    answers: tuple[int, pd.DataFrame], trained: Trained
) -> None:
    evaluated = pd.read_csv(trained.output / "val" / "evaluation" / "predictions.csv")
    evaluated["name"] = evaluated["scan"].str.rsplit("/", n=1).str[1]
    inferred = answers[1].assign(name=answers[1]["scan"].str.split("-", n=1).str[1])
    both = evaluated.merge(inferred, on="name", suffixes=("", "_inferred"))
    assert len(both) == len(evaluated) == 8
    for name in CLASSES:
        np.testing.assert_allclose(both[f"prob_{name}"], both[f"prob_{name}_inferred"].astype(float), atol=2e-6)


def test_the_same_ct_in_two_formats_gets_the_same_answer(answers: tuple[int, pd.DataFrame]) -> None:
    table = answers[1].set_index("scan")
    dicom, nrrd = (table.loc[f"real/{name}", [f"prob_{c}" for c in CLASSES]] for name in ("dicom", "ct.nrrd"))
    np.testing.assert_allclose(dicom.astype(float), nrrd.astype(float), atol=1e-5)


def test_inference_of_one_scan_exits_cleanly(trained: Trained, start: Start, data_dir: Path, tmp_path: Path) -> None:
    import SimpleITK as sitk
    from PIL import Image

    slices = []
    for path in sorted((data_dir / "lung1_slices").glob("*.jp2")):
        with Image.open(path) as image:
            slices.append(np.asarray(image).astype(np.int16) - 1024)
    volume = sitk.GetImageFromArray(np.stack(slices))
    volume.SetSpacing((0.5703125, 0.5703125, 5.0))
    sitk.WriteImage(volume, str(tmp_path / "lung1.nrrd"))
    run(start("inference", scans=str(tmp_path / "lung1.nrrd"), output_dir=str(tmp_path), checkpoint=str(trained.model)))
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [(row["scan"], row["status"]) for row in rows] == [("lung1.nrrd", "ok")]


def test_preprocessing_gives_the_documented_tensor(start: Start, data_dir: Path) -> None:
    workflow = start("inference", checkpoint="no/such/model.pt", scans=str(data_dir / "golden" / "jpg_scan"))
    workflow.parser.parse(reset=True)
    workflow._is_initialized = True  # without a checkpoint there is nothing to initialize; the transforms stand alone
    image = workflow.preprocessing({"image": str(data_dir / "golden" / "jpg_scan")})["image"]
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert image.shape == (1, 64, 224, 224)
    assert 0 <= image.min() <= image.max() <= 1
    whole = LoadScan(select=[TrimSlices(0.1), SampleSlices(64)], size=256)(data_dir / "golden" / "jpg_scan")
    assert torch.equal(image, whole[:, :, 16:240, 16:240])


# ---- real data -----------------------------------------------------------------------------------------------------
def test_real_slices_train_evaluate_and_infer(start: Start, data_dir: Path, tmp_path: Path) -> None:
    settings = {
        "cohort": str(data_dir / "tcga_lung_slices" / "cohort.csv"),
        "min_slices": 1,
        "output_dir": str(tmp_path / "run"),
        "class_names": ["adenocarcinoma", "squamous_cell"],
    }
    small = {"network_def": EXPLAINED_NETWORK}
    run(start("train", epochs=1, **small, **settings))
    del settings["class_names"]  # the checkpoint knows them
    run(start("train", "evaluate", error_images=0, **small, **settings))
    metrics = json.loads((tmp_path / "run" / "val" / "evaluation" / "metrics.json").read_text())
    assert metrics["class_names"] == ["adenocarcinoma", "squamous_cell"]
    assert np.sum(metrics["confusion"]) == 10
    for path in (data_dir / "tcga_lung_slices").glob("*.dcm"):  # a series of one slice each
        (tmp_path / "scans" / path.stem).mkdir(parents=True)
        shutil.copy(path, tmp_path / "scans" / path.stem)
    settings = {"scans": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out"), "min_slices": 1}
    run(start("inference", checkpoint=str(tmp_path / "run" / "models" / "best.pt"), **small, **settings))
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(table["status"]) == ["ok"] * 24
    np.testing.assert_allclose(table["prob_adenocarcinoma"] + table["prob_squamous_cell"], 1, atol=1e-5)


@pytest.mark.slow
def test_three_classes_and_three_groups_of_another_column(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(small_cohort, dtype=str, keep_default_na=False)
    table = table[table["label"] != "covid19"]
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table["age_band"] = [["young", "middle", "old", ""][i % 4] for i in range(len(table))]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    workflow = run(
        start(
            "train",
            cohort=str(tmp_path / "cohort.csv"),
            output_dir=str(tmp_path / "run"),
            class_names=["normal", "adenocarcinoma", "squamous_cell"],
            group_by="age_band",
            group_names=["young", "middle", "old"],
            allow_empty_cells=True,
            epochs=1,
            network_def=EXPLAINED_NETWORK,
        )
    )
    run(
        start(
            "train",
            "evaluate",
            cohort=str(tmp_path / "cohort.csv"),
            output_dir=str(tmp_path / "run"),
            allow_empty_cells=True,
            network_def=EXPLAINED_NETWORK,
        )
    )  # the checkpoint knows classes, groups and their column
    metrics = workflow.evaluator.state.metrics
    assert {"val_f1_young", "val_f1_middle", "val_f1_old", "val_abs_gap", "val_score"} <= set(metrics)
    assert "val_gap" not in metrics  # signed differences need two groups
    assert "train_loss_left_out" in workflow.trainer.state.metrics


# ---- errors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lrr", "learning_rate"),
        ("learning_rte", "learning_rate"),
        ("alhpa", "alpha"),
        ("train::handlrs", "train::handlers"),
    ],
)
def test_a_mistyped_override_stops_with_the_nearest_name(start: Start, wrong: str, right: str, tmp_path: Path) -> None:
    workflow = start("train", output_dir=str(tmp_path / "run"), **{wrong: 1})
    error = cause(workflow)
    assert isinstance(error, UnknownSettingError)
    assert f"'{wrong}' (did you mean '{right}'?)" in str(error)
    assert not (tmp_path / "run").exists()


CONFIGS = [("train",), ("train", "demo"), ("train", "evaluate"), ("train", "demo", "evaluate"), ("inference",)]
CONFIGS += [("inference", "check")]
CONFIGS += [("train", "demo", "systems/focal"), ("train", "systems/focal", "evaluate")]
CONFIGS += [("train", "networks/i3d"), ("inference", "networks/ct_resnet152"), ("inference", "networks/densenet121")]
CONFIGS += [("train", "networks/densenet121"), ("train", "multi_gpu_train"), ("train", "systems/racnet")]
CONFIGS += [("inference", "multi_gpu_inference"), ("inference", "ray_inference")]
CONFIGS += [("train", "networks/resnest50"), ("inference", "networks/resnest50")]
CONFIGS += [("train", "recipes/notebook"), ("train", "recipes/script")]


@pytest.mark.parametrize("names", CONFIGS)
def test_shipped_configs_hold_no_unread_setting(start: Start, names: tuple[str, ...]) -> None:
    """What check_settings refuses is not shipped; an overlay's leftovers of train.yaml are accepted."""
    workflow = start(*names, cohort="missing.csv") if names[0] == "train" else start(*names)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(workflow)
    assert not isinstance(user_error(caught.value), UnknownSettingError)


def test_settings_of_another_config_are_refused(start: Start, trained: Trained, tmp_path: Path) -> None:
    error = cause(start("train", **trained.settings | {"output_dir": str(tmp_path)}, scans="somewhere"))
    assert isinstance(error, UnknownSettingError)
    assert "'scans'" in str(error)


def test_a_setting_of_monai_that_this_config_does_not_have_is_refused(start: Start, tmp_path: Path) -> None:
    for name in ("handlers", "dataset", "evaluator"):  # of inference
        error = cause(start("train", output_dir=str(tmp_path / "run"), **{name: 1}))
        assert f"'{name}'" in str(error)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"alpha": 2}, "alpha must be in (0, 1], got 2"),
        ({"key_metric": "val_gap"}, "key must be one of val_score"),
        ({"val_interval": 3}, "val_interval must be in [1, epochs = 2], got 3"),
    ],
)
def test_a_value_out_of_range_stops_before_the_scans_are_read(
    start: Start, small_cohort: Path, tmp_path: Path, setting: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlung.pipeline.data.dataset.ScanDataset.prepare", lambda *_: pytest.fail("scans were read"))
    assert said in str(cause(start("train", cohort=str(small_cohort), output_dir=str(tmp_path), **setting)))


def test_a_missing_scans_folder_is_a_user_error(start: Start, trained: Trained, tmp_path: Path) -> None:
    error = cause(start("inference", scans=str(tmp_path / "none"), checkpoint=str(trained.model)))
    assert "none does not exist" in str(error)


@pytest.mark.slow
def test_an_external_cohort_has_a_test_split_alone(
    start: Start, trained: Trained, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts in the working directory
    table = pd.read_csv(small_cohort)
    table = table[table["split"] == "val"].assign(split="test")
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table.to_csv(tmp_path / "external.csv", index=False)
    settings = {"cohort": str(tmp_path / "external.csv"), "split": "test", "output_dir": str(tmp_path)}
    settings |= {"checkpoint": str(trained.output / "models" / "best.pt"), "weights": "unused.pth"}
    settings |= {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    run(start("train", "evaluate", **settings))
    result = json.loads((tmp_path / "test" / "evaluation" / "metrics.json").read_text())
    val = json.loads((trained.output / "val" / "evaluation" / "metrics.json").read_text())
    assert result["metrics"] == val["metrics"]
    assert result["synthetic"] is True


def test_second_training_into_the_same_folder_is_refused(start: Start, trained: Trained) -> None:
    error = cause(start("train", **trained.settings))
    assert isinstance(error, CheckpointError)
    assert "--overwrite True" in str(error)


def test_missing_checkpoint_is_an_error(start: Start, small_cohort: Path, scans: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "model.pt")
    for workflow in (
        start("inference", scans=str(scans), checkpoint=missing, output_dir=str(tmp_path)),
        start("train", "evaluate", cohort=str(small_cohort), output_dir=str(tmp_path)),
    ):
        error = cause(workflow)
        assert isinstance(error, CheckpointError)
        assert "no checkpoint at" in str(error)
    assert not (tmp_path / "predictions.csv").exists()


def test_checkpoint_of_other_settings_is_refused(start: Start, trained: Trained) -> None:
    error = cause(start("train", "evaluate", **trained.settings, num_slices=16))
    assert isinstance(error, CheckpointError)
    assert "num_slices: checkpoint 8, run 16" in str(error)


def test_cohort_problems_stop_before_training(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    text = small_cohort.read_text().replace(",male,", ",mal,", 1)
    (tmp_path / "cohort.csv").write_text(text)
    error = cause(start("train", cohort=str(tmp_path / "cohort.csv"), output_dir=str(tmp_path / "run")))
    assert isinstance(error, CohortError)
    assert "mal" in str(error)


def test_unreadable_scans_stop_before_training(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(small_cohort.parent, tmp_path / "cohort")
    rows = pd.read_csv(small_cohort)
    broken = [s for s in rows[rows["split"] == "train"]["scan"] if s.endswith(".nii.gz")][:2]
    for scan in broken:
        (tmp_path / "cohort" / scan).write_bytes(b"cut off")
    error = cause(start("train", cohort=str(tmp_path / "cohort" / "cohort.csv"), output_dir=str(tmp_path / "run")))
    assert isinstance(error, UnreadableScansError)
    assert all(scan in str(error) for scan in broken)


def test_pretrained_weights_that_cannot_be_had(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "pretrained": True}
    error = cause(start("train", **settings, weights=str(tmp_path / "r3d_18.pth")))
    assert isinstance(error, PretrainedWeightsError)
    assert "--weights FILE" in str(error)
    assert "--pretrained False" in str(error)


# ---- the bundle as others see it -----------------------------------------------------------------------------------
def test_check_properties_of_training(trained: Trained) -> None:
    assert trained.missing_properties == []


def test_check_properties_of_inference(start: Start, trained: Trained, scans: Path) -> None:
    workflow = start("inference", scans=str(scans), checkpoint=str(trained.model))
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_says_what_the_configs_say(bundle_dir: Path) -> None:
    metadata = json.loads((bundle_dir / "configs" / "metadata.json").read_text())
    train = yaml.safe_load((bundle_dir / "configs" / "train.yaml").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [train["num_slices"], train["crop_size"], train["crop_size"]]
    assert str(train["window"]) in metadata["image_classes"]
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values()) == train["class_names"]
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == len(train["class_names"])
    assert set(MODEL_SETTINGS) <= set(train)
    assert metadata["version"] in metadata["changelog"]


def test_inference_has_the_network_of_training(start: Start, trained: Trained) -> None:
    training = start("train").parser
    inference = start("inference", checkpoint=str(trained.model)).parser
    networks = [parser.get_parsed_content("network_def") for parser in (training, inference)]
    assert [type(network).__name__ for network in networks] == ["R3D18Classifier"] * 2
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1]


def test_metadata_versions_are_the_locked_ones(bundle_dir: Path) -> None:
    metadata = json.loads((bundle_dir / "configs" / "metadata.json").read_text())
    lock = (bundle_dir.parents[1] / "requirements.lock").read_text()
    versions = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    packages = metadata["required_packages_version"]
    assert packages.pop("fairlung") == __version__
    for name, version in {**versions, **packages}.items():
        assert re.search(rf"^{name}=={re.escape(version)}\b", lock, re.MULTILINE | re.IGNORECASE), name


def test_inference_preprocesses_as_validation_does(bundle_dir: Path) -> None:
    train = ConfigParser.load_config_file(bundle_dir / "configs" / "train.yaml")
    infer = ConfigParser.load_config_file(bundle_dir / "configs" / "inference.yaml")
    assert infer["preprocessing"]["transforms"] == "$@volume_transforms + @center_crop + [@to_unit_range]"
    for shared in ("volume_transforms", "center_crop", "settings", "min_slices"):
        assert infer[shared] == train[shared]
    built = [
        transform_digest([*parser.get_parsed_content("volume_transforms"), *parser.get_parsed_content("center_crop")])
        for parser in (ConfigParser(train), ConfigParser(infer | {"bundle_root": str(bundle_dir)}))
    ]
    assert built[0] == built[1]


# ---- the configs as a reader meets them ----------------------------------------------------------------------------
MOST_LINES = {"train": 330, "inference": 170}


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def test_configs_are_short_and_hide_nothing(bundle_dir: Path) -> None:
    for path in (bundle_dir / "configs").rglob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# "), path
        assert len(text.splitlines()) <= MOST_LINES.get(path.stem, 90), path
        assert max(map(len, text.splitlines())) <= 120, path
        config = yaml.safe_load(text)
        assert config.get("imports", ["$import fairlung.pipeline as fairlung"]) == [
            "$import fairlung.pipeline as fairlung"
        ]
        expressions = [value for value in strings(config) if value.startswith("$")]
        assert not [value for value in expressions if len(value) > 120], path
        steps = config.get("initialize", [])
        assert len(steps) <= 8, path
        # a step calls a function or builds an entry; it is no tuple of them, and reads no property for its effect
        assert all(re.fullmatch(r"\$@[\w:]+|\$(@?[\w:.]+)\(.*\)( if .* else None)?", step) for step in steps), path


# ---- what 0.1 left behind ------------------------------------------------------------------------------------------
def test_inference_of_0_1_still_answers(
    answers: tuple[int, pd.DataFrame], trained: Trained, bundle_dir: Path, scans: Path, data_dir: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Its inference.yaml is in the models that are registered in MLflow."""
    (tmp_path / "configs").mkdir()
    shutil.copy(data_dir / "registered_0_1" / "configs" / "inference.yaml", tmp_path / "configs")
    settings = {"bundle_root": str(bundle_dir), "scans": str(scans / "real"), "output_dir": str(tmp_path / "out")}
    settings |= {"checkpoint": str(trained.model), "num_workers": 0, "overlay": True}
    config = str(tmp_path / "configs" / "inference.yaml")
    metadata = str(bundle_dir / "configs" / "metadata.json")
    workflow = ConfigWorkflow(config, metadata, logging_file=False, workflow_type="infer", **settings)
    run(workflow)
    assert workflow.check_properties() == []
    found = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("scan")
    expected = answers[1].set_index("scan").loc[["real/" + name for name in found.index]]
    for name in CLASSES:
        np.testing.assert_allclose(found[f"prob_{name}"], expected[f"prob_{name}"].astype(float), atol=1e-6)
    assert len(list((tmp_path / "out" / "overlay").glob("*.png"))) == len(found) == 2
