"""Studies that several modules read."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_studies import (
    DRAWS,
    SWEEP,
    write_study,
)

from fairlung.pipeline.studies.summary import StudyTables, study_tables
from fairlung.pipeline.studies.tables import (
    write_tables,
)


@pytest.fixture(scope="session")
def given_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds on the paper's protocol. Read-only."""
    return write_study(tmp_path_factory.mktemp("given") / "study", SWEEP, per_cell=12)


@pytest.fixture(scope="session")
def nested_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of three outer folds on phantoms, one system failed. Read-only."""
    systems = SWEEP | {"CNN-RNN": {"skill": (0.5, 0.5), "status": "failed", "reason": "CUDA out of memory"}}
    folder = tmp_path_factory.mktemp("nested") / "study"
    return write_study(folder, systems, folds=3, per_cell=12, synthetic=True, warnings=["A cell has 5 scans."])


@pytest.fixture(scope="session")
def nested_tables(nested_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tables")
    write_tables([nested_study], output, resamples=DRAWS)
    return output


@pytest.fixture(scope="session")
def given_found(given_study: Path) -> StudyTables:
    return study_tables([given_study], resamples=DRAWS)


@pytest.fixture(scope="session")
def nested_found(nested_study: Path) -> StudyTables:
    return study_tables([nested_study], resamples=DRAWS)


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """statsmodels collects garbage at every adjustment, which takes long over all that is imported here."""
    gc.freeze()
    yield
    gc.unfreeze()
