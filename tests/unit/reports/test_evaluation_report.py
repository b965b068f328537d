"""Reports say what the audit says, on one page that asks for nothing, whatever names they are given."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluations import (
    CLASSES,
    EVIL,
    EVIL_GROUPS,
    SEXES,
    judged_by,
    make_run,
    markdown_tables,
    page_of,
    write_table,
)
from markdown_it import MarkdownIt
from reconstruction import predictions_of

from fairlung.pipeline.evaluation.audit import NoAuditError, audit
from fairlung.pipeline.evaluation.records import Chance
from fairlung.pipeline.evaluation.resampling import Estimate
from fairlung.pipeline.evaluation.wording import Verdict
from fairlung.pipeline.reports.document import LEVELS, Paragraph, write_document
from fairlung.pipeline.reports.evaluation_report import (
    evaluation_report,
    report_evaluation,
    report_of_table,
    write_report,
)
from fairlung.pipeline.reports.evidence import Evidence, read_evidence, write_evaluation
from fairlung.pipeline.reports.model_card import write_model_card
from fairlung.pipeline.shortcuts.probe import NOT_USED, ClassReading, Probe, ProbeError, Reading, write_probe


def test_the_verdicts_stand_first_with_a_sign_and_a_word(run):
    page = page_of(run)
    assert page.headings[0] == "Verdicts"
    expected = [f"{LEVELS[v['level']][0]} {LEVELS[v['level']][1]} {v['text']}" for v in judged_by(run)["verdicts"]]
    assert page.items == expected
    assert len({word for _, word in LEVELS.values()}) == len({sign for sign, _ in LEVELS.values()}) == len(LEVELS)
    markdown = (run / "report.md").read_text()
    assert markdown.index("## Verdicts") < markdown.index("**No statement**: female normal") < markdown.index("## Head")


def test_a_report_names_its_run_the_commit_and_the_day(tmp_path: Path) -> None:
    folder = make_run(tmp_path, extras=False)
    known = dict(evaluation_report(read_evidence(folder)).facts)
    assert "Run" not in known and "Commit" not in known
    written = datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime, UTC)
    assert known["Judged on"] == f"{written:%Y-%m-%d}"
    record = {"run_name": "LA+CVaR seed 1", "run_id": "0badf00d", "commit": "c0ffee"}
    (tmp_path / "mlflow_run.json").write_text(json.dumps(record))
    known = dict(evaluation_report(read_evidence(folder)).facts)
    assert (known["Run"], known["Commit"]) == ("LA+CVaR seed 1 0badf00d", "c0ffee")


def test_every_number_of_the_audit_stands_in_a_table(run):
    judged = judged_by(run)
    page = page_of(run)
    tables = dict(zip(page.captions, page.tables, strict=True))
    (cells,) = (table for caption, table in tables.items() if caption.startswith("Each class and group"))
    shown = {row[0]: row[1:] for row in cells[1:]}
    assert len(shown) == len(judged["cells"])
    for cell in judged["cells"]:
        row = shown[f"{cell['class']}, {cell['group']}"]
        assert row[0].split()[0] == str(cell["n"]) and ("no statement" in row[0]) == cell["small"]
        for text, score in zip(row[1:], ("precision", "recall", "f1", "recall_pooled"), strict=True):
            value, low, high = (cell[score][part] for part in ("value", "low", "high"))
            assert text == f"{value:.3f} ({low:.3f} to {high:.3f})"
    (headline,) = (table for caption, table in tables.items() if caption.startswith("Headline"))
    gap = judged["overall"]["gap"]
    assert [
        "gap (male minus female)",
        f"{gap['value']:+.3f}",
        f"{gap['low']:+.3f} to {gap['high']:+.3f}",
    ] in (headline)
    (calibration,) = (table for caption, table in tables.items() if caption.startswith("Probabilities"))
    assert [row[0] for row in calibration[1:]] == ["male (36 scans)", "female (27 scans)"]
    assert calibration[1][1].startswith(f"{judged['groups'][0]['auc']['value']:.3f} (")
    (fairlearn,) = (table for caption, table in tables.items() if caption.startswith("Differences"))
    assert fairlearn[1] == [
        "adenocarcinoma",
        *(
            "{value:.3f} ({low:.3f} to {high:.3f})".format(
                **judged["differences"][f"{key}_intervals"]["adenocarcinoma"]
            )
            for key in ("equalized_odds", "demographic_parity")
        ),
    ]
    (wrong,) = (table for caption, table in tables.items() if caption.startswith("The gap if records"))
    for row, found in zip(wrong[1:], judged["tipping_point"]["rows"], strict=True):
        assert row[1].startswith(f"{found['gap']['value']:+.3f} (")
        assert row[3] == ("yes" if found["finding"] else "no")


def test_missed_diagnoses_sensitivity_and_auprc_stand_in_tables(run, evil):
    clinical, page = judged_by(run)["clinical"], page_of(run)
    tables = dict(zip(page.captions, page.tables, strict=True))
    shown = {row[0]: row[1:] for row in tables["Missed and false diagnoses"][1:]}
    (caption,) = (name for name in tables if name.startswith("not normal: a probability above"))
    shown |= {row[0]: row[1:] for row in tables[caption][1:]}
    (point,) = clinical["operating_points"]
    assert f"{point['threshold']:.3f}" in caption and caption.endswith(f"{point['reached']:.3f}")
    numbers = {name: clinical["diagnosis"][name] for name in ("underdiagnosis", "overdiagnosis")}
    numbers |= {"sensitivity": point["sensitivities"], "specificity": point["specificities"]}
    assert sum("no statement" in row[0] for row in shown.values()) == 2  # of 3 scans of women who are normal
    for name, number in numbers.items():
        for one in number["groups"]:
            value = one["value"]
            ends = [f"{value['value']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}"]
            scans = f"{one['n']}{' (no statement)' if one['small'] else ''}"
            assert shown[f"{name}, {one['group']}"] == [scans, *ends]
        assert (f"{name}, male minus female" in shown) == (number["difference"] is not None)
    (curves,) = (table for name, table in tables.items() if name.startswith("Each class against the rest"))
    assert [row[2].split()[0] for row in curves[1:]] == [
        f"{one['average_precision']['value']:.3f}"
        for one in sorted(clinical["retrieval"], key=lambda one: CLASSES.index(one["class"]))
    ]
    markdown = (run / "report.md").read_text()
    assert "cannot be compared by it: no verdict is drawn" in markdown
    assert f"is {clinical['equity_scaled_auc']['value']:.3f}: the AUC of all scans" in markdown
    assert not [name for name in page_of(evil).captions if name == "Missed and false diagnoses"]
    assert (evil / "report.md").read_text().count("no class is called normal") == 1


@pytest.mark.parametrize("name", ["run", "evil"])
def test_markdown_says_the_same_as_html(name, request):
    folder = request.getfixturevalue(name)
    markdown = (folder / "report.md").read_text()
    page = page_of(folder)
    assert markdown_tables(markdown) == page.tables
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.tag == "h2" and token.nesting == 1]
    assert headings == page.headings
    images = [c for token in tokens for c in token.children or [] if c.type == "image"]
    assert [image.content.replace("\\", "") for image in images] != []
    assert len(images) == len(page.images())
    for image in images:
        assert (folder / image.attrs["src"]).read_bytes().startswith(b"\x89PNG")


def test_names_that_are_markup_come_out_inert(evil):
    page = page_of(evil)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "iframe", "object", "svg", "a"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert {image["src"][:11] for image in page.images() if image["src"]} == {"data:image/"}
    names = [row[0] for row in page.tables[1][1:]]
    assert names == [f"{name}, {group}" for name in EVIL for group in EVIL_GROUPS]
    for file in ("report.md", "CARD.md"):
        tokens = MarkdownIt("commonmark").enable("table").parse((evil / file).read_text())
        inline = [child for token in tokens for child in token.children or []]
        assert {token.type for token in [*tokens, *inline]}.isdisjoint(
            {"html_block", "html_inline", "link_open", "em_open"}
        )


def test_a_report_asks_for_nothing_and_describes_its_pictures(run):
    page = page_of(run)
    text = (run / "report.html").read_text()
    assert ("html", {"lang": "en"}) in page.elements
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
    gap = judged_by(run)["overall"]["gap"]
    assert any(f"gap {gap['value']:+.3f}" in (image["alt"] or "") for image in page.images())
    assert all(len(image["alt"] or "") > 20 for image in page.images())
    assert [attributes for tag, attributes in page.elements if tag == "th" and "scope" not in attributes] == []
    assert len(page.captions) == len(page.tables)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_probes_are_a_section_that_does_not_say_used(run, tmp_path):
    folder = tmp_path / "evaluation"
    shutil.copytree(run, folder)
    words = "What can be read from the features"
    assert words not in (folder / "report.md").read_text()
    classes = (ClassReading("normal", 30, Estimate(0.71, 0.6, 0.8)),)
    readings = tuple(
        Reading(kind, 8, Estimate(auc, auc - 0.05, 0.99), Chance(0.52, 0.61), 0.004, classes)
        for kind, auc in zip(("network", "untrained", "image"), (0.912, 0.822, 0.733), strict=True)
    )
    about = {"": 3, "<b>rare</b>": 2}, 96, 90, "random weights of seed 42", 0.95, 200, 0, readings
    write_probe(folder, Probe("scanner|<i>", {"A": 48, "B": 48}, *about, Verdict("finding", f"It is. {NOT_USED}")))
    write_report(folder)
    page, text = page_of(folder), (folder / "report.md").read_text()
    assert words in text and NOT_USED in text and "random weights of seed 42" in text
    (table,) = [table for table in page.tables if any("features of" in cell for cell in table[0])]
    assert [row[2][:5] for row in table[1:]] == ["0.912", "0.822", "0.733"] and "0.710" in table[1][5]
    html = (folder / "report.html").read_text()
    assert "no value 3, &lt;b&gt;rare" in html and not {"b", "i"} & {name for name, _ in page.elements}
    (folder / "probe.json").write_text("{}")
    with pytest.raises(ProbeError, match=r"probe.json cannot be read: no probes"):
        write_report(folder)


def test_the_same_evaluation_gives_the_same_bytes(run, tmp_path):
    again = write_report(run, tmp_path / "a.html")
    assert again == tmp_path / "a.html"
    assert again.read_bytes() == (run / "report.html").read_bytes()
    for path in sorted((run / "report_files").iterdir()):
        assert (tmp_path / "a_files" / path.name).read_bytes() == path.read_bytes()


def test_synthetic_scans_are_said_to_be(run, evil):
    for name in ("report.html", "report.md"):
        assert "SYNTHETIC" in (run / name).read_text()
        assert "SYNTHETIC" not in (evil / name).read_text()


def test_why_there_is_no_gallery_is_said_where_it_is_known(tmp_path):
    folder = make_run(tmp_path, extras=False)
    (folder / "errors").mkdir()
    (folder / "errors" / "errors.json").write_text('{"problem": "no_pictures: the disk is full"}')
    write_report(folder)
    assert "the worst errors (no_pictures: the disk is full)" in (folder / "report.md").read_text().replace("\\", "")


def test_what_was_not_made_is_left_out_and_said(tmp_path):
    folder = make_run(tmp_path, extras=False)
    (folder / "audit.json").unlink()  # an evaluation of before the audit: it is run now
    write_report(folder)
    page, text = page_of(folder), (folder / "report.html").read_text()
    assert {"Learning curves", "Cohort", "Worst errors"}.isdisjoint(page.headings)
    for reason in ("no history.csv", "no cells.csv", "no gallery"):
        assert reason in text
    assert "10,000 bootstrap resamples" in text


def test_a_gallery_without_an_error_says_so(run):
    blocks = evaluation_report(replace(read_evidence(run), errors=(), history=None, cells=None)).sections
    (blocks,) = (section.blocks for section in blocks if section.title == "Worst errors")
    assert blocks == (Paragraph("No prediction was wrong."),)


def test_a_table_without_probabilities_or_sexes_is_reported_too(tmp_path):
    table = pd.read_csv(write_table(tmp_path / "other.csv", CLASSES, ("alder", "birch", "cedar")))
    table = table[["scan", "label", "sex", "prediction"]].rename(columns={"sex": "site"})
    table.loc[0, "site"] = ""
    table.to_csv(tmp_path / "other.csv", index=False)
    write_document(report_of_table(tmp_path / "other.csv", group_by=["site"]), tmp_path / "report.html")
    page, text = page_of(tmp_path), (tmp_path / "report.html").read_text()
    assert "Calibration" not in page.headings and "no probabilities" in text
    assert "other.csv" in text and "(and 1 of unknown group, left out)" in text
    assert any(row[0] == "|gap| (largest between two groups)" for row in page.tables[0])


def test_patients_never_reach_a_report(tmp_path):
    write_table(tmp_path / "p.csv", CLASSES, SEXES, patients=True)
    write_document(report_of_table(tmp_path / "p.csv"), tmp_path / "report.html")
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Jane" not in text and "1950" not in text


def test_one_group_alone_is_a_warning_at_the_end_of_an_evaluation(tmp_path, caplog):
    folder = make_run(tmp_path, extras=False)
    table = pd.read_csv(folder / "predictions.csv")
    table[table["sex"] == "male"].to_csv(folder / "predictions.csv", index=False)
    write_evaluation(folder / "predictions.csv", CLASSES, SEXES, split="test")
    assert not (folder / "audit.json").exists()  # not that of an earlier evaluation either
    assert write_report(folder) is None
    assert "no report" in caplog.text and "two groups" in caplog.text
    with pytest.raises(NoAuditError):
        write_model_card(folder, tmp_path / "CARD.md")


def test_a_report_that_fails_ends_no_evaluation_and_leaves_no_old_one(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(run, tmp_path / "evaluation")
    (folder / "audit.json").write_text("{")
    assert report_evaluation(folder) is None
    assert "no report" in caplog.text
    assert not list(folder.glob("report.*")) and not list(folder.glob("report_files/*.png"))


def test_numbers_alone_leave_no_picture_of_an_earlier_evaluation(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "evaluation")
    write_evaluation(folder / "predictions.csv", CLASSES, SEXES, split="test")
    assert report_evaluation(folder) is not None and (folder / "confusion.png").is_file()
    write_evaluation(folder / "predictions.csv", CLASSES, SEXES, split="test", picture=False)
    assert report_evaluation(folder, wanted=False) is None
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "metrics.json" in left and not left & {"confusion.png", "report.html", "report.md"}


@pytest.mark.parametrize(
    ("confusion", "said"),
    [
        ([np.full((3, 3), 9)] * 3, "what wrong records would change (asked of two groups, and there are 3)"),
        (
            [np.full((3, 3), 9), np.diag([12, 12, 0])],
            "equivalence, and the gap with the classes of every group in one mix (a group lacks a class that another",
        ),
        ([np.full((2, 2), 1)] * 2, "what wrong records would change (a group has too few scans)"),
        ([np.full((2, 2), 9)] * 2, ""),
    ],
)
def test_a_report_says_why_nothing_is_said_of_wrong_records(confusion: list[np.ndarray], said: str) -> None:
    groups = ("alder", "birch", "cedar")[: len(confusion)]
    found = audit(predictions_of(confusion, group_names=groups), resamples=100, permutations=100)
    report = evaluation_report(Evidence(found))
    left_out = report.sections[-1].blocks[-1].text
    assert left_out.startswith("Left out: ")
    if said:
        assert said in left_out
    else:
        assert "wrong records" not in left_out and "equivalence" not in left_out
