"""A correction for a stated prevalence: Bayes by hand, and no wrong one unnoticed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.postprocessing.prevalence import PrevalenceError, deployment_prior

CLASSES = ["a", "b", "covid19"]
P = np.array([[0.2, 0.3, 0.5], [0.98, 0.01, 0.01]])
EVEN = dict.fromkeys(["a", "b", "covid19"], 1)
TARGET = {"covid19": 10, "a": 60, "b": 30}  # in percent, and in another order


def by_hand(target: list[float], source: list[float]) -> np.ndarray:
    joint = P * np.array(target) / np.array(source)
    return joint / joint.sum(1, keepdims=True)


def checkpoint(folder: Path, name: str, shares: list[float] | None = None, record: bool = True) -> str:
    """A checkpoint that says under which class frequencies it answers, that says none, or is of fairlung 0.1."""
    content: dict[str, Any] = {"model": {}, "settings": {}}
    if record:
        frequencies = None if shares is None else dict(zip(CLASSES, shares, strict=True))
        content["training"] = {"run": name, "class_frequencies": frequencies}
    torch.save(content, folder / f"{name}.pt")
    return str(folder / f"{name}.pt")


def test_it_is_bayes_by_hand() -> None:
    even = deployment_prior(TARGET, CLASSES, EVEN)
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


# ---- what the checkpoint says --------------------------------------------------------------------------------------
def test_what_a_checkpoint_says_is_the_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint(tmp_path, "x", [0.5, 0.3, 0.2])
    fitted = deployment_prior(TARGET, CLASSES, None, [path])
    assert fitted is not None
    np.testing.assert_allclose(fitted.transform(P, CLASSES), by_hand([6, 3, 1], [5, 3, 2]), rtol=1e-12)
    assert not warnings(caplog)
    even = deployment_prior(TARGET, CLASSES, EVEN, [path])  # the user's word counts, and is doubted aloud
    assert even == deployment_prior(TARGET, CLASSES, EVEN)
    assert "a 0.5, b 0.3, covid19 0.2" in caplog.text
    caplog.clear()
    deployment_prior(TARGET, CLASSES, {"a": 52, "b": 29, "covid19": 19}, [path])
    assert not warnings(caplog)


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.fault(
    "wrong", "probabilities corrected for a prevalence as if classes were even, whatever the model was trained with",
    before="a warning, and wrong answers", now="corrected from what the checkpoint says, refused where it says nothing",
)  # fmt: skip
@pytest.mark.parametrize("kind", ["of 0.1", "of focal loss", "no checkpoint", "one of two"])
def test_where_nothing_is_said_the_correction_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "settings.json").write_text('{"tau": 1.0}')  # says nothing of alpha, sampling or the weights
    paths = {
        "of 0.1": lambda: [checkpoint(tmp_path, "x", record=False)],
        "of focal loss": lambda: [checkpoint(tmp_path, "x")],
        "no checkpoint": list,
        "one of two": lambda: [checkpoint(tmp_path, "y", [0.5, 0.3, 0.2]), checkpoint(tmp_path, "x", record=False)],
    }[kind]()
    with pytest.raises(PrevalenceError) as caught:
        deployment_prior(TARGET, CLASSES, None, paths)
    assert isinstance(caught.value, UserError)
    for part in (paths[-1] if paths else "the model", "trained_prevalence"):
        assert part in str(caught.value)
    assert deployment_prior(TARGET, CLASSES, EVEN, paths) is not None
    assert deployment_prior(None, CLASSES, None, paths) is None  # without a prevalence it does not matter


def test_members_are_corrected_by_their_mean_or_not_at_all(tmp_path: Path) -> None:
    near = [checkpoint(tmp_path, "x", [0.5, 0.3, 0.2]), checkpoint(tmp_path, "y", [0.46, 0.32, 0.22])]
    fitted = deployment_prior(TARGET, CLASSES, None, near)
    assert fitted is not None
    assert fitted.settings["source"] == pytest.approx({"a": 0.48, "b": 0.31, "covid19": 0.21})
    far = [near[0], checkpoint(tmp_path, "z", [1 / 3, 1 / 3, 1 / 3])]
    for source in (None, TARGET):
        with pytest.raises(PrevalenceError) as caught:
            deployment_prior(TARGET, CLASSES, source, far)
        assert all(path in str(caught.value) for path in far)
