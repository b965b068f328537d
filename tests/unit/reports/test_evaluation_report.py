"""Reports and model cards say what the audit says, on one page that asks for nothing, whatever names they are given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.audit import NoAuditError, audit
from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.evaluation.records import json_text, to_plain
from fairlung.pipeline.networks.checkpoint import MODEL_SETTINGS
from fairlung.pipeline.reports.comparison_report import write_comparison_report
from fairlung.pipeline.reports.document import LEVELS, Document, Paragraph, Section, Table, write_document
from fairlung.pipeline.reports.evaluation_report import (
    evaluation_report,
    report_evaluation,
    report_of_table,
    write_report,
)
from fairlung.pipeline.reports.evaluation_summary import write_evaluation
from fairlung.pipeline.reports.evidence import EvidenceError, read_evidence
from fairlung.pipeline.reports.model_card import END, START, MarksError, update_performance, write_model_card

CLASSES = ("adenocarcinoma", "squamous_cell", "normal")
SEXES = ("male", "female")
EVIL = ("<script>alert(1)</script>", "a|b*c*_d_", '"><img src=x onerror=alert(2)>')
EVIL_GROUPS = ("[x](https://example.org)", "`$y$`")


def write_table(
    path: Path,
    classes: Sequence[str],
    groups: Sequence[str],
    seed: int = 0,
    patients: bool = False,
    synthetic: bool = False,
) -> Path:
    """12 scans a cell, 3 in the last; the predictions of the second group are worse."""
    rng = np.random.default_rng(seed)
    rows = []
    for g, group in enumerate(groups):
        for c, name in enumerate(classes):
            for _ in range(3 if (g, c) == (len(groups) - 1, len(classes) - 1) else 12):
                share = rng.dirichlet(np.full(len(classes), 0.5)) + (0.6 - 0.25 * (g == 1)) * (
                    np.arange(len(classes)) == c
                )
                share = (share / share.sum()).round(6)
                row = {
                    "scan": f"scans/{len(rows):03d}",
                    "label": name,
                    "sex": group,
                    "prediction": classes[share.argmax()],
                }
                row |= {f"prob_{other}": p for other, p in zip(classes, share, strict=True)}
                row |= {"patient": f"Jane Roe {len(rows)}", "birth": "1950-01-01"} if patients else {}
                row |= {"synthetic": "yes"} if synthetic else {}
                rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def make_run(
    output_dir: Path,
    classes: Sequence[str] = CLASSES,
    groups: Sequence[str] = SEXES,
    split: str = "test",
    extras: bool = True,
    synthetic: bool = False,
    **settings: Any,
) -> Path:
    """The evaluation folder of a run as the pipeline leaves it."""
    folder = output_dir / split / "evaluation"
    table = write_table(folder / "predictions.csv", classes, groups, synthetic=synthetic)
    checkpoint = str(settings.pop("checkpoint", output_dir / "models" / "best.pt"))
    write_evaluation(table, classes, groups, split=split, checkpoint=checkpoint, **settings)
    judged = audit(load_predictions(table, classes, groups), resamples=200, permutations=200)
    (folder / "audit.json").write_text(json_text(judged))
    if extras:
        names = ["train_loss", "lr", "val_score", "val_gap", *(f"val_f1_{name}" for name in groups)]
        rows = [(epoch, name, 0.5 - abs(epoch - 3) / 10) for epoch in range(1, 6) for name in names]
        pd.DataFrame(rows, columns=["epoch", "metric", "value"]).to_csv(output_dir / "history.csv", index=False)
        cells = [(s, c, g, n) for s, n in (("train", 40), ("test", 12)) for c in classes for g in groups]
        pd.DataFrame(cells, columns=["split", "label", "group", "n"]).to_csv(folder / "cells.csv", index=False)
        (folder / "errors").mkdir()
        Image.new("L", (512, 256), 90).save(folder / "errors" / "0001.png")
        error = {"scan": f"scans/{classes[0]}", "label": classes[0], "group": groups[0], "prediction": classes[1]}
        error |= {"confidence": 0.875, "image": "0001.png"}
        (folder / "errors" / "errors.json").write_text(json.dumps([error]))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete evaluation and its report. Read-only."""
    folder = make_run(tmp_path_factory.mktemp("run"), synthetic=True)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with names that are markup."""
    folder = make_run(tmp_path_factory.mktemp("evil"), EVIL, EVIL_GROUPS)
    write_report(folder)
    write_model_card(folder, folder / "CARD.md")
    return folder


class Page(HTMLParser):
    """What a browser would find: elements, pictures, tables, headings, texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.headings: list[str] = []
        self.items: list[str] = []
        self._open: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td", "caption", "h2", "li"):
            self._open.append([])

    def handle_data(self, data: str) -> None:
        for part in self._open:
            part.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td", "caption", "h2", "li"):
            text = "".join(self._open.pop()).strip()
            if tag in ("th", "td"):
                self.tables[-1][-1].append(text)
            else:
                {"caption": self.captions, "h2": self.headings, "li": self.items}[tag].append(text)

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def page_of(folder: Path, name: str = "report.html") -> Page:
    return Page((folder / name).read_text())


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Texts of the cells of a Markdown file's tables, by an independent parser."""
    tables: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            cell = True
        elif token.type == "inline" and cell:
            tables[-1][-1].append("".join(child.content for child in token.children or []))
            cell = False
    return tables


