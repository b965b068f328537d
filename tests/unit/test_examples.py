"""The examples in docstrings run, and every name that notebooks are to import has one."""

from __future__ import annotations

import doctest
import importlib
import sys
import tempfile
from pathlib import Path

import pytest

import fairlung.pipeline
import fairlung.transforms

ROOT = Path(__file__).parents[2]
EXPORTED = [name for name in fairlung.pipeline.__all__ if not (ROOT / "pipeline" / name).is_dir()] + ["read_scan"]


def modules_with_examples() -> list[str]:
    files = [path for folder in ("pipeline", "transforms") for path in sorted((ROOT / folder).rglob("*.py"))]
    files = [path for path in files if "\n    >>> " in path.read_text() or "        >>> " in path.read_text()]
    return [".".join(("fairlung", *path.relative_to(ROOT).with_suffix("").parts)) for path in files]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_name_has_an_example(name: str) -> None:
    found = getattr(fairlung.transforms if name == "read_scan" else fairlung.pipeline, name)
    examples = doctest.DocTestFinder(recurse=False).find(found, name, sys.modules[found.__module__])
    assert any(test.examples for test in examples)
