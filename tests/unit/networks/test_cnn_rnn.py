"""The CNN-RNN: torchvision's encoder, a GRU that padding cannot touch, memory that slices do not drive, its config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from small_scans import padded_batch as batch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.transforms.v2.functional import normalize
from workflows import SHRUNK, Start, cause, run

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.common.volumes import PADDING, slice_counts
from fairlung.pipeline.explain.grad_cam import class_activation, explained_copy
from fairlung.pipeline.networks.checkpoint import CheckpointError, ModelSettings
from fairlung.pipeline.networks.cnn_rnn import ENCODER_MODES, FEATURES, CNNRNNClassifier
from fairlung.pipeline.networks.r3d18 import R3D18Classifier
from fairlung.pipeline.networks.weights import PretrainedWeightsError
from fairlung.transforms import FirstSlices, LoadScan

SYSTEM = ("train", "systems/cnn_rnn")
SLICES = 14  # the small cohort's scans have 12 to 16: some are padded, some cut


@pytest.fixture(scope="module")
def imagenet() -> nn.Module:
    """A ResNet-50 with normalisation statistics and scales as a trained one has them: not 0 and 1."""
    torch.manual_seed(0)
    network = resnet50(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.6, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def weights_file(imagenet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(imagenet.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def build(weights_file: Path) -> Callable[..., CNNRNNClassifier]:
    """Networks with the same weights, whatever their other settings."""

    def make(**settings: object) -> CNNRNNClassifier:
        torch.manual_seed(1)
        options = {"pretrained": True, "weights": weights_file, "dropout": 0.0, "hidden": 16, "chunk": 4}
        return CNNRNNClassifier(4, **options | settings)  # type: ignore[arg-type]

    return make


# ---- slices ---------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3))
def test_real_slices_are_counted(counts: list[int], extra: int) -> None:
    image = batch(*counts, depth=max(counts) + extra, size=3)
    image[:, :, 0] = 0  # an empty slice, as outside of a body, is a slice
    assert slice_counts(image) == counts


def test_volumes_that_cannot_be_counted() -> None:
    image = batch(3, 3, depth=5, size=4)
    image[1, :, 4] = 0.5
    with pytest.raises(ValueError, match="volume 1 of the batch has a real slice after a padded one"):
        slice_counts(image)
    image[0] = PADDING
    image[1, :, 4] = PADDING
    with pytest.raises(ValueError, match="volume 0 of the batch has no real slice"):
        slice_counts(image)
    with pytest.raises(ValueError, match=r"\[N, 1, D, H, W\], got \(2, 5, 4, 4\)"):
        slice_counts(image[:, 0])


def test_a_slice_of_nan_is_not_dropped_as_padding() -> None:
    image = batch(2, depth=4, size=4)
    image[0, :, 1, 0, 0] = torch.nan
    assert slice_counts(image) == [2]


# ---- the encoder ----------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_features_are_torchvisions_of_the_grey_picture(imagenet: nn.Module, build: Callable) -> None:
    slices = batch(5)[0, 0]
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    pictures = normalize(slices[:, None].repeat(1, 3, 1, 1), mean=preset.mean, std=preset.std)
    head, imagenet.fc = imagenet.fc, nn.Identity()
    expected = imagenet(pictures)
    imagenet.fc = head
    features = build(chunk=2).encode(slices)
    assert features.shape == (5, FEATURES)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_state_after_the_last_slice_is_a_gru_cells(build: Callable) -> None:
    network = build().eval()
    cell = nn.GRUCell(FEATURES, 16)
    cell.load_state_dict({name: network.gru.state_dict()[f"{name}_l0"] for name in cell.state_dict()})
    image = batch(3, 5, depth=7)
    expected = []
    for volume, count in zip(image, (3, 5), strict=True):
        state = torch.zeros(16)
        for features in network.encode(volume[0, :count]):
            state = cell(features, state)
        expected.append(network.head[1](state))
    torch.testing.assert_close(network(image), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder_mode", ENCODER_MODES)
def test_padding_and_other_volumes_change_nothing(build: Callable, encoder_mode: str) -> None:
    network = build(encoder_mode=encoder_mode)
    logits = network(batch(3, 5, depth=5))
    assert torch.equal(network(batch(3, 5, depth=11)), logits)
    alone = torch.cat([network(batch(3, 5)[:1, :, :3]), network(batch(3, 5)[1:])])
    torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_gradient(build: Callable) -> None:
    first, second = (gradients(build(), batch(3, 5, depth=depth)) for depth in (5, 9))
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_every_slice_and_their_order_count(build: Callable) -> None:
    network, image = build().eval(), batch(4, depth=6)
    for i in range(4):
        changed = image.clone()
        changed[:, :, i] = 0
        assert not torch.allclose(network(changed), network(image), atol=1e-6)
    assert not torch.allclose(network(image[:, :, [1, 0, 2, 3]]), network(image), atol=1e-6)


def gradients(network: CNNRNNClassifier, image: Tensor) -> dict[str, Tensor]:
    network.train().zero_grad()
    nn.functional.cross_entropy(network(image), torch.arange(len(image))).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_recomputed_gradients_are_the_full_ones(build: Callable) -> None:
    image = batch(3, 5, depth=6)
    full, recomputed = (gradients(build(encoder_mode=mode), image) for mode in ("full", "recompute"))
    assert set(full) == set(recomputed) == {name for name, _ in build().named_parameters()}
    assert full["encoder.conv1.weight"].abs().max() > 0
    for name in full:
        torch.testing.assert_close(recomputed[name], full[name], rtol=1e-4, atol=1e-6, msg=name)


def test_frozen_gradients_are_those_of_gru_and_head(build: Callable) -> None:
    image = batch(3, 5, depth=6)
    full, frozen = (gradients(build(encoder_mode=mode), image) for mode in ("full", "freeze"))
    assert set(frozen) == {name for name in full if not name.startswith("encoder.")}
    for name in frozen:
        torch.testing.assert_close(frozen[name], full[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_the_chunk_changes_nothing(build: Callable) -> None:
    image = batch(3, 5).double()  # in single precision a value near 0 may fall on either side of a ReLU
    one, other = (gradients(build(chunk=chunk).double(), image) for chunk in (1, 16))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("encoder_mode", ENCODER_MODES)
def test_batch_normalisation_keeps_its_statistics(build: Callable, imagenet: nn.Module, encoder_mode: str) -> None:
    network = build(encoder_mode=encoder_mode)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-2)
    gradients(network, batch(3, 5))
    optimizer.step()
    assert network.training and not network.encoder.training
    own, theirs = network.encoder.state_dict(), imagenet.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items() if "running" in name)
    assert torch.equal(own["layer4.2.bn3.weight"], theirs["layer4.2.bn3.weight"]) == (encoder_mode == "freeze")
    assert torch.equal(own["conv1.weight"], theirs["conv1.weight"]) == (encoder_mode == "freeze")


@torch.no_grad()
def test_without_weights_the_signal_keeps_its_size() -> None:
    torch.manual_seed(0)
    features = CNNRNNClassifier(4).encode(batch(4, size=64)[0, 0])
    assert 0.01 < features.std() < 10


# ---- weights that cannot be had -------------------------------------------------------------------------------------
def check_advice(error: PretrainedWeightsError, *parts: str) -> None:
    assert isinstance(error, UserError)
    for part in ("--weights", "--pretrained False", ResNet50_Weights.IMAGENET1K_V1.url, *parts):
        assert part in str(error)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PretrainedWeightsError, match="no weights file at") as caught:
        CNNRNNClassifier(4, pretrained=True, weights=tmp_path / "none.pth")
    check_advice(caught.value, str(tmp_path / "none.pth"))


def test_file_of_another_network(tmp_path: Path) -> None:
    torch.save(R3D18Classifier(4).state_dict(), tmp_path / "r3d_18.pth")
    with pytest.raises(PretrainedWeightsError, match="is not torchvision's ResNet-50") as caught:
        CNNRNNClassifier(4, pretrained=True, weights=tmp_path / "r3d_18.pth")
    check_advice(caught.value, "r3d_18.pth")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", refuse)
    with pytest.raises(PretrainedWeightsError, match="ImageNet weights cannot be downloaded") as caught:
        CNNRNNClassifier(4, pretrained=True)
    check_advice(caught.value, "Name or service not known")
    CNNRNNClassifier(4)  # nothing is downloaded


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
        ({"encoder_mode": "frozen"}, "encoder_mode must be one of freeze, recompute, full, got 'frozen'"),
        ({"weights": "resnet50.pth"}, "weights='resnet50.pth' was given but pretrained is off"),
    ],
)
def test_refusals(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CNNRNNClassifier(**{"num_classes": 4, **settings})


def test_a_frozen_encoder_that_learnt_nothing_is_a_warning(build: Callable, caplog: pytest.LogCaptureFixture) -> None:
    build(encoder_mode="freeze")(batch(2))  # trained elsewhere
    network = CNNRNNClassifier(4, encoder_mode="freeze")
    network.eval()(batch(1))
    assert not caplog.records
    network.train()(batch(1))
    network(batch(1))
    (warning,) = caplog.records
    assert "frozen with random weights" in warning.message


# ---- explained ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("encoder_mode", ENCODER_MODES)
def test_grad_cam_of_the_slices(build: Callable, encoder_mode: str) -> None:
    network, image = build(encoder_mode=encoder_mode).eval(), batch(5, depth=7, size=64)
    with torch.no_grad():
        logits = network(image)
    explained = explained_copy(network)
    torch.testing.assert_close(explained(image).detach(), logits, rtol=1e-4, atol=1e-5)
    maps = torch.stack([torch.from_numpy(class_activation(explained, image[0], index)) for index in range(4)])
    assert maps.shape == (4, 7, 64, 64)
    assert maps.min() >= 0 and maps.max() == 1
    assert (maps[:, 5:] == 0).all()


# ---- the shipped config ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(start: Start, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    output = tmp_path_factory.mktemp("cnn_rnn")
    table = (
        pd.read_csv(small_cohort).groupby(["split", "label", "sex"], sort=False).head(1)
    )  # half of those to train on
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table.to_csv(output / "cohort.csv", index=False)
    settings = {"cohort": str(output / "cohort.csv"), "output_dir": str(output)}
    options = {"num_slices": SLICES, "learning_rate": 3e-4, "dropout": 0.0, "rotation_prob": 0.0}
    workflow = run(start(*SYSTEM, **settings, **options))
    return SimpleNamespace(output=output, workflow=workflow, settings=settings)


@pytest.mark.slow
def test_it_trains_and_lowers_its_loss(trained: SimpleNamespace) -> None:
    history = pd.read_csv(trained.output / "history.csv")
    loss = history[history["metric"] == "train_loss"].sort_values("epoch")["value"].tolist()
    assert len(loss) == SHRUNK["epochs"]
    assert loss[-1] < loss[0]
    content = torch.load(trained.output / "models" / "best.pt", weights_only=True)
    assert content["settings"]["network"] == "CNNRNNClassifier"
    assert content["settings"]["num_slices"] == SLICES


@pytest.mark.slow
def test_its_checkpoint_is_evaluated(trained: SimpleNamespace, start: Start) -> None:
    run(start(*SYSTEM, "evaluate", **trained.settings))
    folder = trained.output / "val" / "evaluation"
    result = json.loads((folder / "metrics.json").read_text())
    assert result["metrics"] == json.loads((trained.output / "val" / "metrics.json").read_text())["metrics"]
    assert (folder / "report.html").is_file()
    errors = json.loads((folder / "errors" / "errors.json").read_text())
    assert errors  # Grad-CAM of the slices; the picture is of a real one
    assert all(entry["slice"] < entry["num_slices"] <= SLICES for entry in errors)
    assert all(entry["peak_slice"] < entry["num_slices"] for entry in errors)


@pytest.mark.slow
def test_padding_comes_after_the_cache(trained: SimpleNamespace, small_cohort: Path) -> None:
    size, crop = SHRUNK["image_size"], SHRUNK["crop_size"]
    counts = set()
    for dataset in (trained.workflow.train_dataset, trained.workflow.parser.get_parsed_content("validate::dataset")):
        for i, item in enumerate(dataset.data):
            volume, image = dataset.volumes[i]["image"], dataset[i]["image"]
            assert volume.dtype == torch.uint8
            assert volume.shape[1] <= SLICES
            assert type(image) is Tensor
            assert image.dtype == torch.float32
            assert image.shape == (1, SLICES, crop, crop)
            count = slice_counts(image[None])[0]
            counts.add(count)
            assert count == volume.shape[1] == min(SLICES, LoadScan(size=size)(item["image"]).shape[1])
            assert (image[:, count:] == PADDING).all()
            assert 0 <= image[:, :count].min() <= image[:, :count].max() <= 1
    assert min(counts) < SLICES and SLICES in counts


@pytest.mark.slow
def test_slices_are_those_of_the_scan_in_order(trained: SimpleNamespace) -> None:
    dataset = trained.workflow.parser.get_parsed_content("validate::dataset")
    edge = (SHRUNK["image_size"] - SHRUNK["crop_size"]) // 2
    folders = [i for i, item in enumerate(dataset.data) if any(Path(item["image"]).glob("*.jpg"))]
    assert folders
    for i in folders:
        expected = LoadScan(select=[FirstSlices(SLICES)], size=SHRUNK["image_size"])(dataset.data[i]["image"])
        inside = expected[..., edge:-edge, edge:-edge]
        torch.testing.assert_close(dataset[i]["image"][:, : inside.shape[1]], inside, rtol=0, atol=1e-6)


def test_the_loss_weighs_the_sexes_equally(bundle_dir: Path) -> None:
    names = ("train.yaml", "systems/cnn_rnn.yaml")
    config = ConfigParser.load_config_files([str(bundle_dir / "configs" / name) for name in names])
    loss = ConfigParser(config).get_parsed_content("loss_function")
    generator = torch.Generator().manual_seed(3)
    logits, label = torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    by_sex = [nn.functional.cross_entropy(logits[group == g], label[group == g]) for g in (0, 1)]
    torch.testing.assert_close(loss(logits, {"label": label, "group": group}), sum(by_sex) / 2)


def test_the_recipe_of_the_paper_is_the_shipped_one(bundle_dir: Path) -> None:
    config = yaml.safe_load((bundle_dir / "configs" / "systems" / "cnn_rnn.yaml").read_text())
    assert config["num_slices"] == 700
    assert config["network_def"]["hidden"] == 128
    assert config["trim_fraction"] == 0
    assert config["model_file"] == ""
    train = yaml.safe_load((bundle_dir / "configs" / "train.yaml").read_text())
    # the volumes are those of train.yaml's builder; so are the augmentations, but for the depth and the brightness
    assert "volume_transforms" not in config
    same = [step for step in config["augmentation"] if step in train["augmentation"]]
    assert [step for step in train["augmentation"] if step in config["augmentation"]] == same
    assert len(same) >= len(train["augmentation"]) - 2


@pytest.mark.slow
@pytest.mark.parametrize("names", [("train", "evaluate"), ("inference",)])
def test_configs_of_another_network_refuse_its_checkpoint(
    trained: SimpleNamespace, start: Start, names: tuple[str, ...], tmp_path: Path, data_dir: Path
) -> None:
    settings = {"checkpoint": str(trained.output / "models" / "best.pt"), "output_dir": str(tmp_path)}
    if names == ("inference",):
        settings["scans"] = str(data_dir / "golden" / "jpg_scan")
    else:
        settings["cohort"] = trained.settings["cohort"]
    error = cause(start(*names, **settings))
    assert isinstance(error, CheckpointError)
    assert "network: checkpoint 'CNNRNNClassifier', run 'R3D18Classifier'" in str(error)
    assert "systems/cnn_rnn.yaml" in str(error)
    assert not list(tmp_path.rglob("predictions.csv"))


@pytest.mark.slow
def test_its_config_refuses_the_checkpoint_of_another_network(
    trained: SimpleNamespace, start: Start, tmp_path: Path
) -> None:
    saved = torch.load(trained.output / "models" / "best.pt", weights_only=True)["settings"]
    settings = ModelSettings(**saved | {"network": "R3D18Classifier"}).state_dict()
    torch.save({"model": R3D18Classifier(4).state_dict(), "settings": settings}, tmp_path / "r3d.pt")
    options = trained.settings | {"output_dir": str(tmp_path), "checkpoint": str(tmp_path / "r3d.pt")}
    error = cause(start(*SYSTEM, "evaluate", **options))
    assert isinstance(error, CheckpointError)
    assert "network: checkpoint 'R3D18Classifier', run 'CNNRNNClassifier'" in str(error)


@pytest.mark.slow
def test_its_checkpoint_is_not_registered_for_inference(trained: SimpleNamespace, bundle_dir: Path) -> None:
    from fairlung.pipeline.tracking.bundle_model import log_bundle_model
    from fairlung.pipeline.tracking.champion import RegistryError

    with pytest.raises(RegistryError, match="holds a CNNRNNClassifier"):
        log_bundle_model(None, "no run", trained.output / "models" / "best.pt", bundle_dir)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"pretrained": True, "weights": "no/resnet50.pth"}, "no weights file at no/resnet50.pth"),
        ({"encoder_mode": "frozen"}, "encoder_mode must be one of freeze, recompute, full, got 'frozen'"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
        ({"chunks": 8}, "'chunks' (did you mean 'chunk'?)"),
    ],
)
def test_settings_that_are_wrong_stop_before_the_scans_are_read(
    start: Start, small_cohort: Path, tmp_path: Path, setting: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlung.pipeline.data.dataset.ScanDataset.prepare", lambda *_: pytest.fail("scans were read"))
    assert said in str(cause(start(*SYSTEM, cohort=str(small_cohort), output_dir=str(tmp_path), **setting)))
