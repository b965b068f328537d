"""What a call does not need is not loaded: help, listing scans and reading a cohort come without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from fairlung.pipeline.phantoms.writers import write_jpg_folder

HEAVY = {"torch", "monai", "mlflow", "matplotlib", "SimpleITK", "itk", "sklearn", "statsmodels", "jinja2", "sqlalchemy"}
# each step adds to what those before it have loaded
PROGRAM = """
import json, sys

loaded = {}


def note(step):
    loaded[step] = sorted({name.partition(".")[0] for name in sys.modules})


import fairlung.pipeline, fairlung.transforms
note("import")
from typer.testing import CliRunner
from fairlung.pipeline.cli.app import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
commands = "cohort check phantom study tables audit compare probe postprocess register weights"
for command in commands.split():
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
note("help")
from fairlung.transforms import find_scans
note("find_scans")
from fairlung.pipeline import load_cohort
note("load_cohort")
done = CliRunner().invoke(app, ["cohort", sys.argv[1], "-o", sys.argv[1] + "/cohort.csv"])
assert done.exit_code == 0, done.output
note("cohort")
print(json.dumps(loaded))
"""


def test_nothing_heavy_is_loaded_before_it_is_needed(tmp_path: Path) -> None:
    for sex in ("male", "female"):
        write_jpg_folder(tmp_path / "Train" / "normal" / sex / "ct_0", np.zeros((9, 32, 32), np.int16))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {step: set(names) for step, names in json.loads(done.stdout).items()}
    for step in ("import", "help"):
        assert not loaded[step] & (HEAVY | {"numpy", "pandas", "scipy", "pydicom", "nibabel", "PIL"}), step
    assert not loaded["find_scans"] & (HEAVY | {"pandas"})
    for step in ("load_cohort", "cohort"):
        assert not loaded[step] & HEAVY, step
