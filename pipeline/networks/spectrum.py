"""What is left of a scan without its anatomy: the spectrum of its noise, in which individually fair training compares.

Formulas from the published code of Hou et al. (Rethinking Individual Fairness in Deepfake Detection, ACM MM 2025).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlung.transforms.checks import check_setting, check_whole


def shuffled_patches(slices: Tensor, patches: int) -> Tensor:
    """[M, H, W] slices cut into ``patches`` x ``patches`` tiles, each slice's put together in an order of its own.

    Rows and columns that fill no tile are cut off at the end.
    """
    high, wide = slices.shape[1] // patches, slices.shape[2] // patches
    tiles = slices[:, : high * patches, : wide * patches].reshape(-1, patches, high, patches, wide).transpose(2, 3)
    tiles = tiles.reshape(len(slices), patches**2, high, wide)
    order = torch.rand(tiles.shape[:2], device=slices.device).argsort(dim=1)
    mixed = tiles[torch.arange(len(slices), device=slices.device)[:, None], order]
    mixed = mixed.reshape(-1, patches, patches, high, wide).transpose(2, 3)
    return mixed.reshape(len(slices), patches * high, patches * wide)


def high_pass(slices: Tensor) -> Tensor:
    """[M, H, W] slices minus themselves under a Gaussian of 3 x 3 pixels and standard deviation 1, 0 outside."""
    # sums, not a convolution: mixed precision would compute that in half precision
    side = math.exp(-0.5)
    rows = F.pad(slices, (0, 0, 1, 1))
    rows = rows[:, 1:-1] + side * (rows[:, :-2] + rows[:, 2:])
    both = F.pad(rows, (1, 1))
    both = both[:, :, 1:-1] + side * (both[:, :, :-2] + both[:, :, 2:])
    return slices - both / (1 + 2 * side) ** 2


def noise_spectrum(image: Tensor, patches: int) -> Tensor:
    r"""[N, K] spectrum of each scan [N, 1, D, H, W], the mean over its slices x of

    .. math:: 20 \log(1 + |\mathcal F(x' - g * x')|), \qquad x' = x \text{ with its patches shuffled},

    with g a Gaussian (:func:`high_pass`), :math:`\mathcal F` the two-dimensional Fourier transform, and
    K = H (W / 2 + 1), as a real picture has half of its frequencies; H and W are what :func:`shuffled_patches` leaves.
    """
    if image.ndim != 5:
        shape = tuple(image.shape)
        raise ValueError(f"individual fairness compares volumes [N, 1, D, H, W], not frozen features; got {shape}")
    if min(image.shape[-2:]) < patches:
        size = " x ".join(map(str, image.shape[-2:]))
        raise ValueError(f"patches must be at most the pixels of a slice's side, {size}, got {patches}")
    slices = image.to(torch.promote_types(image.dtype, torch.float32)).flatten(0, -3)
    spectra = torch.fft.rfft2(high_pass(shuffled_patches(slices, patches))).abs().log1p().mul(20)
    return spectra.reshape(len(image), -1, *spectra.shape[1:]).mean(dim=1).flatten(1)


class WithSpectrum(nn.Module):
    """A network, and beside it in training :func:`noise_spectrum`; for :class:`~.losses.IndividualFairnessLoss`.

    In training the output is [N, C + K], logits and spectra, one tensor for micro-batches and processes, of which the
    spectra have no gradient; in evaluation it is the network's own, [N, C]. With ``gamma`` 0 it is that in training
    too, nothing is drawn, and the training is the network's, to the bit.

    Args:
        network: volumes [N, 1, D, H, W] to logits [N, C].
        gamma: weight of the pairs' term, at least 0.
        patches: tiles along each side of a slice, at least 1; 1 shuffles nothing. The authors' are of 32 pixels, 7 in
            224.
    """

    def __init__(self, network: nn.Module, gamma: float = 0.001, patches: int = 7) -> None:
        super().__init__()
        check_setting("gamma", gamma, 0 <= gamma < float("inf"), "in [0, inf)")
        check_whole("patches", patches, least=1)
        self.network, self.gamma, self.patches = network, float(gamma), patches

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        if self.gamma == 0 or not self.training:
            return logits
        with torch.no_grad():
            spectra = noise_spectrum(image, self.patches)
        return torch.cat([logits, spectra], dim=1)  # of the wider of both types
