"""Small scans, a loader that takes them, and small volumes of any number of slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fairlung.pipeline.common.volumes import PADDING
from fairlung.transforms import LoadScan, ScanError

PERSON = {"sex": "female", "age": 60}


def loader(**settings: object) -> LoadScan:
    """Takes scans of a few slices, as most here are."""
    return LoadScan(**{"min_slices": 1, **settings})  # type: ignore[arg-type]


def save_grey(folder: Path, names: Sequence[str], size: int = 8) -> Path:
    """Slices whose grey value is 10 times their place in ``names``."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        Image.fromarray(np.full((size, size), 10 * place, np.uint8)).save(folder / name)
    return folder


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(ScanError) as caught:
        loader(**settings)(path)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return str(caught.value)


def padded_batch(*counts: int, depth: int | None = None, size: int = 32, seed: int = 0) -> Tensor:
    """Volumes of that many slices, padded to ``depth``."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((len(counts), 1, depth or max(counts), size, size), PADDING)
    for volume, count in zip(image, counts, strict=True):
        volume[:, :count] = torch.rand(1, count, size, size, generator=generator)
    return image