def judged_by(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text())


def test_the_verdicts_stand_first_with_a_sign_and_a_word(run):
    page = page_of(run)
    assert page.headings[0] == "Verdicts"
    expected = [f"{LEVELS[v['level']][0]} {LEVELS[v['level']][1]} {v['text']}" for v in judged_by(run)["verdicts"]]
    assert page.items == expected
    assert len({word for _, word in LEVELS.values()}) == len({sign for sign, _ in LEVELS.values()}) == 4
    markdown = (run / "report.md").read_text()
    assert markdown.index("## Verdicts") < markdown.index("**No statement**: female normal") < markdown.index("## Head")


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
        for text, score in zip(row[1:], ("precision", "recall", "f1"), strict=True):
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
        *(f"{judged['differences'][key]['adenocarcinoma']:.3f}" for key in ("equalized_odds", "demographic_parity")),
    ]


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
    blocks = evaluation_report(replace(read_evidence(run), errors=(), history=None, cells=None)).sections[5].blocks
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


@pytest.mark.parametrize(
    ("checkpoint", "record", "expected"),
    [
        ("models/best.pt", None, (3, "the one of the highest P")),
        ("models/best.pt", {"best_epoch": 4}, (4, "the best one")),
        ("models/checkpoint_epoch=2.pt", {"best_epoch": 4}, (2, "the judged checkpoint's")),
        ("elsewhere.pt", {"best_epoch": 4}, (None, "")),
    ],
)
def test_the_epoch_of_the_judged_checkpoint_is_marked(tmp_path, checkpoint, record, expected):
    folder = make_run(tmp_path, checkpoint=tmp_path / checkpoint)
    if record is not None:
        (tmp_path / "mlflow_run.json").write_text(json.dumps(record))
    evidence = read_evidence(folder)
    assert (evidence.marked_epoch, evidence.marked_by) == expected
    assert (evidence.history is None) == (checkpoint == "elsewhere.pt")  # whose training is not known


