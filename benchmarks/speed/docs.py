"""docs/performance.md from the results: what stands between its markers is replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .harness import ROOT, as_markdown, markdown

PAGE = ROOT / "docs" / "performance.md"
MARKER = re.compile(r"(<!-- result: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TARGETS = "targets"
MET = {True: "met", False: "missed", None: "not measured"}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> result, of all in a folder."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def targets(found: dict[str, dict[str, Any]]) -> str:
    """The table of targets of all results; what a GPU measured stands for what a CPU could not."""
    rows: dict[str, dict[str, Any]] = {}
    for name, content in found.items():
        for target in content["targets"]:
            if target["measure"] in rows and target["met"] is None:
                continue
            device = content["machine"].get("gpu") or f"{content['machine']['cores']} CPU cores"
            rows[target["measure"]] = {
                "measure": target["measure"], "at least": target["target"], "measured": target["measured"],
                "": MET[target["met"]], "on": device if target["met"] is not None else "", "why": target["why"],
                "by": f"`{name}`",
            }  # fmt: skip
    return markdown(list(rows.values())) + "\n"


def filled(page: str, found: dict[str, dict[str, Any]]) -> str:
    """A page with the results between its markers."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name == TARGETS:
            text = targets(found)
        elif name in found:
            text = as_markdown(found[name])
        else:
            text = "Not measured yet.\n"
        return f"{match[1]}{text}{match[3]}"

    return MARKER.sub(replace, page)


def write(folder: Path, page: Path = PAGE) -> Path:
    page.write_text(filled(page.read_text(), results(folder)))
    return page
