"""Inception-I3D is the published one: padding, names, shapes, and outputs that another program computed."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from published_networks import film, made_up_weights
from torch.nn import functional

from fairlung.pipeline.networks.catalogue import CATALOGUE
from fairlung.pipeline.networks.i3d import I3D, InceptionI3D, PublishedI3D, SameConv, SamePool, same_padding
from fairlung.pipeline.networks.weights import PretrainedWeightsError, weights_file

DATA = Path(__file__).parents[2] / "data" / "networks"
AT_HAND = weights_file(CATALOGUE["i3d-kinetics400"])


@pytest.fixture(scope="module")
def published() -> PublishedI3D:
    with torch.device("meta"):
        network = PublishedI3D()
    network.to_empty(device="cpu").load_state_dict(made_up_weights(network.state_dict()))
    return network.eval()


@pytest.fixture(scope="module")
def weights(published: PublishedI3D, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "i3d.pt"
    torch.save(published.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> I3D:
    return I3D(4, pretrained=True, weights=weights).eval()


def windows(size: int, kernel: int, stride: int) -> list[list[int]]:
    """The places in a row that each output sees, by the definition: centred, and where that is odd, begun later."""
    count = (size + stride - 1) // stride
    spare = (count - 1) * stride + kernel - size
    first = -(spare // 2) if spare > 0 else 0
    starts = [first + i * stride for i in range(count)]
    return [[place for place in range(start, start + kernel) if 0 <= place < size] for start in starts]


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (2, 2), (3, 1), (1, 1)])
def test_same_padding_is_that_of_the_definition(kernel: int, stride: int) -> None:
    for size in range(1, 20):
        before, after = same_padding(size, kernel, stride)
        assert 0 <= after - before <= 1 and before >= 0
        padded = range(-before, size + after)
        seen = [
            [p for p in padded[i : i + kernel] if 0 <= p < size] for i in range(0, len(padded) - kernel + 1, stride)
        ]
        assert seen == windows(size, kernel, stride)


@pytest.mark.parametrize("size", [(5, 6, 7), (4, 9, 2)])
def test_pool_and_convolution_see_those_windows(size: tuple[int, int, int]) -> None:
    image = torch.randn(1, 2, *size) - 5  # below 0: a padding of 0 would be the maximum
    pool = SamePool((3, 3, 3), (2, 2, 2))(image)
    conv = SameConv(2, 3, 7, stride=2).eval()
    conv.norm.running_var.fill_(1 - conv.norm.eps)  # normalises nothing
    convolved = conv(image)
    for place in product(*(range(length) for length in pool.shape[2:])):
        seen = image
        for axis, at in enumerate(place):
            seen = seen.index_select(axis + 2, torch.tensor(windows(size[axis], 3, 2)[at]))
        assert torch.equal(pool[(0, slice(None), *place)], seen[0].amax((1, 2, 3)))
    padding = [p for axis in (2, 1, 0) for p in same_padding(size[axis], 7, 2)]
    far = torch.zeros(1, 2, *(length + 14 for length in size))  # zeros all around, from which windows are cut
    far[:, :, 7 : 7 + size[0], 7 : 7 + size[1], 7 : 7 + size[2]] = image
    for place in product(*(range(length) for length in convolved.shape[2:])):
        cut = far
        for axis, at in enumerate(place):
            cut = cut.narrow(axis + 2, 7 - padding[2 * (2 - axis)] + 2 * at, 7)
        expected = (conv.conv.weight * cut).sum((1, 2, 3, 4)).relu()
        torch.testing.assert_close(convolved[(0, slice(None), *place)], expected, rtol=1e-4, atol=1e-5)


def test_names_and_shapes_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        state = PublishedI3D().state_dict()
    stored = json.loads((DATA / "shapes.json").read_text())["i3d-kinetics400"]
    assert {name: list(value.shape) for name, value in state.items() if not name.endswith("tracked")} == stored
    assert sum(np.prod(shape) for shape in stored.values()) == 12_704_544


@torch.no_grad()
def test_features_equal_an_independent_forward(published: PublishedI3D) -> None:
    features = published.backbone(film(11, 37, 50))  # sizes that no stride divides
    stored = np.load(DATA / "outputs.npz")["i3d_made_up"]
    assert features.shape == (1, 1024, 2, 2, 2) and stored.max() > 5
    np.testing.assert_allclose(features[0, :64].numpy(), stored, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not AT_HAND.is_file(), reason="needs `fairlung weights fetch i3d-kinetics400`")
@torch.no_grad()
def test_logits_equal_an_independent_forward() -> None:
    logits = I3D.published("i3d-kinetics400")(film(16, 224, 224))
    stored = np.load(DATA / "outputs.npz")["i3d_kinetics400"]
    assert np.abs(stored).max() > 10
    np.testing.assert_allclose(logits[0].numpy(), stored, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_volume_is_a_grey_film(published: PublishedI3D, network: I3D) -> None:
    volume = torch.rand(2, 1, 9, 33, 40)
    grey = (2 * volume - 1).expand(-1, 3, -1, -1, -1)
    expected = published.backbone(grey).mean((2, 3, 4))
    torch.testing.assert_close(network.backbone(2 * volume - 1).mean((2, 3, 4)), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(volume), network.head(expected), rtol=1e-4, atol=1e-4)


def test_a_batch_of_small_volumes_is_trained() -> None:
    torch.manual_seed(0)
    network = I3D(3, dropout=0.0, hidden=16)
    functional.cross_entropy(network(torch.rand(2, 1, 8, 24, 24)), torch.tensor([0, 2])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert (network.head[0].in_features, network.head[-1].out_features) == (1024, 3)


def test_refusals(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was given but pretrained is off"):
        I3D(4, weights=weights)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        I3D(1)
    with torch.device("meta"):
        other = InceptionI3D(1).state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in other.items()}, tmp_path / "other.pt")
    with pytest.raises(
        PretrainedWeightsError, match=r"other\.pt is not i3d-kinetics400's Inception-I3D .*Missing key"
    ) as caught:
        I3D(4, pretrained=True, weights=tmp_path / "other.pt")
    assert "fairlung weights fetch i3d-kinetics400" in str(caught.value) and "\n" not in str(caught.value)
