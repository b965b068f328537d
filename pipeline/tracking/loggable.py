"""Names, values and notes as MLflow takes them, and as a person may read them: short, plain, without logins."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.text import without_login
from ..data.cohort_checks import SPLITS
from ..evaluation.wording import number_name, span
from ..reports.document import escape_markdown
from .store import TrackingError

MAX_PARAM_LENGTH = 6000  # MLflow's limit


def shown_name(name: str, group_names: Sequence[str]) -> str:
    """The one name of a number in MLflow, whose page makes a section of what stands before the last slash.

    ``val_score`` is ``val/score``, ``val_f1_<group>`` is ``val/f1/<group>`` (a section of every group's F1 and nothing
    else), F1, precision and recall of a class in a group are in ``val/cells``, ``best_val_score`` is
    ``val/best_score``, ``lr`` is ``train/lr``.
    """
    best, rest = ("best_", name.removeprefix("best_")) if name.startswith("best_") else ("", name)
    split, _, number = ("train_lr" if rest == "lr" else rest).partition("_")
    if split not in SPLITS or not number:
        return metric_name(name)
    if not best:
        cells = tuple(f"{of}_{group}_" for of in ("f1", "precision", "recall") for group in group_names)
        if number in {f"f1_{group}" for group in group_names}:
            number = number.replace("_", "/", 1)
        elif number.startswith(cells):
            number = f"cells/{number}"
    return metric_name(f"{split}/{best}{number}")


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


def short(error: Exception | str) -> str:
    """An error in one line, without logins: of a request only the cause behind it, of a database no statement."""
    text = " ".join(without_login(str(error)).split()).partition(" [SQL:")[0]
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
    """An evaluation as the Markdown of an MLflow description: F1 of each group, P and gap, verdicts, F1 of each cell.

    ``result`` is what :func:`~.write_evaluation` returns, and may hold ``audit``, of :func:`~.write_audit`, whose
    intervals stand beside the numbers, the checkpoint's ``epoch``, and ``about``, a line on the run in Markdown.
    """
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    audit = result.get("audit")
    lines = [*headline_table(scores, groups, audit), ""]
    lines += [*(f"- {escape_markdown(verdict.text)}" for verdict in audit.verdicts), ""] if audit else []
    lines += [result["about"], ""] if result.get("about") else []
    supports = [[sum(row) for row in matrix] for matrix in result["confusion"]]
    cells = [
        [name, *(f"{scores[f'f1_{group}_{name}']:.4f} (n={supports[g][c]})" for g, group in enumerate(groups))]
        for c, name in enumerate(classes)
    ]
    lines += [*_table(["F1 of class", *groups], cells), ""]
    epoch = "" if result.get("epoch") is None else f" of epoch {result['epoch']}"
    lines.append(escape_markdown(f"Split {result['split']}, checkpoint {Path(result['checkpoint']).name}{epoch}."))
    if result["synthetic"]:
        lines.append("The scans are **SYNTHETIC** (phantoms): nothing here is about patients.")
    return "\n".join(lines)


def headline_table(scores: Mapping[str, float], groups: Sequence[str], audit: Any = None) -> list[str]:
    """F1 of each group, P and the gap as the lines of a table in Markdown, with the intervals of an audit."""
    keys = (*(f"f1_{group}" for group in groups), "score", "gap", "abs_gap", "f1_macro")
    intervals = {} if audit is None else {**audit.overall.numbers(), **{f"f1_{g.group}": g.f1 for g in audit.groups}}
    columns = {}
    for key in (key for key in keys if key in scores):
        text = f"{scores[key]:{'+' * (key == 'gap')}.4f}"
        known = intervals.get(key)
        columns[number_name(key, groups)] = f"{text} ({span(known, key == 'gap')})" if known is not None else text
    return _table([*columns], [[*columns.values()]])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    first, *others = [[*map(escape_markdown, row)] for row in (headings, *rows)]
    return [f"| {' | '.join(row)} |" for row in (first, ["---"] * len(first), *others)]


def batch_digest(batch: Mapping[str, Any]) -> str:
    """Digest of the tensors of a batch, by name: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
