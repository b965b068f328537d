"""The description of a run in MLflow, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def note_markdown(result: Mapping[str, Any]) -> str:
    """An evaluation as the Markdown of an MLflow description: verdicts, headline, F1 of each class and group.

    Args:
        result: what :func:`~.write_evaluation` returns. Optionally ``audit`` with ``verdicts``, a list of
            ``{"level", "text"}``; ``epoch`` of the checkpoint; ``about``, a line on the run.
    """
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    lines = [f"- {verdict['text']}" for verdict in (result.get("audit") or {}).get("verdicts", [])]
    lines += [""] if lines else []
    lines += [result["about"], ""] if result.get("about") else []
    columns = {"score": "P", "gap": f"gap ({' - '.join(groups)})", "abs_gap": "|gap|"}
    columns |= {f"f1_{group}": f"F1 {group}" for group in groups} | {"f1_macro": "pooled macro F1"}
    columns = {name: heading for name, heading in columns.items() if name in scores}
    lines += _table(
        [*columns.values()], [[f"{scores[name]:+.4f}" if name == "gap" else f"{scores[name]:.4f}" for name in columns]]
    )
    supports = [[sum(row) for row in matrix] for matrix in result["confusion"]]
    cells = [
        [name, *(f"{scores[f'f1_{group}_{name}']:.4f} (n={supports[g][c]})" for g, group in enumerate(groups))]
        for c, name in enumerate(classes)
    ]
    lines += ["", *_table(["F1 of class", *groups], cells), ""]
    epoch = "" if result.get("epoch") is None else f" of epoch {result['epoch']}"
    lines.append(f"Split {result['split']}, checkpoint {Path(result['checkpoint']).name}{epoch}.")
    if result["synthetic"]:
        lines.append("The scans are **SYNTHETIC** (phantoms): nothing here is about patients.")
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    listed = [headings, ["---"] * len(headings)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (*listed[:1], *rows)]
    return ["| " + " | ".join(row) + " |" for row in (escaped[0], listed[1], *escaped[1:])]
