"""Small scans, and a loader that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
