"""ResNeSt-50: split attention by its formula, its special case, the published sizes, and another program's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.blocks import ChannelSELayer
from published_networks import made_up_weights, volume
from torch import Tensor, nn
from torch.nn import functional

from fairlung.pipeline.networks import ResNeSt50
from fairlung.pipeline.networks.resnest import ResNeSt, SplitAttention
from fairlung.pipeline.networks.train_layers import train_only

OUTPUTS = Path(__file__).parents[2] / "data" / "networks" / "outputs.npz"


def attention(channels: int = 6, **settings: int) -> SplitAttention:
    """In evaluation, with normalisation as a trained one has it: not by 0 and 1."""
    torch.manual_seed(0)
    made = SplitAttention(channels, **settings)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.6, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return made.eval()


def normalised(values: Tensor, norm: nn.BatchNorm3d, part: slice = slice(None)) -> Tensor:
    """By the running statistics; ``values`` are [N, C, ...]."""
    mean, var, weight, bias = (
        each[part].reshape(-1, *[1] * (values.ndim - 2))
        for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (values - mean) / (var + norm.eps).sqrt() * weight + bias


@torch.no_grad()
@pytest.mark.parametrize("radix", [2, 3])
def test_a_slice_by_the_formula_in_two_dimensions(radix: int) -> None:
    """Of one slice a kernel of three sees the middle alone, so both depths are the published two-dimensional block."""
    image = torch.randn(3, 6, 1, 5, 4)
    for depth in (1, 3):
        block = attention(radix=radix, kernel_depth=depth)
        kernels = block.conv.weight[:, :, depth // 2]
        parts = []
        for r in range(radix):
            own, seen = slice(6 * r, 6 * (r + 1)), slice(6 // radix * r, 6 // radix * (r + 1))
            maps = functional.conv2d(image[:, seen, 0], kernels[own], padding=1)
            parts.append(normalised(maps, block.bn0, own).relu())
        inner = block.fc1.weight[:, :, 0, 0, 0] @ sum(parts).mean((2, 3)).T
        inner = normalised(inner.T + block.fc1.bias, block.bn1).relu()
        scores = inner @ block.fc2.weight[:, :, 0, 0, 0].T + block.fc2.bias
        shares = [scores[:, 6 * r : 6 * (r + 1)].exp() for r in range(radix)]
        expected = sum(share[..., None, None] * part for share, part in zip(shares, parts, strict=True))
        expected = expected / sum(shares)[..., None, None]
        torch.testing.assert_close(block(image)[:, :, 0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_sum_to_1_over_the_parts_and_are_the_volumes_own() -> None:
    block, parts = attention(), torch.rand(4, 2, 6, 3, 5, 4)
    weights = block.weights(parts)
    assert weights.shape == (4, 2, 6, 1, 1, 1) and weights.std() > 0.01
    torch.testing.assert_close(weights.sum(1), torch.ones(4, 6, 1, 1, 1))
    torch.testing.assert_close(block.weights(parts[1:2]), weights[1:2])
    shuffled = parts.flatten(3)[..., torch.randperm(60)].reshape(parts.shape)  # where a value lies is nothing to them
    torch.testing.assert_close(block.weights(shuffled), weights)


@torch.no_grad()
def test_one_part_is_squeeze_and_excitation() -> None:
    block, image = attention(64, radix=1), torch.randn(2, 64, 4, 5, 6)
    squeeze = ChannelSELayer(3, 64, r=2)  # MONAI's, with 32 values between; ours normalises them: by 0 and 1 here
    nn.init.zeros_(block.bn1.running_mean), nn.init.ones_(block.bn1.running_var)
    nn.init.constant_(block.bn1.weight, (1 + block.bn1.eps) ** 0.5), nn.init.zeros_(block.bn1.bias)
    for ours, theirs in ((block.fc1, squeeze.fc[0]), (block.fc2, squeeze.fc[2])):
        theirs.load_state_dict({"weight": ours.weight.flatten(1), "bias": ours.bias})
    maps = block.bn0(block.conv(image)).relu()
    torch.testing.assert_close(block(image), squeeze(maps), rtol=1e-5, atol=1e-6)


def test_size_is_the_published_one() -> None:
    """27,483,240 parameters for coloured pictures and 1000 classes; a kernel of three slices is three of them."""
    for depth in (1, 3):
        with torch.device("meta"):
            network = ResNeSt50(4, kernel_depth=depth)
        backbone = sum(p.numel() // (p.shape[2] if p.ndim == 5 else 1) for p in network.backbone.parameters())
        colour, classes = 2 * 32 * 3 * 3, (2048 + 1) * 1000
        assert backbone + colour + classes == 27_483_240
    deep = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.kernel_size[0] == 3]
    assert len(deep) == 16 and all(conv.kernel_size == (3, 3, 3) for conv in deep)


@torch.no_grad()
def test_features_equal_an_independent_forward() -> None:
    """Of the code of Hou et al., with the weights below and a first convolution of 3x3."""
    network = ResNeSt()
    network.load_state_dict(made_up_weights(network.state_dict()), strict=False)  # but for counts of batches
    maps = network.eval()(volume(11, 45, 70))
    stored = np.load(OUTPUTS)["resnest50_made_up"]
    assert maps.shape == (1, 2048, 2, 2, 3) and stored.std() > 0.1
    np.testing.assert_allclose(maps.mean((2, 3, 4))[0].numpy(), stored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_batch_of_small_volumes_is_trained(depth: int) -> None:
    torch.manual_seed(0)
    network = ResNeSt50(3, dropout=0.0, hidden=16, kernel_depth=depth)
    logits = network(torch.rand(2, 1, 8, 32, 32))
    functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert logits.shape == (2, 3)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_last_batch_may_be_of_one_volume() -> None:
    block = attention().train()
    before = block.bn1.running_mean.clone()
    single = torch.randn(1, 6, 3, 5, 5)
    assert block(single).isfinite().all() and torch.equal(block.bn1.running_mean, before)
    block(torch.randn(2, 6, 3, 5, 5))
    assert not torch.equal(block.bn1.running_mean, before)


def test_refusals(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="kernel_depth must be 1 or 3, got 2"):
        ResNeSt50(4, kernel_depth=2)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        ResNeSt50(1)
    with torch.device("meta"):
        train_only(ResNeSt50(4), "head")
    assert "head with random weights" in caplog.text
