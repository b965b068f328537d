"""Fixtures that several test modules share. Everything under tests/data is described in tests/data/SOURCES.md."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from sqlalchemy import event
from sqlalchemy.engine import Engine
from workflows import Start, starter

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.phantoms.cohort import Preset, write_phantom_cohort

torch.set_num_threads(1)  # small tensors: with more threads than idle cores a test takes ten times as long

# the same examples in every run: a failure seen once is seen by everybody
hypothesis.settings.register_profile("fairlung", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("fairlung")


@event.listens_for(Engine, "connect")
def _without_waiting_for_the_disk(connection: Any, _: object) -> None:
    """MLflow makes a new store with dozens of commits; what a loss of power would leave of them is not in question."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def bundle_dir() -> Path:
    return Path(__file__).parents[1] / "bundles" / "fair_lung_ct"


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cohort.csv of small phantoms in all three formats: two scans a class and sex to train on, one to validate on.

    Shared and read-only: a test that changes scans copies them first.
    """
    cells = {(label, sex): 1 for label in CLASS_NAMES for sex in SEXES}
    preset = Preset({"train": dict.fromkeys(cells, 2), "val": cells}, size=40, slices=(12, 16))
    return write_phantom_cohort(tmp_path_factory.mktemp("cohort"), preset, "mixed", seed=7, workers=1, progress=False)


@pytest.fixture
def odd_hu() -> tuple[np.ndarray, Sequence[float]]:
    """A HU volume (D, H, W) without any symmetry, and its spacing: no flip or swap of axes goes unnoticed."""
    rng = np.random.default_rng(5)
    return rng.integers(-1024, 400, (9, 12, 15)).astype(np.int16), (2.5, 0.75, 0.8125)


@pytest.fixture(scope="session")
def start(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Make a workflow of the shipped configs, shrunk: ``start("train", "evaluate", cohort=...)``."""
    return starter(bundle_dir, tmp_path_factory.mktemp("volumes"))
