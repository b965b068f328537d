"""The inflated ResNet-152 equals MONAI's network with the same weights; our axes are turned to those that it knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import ResNet
from published_networks import made_up_weights, volume

from fairlung.pipeline.networks import ct_resnet
from fairlung.pipeline.networks.catalogue import CATALOGUE
from fairlung.pipeline.networks.ct_resnet import BLOCKS, CTResNet152, InflatedResNet, PublishedCTResNet152
from fairlung.pipeline.networks.weights import weights_file

DATA = Path(__file__).parents[2] / "data" / "networks"
AT_HAND = weights_file(CATALOGUE["ct-i3resnet152"])


@pytest.fixture(scope="module")
def backbone() -> InflatedResNet:
    """Of the same widths, with fewer blocks."""
    network = InflatedResNet(3, (1, 2, 1, 1))
    made = made_up_weights(network.state_dict())
    damped = {name: value / 4 if name.endswith("bn3.weight") else value for name, value in made.items()}
    network.load_state_dict(damped)
    return network.eval()


@torch.no_grad()
def test_features_equal_monais(backbone: InflatedResNet) -> None:
    theirs = ResNet(
        "bottleneck", [1, 2, 1, 1], [64, 128, 256, 512], n_input_channels=3, conv1_t_size=(3, 7, 7),
        conv1_t_stride=(1, 2, 2), feed_forward=False, bias_downsample=False,
    ).eval()  # fmt: skip
    theirs.load_state_dict(backbone.state_dict())
    image = volume(45, 38, 19)
    expected = theirs(image.permute(0, 1, 4, 2, 3).repeat(1, 3, 1, 1, 1))
    found = PublishedCTResNet152(backbone)(image)
    assert expected.shape == (1, 2048) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_names_and_shapes_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        state = InflatedResNet(3, BLOCKS).state_dict()
    stored = json.loads((DATA / "shapes.json").read_text())["ct-i3resnet152"]
    assert {name: list(value.shape) for name, value in state.items() if not name.endswith("tracked")} == stored


@pytest.mark.slow
@pytest.mark.skipif(not AT_HAND.is_file(), reason="needs `fairlung weights fetch ct-i3resnet152`")
@torch.no_grad()
def test_published_features_equal_an_independent_forward() -> None:
    image = volume(64, 48, 40)
    features = CTResNet152.published("ct-i3resnet152")(image)
    stored = np.load(DATA / "outputs.npz")["ct_i3resnet152"]
    assert np.abs(stored).max() > 1
    np.testing.assert_allclose(features[0].numpy(), stored, rtol=0, atol=1e-4)


@pytest.fixture
def small(backbone: InflatedResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CTResNet152:
    """The classifier on few blocks, from a file of weights."""
    torch.save(backbone.state_dict(), tmp_path / "ct.pt")
    monkeypatch.setattr(ct_resnet, "InflatedResNet", lambda channels: InflatedResNet(channels, (1, 2, 1, 1)))
    return CTResNet152(4, pretrained=True, weights=tmp_path / "ct.pt").eval()


@torch.no_grad()
def explained(network: CTResNet152, image: torch.Tensor) -> torch.Tensor:
    """The maps [F, d, h, w] that Grad-CAM gets to see."""
    kept: list[torch.Tensor] = []
    hook = network.get_submodule(network.explained_layer).register_forward_hook(lambda *seen: kept.append(seen[2]))
    logits = network(image)
    hook.remove()
    torch.testing.assert_close(logits, network.head(kept[0].mean((2, 3, 4))))
    return kept[0][0]


@torch.no_grad()
def test_a_volume_of_ours_has_the_published_features(small: CTResNet152, backbone: InflatedResNet) -> None:
    right_anterior_superior = volume(45, 38, 19)
    ours = right_anterior_superior.flip((2, 3)).permute(0, 1, 4, 3, 2)  # superior, posterior, left
    expected = PublishedCTResNet152(backbone)(right_anterior_superior)[0]
    torch.testing.assert_close(explained(small, ours).mean((1, 2, 3)), expected, rtol=0, atol=1e-5)
    unturned = explained(small, right_anterior_superior.permute(0, 1, 4, 3, 2)).mean((1, 2, 3))
    assert (unturned - expected).abs().max() > 3e-4


def test_explained_maps_lie_in_our_axes(small: CTResNet152) -> None:
    plain, spot = torch.zeros(1, 1, 16, 96, 160), torch.zeros(1, 1, 16, 96, 160)
    spot[..., :32, -32:] = 1  # anterior, at the left
    change = (explained(small, spot) - explained(small, plain)).abs().sum((0, 1))
    assert change.shape == (3, 5) and change.argmax() == 4


def test_head_and_refusals(small: CTResNet152, tmp_path: Path) -> None:
    assert (small.head[0].in_features, small.head[-1].out_features) == (2048, 4)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        CTResNet152(4, dropout=1)
    with pytest.raises(ValueError, match="was given but pretrained is off"):
        CTResNet152(4, weights="ct-i3resnet152")
