"""Names, values and notes as MLflow takes them, and as a person may read them: short, plain, without logins."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.text import without_login
from ..data.cohort_checks import SPLITS
from ..evaluation.wording import number_name
from ..reports.document import escape_markdown
from .store import TrackingError

MAX_PARAM_LENGTH = 6000  # MLflow's limit


def with_grouped_names(metrics: Mapping[str, float], group_names: Sequence[str]) -> dict[str, float]:
    """The same metrics, the headline ones under a second name too, that MLflow's page groups by: ``val/gap``.

    ``val_score`` gives ``val/score``, ``best_val_score`` ``val/best_score``, ``train_loss`` ``train/loss`` and ``lr``
    ``train/lr``; so do gap, abs_gap, f1_macro and f1_<group> of every split.
    """
    headline = ["score", "gap", "abs_gap", "f1_macro", *(f"f1_{group}" for group in group_names)]
    grouped = {"train_loss": "train/loss", "lr": "train/lr"}
    for split in SPLITS:
        grouped |= {f"{split}_{name}": f"{split}/{name}" for name in headline}
        grouped |= {f"best_{split}_{name}": f"{split}/best_{name}" for name in headline}
    return {**metrics, **{grouped[name]: value for name, value in metrics.items() if name in grouped}}


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. :/``; other signs of class and group names become ``_``."""
    name = re.sub(r"<(?=\d)", "under ", re.sub(r">=(?=\d)", "from ", name))  # bands of age stay apart and readable
    return re.sub(r"[^\w\-. :/]", "_", name)


def refuse_shared_names(names: Sequence[str]) -> None:
    """TrackingError for two classes, or groups, whose metrics MLflow would hold under one name."""
    called: dict[str, str] = {}
    for name in names:
        other = called.setdefault(metric_name(name), name)
        if other != name:
            both = f"{other!r} and {name!r} would both be {metric_name(name)!r} in MLflow"
            way = "rename one, or track nothing (--tracking_uri '')"
            raise TrackingError(f"{both}, which takes letters, digits and _-. :/ only; {way}")


def short(error: Exception) -> str:
    """An error in one line, without logins. Of an HTTP error only the cause, which stands behind the whole request."""
    text = " ".join(without_login(str(error)).split())
    text = text.partition("(Caused by ")[2].rstrip(")'\" ") or text
    return text if len(text) <= 300 else text[:297] + "..."


def param(value: Any) -> str:
    value = loggable(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 3] + "..."


def loggable(value: Any) -> Any:
    """A setting as plain data, the user and password of an address left out wherever one stands."""
    if isinstance(value, str):
        return without_login(value)
    if isinstance(value, Mapping):
        return {str(key): loggable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [loggable(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def note_markdown(result: Mapping[str, Any]) -> str:
    """An evaluation as the Markdown of an MLflow description: verdicts, headline, F1 of each class and group.

    ``result`` is what :func:`~.write_evaluation` returns, and may hold ``audit``, of :func:`~.write_audit`, the
    checkpoint's ``epoch``, and ``about``, a line on the run in Markdown.
    """
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    lines = (
        [f"- {escape_markdown(verdict.text)}" for verdict in result["audit"].verdicts] if result.get("audit") else []
    )
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
    lines.append(escape_markdown(f"Split {result['split']}, checkpoint {Path(result['checkpoint']).name}{epoch}."))
    if result["synthetic"]:
        lines.append("The scans are **SYNTHETIC** (phantoms): nothing here is about patients.")
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    first, *others = [[*map(escape_markdown, row)] for row in (headings, *rows)]
    return [f"| {' | '.join(row)} |" for row in (first, ["---"] * len(first), *others)]
