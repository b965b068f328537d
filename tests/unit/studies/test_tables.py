"""Tables of a study as they are written: every format says the same, and no name can do harm."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from latex_checks import check_latex
from markdown_it import MarkdownIt
from simulated_studies import (
    DRAWS,
    SEXES,
    SWEEP,
    change,
    macro_f1,
    write_study,
)
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.records import Chance
from fairlung.pipeline.evaluation.resampling import Estimate
from fairlung.pipeline.evaluation.wording import Verdict
from fairlung.pipeline.reports.latex import latex_table
from fairlung.pipeline.shortcuts.probe import Probe, ProbeError, Reading, write_probe
from fairlung.pipeline.studies.record import load_study
from fairlung.pipeline.studies.results import read_results
from fairlung.pipeline.studies.selection import expected_best
from fairlung.pipeline.studies.summary import study_tables
from fairlung.pipeline.studies.tables import (
    encoding_pictures,
    optimism_text,
    table_1,
    table_notes,
    write_tables,
)

FILES = {
    "index.html", "tables.md", "selection.csv", "selection.md",
    *(f"{name}.{kind}" for name in ("table1", "table2") for kind in ("md", "csv", "tex")),
    *(f"{name}.{kind}" for name in ("figure1", "figure3", "curves") for kind in ("png", "svg")),
}  # fmt: skip


@pytest.mark.slow
def test_the_papers_protocol_is_called_optimistic(given_study, given_found, tmp_path):
    tables = given_found
    text = optimism_text(tables)
    assert text.startswith("Optimistic: epoch and alpha are chosen on the very scans that are reported")
    assert "by 0.025 to 0.046" in text and "by 0.041 to 0.074" in text, text
    spread = np.sqrt(
        np.mean([np.var(row.values["score"], ddof=1) / 3 for row in tables.rows[1:]])
    )  # of means over seeds
    (selection,) = tables.selections
    assert selection.optimism == pytest.approx(expected_best(2, spread))
    assert f"expected to look {selection.optimism:.3f} better" in text
    assert all("alpha chosen" not in row[0] for row in table_1(tables).rows)
    write_tables([given_study], tmp_path, resamples=DRAWS)
    page = (tmp_path / "index.html").read_text()
    assert page.index("Optimistic") < page.index("Table 1")


def test_every_file_is_there_and_says_synthetic(nested_tables):
    assert {path.name for path in nested_tables.iterdir()} == FILES
    for path in nested_tables.iterdir():
        if path.suffix in (".md", ".tex", ".html"):
            assert "SYNTHETIC" in path.read_text(), path.name
        elif path.suffix == ".csv":
            assert set(pd.read_csv(path)["synthetic"]) == {"yes"}, path.name
        elif path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert path.read_bytes().lstrip().startswith(b"<?xml")
    page = (nested_tables / "index.html").read_text()
    assert "http:" not in page and "https:" not in page


def test_real_scans_are_not_called_synthetic(given_study, tmp_path):
    write_tables([given_study], tmp_path, resamples=DRAWS)
    for path in tmp_path.iterdir():
        assert b"SYNTHETIC" not in path.read_bytes() and b"synthetic" not in path.read_bytes(), path.name


def test_a_phantom_table_marks_a_study_that_forgot_to_say_so(nested_study, tmp_path):
    folder = change(nested_study, lambda r: r.update(synthetic=False), tmp_path / "s")
    assert read_results(load_study(folder)).synthetic


def test_the_same_study_gives_the_same_bytes(nested_study, nested_tables, tmp_path):
    write_tables([nested_study], tmp_path, resamples=DRAWS)
    for path in nested_tables.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_markdown_and_html_and_csv_have_the_same_table(nested_tables):
    tokens = MarkdownIt("commonmark").enable("table").parse((nested_tables / "table1.md").read_text())
    texts = ["".join(child.content for child in t.children or []) for t in tokens if t.type == "inline"]
    data = pd.read_csv(nested_tables / "table1.csv")
    page = (nested_tables / "index.html").read_text()
    for line in data.to_dict("records"):
        score = f"{line['score']:.3f} ({line['score_low']:.3f} to {line['score_high']:.3f})"
        assert score in texts and score.replace(" (", "\n(") in page
    assert any("CVaR" in name for name in data["configuration"])


@pytest.mark.fault(
    "wrong", "the tables of a study of other classes than the paper's", before="the paper's numbers beside them",
    now="none of them",
)  # fmt: skip
def test_the_paper_is_not_quoted_beside_other_classes(tmp_path):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (0.9, 0.7)}}, per_cell=8, classes=("covid19", "cap"))
    assert study_tables([folder], resamples=DRAWS).quoted == {}


def test_a_study_in_which_no_scans_choose_says_so_and_chooses_no_alpha(tmp_path):
    folder = write_study(tmp_path / "s", SWEEP, per_cell=12, folds=3, reported_split="val", protocol="cross_validation")
    tables = study_tables([folder], resamples=DRAWS)
    assert tables.selections == () and not tables.results.study.optimistic
    write_tables([folder], resamples=DRAWS)
    page = (folder / "tables" / "index.html").read_text()
    assert "no scans chose it" in page and "so that its number flatters" in page and "Optimistic" not in page
    assert "cross-validation by patient, 3 folds" in page


def test_three_groups_have_no_signed_gap(tmp_path):
    sites = ("alder", "birch", "cedar")
    systems = {"CE": {"skill": (0.9, 0.7, 0.5)}, "LA": {"skill": (0.8, 0.8, 0.8)}}
    folder = write_study(tmp_path / "s", systems, per_cell=8, groups=sites, classes=("x", "y"))
    tables = study_tables([folder], resamples=DRAWS)
    assert table_1(tables).columns == ("configuration", *(f"F1 {s}" for s in sites), "P", "|gap|", "seeds")
    for row in tables.rows:
        f1 = np.array([row.values[f"f1_{site}"] for site in sites])
        assert row.values["abs_gap"] == pytest.approx(np.ptp(f1, axis=0))
    write_tables([folder], resamples=DRAWS)
    assert tables.quoted == {}


EVIL = "a_b & 50% $x$ #{}~^\\input{/etc/passwd} <script>alert(1)</script> [x](http://e.org) |y| \u03b1\u00e9\u0436 *z*"


def test_hostile_names_come_out_inert(tmp_path):
    systems = {
        EVIL: {"skill": (0.8, 0.7), "alpha": 0.5, "system": EVIL},
        "[first]\nline": {"skill": (0.7, 0.7), "status": "failed", "reason": EVIL},
    }
    folder = write_study(tmp_path / "s", systems, per_cell=6, classes=("x", "<b>y</b>"), name=EVIL, warnings=[EVIL])
    write_tables([folder], resamples=DRAWS)
    page = (folder / "tables" / "index.html").read_text()
    assert "<script" not in page and "<b>y" not in page
    for name in ("tables.md", "table1.md"):
        tokens = MarkdownIt("commonmark").enable("table").parse((folder / "tables" / name).read_text())
        inline = [child for token in tokens for child in token.children or []]
        assert {token.type for token in [*tokens, *inline]}.isdisjoint(
            {"html_block", "html_inline", "link_open", "em_open"}
        )
    with (folder / "tables" / "table1.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["configuration"] == EVIL
    check_latex((folder / "tables" / "table1.tex").read_text())


def test_latex_counts_tables_itself(given_found):
    assert re.search(r"\\caption\{a study: mean", latex_table(table_1(given_found), "tab:table1"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_tables_of_awkward_names_compile_and_fit_the_page(tmp_path):
    names = ("a_b%c&d {x} #1 $5 ~ ^ \\cmd", '[odd] *star* `q\' "dq" <a|b>', f"ß \u2260 \u03b1 \u2212 {'wide ' * 30}")
    systems = {name: {"skill": (0.8, 0.7)} for name in names}
    parts = [
        write_study(tmp_path / device, systems, (1, 2), per_cell=6, devices=[f"{device}_{{}} 50% &"], name=names[0])
        for device in ("A100", "L4")
    ]
    write_tables(parts, tmp_path, resamples=DRAWS)
    (tmp_path / "page.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\begin{document}\sloppy"
        r"\input{table1}\input{table2}\ref{tab:table1}\ref{tab:table2}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert made.returncode == 0, made.stdout
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \((.*?)pt", made.stdout)]
    assert max(wide, default=0) < 1


def test_what_is_not_there_is_left_out_and_said(given_study, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(given_study, folder)
    for path in [*folder.glob("runs/*/history.csv"), *folder.glob("runs/*/val/evaluation/cells.csv")]:
        path.unlink()
    written = write_tables([folder], resamples=DRAWS)
    assert not {"curves.png", "figure1.png"} & {path.name for path in written.paths}
    text = (folder / "tables" / "tables.md").read_text()
    assert "no history.csv" in text and "no cells.csv" in text


def test_probes_of_runs_are_shown_against_the_gap(given_study, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(given_study, folder)
    evaluations = sorted(folder.glob("runs/*/val/evaluation"))
    results = read_results(load_study(folder))
    reading = Reading("network", 8, Estimate(0.81, 0.7, 0.9), Chance(0.5, 0.6), 0.01, ())
    for place, evaluation in enumerate(evaluations[:5]):
        found = replace(reading, auc=Estimate(0.6 + place / 50, 0.5, 0.8))
        made = Probe("sex", {"female": 48, "male": 48}, {}, 96, 96, "", 0.95, 100, 0, (found,), Verdict("note", ""))
        write_probe(evaluation, made)
    tables = study_tables([folder], resamples=DRAWS)
    (picture,) = encoding_pictures(tables)
    assert picture.caption.startswith(f"5 of {len(results.tables)} runs were probed for sex") and picture.svg
    shown = [tuple(map(float, pair)) for pair in re.findall(r"AUC (\S+), \|gap\| ([\d.]+\d)", picture.alt)]
    expected = []
    for run in results.study.runs:
        table = pd.read_csv(run.output_dir / "val" / "evaluation" / "predictions.csv")
        if (run.output_dir / "val" / "evaluation" / "probe.json").exists():
            of = [macro_f1(table[table["sex"] == sex]) for sex in SEXES]
            expected.append((0.6 + evaluations.index(run.output_dir / "val" / "evaluation") / 50, abs(of[0] - of[1])))
    np.testing.assert_allclose(shown, expected, atol=0.0006)
    evaluations[0].joinpath("probe.json").write_text("{")
    with pytest.raises(ProbeError, match=r"probe.json cannot be read"):
        encoding_pictures(tables)


def test_a_studys_own_quotes_replace_the_papers(given_study, given_found, tmp_path):
    tables = given_found
    assert set(tables.quoted) == set(SWEEP)
    table = table_1(tables)
    assert table.rows[0][-1] == "0.7413,\n0.1089" and table.columns[-1] == "quoted P, |gap|"
    assert any("not computed here" in note for note in table_notes(tables))
    own = change(given_study, lambda r: r.update(quoted={"CE": {"score": 0.5, "gap": -0.1}}), tmp_path / "own")
    table = table_1(study_tables([own], resamples=DRAWS))
    assert table.columns[-1] == "quoted P, gap (male minus female)"
    assert [row[-1] for row in table.rows] == ["0.5000,\n-0.1000", "\u2013", "\u2013"]
    none = change(given_study, lambda r: r.update(quoted={}), tmp_path / "none")
    assert "quoted" not in " ".join(table_1(study_tables([none], resamples=DRAWS)).columns)


def test_the_command(given_study, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    done = CliRunner().invoke(app, ["tables", str(given_study), "-o", str(tmp_path / "out"), "--resamples", "200"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert "LA+CVaR alpha 0.8" in done.output and "index.html" in done.output and "inconclusive:" in done.output
    wrong = CliRunner().invoke(app, ["tables", str(tmp_path)])
    assert wrong.exit_code == 1 and "it has no study.json" in wrong.output
