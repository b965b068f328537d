"""Fixtures that several test modules share. Everything under tests/data is described in tests/data/SOURCES.md."""

from __future__ import annotations

import ctypes
import gc
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import psutil
import pytest
import quick_stores
import torch
from reliability import Reliability, note_faults
from sqlalchemy import event
from sqlalchemy.engine import Engine
from workflows import Start, Trained, starter, train_once

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


# ---- which worker runs what ------------------------------------------------------------------------------------------
# files that take longest, first: a long one that comes last is waited for by all other workers; and those that need
# most memory, while a worker is small
FIRST = (
    "test_ray_inference",
    "test_commands",
    "test_mlflow_server",
    "test_distributed",
    "test_inference",
    "test_grad_cam",
    "test_cnn_rnn",
)
FIRST += ("test_r3d18", "test_registered_0_1", "test_study", "test_systems", "test_networks", "test_resume")
FIRST += (
    "test_ends",
    "test_planted_tokens",
    "test_packaging",
    "test_federated",
    "test_intake_defects",
    "test_intake_fuzz",
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file runs on one worker, and the files that share the one training run on the same one."""
    note_faults(items)
    sharing = {item.path for item in items if "trained_once" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("trained once" if item.path in sharing else item.path.stem))
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: (item.path not in sharing, place.get(item.path.stem, len(FIRST))))


# ---- memory ----------------------------------------------------------------------------------------------------------
GROWTH = 150 << 20  # bytes by which a worker may grow before it is tidied


class Tidy:
    """Keeps a worker small. A workflow is a circle of objects around its tensors, so few objects hold much memory, and
    Python's collector, which counts objects, comes late."""

    def __init__(self) -> None:
        self.process, self.held = psutil.Process(), 0

    @pytest.hookimpl
    def pytest_collection_finish(self) -> None:
        # Hypothesis looks for what holds its source of random numbers, and would not see it once modules are frozen
        hypothesis.find(hypothesis.strategies.none(), lambda _: True)
        gc.collect()
        gc.freeze()  # modules and tests stay to the end: each collection need not look at them
        self.held = self.process.memory_info().rss

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        result = yield
        if self.process.memory_info().rss > self.held + GROWTH:
            gc.collect()
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed
            if trim is not None:
                trim(0)
            self.held = self.process.memory_info().rss
        return result


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="PAGE", help="write what the tests of faults say into PAGE")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tidy())
    page = config.getoption("--reliability")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reliability(page))


# ---- what many tests read --------------------------------------------------------------------------------------------
quick_stores.install()


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
def plain_log_entries() -> Iterator[None]:
    """Pseudonyms take names out of the log of the whole process: not after this test."""
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def odd_hu() -> tuple[np.ndarray, Sequence[float]]:
    """A HU volume (D, H, W) without any symmetry, and its spacing: no flip or swap of axes goes unnoticed."""
    rng = np.random.default_rng(5)
    return rng.integers(-1024, 400, (9, 12, 15)).astype(np.int16), (2.5, 0.75, 0.8125)


@pytest.fixture(scope="session")
def start(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Make a workflow of the shipped configs, shrunk: ``start("train", "evaluate", cohort=...)``."""
    return starter(bundle_dir, tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="session")
def trained_once(start: Start, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The shipped training of the shipped network, shrunk and tracked, and its evaluation. Read-only."""
    return train_once(start, small_cohort, tmp_path_factory.mktemp("trained"))