def test_an_evaluation_of_another_training_shows_that_training(tmp_path):
    make_run(tmp_path / "trained")
    best = tmp_path / "trained" / "models" / "best.pt"
    best.parent.mkdir()
    best.touch()
    pd.DataFrame([(7, "val_score", 0.5)], columns=["epoch", "metric", "value"]).to_csv(best.parents[1] / "history.csv")
    folder = make_run(tmp_path / "here", checkpoint=best)
    history = read_evidence(folder).history
    assert history is not None and list(history["epoch"]) == [7]


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(EvidenceError, match="holds no evaluation"):
        write_report(tmp_path)
    folder = make_run(tmp_path)
    good = (folder / "audit.json").read_text()
    other = json.loads(good)
    other["confusion"][0][0][0] += 1
    (folder / "audit.json").write_text(json.dumps(other))
    with pytest.raises(EvidenceError, match="not of the same predictions"):
        write_report(folder)
    (folder / "audit.json").write_text(good[:100])
    with pytest.raises(EvidenceError, match=r"audit\.json cannot be read"):
        write_report(folder)
    (folder / "audit.json").write_text(good)
    (folder / "errors" / "0001.png").write_text("no picture")
    with pytest.raises(EvidenceError, match=r"0001\.png is no PNG"):
        write_report(folder)
    (folder / "errors" / "0001.png").unlink()
    with pytest.raises(EvidenceError, match=r"names 0001\.png, which cannot be read"):
        write_report(folder)
    shutil.rmtree(folder / "errors")
    (folder / "cells.csv").write_text("split,label,group\n")
    with pytest.raises(EvidenceError, match=r"cells\.csv cannot be read: no column n"):
        write_report(folder)
    with pytest.raises(ValueError, match=r"report is an \.html file.*got report\.pdf"):
        write_report(folder, tmp_path / "report.pdf")


def test_one_group_alone_is_a_warning_at_the_end_of_an_evaluation(tmp_path, caplog):
    folder = make_run(tmp_path, extras=False)
    table = pd.read_csv(folder / "predictions.csv")
    table[table["sex"] == "male"].to_csv(folder / "predictions.csv", index=False)
    write_evaluation(folder / "predictions.csv", CLASSES, SEXES, split="test")
    (folder / "audit.json").unlink()
    assert write_report(folder) is None
    assert "no report" in caplog.text and "two groups" in caplog.text
    with pytest.raises(NoAuditError):
        write_model_card(folder, tmp_path / "CARD.md")


def test_pictures_of_an_earlier_report_are_removed(tmp_path):
    (tmp_path / "report_files").mkdir()
    (tmp_path / "report_files" / "error_99.png").touch()
    (tmp_path / "report_files" / "mine.txt").touch()
    write_document(Document("t", (), (Section("s", ()),)), tmp_path / "report.html")
    assert [path.name for path in (tmp_path / "report_files").iterdir()] == ["mine.txt"]


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="table 'c': 1 values in a row of 2 columns"):
        Table("c", ("a", "b"), (("x",),))


# ---------------------------------------------------------------------------------------------------------------------
# comparisons
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["sexes", "sites"])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    groups = SEXES if request.param == "sexes" else ("alder", "birch", "cedar")
    folder = tmp_path_factory.mktemp("compare")
    systems: dict[str, list[Any]] = {}
    for seed, name in enumerate(("CE", "CE", "<b>LA</b>", "<b>LA</b>", "one|run")):
        path = write_table(folder / f"{seed}.csv", CLASSES, groups, seed)
        systems.setdefault(name, []).append(load_predictions(path, CLASSES, groups))
    result = compare(systems, resamples=200, permutations=200)
    (folder / "compare.json").write_text(json_text(result))
    return to_plain(result), write_comparison_report(folder / "compare.json", folder / "report.html")


