"""Checkpoints: the settings travel with the weights, and other settings are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fairlung.pipeline.common.errors import UserError, user_error
from fairlung.pipeline.networks.checkpoint import (
    MODEL_SETTINGS,
    CheckpointError,
    ModelSettings,
    model_settings,
    require_checkpoint,
    same_checkpoint,
    training_record,
    write_weights,
)
from fairlung.pipeline.training import output_dir
from fairlung.pipeline.training.output_dir import discard_previous, publish, require_new

SETTINGS: dict[str, Any] = {
    "class_names": ["a", "g", "covid", "normal"],
    "group_by": "sex",
    "group_names": ["male", "female"],
    "age_bands": None,
    "window": [-1350, 150],
    "trim_fraction": 0.1,
    "num_slices": 64,
    "image_size": 256,
    "fast_decode": False,
    "crop_size": 224,
    "network": "R3D18Classifier",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    torch.save({"model": {"weight": torch.zeros(2)}, "settings": ModelSettings(**SETTINGS).state_dict()}, path)
    return path


def test_settings_survive_a_file(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["settings"]
    assert state == SETTINGS
    ModelSettings(**SETTINGS).load_state_dict(state)


def test_a_tuple_is_a_list() -> None:
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in SETTINGS.items()}
    ModelSettings(**tuples).load_state_dict(ModelSettings(**SETTINGS).state_dict())
    ModelSettings(**SETTINGS).load_state_dict(tuples)
    assert ModelSettings(**tuples).state_dict() == SETTINGS


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("class_names", ["a", "g", "normal", "covid"]),
        ("group_by", "site"),
        ("group_names", ["female", "male"]),
        ("age_bands", [65]),
        ("window", [-1000, 400]),
        ("trim_fraction", 0.2),
        ("num_slices", 32),
        ("image_size", 128),
        ("fast_decode", True),
        ("crop_size", 112),
        ("network", "CNNRNNClassifier"),
    ],
)
def test_each_difference_is_named_with_both_values(name: str, other: object) -> None:
    run = ModelSettings(**SETTINGS)
    with pytest.raises(CheckpointError) as caught:
        run.load_state_dict({**SETTINGS, name: other})
    assert f"{name}: checkpoint {other!r}, run {SETTINGS[name]!r}" in str(caught.value)
    assert not any(f"{same}:" in str(caught.value) for same in SETTINGS if same != name)
    assert run.state_dict() == SETTINGS  # compared, not overwritten


def test_all_differences_at_once_and_a_missing_setting() -> None:
    state = {**SETTINGS, "num_slices": 8, "image_size": 32}
    del state["window"]
    with pytest.raises(CheckpointError) as caught:
        ModelSettings(**SETTINGS).load_state_dict(state)
    for name in ("num_slices: checkpoint 8", "image_size: checkpoint 32", "window: checkpoint None"):
        assert name in str(caught.value)


def test_a_checkpoint_from_before_the_network_was_saved_is_of_the_first_network() -> None:
    state = {name: value for name, value in SETTINGS.items() if name != "network"}
    ModelSettings(**SETTINGS).load_state_dict(state)
    with pytest.raises(CheckpointError, match="network: checkpoint 'R3D18Classifier', run 'CNNRNNClassifier'"):
        ModelSettings(**{**SETTINGS, "network": "CNNRNNClassifier"}).load_state_dict(state)


def test_settings_must_be_complete() -> None:
    with pytest.raises(ValueError, match=r"missing \['window'\], unknown \['windows'\]"):
        ModelSettings(**{("windows" if name == "window" else name): value for name, value in SETTINGS.items()})


def test_state_is_a_copy() -> None:
    settings = ModelSettings(**SETTINGS)
    settings.state_dict()["num_slices"] = 1
    assert settings.state_dict() == SETTINGS


# --- settings of a network -------------------------------------------------------------------------------------------


def test_settings_come_from_the_checkpoint(checkpoint: Path, bundle_dir: Path, tmp_path: Path) -> None:
    other = {**SETTINGS, "num_slices": 8, "class_names": ["x", "y"]}
    torch.save({"model": {}, "settings": other}, checkpoint)
    assert model_settings(checkpoint, bundle_dir / "configs/train.yaml") == other
    assert model_settings(str(checkpoint), tmp_path / "is not read.yaml") == other


@pytest.mark.parametrize("later", ["age_bands", "fast_decode", "network"])
def test_a_checkpoint_of_before_a_setting_has_its_first_value(checkpoint: Path, bundle_dir: Path, later: str) -> None:
    older = {name: value for name, value in SETTINGS.items() if name != later}
    torch.save({"model": {}, "settings": older}, checkpoint)
    assert model_settings(checkpoint, bundle_dir / "configs/train.yaml") == SETTINGS
    ModelSettings(**SETTINGS).load_state_dict(older)


def test_without_a_checkpoint_they_are_the_training_configs(bundle_dir: Path, tmp_path: Path) -> None:
    train = bundle_dir / "configs/train.yaml"
    found = model_settings(tmp_path / "none.pt", train)
    config = yaml.safe_load(train.read_text())
    assert found == {name: config[name] for name in MODEL_SETTINGS}
    assert not any(str(value).startswith(("$", "@")) for value in found.values())  # plain values, as overlays need
    ModelSettings(network="R3D18Classifier", **found)


@pytest.mark.parametrize("content", [{"model": {}}, {"settings": {}}, [1, 2], {}])
def test_a_file_of_something_else(content: object, bundle_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of this bundle") as caught:
        model_settings(path, bundle_dir / "configs/train.yaml")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken archive"])
def test_a_file_that_cannot_be_loaded(content: bytes, bundle_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        model_settings(path, bundle_dir / "configs/train.yaml")
    assert str(path) in str(caught.value)


def test_missing_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    require_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*none\.pt: train first .* --checkpoint FILE"):
        require_checkpoint(tmp_path / "none.pt")


@pytest.mark.fault(
    "wrong",
    "a checkpoint with weights that are not finite",
    before="evaluated, registered and run, with the first class for every scan",
    now="refused where it is evaluated, registered or run",
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_of_a_training_that_diverged(checkpoint: Path, tmp_path: Path, value: float) -> None:
    content = torch.load(checkpoint, weights_only=True)
    next(iter(content["model"].values())).view(-1)[-1] = value
    torch.save(content, tmp_path / "diverged.pt")
    with pytest.raises(CheckpointError, match=r"diverged.pt holds weights that are not finite"):
        require_checkpoint(tmp_path / "diverged.pt")


# --- published weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))


@pytest.fixture
def published(network: torch.nn.Module, tmp_path: Path) -> Path:
    """models/model.pt of a bundle named lung, made of a run's checkpoint."""
    said = {"settings": ModelSettings(**SETTINGS).state_dict(), "training": {"run": "r7"}}
    torch.save({"model": network.state_dict(), **said}, tmp_path / "best.pt")
    path = tmp_path / "lung" / "models" / "model.pt"
    path.parent.mkdir(parents=True)
    write_weights(tmp_path / "best.pt", path)
    return path


