"""Whatever writes into a folder in which another process works stops before it has done anything."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from workflows import Start, cause, run

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.claims import OWNER, FolderError, claim


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """A folder in which another process works."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def work() -> None:
        claim(tmp_path / "out" / "val" / "evaluation")
        claim(tmp_path / "out")
        theirs.send("done")
        time.sleep(600)

    process = fork.Process(target=work, daemon=True)
    process.start()
    assert ours.poll(60)
    yield tmp_path / "out"
    process.kill()
    process.join()


@pytest.mark.parametrize("names", [["train"], ["train", "evaluate"], ["inference"], ["inference", "check"]])
@pytest.mark.fault(
    "lost", "two processes that write into one output folder",
    before="their files mix, rows are doubled or a KeyError ends both", now="the second stops and names the first",
)  # fmt: skip
def test_a_workflow(start: Start, small_cohort: Path, taken: Path, names: list[str]) -> None:
    checkpoint = taken.with_name("model.pt")
    checkpoint.touch()
    settings = {"scans": str(small_cohort.parent)} if names[0] == "inference" else {"cohort": str(small_cohort)}
    settings |= {} if names == ["train"] or "check" in names else {"checkpoint": str(checkpoint)}
    before = sorted(taken.rglob("*"))
    error = cause(start(*names, **settings, output_dir=str(taken)))
    assert isinstance(error, FolderError) and "is in use by process" in str(error)
    assert sorted(taken.rglob("*")) == before


def test_a_study(small_cohort: Path, bundle_dir: Path, taken: Path) -> None:
    study = taken.with_name("study.yaml")
    content = {"cohort": str(small_cohort), "bundle_root": str(bundle_dir), "seeds": [1], "systems": [{"system": "ce"}]}
    study.write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["study", str(study), "-o", str(taken)], env={"COLUMNS": "300"})
    assert done.exit_code == 1 and "is in use by process" in done.output


def test_a_claim_ends_with_the_workflow(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    run(start("inference", "check", scans=str(small_cohort.parent / "scans" / "val"), output_dir=str(tmp_path)))
    assert (tmp_path / "index.html").is_file() and not (tmp_path / OWNER).exists()
