"""Names of version 0.1 that its registered models and its users' overlays hold still resolve."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from fairlung.pipeline.common.moved import HOMES, PACKAGE, RENAMED


def names_of(config: str) -> set[tuple[str, str]]:
    """The (module, name) pairs that a config of 0.1 asks fairlung.pipeline for, as targets and in expressions."""
    aliases = {alias: module for module, alias in re.findall(r"\$import (fairlung\.pipeline\.\w+) as (\w+)", config)}
    found = set(re.findall(r"_target_: (fairlung\.pipeline\.\w+)\.(\w+)", config))
    return found | {(aliases[a], name) for a, name in re.findall(r"\b(fairlung_\w+)\.(\w+)", config) if a in aliases}


def test_every_name_in_a_registered_model_resolves(data_dir: Path) -> None:
    names = names_of((data_dir / "registered_0_1" / "configs" / "inference.yaml").read_text())
    assert len(names) > 15
    for module, name in names:
        assert callable(getattr(importlib.import_module(module), name)), (module, name)


@pytest.mark.parametrize("name", ["losses.TwoLevelLoss", "losses.LDAMLoss", "aggregation.GroupCVaR",
                                  "network.R3D18Classifier", "cnn_rnn.CNNRNNClassifier"])  # fmt: skip
def test_what_overlays_name_resolves(name: str) -> None:
    module, _, target = name.partition(".")
    assert isinstance(getattr(importlib.import_module(f"{PACKAGE}.{module}"), target), type)


def test_every_home_exists_and_an_unknown_name_is_an_error() -> None:
    for home in {home for homes in HOMES.values() for home in homes}:
        importlib.import_module(f"{PACKAGE}.{home}")
    assert {name.partition(".")[0] for name in RENAMED} <= set(HOMES)
    with pytest.raises(ImportError):
        importlib.import_module(f"{PACKAGE}.no_such_module")
    assert not hasattr(importlib.import_module(f"{PACKAGE}.network"), "nothing")