def test_published_weights_are_a_plain_state_dict(published: Path, network: torch.nn.Module) -> None:
    from monai.bundle import load

    weights, own = torch.load(published, weights_only=True), network.state_dict()
    assert weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)
    other = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    other.load_state_dict(weights)
    other = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    load("lung", model=other, bundle_dir=str(published.parents[2]), device="cpu")
    assert all(torch.equal(value, own[name]) for name, value in other.state_dict().items())


def test_published_weights_say_what_their_checkpoint_says(published: Path, tmp_path: Path) -> None:
    assert model_settings(published, "") == SETTINGS and training_record(published) == {"run": "r7"}
    assert same_checkpoint(published, tmp_path / "best.pt")
    write_weights(published, tmp_path / "again.pt")
    assert same_checkpoint(tmp_path / "again.pt", published)


@pytest.mark.fault(
    "wrong", "weights without the settings that they were trained under", before="called no checkpoint of this bundle",
    now="refused with the reason",
)  # fmt: skip
def test_weights_without_settings_are_refused(published: Path, network: torch.nn.Module, tmp_path: Path) -> None:
    network.load_state_dict(torch.load(published, weights_only=True))
    for name, weights in (("saved anew", network.state_dict()), ("copied", dict(network.state_dict()))):
        torch.save(weights, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name} holds weights alone: nothing in it says of which classes"):
            model_settings(tmp_path / name, "")


