"""The network: what is torchvision's stays torchvision's, one input channel, the head, and weights that must be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models.video import R3D_18_Weights, r3d_18

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.losses.two_level import FairLACVaRLoss
from fairlung.pipeline.networks.r3d18 import R3D18Classifier, collapse_input_channels
from fairlung.pipeline.networks.weights import PretrainedWeightsError


@pytest.fixture(scope="module")
def kinetics() -> nn.Module:
    torch.manual_seed(0)
    return r3d_18(weights=None, num_classes=400)


@pytest.fixture(scope="module")
def weights_file(kinetics: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "r3d_18.pth"
    torch.save(kinetics.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights_file: Path) -> R3D18Classifier:
    return R3D18Classifier(4, pretrained=True, weights=weights_file).eval()


@torch.no_grad()
def test_forward_of_a_small_volume(network: R3D18Classifier) -> None:
    logits = network(torch.rand(2, 1, 8, 32, 32))
    assert logits.shape == (2, 4) and logits.isfinite().all()
    assert R3D18Classifier(3).eval()(torch.rand(1, 1, 4, 24, 40)).shape == (1, 3)


@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_torchvision_computes(network: R3D18Classifier, training: bool) -> None:
    ours, theirs = deepcopy(network).train(training), deepcopy(network).train(training).backbone
    image = torch.rand(2, 1, 16, 48, 48)
    found = []
    for forward, module in ((ours, ours.backbone), (theirs, theirs)):
        torch.manual_seed(0)  # of dropout
        logits = forward(image)
        logits.square().sum().backward()
        found.append([logits.detach(), *(weight.grad for weight in module.parameters()), *module.buffers()])
    assert all(map(torch.equal, *found))


def test_weights_come_from_the_file(network: R3D18Classifier, kinetics: nn.Module) -> None:
    own, theirs = network.backbone.state_dict(), kinetics.state_dict()
    shared = [name for name in theirs if not name.startswith("fc.") and name != "stem.0.weight"]
    assert len(shared) == len(theirs) - 3
    assert all(torch.equal(own[name], theirs[name]) for name in shared)
    assert torch.equal(own["stem.0.weight"][:, 0], theirs["stem.0.weight"].mean(1))


@torch.no_grad()
def test_collapsed_channels_are_a_third_of_grey_in_rgb(network: R3D18Classifier, kinetics: nn.Module) -> None:
    """sum_c w_c * x = 3 * mean_c(w_c) * x: RGB filters on a grey image give three times the collapsed filter."""
    grey = torch.rand(1, 1, 4, 16, 16)
    rgb = kinetics.stem[0](grey.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(3 * network.backbone.stem[0](grey), rgb, rtol=1e-4, atol=1e-5)


def test_collapse_is_the_mean_over_input_channels() -> None:
    weight = torch.arange(12.0).reshape(2, 3, 2, 1, 1)
    collapsed = collapse_input_channels(weight)
    assert collapsed.shape == (2, 1, 2, 1, 1)
    assert collapsed.flatten().tolist() == [2.0, 3.0, 8.0, 9.0]


def test_head_and_stem(network: R3D18Classifier) -> None:
    linear, relu, dropout, last = network.backbone.fc
    assert isinstance(relu, nn.ReLU) and isinstance(dropout, nn.Dropout) and dropout.p == 0.5
    assert (linear.in_features, linear.out_features, last.in_features, last.out_features) == (512, 256, 256, 4)
    stem = network.backbone.stem[0]
    assert (stem.in_channels, stem.kernel_size, stem.stride, stem.padding) == (1, (3, 7, 7), (1, 2, 2), (1, 3, 3))
    assert stem.bias is None
    other = R3D18Classifier(2, dropout=0.1, hidden=32).backbone.fc
    assert (other[0].out_features, other[2].p, other[3].out_features) == (32, 0.1, 2)


def test_parameter_count(network: R3D18Classifier, kinetics: nn.Module) -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    fewer_inputs = 2 * 64 * 3 * 7 * 7
    theirs = count(kinetics) - count(kinetics.fc) - fewer_inputs
    assert count(network) == theirs + (512 * 256 + 256) + (256 * 4 + 4)
    assert all(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
def test_evaluation_is_deterministic_and_training_drops_out(network: R3D18Classifier) -> None:
    volume = torch.rand(2, 1, 4, 16, 16)
    assert torch.equal(network(volume), network(volume))
    head = R3D18Classifier(4).backbone.fc.train()
    features = torch.rand(1, 512)
    assert not torch.equal(head(features), head(features))


def test_a_scan_does_not_change_another_of_its_batch(network: R3D18Classifier) -> None:
    volumes = torch.rand(3, 1, 4, 16, 16)
    with torch.no_grad():
        together, alone = network(volumes), torch.cat([network(volume[None]) for volume in volumes])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


# --- weights that cannot be had --------------------------------------------------------------------------------------


def check_advice(error: PretrainedWeightsError, *parts: str) -> None:
    assert isinstance(error, UserError)
    for part in ("--weights", "--pretrained False", *parts):
        assert part in str(error)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PretrainedWeightsError, match="no weights file at") as caught:
        R3D18Classifier(4, pretrained=True, weights=tmp_path / "none.pth")
    check_advice(caught.value, str(tmp_path / "none.pth"))


def test_file_that_is_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "text.pth"
    path.write_text("this is not a state dict")
    with pytest.raises(PretrainedWeightsError, match="cannot be read as a state dict") as caught:
        R3D18Classifier(4, pretrained=True, weights=path)
    check_advice(caught.value, str(path))


@pytest.mark.parametrize("content", [{"stem.0.weight": torch.zeros(1)}, {}, [1, 2], torch.zeros(3)])
def test_file_of_something_else(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(PretrainedWeightsError, match="is not torchvision's R3D-18") as caught:
        R3D18Classifier(4, pretrained=True, weights=path)
    check_advice(caught.value, str(path))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(R3D_18_Weights, "get_state_dict", refuse)
    with pytest.raises(PretrainedWeightsError, match="Name or service not known") as caught:
        R3D18Classifier(4, pretrained=True)
    check_advice(caught.value, R3D_18_Weights.KINETICS400_V1.url)


def test_without_pretrained_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(R3D_18_Weights, "get_state_dict", refuse)
    R3D18Classifier(4)


def test_refusals(weights_file: Path) -> None:
    with pytest.raises(ValueError, match=r"weights='.*r3d_18.pth' was given but pretrained is off"):
        R3D18Classifier(4, weights=weights_file)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        R3D18Classifier(1)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"dropout must be in \[0, 1\), got {dropout}"):
            R3D18Classifier(4, dropout=dropout)


# --- full size -------------------------------------------------------------------------------------------------------


@pytest.fixture
def all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
def test_full_size_step() -> None:
    """Forward and one step of the recipe on the size it trains with."""
    torch.manual_seed(0)
    network = R3D18Classifier(4, dropout=0.0).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-5)
    loss = FairLACVaRLoss([250, 84, 200, 200], alpha=0.8)
    volume = torch.rand(1, 1, 64, 224, 224)
    target = {"label": torch.tensor([1]), "group": torch.tensor([0])}

    logits = network(volume)
    assert logits.shape == (1, 4)
    before = loss(logits, target)
    before.backward()
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer.step()
    for parameter, old in zip(network.parameters(), weights, strict=True):
        assert parameter.isfinite().all() and not torch.equal(parameter, old)
    with torch.no_grad():
        after = loss(network(volume), target)

    assert before.isfinite() and after.isfinite()
    assert after < before
