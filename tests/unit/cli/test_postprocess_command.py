"""fairlung postprocess: marked tables, the cost, and refusals of what would mislead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from noisy_predictions import CLASSES, predictions
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.predictions import Predictions, load_predictions
from fairlung.pipeline.postprocessing.fit import apply
from fairlung.pipeline.postprocessing.fitted import (
    load_fitted,
)

EVEN = ("--source", "even")


def table(given: Predictions, path: Path, **more: object) -> Path:
    assert given.probabilities is not None
    sex = np.where(given.group < 0, "", np.array(given.group_names)[given.group])
    columns: dict[str, object] = {
        "patient": [f"Smith {scan}" for scan in given.scan],
        "scan": given.scan,
        "label": np.array(CLASSES)[given.label],
    }
    columns |= {"sex": sex, "site": np.where(np.arange(len(sex)) % 2, "alder", "birch"), **more}
    columns["prediction"] = np.array(CLASSES)[given.prediction]
    columns |= {f"prob_{name}": given.probabilities[:, c].round(6) for c, name in enumerate(CLASSES)}
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path, Path]:
    val, test = table(predictions(25, 80), tmp_path / "val.csv"), table(predictions(26, 80), tmp_path / "test.csv")
    return val, test, tmp_path / "out" / "new.csv"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["postprocess", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("method", ["temperature", "offsets", "prior"])
def test_the_command_writes_a_marked_table_and_shows_the_cost(cli: Callable, tables, method: str) -> None:
    val, test, out = tables
    saved = out.with_name("fitted.json")
    even = EVEN if method == "prior" else ()
    done = cli(method, "--fit", val, "--apply", test, "-o", out, "--save", saved, "--resamples", 100, *even)
    assert done.exit_code == 0, done.output
    assert "fitted on 80 scans" in done.output and "Before and after, 80 scans" in done.output
    assert "cost" in done.output and "Predictions that changed" in done.output
    written = pd.read_csv(out)
    columns = ["scan", "label", "sex", "prediction", *(f"prob_{name}" for name in CLASSES), "postprocess"]
    assert list(written) == columns  # no patient, no site
    assert set(written["postprocess"]) == {method}
    fitted = load_fitted(saved)
    expected = apply(fitted, load_predictions(test))
    found = load_predictions(out)
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-7)
    first = out.read_bytes()
    again = cli(method, "--load", saved, "--apply", test, "-o", out)
    assert again.exit_code == 0, again.output
    assert out.read_bytes() == first


def test_a_digest_of_the_patient_is_kept(cli: Callable, tables) -> None:
    val, test, out = tables
    digests = [f"{row:016x}" for row in range(79)] + [""]
    pd.read_csv(test).assign(patient=digests).to_csv(test, index=False)
    done = cli("temperature", "--fit", val, "--apply", test, "-o", out, "--resamples", 100)
    assert done.exit_code == 0, done.output
    assert list(pd.read_csv(out, keep_default_na=False, dtype=str)["patient"]) == digests


def test_a_patient_with_scans_in_both_tables_is_refused(cli: Callable, tables) -> None:
    val, test, out = tables
    ids = np.array([f"Smith {i}" for i in range(80)])
    for shared in ("Zo\u00eb Roe", "Zoe\u0308 Roe "):
        table(predictions(25, 80), val, patient=np.where(np.arange(80) == 7, shared, "val " + ids))
        table(predictions(26, 80), test, patient=np.where(np.arange(80) == 3, "Zo\u00eb Roe", "test " + ids))
        done = cli("temperature", "--fit", val, "--apply", test, "-o", out)
        said = (
            f"1 patient has scans in both tables, such as '25/7' of {val} and '26/3' of {test}: fit on other patients"
        )
        assert done.exit_code == 1 and said in done.output.replace("\n", " "), done.output
        assert "Roe" not in done.output and not out.exists()


def test_where_patients_have_several_scans_they_are_resampled(cli: Callable, tables) -> None:
    val, test, out = tables
    given = predictions(26, 80)
    table(given, test, patient=[f"{g} {i // 4}" for i, g in enumerate(given.group)])
    done = cli("temperature", "--fit", val, "--apply", test, "-o", out, "--resamples", 100)
    number = len({(g, i // 4) for i, g in enumerate(given.group)})
    assert f"Before and after, 80 scans of {number} patients" in done.output


def test_the_command_takes_named_frequencies_and_unlabelled_scans(cli: Callable, tables, tmp_path: Path) -> None:
    val, test, out = tables
    numbers = [part for name, n in zip(CLASSES, (70, 10, 10, 10), strict=True) for part in ("--target", f"{name}={n}")]
    named = cli("prior", *numbers, "--apply", test, "-o", out, *EVEN)
    assert named.exit_code == 0, named.output
    assert "adeno 0.25 to 0.7" in named.output and "fitted on no scan" in named.output
    new = pd.read_csv(val).drop(columns=["label", "sex", "site", "patient"]).astype(object)
    new.loc[0, [column for column in new if column != "scan"]] = ""  # a scan that could not be read
    new.to_csv(tmp_path / "new_scans.csv", index=False)
    done = cli("prior", "--fit", tmp_path / "new_scans.csv", "--target", "em", "--apply", test, "-o", out, *EVEN)
    assert done.exit_code == 0, done.output
    assert "fitted on 79 scans, estimated without labels" in done.output


@pytest.mark.fault(
    "wrong", "a prior corrected from even class frequencies, whatever the model was trained with",
    before="fairlung postprocess prior took every table for one of even classes",
    now="the checkpoint of the evaluation says it, or the user",
)  # fmt: skip
@pytest.mark.parametrize("beside", ["nothing", "an evaluation of 0.1", "an evaluation"])
def test_the_prior_starts_from_what_the_checkpoint_says(cli: Callable, tables, tmp_path: Path, beside: str) -> None:
    val, test, out = tables
    shares = dict(zip(CLASSES, (0.4, 0.3, 0.2, 0.1), strict=True))
    if beside != "nothing":
        content = {"model": {}, "settings": {}}
        content |= {"training": {"class_frequencies": shares}} if beside == "an evaluation" else {}
        torch.save(content, tmp_path / "best.pt")
        found = {"checkpoint": str(tmp_path / "best.pt"), "class_names": CLASSES}
        (tmp_path / "metrics.json").write_text(json.dumps(found))
    done = cli("prior", "--fit", val, "--apply", test, "-o", out, "--resamples", 100)
    if beside != "an evaluation":
        assert done.exit_code == 1 and "--source" in done.output and "does not say under which" in done.output
        return
    assert done.exit_code == 0, done.output
    assert f"{CLASSES[0]} 0.4 to" in done.output


def test_the_command_keeps_every_group_column(cli: Callable, tables) -> None:
    val, test, out = tables
    arguments = ("--group-by", "sex", "--group-by", "site")
    done = cli("offsets", "--fit", val, "--apply", test, "-o", out, *arguments, "--resamples", 100)
    assert done.exit_code == 0, done.output
    assert "F1 female x birch" in done.output
    assert list(pd.read_csv(out))[:4] == ["scan", "label", "sex", "site"]


def test_the_command_refuses_what_would_mislead(cli: Callable, tables, tmp_path: Path) -> None:
    val, test, out = tables
    saved = tmp_path / "fitted.json"
    assert cli("temperature", "--fit", val, "--apply", test, "-o", out, "--save", saved).exit_code == 0
    unnamed = tmp_path / "unnamed.csv"
    pd.read_csv(val).drop(columns="scan").to_csv(unnamed, index=False)
    link = tmp_path / "link.csv"
    link.symlink_to(test)
    before = {path: path.read_bytes() for path in (val, test, saved)}
    fresh = tmp_path / "never.csv"
    fitted = ("--fit", val, "--apply", test, "-o")
    for text, arguments in {
        f"{test} is read as well": ("temperature", *fitted, test),
        f"{link} is read as well": ("temperature", *fitted, link),
        f"{val} is read as well": ("temperature", *fitted, fresh, "--save", val),
        f"{fresh} is written as well": ("temperature", *fitted, fresh, "--save", fresh),
        "80 of the 80 scans are among": ("temperature", "--fit", val, "--apply", val, "-o", fresh),
        "was post-processed before (temperature)": ("prior", "--fit", val, "--apply", out, "-o", fresh, *EVEN),
        "no column 'scan'": ("temperature", "--fit", unnamed, "--apply", test, "-o", fresh),
        "leave out --fit": ("temperature", "--load", saved, *fitted, fresh),
        "holds a fit of temperature, not of prior": ("prior", "--load", saved, "--apply", test, "-o", fresh),
        "give --fit with a table": ("offsets", "--apply", test, "-o", fresh),
        "has no setting target": ("temperature", *fitted, fresh, "--target", "em"),
        "target must be CLASS=FREQUENCY for each class, got 'covid=often'": (
            *("prior", "--apply", test, "-o", fresh, "--target", "covid=often"),
        ),
        "source names covid twice": ("prior", *fitted, fresh, "--source", "covid=1", "--source", "covid=2"),
        "no such file": ("temperature", "--fit", tmp_path / "none.csv", "--apply", test, "-o", fresh),
    }.items():
        done = cli(*arguments)
        assert done.exit_code == 1 and text in done.output, (text, done.output, done.exception)
        assert not fresh.exists()
    assert before == {path: path.read_bytes() for path in before}


def test_unlabelled_tables_are_checked(cli: Callable, tables, tmp_path: Path) -> None:
    _, test, out = tables
    bad = tmp_path / "bad.csv"
    for text, content in {
        "no prob_<class> columns": "scan,x\na,1\n",
        "no scan has probabilities": "scan,prob_a,prob_b\na,,\n",
        "'a' is there twice": "scan,prob_a,prob_b\na,0.5,0.5\na,0.5,0.5\n",
        "add up to 1": "scan,prob_a,prob_b\na,0.5,0.9\n",
    }.items():
        bad.write_text(content)
        done = cli("prior", "--fit", bad, "--target", "em", "--apply", test, "-o", out, *EVEN)
        assert done.exit_code == 1 and text in done.output, (text, done.output)