def test_other_weights_or_settings_are_another_checkpoint(published: Path, tmp_path: Path) -> None:
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    changes: list[dict[str, Any]] = [{"training": {"run": "r8"}}, {"settings": content["settings"] | {"crop_size": 8}}]
    changes += [
        {"model": content["model"] | {"0.bias": torch.ones(2)}},
        {"model": {"0.bias": content["model"]["0.bias"]}},
    ]
    for change in changes:
        torch.save(content | change, tmp_path / "other.pt")
        assert not same_checkpoint(published, tmp_path / "other.pt")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_training_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    require_new(tmp_path / "new", overwrite=False)
    require_new(tmp_path, overwrite=False)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/best.pt").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"already holds a training; .*--output_dir.*--overwrite True"):
        require_new(tmp_path, overwrite=False)
    require_new(str(tmp_path), overwrite=True)
    assert (tmp_path / "models/best.pt").read_bytes() == b"weights"


def test_publish(checkpoint: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    publish(checkpoint, "")
    assert set(tmp_path.rglob("*")) == before
    model = tmp_path / "bundle/models/model.pt"
    publish(checkpoint, model)
    assert same_checkpoint(model, checkpoint)


def trained(folder: Path, run: str, network: str = "R3D18Classifier") -> Path:
    """The best checkpoint of a run; a run without a name is of fairlung 0.1."""
    record = {"run": run, "mlflow_run": f"id of {run}", "date": "2026-11-30 07:00", "epoch": 3}
    record["metrics"] = {"val_f1_male": 0.5, "val_f1_female": 0.25}
    content = {
        "model": {"weight": torch.rand(2)},
        "settings": ModelSettings(**SETTINGS | {"network": network}).state_dict(),
    }
    path = folder / (run or "0.1") / "best.pt"
    path.parent.mkdir(parents=True)
    torch.save(content | ({"training": record} if run else {}), path)
    return path


@pytest.mark.fault(
    "lost", "the model that answers patients, when another training ends",
    before="overwritten without a word, by a one-epoch try too", now="stays; replaced when asked, and then kept",
)  # fmt: skip
@pytest.mark.parametrize("there", ["good", "", "something else"])
def test_another_runs_model_is_never_replaced_unasked(
    there: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, other = tmp_path / "bundle" / "model.pt", trained(tmp_path, "try")
    if there == "something else":
        model.parent.mkdir()
        model.write_bytes(b"no checkpoint")
    else:
        publish(trained(tmp_path, there), model)
    before = model.read_bytes()
    publish(other, model)
    assert model.read_bytes() == before and [path.name for path in model.parent.iterdir()] == ["model.pt"]
    said = caplog.records[-1].getMessage()
    assert caplog.records[-1].levelname == "WARNING" and "\n" not in said
    told = "run good (epoch 3, 2026-11-30 07:00, val_f1_male 0.5000, val_f1_female 0.2500, MLflow run id of good)"
    for part in (told if there == "good" else "does not say", "run try", str(other), "--replace_model True"):
        assert part in said
    publish(other, model, replace=True)
    assert same_checkpoint(model, other)
    assert (model.parent / "model.previous.pt").read_bytes() == before
    assert str(model.parent / "model.previous.pt") in caplog.records[-1].getMessage()


def test_a_run_replaces_its_own_model(tmp_path: Path) -> None:
    mine, model = trained(tmp_path, "mine"), tmp_path / "model.pt"
    publish(mine, model)
    content = torch.load(mine, weights_only=True)
    torch.save(content | {"model": {"weight": torch.ones(2)}}, mine)
    publish(str(mine), str(model))
    assert same_checkpoint(model, mine) and not (tmp_path / "model.previous.pt").exists()


def test_an_installed_bundle_takes_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An upgrade would leave it behind, and the folder may be everybody's."""
    caplog.set_level("INFO")
    monkeypatch.setattr(output_dir, "BUNDLE", tmp_path / "bundle")
    mine, model = trained(tmp_path, "mine"), tmp_path / "bundle" / "models" / "model.pt"
    monkeypatch.setattr(output_dir, "INSTALLED", True)
    publish(mine, model)
    assert not model.exists() and f"--checkpoint {mine}" in caplog.text
    publish(mine, tmp_path / "model.pt")
    monkeypatch.setattr(output_dir, "INSTALLED", False)
    publish(mine, model)
    assert same_checkpoint(tmp_path / "model.pt", model)


@pytest.mark.fault(
    "wrong", "a network that inference does not run, published for it",
    before="inference fails until another training ends", now="not published, with the reason",
)  # fmt: skip
@pytest.mark.parametrize("network", ["DenseNet121", "CNNRNNClassifier"])
def test_a_network_that_inference_does_not_run_is_not_published(
    network: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(trained(tmp_path, "dense", network), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists() and f"it holds a {network}" in caplog.text


# --- user errors -----------------------------------------------------------------------------------------------------


def wrapped(error: Exception, explicitly: bool) -> Exception:
    """``error`` as MONAI passes it on: inside two other errors."""
    try:
        try:
            try:
                raise error
            except Exception as first:
                raise RuntimeError("instantiating") from (first if explicitly else None) or first
        except RuntimeError:
            raise ValueError("resolving")  # noqa: B904  implicit context
    except ValueError as last:
        return last


@pytest.mark.parametrize("explicitly", [True, False])
def test_the_user_error_is_found_among_its_wrappers(explicitly: bool) -> None:
    error = CheckpointError("choose another folder")
    assert user_error(wrapped(error, explicitly)) is error
    assert user_error(error) is error


def test_the_outermost_user_error_counts() -> None:
    inner, outer = UserError("inner"), UserError("outer")
    outer.__cause__ = inner
    assert user_error(outer) is outer


def test_other_errors_are_nobodys() -> None:
    assert user_error(wrapped(KeyError("bug"), True)) is None
    assert user_error(None) is None


def test_a_new_training_discards_our_files_alone(tmp_path: Path) -> None:
    ours = ["models/best.pt", "models/checkpoint_epoch=3.pt", "val/predictions.csv", "test/evaluation/metrics.json"]
    theirs = ["models/mine.pt", "val/scan/0.jpg", "train/scan.nii.gz", "test/evaluation/notes.txt", "cohort.csv"]
    for name in ours + theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    discard_previous(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(theirs)


def test_values_that_our_code_refuses_are_user_errors_and_a_librarys_are_not() -> None:
    from fairlung.pipeline.losses.aggregation import GroupCVaR

    def wrapped(raise_: Callable[[], object]) -> BaseException:
        try:
            try:
                raise_()
            except Exception as error:
                raise RuntimeError("Failed to instantiate") from error
        except RuntimeError as error:
            return error
        raise AssertionError

    ours = user_error(wrapped(lambda: GroupCVaR(alpha=2)))
    assert str(ours) == "alpha must be in (0, 1], got 2"
    assert user_error(wrapped(lambda: torch.zeros(2).reshape(3))) is None
    assert user_error(wrapped(lambda: int("x"))) is None
