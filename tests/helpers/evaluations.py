"""Evaluations as the pipeline leaves them, and what a reader finds in their reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from PIL import Image

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.evaluation.records import json_text, to_plain
from fairlung.pipeline.reports.comparison_report import write_comparison_report
from fairlung.pipeline.reports.evidence import write_evaluation

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


def make_comparison(folder: Path, groups: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The content of a compare.json of three systems, and its report."""
    systems: dict[str, list[Any]] = {}
    for seed, name in enumerate(("CE", "CE", "<b>LA</b>", "<b>LA</b>", "one|run")):
        path = write_table(folder / f"{seed}.csv", CLASSES, groups, seed)
        systems.setdefault(name, []).append(load_predictions(path, CLASSES, groups))
    result = compare(systems, resamples=200, permutations=200)
    (folder / "compare.json").write_text(json_text(result))
    return to_plain(result), write_comparison_report(folder / "compare.json", folder / "report.html")


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
