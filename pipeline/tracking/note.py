"""The description of a run in MLflow, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.wording import number_name


def note_markdown(result: Mapping[str, Any]) -> str:
    """An evaluation as the Markdown of an MLflow description: verdicts, headline, F1 of each class and group.

    Args:
        result: what :func:`~.write_evaluation` returns. Optionally ``audit``, of :func:`~.write_audit`; ``epoch`` of
            the checkpoint; ``about``, a line on the run.
    """
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    lines = [f"- {verdict.text}" for verdict in result["audit"].verdicts] if result.get("audit") else []
    lines += [""] if lines else []
    lines += [result["about"], ""] if result.get("about") else []
    keys = ("score", "gap", "abs_gap", *(f"f1_{group}" for group in groups), "f1_macro")
    columns = {number_name(key, groups): f"{scores[key]:{'+' * (key == 'gap')}.4f}" for key in keys if key in scores}
    lines += _table([*columns], [[*columns.values()]])
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
    first, *others = [[cell.replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    return [f"| {' | '.join(row)} |" for row in (first, ["---"] * len(first), *others)]