def test_a_comparison_shows_systems_differences_and_holm(compared):
    result, path = compared
    page = Page(path.read_text())
    assert page.headings[:2] == ["Verdicts", "Systems"]
    assert [item.split(" ", 1)[0] for item in page.items] == [LEVELS[v["level"]][0] for v in result["verdicts"]]
    systems, differences, tests = page.tables[:3]
    assert systems[0][1:] == ["CE", "<b>LA</b>", "one|run"] and systems[1] == ["runs", "2", "2", "1"]
    assert (
        systems[2][1] == f"{result['systems'][0]['values']['score']:.3f} (SD {result['systems'][0]['sd']['score']:.3f})"
    )
    assert systems[2][3] == f"{result['systems'][2]['values']['score']:.3f}"
    expected = [e for comparison in result["comparisons"] for e in comparison["differences"].values()]
    assert [row[1] for row in differences[1:]] == [f"{e['value']:+.3f}" for e in expected]
    assert [row[2] for row in differences[1:]] == [f"{e['low']:+.3f} to {e['high']:+.3f}" for e in expected]
    tested = [test for comparison in result["comparisons"] for test in comparison["tests"].values()]
    assert [row[2:4] for row in tests[1:]] == [[f"{t['p_value']:.3g}", f"{t['p_holm']:.3g}"] for t in tested]
    assert markdown_tables(path.with_suffix(".md").read_text()) == page.tables
    assert "b" not in {tag for tag, _ in page.elements}


def test_what_is_no_comparison_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"verdicts": []}')
    with pytest.raises(EvidenceError, match="is no comparison"):
        write_comparison_report(tmp_path / "a.json", tmp_path / "a.html")
    with pytest.raises(EvidenceError, match="cannot be read"):
        write_comparison_report(tmp_path / "b.json", tmp_path / "a.html")


# ---------------------------------------------------------------------------------------------------------------------
# model card and README
# ---------------------------------------------------------------------------------------------------------------------
def test_a_model_card_is_filled_from_the_evaluation(tmp_path):
    folder = make_run(tmp_path, split="val", synthetic=True)
    (tmp_path / "models").mkdir()
    settings = dict.fromkeys(MODEL_SETTINGS, 1) | {"window": [-1350, 150], "num_slices": 48}
    torch.save({"model": {}, "settings": settings}, tmp_path / "models" / "best.pt")
    (tmp_path / "settings.json").write_text(json.dumps({"alpha": 0.8, "system": "LA+CVaR"}))
    text = write_model_card(folder, tmp_path / "MODEL_CARD.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["library_name"] == "monai" and "synthetic" in front["tags"] and front["license"] == "apache-2.0"
    headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert headings == [
        "Model description", "Intended use", "Out of scope", "Training data", "Training procedure", "Evaluation data",
        "Results by sex", "Limitations", "Fairness", "How to use", "Citation",
    ]  # fmt: skip
    for said in (
        "- num_slices (slices): 48", "- window (HU that become 0 and 1): -1350, 150", "- alpha (CVaR over groups): 0.8",
        "- Objective: LA+CVaR", "- Seed: not stated", "- Epochs: 5",
        "- Epoch of the checkpoint: 3 (the one of the highest P)",
        "- Learning rate at first: 0.3", "optimistic", "Too few scans for a statement: female normal (3).", "SYNTHETIC",
    ):  # fmt: skip
        assert said in body
    score = judged_by(folder)["overall"]["score"]
    tables = markdown_tables(body)
    assert ["adenocarcinoma", "40", "40"] in tables[0]
    assert tables[1][1] == [
        "P (mean over groups of the macro F1)", f"{score['value']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}"
    ]  # fmt: skip
    for verdict in judged_by(folder)["verdicts"]:
        assert verdict["text"].replace("|", "\\|") in body


def test_a_model_card_says_what_is_not_stated(tmp_path):
    folder = make_run(tmp_path, extras=False)
    body = write_model_card(folder, tmp_path / "sub" / "MODEL_CARD.md").read_text()
    for said in (
        "each class and group: not stated",
        "Objective: not stated",
        "Epochs: not stated",
        "num_slices (slices): not",
    ):
        assert said in body
    assert "SYNTHETIC" not in body and "synthetic" not in body


def test_performance_is_put_between_the_marks_and_nowhere_else(run, tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# Bundle\r\n\r\nText <!-- other -->\r\n", "\r\n## Next\r\n"
    readme.write_bytes(f"{before}{START}\nold numbers\n{END}{after}".encode())
    update_performance(readme, run)
    once = readme.read_bytes()
    update_performance(readme, run)
    assert readme.read_bytes() == once
    text = once.decode()
    assert text.startswith(before + START) and text.endswith(END + after) and "old numbers" not in text
    assert "SYNTHETIC" in text
    (headline, cells) = markdown_tables(text)
    assert headline == page_of(run).tables[0] and cells == page_of(run).tables[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "performance:start.* once, found 0"),
        (f"{START}{START}{END}", "performance:start.* once, found 2"),
        (f"{START}", "performance:end.* once, found 0"),
        (f"{END}{START}", "stands before"),
    ],
)
def test_a_readme_without_its_marks_is_left_alone(run, tmp_path, content, message):
    readme = tmp_path / "README.md"
    readme.write_text(content)
    with pytest.raises(MarksError, match=message):
        update_performance(readme, run)
    assert readme.read_text() == content
    with pytest.raises(MarksError, match="cannot be read"):
        update_performance(tmp_path / "none.md", run)


