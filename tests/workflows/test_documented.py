"""What README and docs/ tell a reader to type runs as it stands there, on small stand-ins for what it names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from documented import PAGES, ROOT, Command, blocks, commands
from evaluations import SEXES, make_run
from typer.testing import CliRunner
from workflows import CLASSES, Trained

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.phantoms import cohort as phantoms

# a word of commands that other tests run, because they need what no stand-in has
ELSEWHERE = {
    "probe": "tests/unit/cli/test_evaluation_commands.py",  # features of an evaluation
    "register": "tests/unit/tracking/test_registry.py",  # a model that MLflow can load
    "fetch": "tests/unit/networks",  # a package index
    "tables": "tests/workflows/test_study.py",
    "folders.csv": "tests/workflows/test_real.py",  # public data sets
    "real/cohort.csv": "tests/workflows/test_real.py",
}
JOBS = {"train", "evaluate", "infer"}  # of the bundle, in tests/unit/cli/test_bundle_commands.py
WITHOUT_VALUES = {"...", "NAME", "STUDY", "COMMAND", "OUTPUT_DIR", "FILE.json"}


def runnable(page: Path) -> list[Command]:
    found = [command for command in commands(page) if command.words[0] == "fairlung" and len(command.words) > 2]
    found = [command for command in found if not (set(command.words) & {*ELSEWHERE, *WITHOUT_VALUES})]
    found = [command for command in found if command.words[1] not in JOBS]
    return [c for c in found if c.words[1] != "study" or "--dry-run" in c.words]


@pytest.fixture(scope="module")
def stand_ins(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the pages name, small: runs of which val or test is evaluated, tables, scans, a study."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in ("bundles", "studies"):
        (folder / name).symlink_to(ROOT / name)
    for split in ("val", "test"):
        for run in ("a08", "ce"):
            make_run(folder / f"runs of {split}" / run, CLASSES, split=split, synthetic=True)
        for seed in ("1", "2"):
            (folder / f"runs of {split}" / f"a08-seed{seed}").symlink_to("a08")
    rows = pd.read_csv(folder / "runs of val" / "a08" / "val" / "evaluation" / "predictions.csv")
    parts = {
        "ce": rows,
        "PREDICTIONS": rows,
        "predictions": rows,
        "VAL": rows[::3],
        "NEW": rows[::3],
        "TEST": rows[1::3],
        "OTHER": rows[2::3],
    }
    for name, part in parts.items():
        part.to_csv(folder / f"{name}.csv", index=False)
    numbers = {"target": rows["label"].map(CLASSES.index), "pred": rows["prediction"].map(CLASSES.index)}
    numbers["source"] = rows["sex"].map(list(SEXES).index)
    pd.DataFrame(numbers).to_csv(folder / "val_preds_task2.csv", index=False)  # as docs/challenge.md has it
    scans = pd.read_csv(small_cohort)
    scans["scan"] = [str(small_cohort.parent / scan) for scan in scans["scan"]]
    scans.to_csv(folder / "cohort.csv", index=False)
    scans.rename(columns={"scan": "path", "sex": "gender"}).to_csv(folder / "list.csv", index=False)
    many = pd.concat([scans] * 5).drop(columns="split")
    many["scan"] = [f"{i}.nii.gz" for i in range(len(many))]  # a split looks at no scan
    for name in many["scan"]:
        (folder / name).touch()
    many.to_csv(folder / "without_splits.csv", index=False)
    for name in ("DIR", "PATH"):
        shutil.copytree(small_cohort.parent / "scans" / "val", folder / name)
    (folder / "out").mkdir()
    answers = {"scan": [f"s{i}" for i in range(4)], "prediction": CLASSES, "status": "ok", "reason": "", "warnings": ""}
    pd.DataFrame(answers).to_csv(folder / "out" / "predictions.csv", index=False)
    (folder / "demo").mkdir()
    (folder / "demo" / "first").symlink_to("../runs/a08")
    (folder / "demo" / "ce").symlink_to("../runs/ce")
    return folder


@pytest.fixture
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of phantoms with a scan a class, sex and split."""
    cells = {(label, sex): 1 for label in CLASSES for sex in SEXES}
    small = phantoms.Preset(dict.fromkeys(("train", "val", "test"), cells), size=32, slices=(12, 12))
    monkeypatch.setattr(phantoms, "PRESETS", dict.fromkeys(phantoms.PRESETS, small))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_commands_run_as_the_page_has_them(
    page: Path, stand_ins: Path, small_presets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    shutil.copytree(stand_ins, place, symlinks=True)
    monkeypatch.chdir(place)
    for command in runnable(page):
        _, name, *rest = command.plain
        (place / "runs").unlink(missing_ok=True)
        (place / "runs").symlink_to("runs of test" if "test" in rest else "runs of val")
        (place / "cohort.csv").unlink(missing_ok=True)
        if name != "cohort":  # which writes it
            shutil.copy(stand_ins / ("without_splits.csv" if name == "split" else "cohort.csv"), "cohort.csv")
        done = CliRunner().invoke(app, [name, *rest])
        lacks_arguments = command.inline and done.exit_code == 2  # of which tests/unit/test_pages.py says no more
        assert done.exit_code == 0 or lacks_arguments, f"{command}\n{done.output}"


def snippets() -> list[tuple[str, str]]:
    """Python of the pages.

    But for MLflow's, which wants a registered model (tests/unit/tracking/test_registry.py), and python.md's, whose
    blocks go on where the one before ended (test_python_page.py).
    """
    pages = [page for page in PAGES if page.name != "python.md"]
    found = [(f"{page.name}:{line}", text) for page in pages for line, text in blocks(page, "python")]
    return [(where, text) for where, text in found if "mlflow.pyfunc" not in text]


@pytest.mark.slow
@pytest.mark.parametrize("where, text", snippets(), ids=lambda value: value if ":" in value[:30] else "")
def test_python_runs_as_the_page_has_it(
    where: str, text: str, stand_ins: Path, trained_once: Trained, small_cohort: Path, small_presets: None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("VAL", "TEST"):
        shutil.copy(stand_ins / f"{name}.csv", name.lower() + ".csv")
    (tmp_path / "runs" / "a08").mkdir(parents=True)
    (tmp_path / "runs" / "a08" / "models").symlink_to(trained_once.output / "models")
    scans = [small_cohort.parent / scan for scan in pd.read_csv(small_cohort)["scan"]]
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "0001").symlink_to(next(scan for scan in scans if scan.is_dir()))
    (tmp_path / "scans" / "0002.nii.gz").symlink_to(next(scan for scan in scans if scan.is_file()))
    rng = np.random.default_rng(0)
    names = {"probabilities": rng.dirichlet(np.ones(4), 5), "class_names": CLASSES}  # what a page says that one has
    exec(compile(text, where, "exec"), names)
