"""The spectrum of a scan's noise: against SciPy and NumPy, patches that only move, the network alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from fairlung.pipeline.networks.spectrum import WithSpectrum, high_pass, noise_spectrum, shuffled_patches


def volumes(n: int = 2, depth: int = 3, side: int = 14) -> Tensor:
    return torch.rand(n, 1, depth, side, side, generator=torch.Generator().manual_seed(4))


def test_shuffled_patches_move_and_stay_whole() -> None:
    torch.manual_seed(0)
    slices = torch.arange(2 * 9 * 13.0).reshape(2, 9, 13)
    found = shuffled_patches(slices, 3)  # of 3 x 4 pixels: the last column is cut off
    assert found.shape == (2, 9, 12)
    for before, after in zip(slices[:, :, :12], found, strict=True):
        tiles = [
            {tuple(part[i : i + 3, j : j + 4].flatten().tolist()) for i in (0, 3, 6) for j in (0, 4, 8)}
            for part in (before, after)
        ]
        assert tiles[0] == tiles[1] and len(tiles[0]) == 9 and not torch.equal(before, after)
    assert not torch.equal(found[0], found[1] - 9 * 13)  # each slice in an order of its own
    assert torch.equal(shuffled_patches(slices, 1), slices)


def test_high_pass_is_scipys() -> None:
    slices = volumes()[0, 0].double()
    row = np.exp(-0.5 * np.array([1, 0, 1]))
    kernel = np.outer(row, row) / row.sum() ** 2
    expected = [s - ndimage.correlate(s, kernel, mode="constant") for s in slices.numpy()]
    np.testing.assert_allclose(high_pass(slices).numpy(), np.stack(expected), atol=1e-12)


def test_the_spectrum_is_numpys_mean_over_slices() -> None:
    image = volumes().double()
    residuals = torch.stack([high_pass(volume[0]) for volume in image]).numpy()
    expected = 20 * np.log1p(np.abs(np.fft.rfft2(residuals))).mean(axis=1)
    np.testing.assert_allclose(noise_spectrum(image, 1).numpy(), expected.reshape(2, -1), atol=1e-9)


def test_the_spectrum_tells_noise_better_than_the_picture() -> None:
    """Two anatomies of one noise are nearer than one anatomy of two noises; by their pixels they are further."""
    torch.manual_seed(1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 56), torch.linspace(-1, 1, 56), indexing="ij")
    pictures = [torch.exp(-8 * ((x - shift) ** 2 + y**2)) for shift in (-0.5, 0.5)]
    kinds = [(0, 0.02), (1, 0.02), (0, 0.1)]
    image = torch.stack([pictures[p].expand(8, -1, -1) + s * torch.randn(8, 56, 56) for p, s in kinds])[:, None]
    by_noise = torch.cdist(noise_spectrum(image, 7), noise_spectrum(image, 7))
    by_pixels = torch.cdist(image.flatten(1), image.flatten(1))
    assert by_noise[0, 1] < by_noise[0, 2] and by_pixels[0, 1] > by_pixels[0, 2]


def test_the_spectrum_stands_beside_the_answers_in_training_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 4))
    image = volumes()
    model = WithSpectrum(network)
    output = model(image)
    assert output.shape == (2, 4 + 14 * 8) and torch.equal(output[:, :4], network(image))
    output.sum().backward()  # the spectra have no gradient, and hinder none
    assert network[1].weight.grad is not None
    for plain in (WithSpectrum(network, gamma=0), WithSpectrum(network).eval()):
        before = torch.get_rng_state()
        assert torch.equal(plain(image), network(image))
        assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn


def test_mixed_precision_leaves_the_spectrum_in_single_precision() -> None:
    network, image = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 4)), volumes()
    with torch.autocast("cpu", torch.bfloat16):
        logits, output = network(image), WithSpectrum(network, patches=1)(image)
    assert logits.dtype == torch.bfloat16 and output.dtype == torch.float32
    assert torch.equal(output[:, :4], logits.float())
    assert torch.equal(output[:, 4:], noise_spectrum(image, 1))


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\), got -1"):
        WithSpectrum(nn.Identity(), gamma=-1)
    with pytest.raises(ValueError, match="patches must be a whole number of at least 1, got 0"):
        WithSpectrum(nn.Identity(), patches=0)
    with pytest.raises(ValueError, match="patches must be at most the pixels of a slice's side, 14 x 14, got 20"):
        noise_spectrum(volumes(), 20)
    with pytest.raises(ValueError, match=r"not frozen features; got \(2, 8\)"):
        WithSpectrum(nn.Linear(8, 4))(torch.rand(2, 8))