# ---------------------------------------------------------------------------------------------------------------------
# the console program, and a browser
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("compared", ["sexes"], indirect=True)
def test_commands_write_reports_and_cards(cli, run, compared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.parents[1], copy)
    (copy / "test" / "evaluation" / "report.html").unlink()
    done = cli("report", copy)
    assert done.exit_code == 0, done.output
    assert (copy / "test" / "evaluation" / "report.html").read_bytes() == (run / "report.html").read_bytes()
    done = cli("report", "--compare", compared[1].with_name("compare.json"), "-o", "sub/c.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "sub" / "c.html").read_text() == compared[1].read_text()
    (tmp_path / "README.md").write_text(f"{START}{END}")
    done = cli("model-card", copy, "--split", "test", "--bundle-readme", "README.md")
    assert done.exit_code == 0, done.output
    assert "## Results by sex" in (tmp_path / "MODEL_CARD.md").read_text()
    assert "Headline numbers" in (tmp_path / "README.md").read_text()


def test_a_table_with_other_columns_is_reported_by_command(cli, tmp_path):
    write_table(tmp_path / "t.csv", CLASSES, SEXES)
    done = cli("report", "t.csv", "--group-by", "sex", "--group-name", "female", "--group-name", "male")
    assert done.exit_code == 0, done.output
    assert "female minus male" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "give a SOURCE, or --compare"),
        (["report", "x.csv", "--compare", "y.json"], "give a SOURCE, or --compare"),
        (["report", "--compare", "y.json"], "y.json cannot be read"),
        (["report", "nowhere"], "nowhere"),
        (["model-card", "nowhere"], "nowhere"),
    ],
)
def test_commands_say_what_is_wrong(cli, arguments, message):
    done = cli(*arguments)
    assert done.exit_code == 1
    assert message in done.output


@pytest.mark.slow
@pytest.mark.parametrize("compared", ["sexes"], indirect=True)
def test_the_page_in_a_browser(run, evil, compared, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path}/browser",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        for path in (run / "report.html", evil / "report.html", compared[1]):
            for width in (1200, 390):
                screen = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
                browser.get(path.as_uri())
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                assert browser.execute_script("return innerWidth") == width
                asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
                assert [name for name in asked if not name.startswith("data:")] == []
                pictures = browser.find_elements(By.TAG_NAME, "img")
                assert pictures and all(picture.get_attribute("alt") for picture in pictures)
                loaded = browser.execute_script(
                    "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
                )
                assert loaded
            assert browser.execute_script("return document.scripts.length") == 0
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def test_a_report_that_fails_ends_no_evaluation_and_leaves_no_old_one(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(run, tmp_path / "evaluation")
    (folder / "audit.json").write_text("{")
    assert report_evaluation(folder) is None
    assert "no report" in caplog.text
    assert not list(folder.glob("report.*")) and not list(folder.glob("report_files/*.png"))
