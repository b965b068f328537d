"""A correction for a stated prevalence: Bayes by hand, and no wrong one unnoticed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.postprocessing.prevalence import PrevalenceError, deployment_prior

CLASSES = ["a", "b", "covid19"]
P = np.array([[0.2, 0.3, 0.5], [0.98, 0.01, 0.01]])
TARGET = {"covid19": 10, "a": 60, "b": 30}  # in percent, and in another order


def by_hand(target: list[float], source: list[float]) -> np.ndarray:
    joint = P * np.array(target) / np.array(source)
    return joint / joint.sum(1, keepdims=True)


def checkpoint(folder: Path, name: str, settings: dict[str, Any] | None = None) -> str:
    path = folder / name / "models" / "best.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    if settings is not None:
        (folder / name / "settings.json").write_text(json.dumps(settings))
    return str(path)


def test_it_is_bayes_by_hand() -> None:
    even = deployment_prior(TARGET, CLASSES)
    assert even is not None
    np.testing.assert_allclose(even.transform(P, CLASSES), by_hand([0.6, 0.3, 0.1], [1, 1, 1]), rtol=1e-12)
    source = {"a": 200, "b": 50, "covid19": 750}
    fitted = deployment_prior(TARGET, CLASSES, source)
    assert fitted is not None
    np.testing.assert_allclose(fitted.transform(P, CLASSES), by_hand([6, 3, 1], [0.2, 0.05, 0.75]), rtol=1e-12)
    texts = deployment_prior(["a=60", "b=30", "covid19=10"], CLASSES, [f"{name}={n}" for name, n in source.items()])
    assert texts == fitted
    assert deployment_prior(None, CLASSES) is None


def test_tau_says_under_which_frequencies_a_network_answers() -> None:
    """softmax(f + tau log pi) is the posterior, so softmax(f) is that under pi^(1 - tau): what the message advises."""
    rng = np.random.default_rng(0)
    pi, tau = np.array([0.7, 0.2, 0.1]), 0.3
    likelihood = rng.random((5, 3))
    logits = np.log(likelihood * pi) - tau * np.log(pi)
    given = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    fitted = deployment_prior(TARGET, CLASSES, dict(zip(CLASSES, (pi ** (1 - tau)).tolist(), strict=True)))
    assert fitted is not None
    right = likelihood * np.array([6, 3, 1])
    np.testing.assert_allclose(fitted.transform(given, CLASSES), right / right.sum(1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": 1, "b": 1, "covid": 1}, "no class 'covid' (did you mean 'covid19'?); the model's are a, b, covid19"),
        ({"a": 1, "b": 1, "covid19": 1, "other": 1}, "no class 'other'"),
        ({"a": 1}, "lacks b, covid19"),
        ({"a": 1, "b": 0, "covid19": 1}, "of b must be a number above 0, got 0"),
        ({"a": 1, "b": -1, "covid19": 1}, "of b must be a number above 0, got -1"),
        ({"a": 1, "b": float("nan"), "covid19": 1}, "got nan"),
        ({"a": 1, "b": float("inf"), "covid19": 1}, "got inf"),
        ({"a": 1, "b": True, "covid19": 1}, "got True"),
        ({"a": 1, "b": "5 %", "covid19": 1}, "got '5 %'"),
        ([0.1, 0.2, 0.7], "a frequency for each class"),
        (0.5, "a frequency for each class"),
        ("a:1", "CLASS=FREQUENCY"),
        ({}, "lacks a, b, covid19"),
    ],
)
def test_what_is_no_prevalence(given: Any, said: str) -> None:
    for setting in ("prevalence", "trained_prevalence"):
        arguments = (given, CLASSES) if setting == "prevalence" else (TARGET, CLASSES, given)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            deployment_prior(*arguments)
        assert str(caught.value).startswith(setting)
        assert said in str(caught.value)


def test_trained_prevalence_alone_corrects_nothing() -> None:
    with pytest.raises(PrevalenceError, match="no prevalence to correct for"):
        deployment_prior(None, CLASSES, TARGET)


# ---- what the training's settings say ------------------------------------------------------------------------------
def test_tau_1_needs_nothing_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [checkpoint(tmp_path, name, {"tau": 1.0}) for name in ("x", "y")]
    assert deployment_prior(TARGET, CLASSES, None, paths) == deployment_prior(TARGET, CLASSES)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    deployment_prior(TARGET, CLASSES, {"a": 1, "b": 2, "covid19": 3}, paths)
    assert "was trained with tau 1 and answers as if classes were even" in caplog.text


@pytest.mark.parametrize(("tau", "said"), [(None, "tau null"), (0.0, "tau 0.0"), (0.5, "tau 0.5")])
def test_another_tau_needs_the_frequencies_of_the_training(
    tmp_path: Path, tau: float | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path, "x", {"tau": tau})
    with pytest.raises(PrevalenceError) as caught:
        deployment_prior(TARGET, CLASSES, None, [path])
    assert isinstance(caught.value, UserError)
    for part in (path, said, "trained_prevalence"):
        assert part in str(caught.value)
    assert deployment_prior(TARGET, CLASSES, TARGET, [path]) is not None
    even = deployment_prior(TARGET, CLASSES, dict.fromkeys(CLASSES, 1), [path])  # balanced softmax records no tau
    assert even == deployment_prior(TARGET, CLASSES)
    assert deployment_prior(None, CLASSES, None, [path]) is None  # without a prevalence it does not matter
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_members_of_different_tau_share_no_correction(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, "x", {"tau": 1.0}), checkpoint(tmp_path, "y", {"tau": None})]
    for source in (None, TARGET):
        with pytest.raises(PrevalenceError) as caught:
            deployment_prior(TARGET, CLASSES, source, paths)
        assert all(path in str(caught.value) for path in paths)


@pytest.mark.parametrize("settings", [None, {}, {"something": 1}, []])
def test_where_nothing_is_said_the_assumption_is(
    tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path, "x", settings)
    assert deployment_prior(TARGET, CLASSES, None, [path]) is not None
    assert f"nothing beside {path} says how it was trained" in caplog.text
    caplog.clear()
    deployment_prior(TARGET, CLASSES, dict.fromkeys(CLASSES, 1), [path])  # said by the user
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_settings_json_elsewhere_is_not_the_trainings(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"tau": null}')
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.pt").touch()
    assert deployment_prior(TARGET, CLASSES, None, [tmp_path / "here" / "model.pt"]) is not None
