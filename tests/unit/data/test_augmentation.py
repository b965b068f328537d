"""Stock augmentations get volumes in [0, 1], and what is in another range never reaches the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchio
from monai.transforms import (
    Compose,
    EnsureTyped,
    Lambdad,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCoarseDropoutd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandGibbsNoised,
    RandHistogramShiftd,
    RandScaleIntensityd,
    RandZoomd,
    ScaleIntensityRanged,
)
from workflows import SMALL_NETWORK, Start, cause

from fairlung.pipeline.common.volumes import PADDING, cut_to_unit_range
from fairlung.pipeline.data.augmentation import Augmentation
from fairlung.pipeline.data.dataset import AugmentationError, ScanDataset, volume_transforms
from fairlung.pipeline.data.sampling import Draw
from fairlung.pipeline.training.group_loss import PrepareGroupBatch
from fairlung.transforms import RandBrightnessd

STOCK = {
    "noise": lambda: RandGaussianNoised("image", prob=1.0, std=0.05),
    "contrast": lambda: RandAdjustContrastd("image", prob=1.0, gamma=(0.7, 1.5)),
    "affine": lambda: RandAffined("image", prob=1.0, rotate_range=[0.1, 0.1, 0.1], padding_mode="border"),
    "smoothing": lambda: RandGaussianSmoothd("image", prob=1.0),
    "sharpening": lambda: RandGaussianSharpend("image", alpha=(1.0, 3.0), prob=1.0),
    "histogram": lambda: RandHistogramShiftd("image", prob=1.0),
    "brightness": lambda: RandScaleIntensityd("image", prob=1.0, factors=0.2),
    "bias field": lambda: RandBiasFieldd("image", prob=1.0),
    "zoom": lambda: RandZoomd("image", prob=1.0),
    "dropout": lambda: RandCoarseDropoutd("image", holes=2, spatial_size=4, fill_value=0.5, prob=1.0),
    "gibbs": lambda: RandGibbsNoised("image", prob=1.0, alpha=(0.2, 0.4)),
}
FAULT = pytest.mark.fault(
    "wrong",
    "a stock augmentation added to the recipe",
    before="worked on 0..255 and gave the network 1.0 everywhere in training, right volumes in validation",
    now="works on [0, 1]",
)


def levels(_: Any = None) -> torch.Tensor:
    """Grey levels [1, 8, 24, 24] from 0 to 255, a smooth volume without symmetry."""
    x = torch.linspace(0, 3, 24)
    waves = torch.sin(x[None, :, None] + 0.3 * torch.arange(8.0)[:, None, None]) * torch.cos(2 * x)[None, None]
    return ((waves - waves.min()) / (waves.max() - waves.min()) * 255).round().to(torch.uint8)[None]


def seen(augmentation: list[Any], tmp_path: Path, seed: int = 3) -> torch.Tensor:
    """What the network sees of a scan, [1, 8, 24, 24] float32."""
    dataset = ScanDataset([{"image": str(tmp_path), "scan": "s"}], [Lambdad("image", levels)], augmentation)
    item = dataset[Draw(0, seed)]
    batch = {name: torch.as_tensor(value)[None] for name, value in item.items() if name in ("image", "brightness")}
    return PrepareGroupBatch()(batch | {"label": [0], "group": [0]})[0][0]


@FAULT
@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("first", [False, True], ids=["after the recipe", "before it"])
def test_a_stock_augmentation_is_the_one_of_unit_volumes(name: str, first: bool, tmp_path: Path) -> None:
    def recipe() -> list[Any]:
        steps = [RandFlipd("image", 0.5, spatial_axis=2), EnsureTyped("image", track_meta=False)]
        return [STOCK[name](), *steps] if first else [*steps, STOCK[name]()]

    alone = Compose(recipe())
    alone.set_random_state(3)
    expected = torch.as_tensor(alone({"image": levels() / 255})["image"]).as_subclass(torch.Tensor).clamp(0, 1)
    found = seen(recipe(), tmp_path)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.dtype == torch.float32 and 0.3 < found.mean() < 0.7 and not torch.equal(found, levels() / 255)


@FAULT
def test_an_augmentation_of_torchio_works_and_is_drawn_by_the_seed(tmp_path: Path) -> None:
    noise = torchio.RandomNoise(std=0.05, include=["image"])
    first, again, other = (seen([noise], tmp_path, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first - levels() / 255).abs().mean() < 0.1


def test_what_draws_from_torch_itself_is_drawn_by_the_seed(tmp_path: Path) -> None:
    def noise(image: torch.Tensor) -> torch.Tensor:
        return image + 0.01 * torch.rand(image.shape)

    before = torch.random.get_rng_state()
    first, again, other = (seen([Lambdad("image", noise)], tmp_path, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout draws on as if nothing had happened


def test_what_moves_voxels_alone_keeps_eight_bits() -> None:
    steps = [RandFlipd("image", 0.5, spatial_axis=2), RandBrightnessd(0.2), EnsureTyped("image", track_meta=False)]
    assert list(Augmentation(steps).transforms) == steps


@pytest.mark.fault(
    "wrong",
    "an augmentation that gives another range than the network takes",
    before="trained on it, while validation showed [0, 1]",
    now="refused, with the scan and the values",
)
@pytest.mark.parametrize(
    "step",
    [
        ScaleIntensityRanged("image", 0, 1, 0, 255),
        ScaleIntensityRanged("image", 0, 1, -1, 1),
        NormalizeIntensityd("image"),
        EnsureTyped("image", dtype=torch.uint8),
        Lambdad("image", torch.log),
        Lambdad("image", torch.negative),
    ],
    ids=["0 to 255", "-1 to 1", "standardised", "integers", "infinite", "negative"],
)
def test_another_range_is_refused(step: Any, tmp_path: Path) -> None:
    with pytest.raises(AugmentationError, match="^s: the augmentation gave"):
        seen([step], tmp_path)


@pytest.mark.fault(
    "wrong",
    "a stock transform added to the cached volumes",
    before="worked on 0..255, and its floats reached the network as they were",
    now="works on [0, 1], and is cached in 8 bits",
)
def test_a_further_cached_transform_gets_unit_volumes() -> None:
    given: list[torch.Tensor] = []

    def look(volume: torch.Tensor) -> torch.Tensor:
        given.append(volume)
        return volume.sqrt()

    *_, further, in_range, to_levels = volume_transforms((0, 1), 24, 8, further=[Lambdad("image", look)])
    unit = levels() / 255
    found = to_levels(in_range(further({"image": unit})))["image"]
    assert torch.equal(given[0], unit) and found.dtype == torch.uint8
    assert (found - 255 * unit.sqrt()).abs().max() <= 0.5001
    with pytest.raises(RuntimeError) as caught:
        Compose(in_range)({"image": 255 * unit})
    assert str(caught.value.__cause__).startswith("volume_transforms::further gave values from 0 to 255")


def test_padding_stays_padding() -> None:
    volume = torch.cat([levels() / 255 + 0.1, torch.full((1, 2, 24, 24), PADDING)], dim=1)
    cut = cut_to_unit_range(volume, "this")
    assert torch.equal(cut[:, 8:], volume[:, 8:]) and torch.equal(cut[:, :8], volume[:, :8].clamp(max=1))


def test_it_shows_before_the_first_step(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    wrong = {"augmentation": [{"_target_": "NormalizeIntensityd", "keys": "image"}]}
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "network_def": SMALL_NETWORK}
    error = cause(start("train", **settings, **wrong))
    assert isinstance(error, AugmentationError) and "the augmentation gave values from" in str(error)
