"""A fit is the same after JSON, and a broken one is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from noisy_predictions import predictions, refused

from fairlung.pipeline.postprocessing.fit import describe, fit, fit_temperature
from fairlung.pipeline.postprocessing.fitted import (
    PREFIX,
    load_fitted,
    log_probabilities,
)


def test_a_probability_rounded_to_zero_is_small_and_stays_the_smallest() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [0.9, 1e-9, 0.0], [0.5, 0.3, 0.2]])
    np.testing.assert_allclose(np.exp(log_probabilities(rows)), [[1, 5e-7, 5e-7], [0.9, 1e-9, 1e-9], rows[2]])
    given = replace(predictions(7, 3, 3), label=np.array([1, 0, 2])).with_probabilities(rows)
    assert np.isfinite(fit_temperature(given).validation["nll_before"])


def test_a_fit_is_the_same_after_json_and_names_no_scan(tmp_path: Path) -> None:
    given = predictions(17, 60, name="patient-77")
    for method, settings in (
        ("temperature", {}),
        ("offsets", {"objective": "gap", "max_loss": 0.05}),
        ("prior", {"target": "em"}),
    ):
        fitted = fit(method, given, **settings)  # type: ignore[arg-type]
        path = tmp_path / f"{method}.json"
        fitted.save(path)
        assert load_fitted(path) == fitted
        assert "patient" not in path.read_text()
        assert len(fitted.scans) == 60 and {len(scan) for scan in fitted.scans} == {PREFIX}
        assert method in describe(fitted) and "fitted on 60 scans" in describe(fitted)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[]", "is no saved post-processing"),
        ('{"method": "temperature"}', "missing"),
        ("{", "is no saved post-processing"),
        ("temperature", "temperature 0.0"),
        ("method", "method 'magic'"),
        ("offsets", "nan"),
    ],
)
def test_a_broken_fit_is_refused(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    fit_temperature(predictions(18, 60)).save(path)
    wrong = {"temperature": 0, "method": "magic", "offsets": {"a": float("nan"), "b": 0}}
    if content in wrong:
        content = json.dumps(json.loads(path.read_text()) | {content: wrong[content]})
    path.write_text(content)
    refused(text, lambda: load_fitted(path))
    refused("no such file", lambda: load_fitted(tmp_path / "other.json"))
