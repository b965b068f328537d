"""The rule by which a registered model becomes the champion."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..common import run_folder
from ..common.errors import UserError
from ..common.tables import read_frame
from ..evaluation.records import Audit, read_record

RULE = (
    "Champion rule. Versions are compared only when they were judged on the same scans, on the same split, with "
    "intervals of the same confidence. Let B be the larger of |low| and |high| of the interval of the gap (of |gap| "
    "with more than two groups). A version takes the alias `champion` from the one that holds it when its P is higher "
    "and its B is not larger. A version with an interval also takes it from one without, and one without never takes "
    "it. The first version gets it."
)


class RegistryError(UserError, ValueError):
    """Something is missing that a registered model needs: a tracked run, an evaluation, or its checkpoint."""


@dataclass(frozen=True)
class Judgement:
    """How well and how fairly a version did, and on what."""

    score: float  # P
    gap: float  # signed with two groups, else |gap|
    split: str
    scans_digest: str  # of the judged scans with their labels and groups
    gap_low: float | None = None  # lower end of the gap's interval; None without one
    gap_high: float | None = None
    confidence: float | None = None
    synthetic: bool = False

    @property
    def bound(self) -> float:
        """The largest |gap| in the interval; infinite without one."""
        if self.gap_low is None or self.gap_high is None or not math.isfinite(self.gap_low + self.gap_high):
            return math.inf
        return max(abs(self.gap_low), abs(self.gap_high))

    def tags(self) -> dict[str, str]:
        """As tags of a model version; what is unknown has none."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {f"fairlung.{name}": v if isinstance(v, str) else json.dumps(v) for name, v in known.items()}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Judgement | None:
        """The judgement that :meth:`tags` wrote; None when the version was registered by other means."""
        found = {field.name: tags.get(f"fairlung.{field.name}") for field in fields(cls)}
        text = ("split", "scans_digest")
        try:
            values: dict[str, Any] = {n: v if n in text else json.loads(v) for n, v in found.items() if v is not None}
            return cls(**values)
        except (TypeError, ValueError):
            return None


def read_judgement(evaluation_dir: str | Path) -> Judgement:
    """The judgement in an evaluation's folder; RegistryError where there is none."""
    folder = Path(evaluation_dir)
    try:
        result = json.loads((folder / run_folder.METRICS).read_text())
        table = read_frame(folder / run_folder.PREDICTIONS)
    except FileNotFoundError as error:
        raise RegistryError(f"{folder} holds no evaluation ({error.filename} is missing): evaluate first") from error
    metrics = result["metrics"]
    interval: dict[str, float] = {}
    if (folder / run_folder.AUDIT).is_file():
        audit = read_record(Audit, folder / run_folder.AUDIT)
        ends = audit.overall.gap or audit.overall.abs_gap
        interval = {"gap_low": ends.low, "gap_high": ends.high, "confidence": audit.settings.confidence}
    # the columns that say which scans were judged, in the order of PredictionWriter: scan, label, group
    judged = sorted(table.iloc[:, : table.columns.get_loc("prediction")].values.tolist())
    digest = hashlib.sha256(json.dumps(judged).encode()).hexdigest()
    gap, synthetic = metrics["gap" if "gap" in metrics else "abs_gap"], bool(result["synthetic"])
    return Judgement(metrics["score"], gap, result["split"], digest, synthetic=synthetic, **interval)


class Candidate(NamedTuple):
    version: int
    judgement: Judgement


class Decision(NamedTuple):
    champion: bool
    reason: str


def challenge(holder: Judgement, challenger: Judgement) -> Decision:
    """Whether a challenger takes the alias from the one that holds it, by :data:`RULE`."""
    if not math.isfinite(challenger.score):
        return Decision(False, "its P is not a number")
    if challenger.split != holder.split:
        return Decision(False, f"judged on split {challenger.split}, the champion on {holder.split}: not compared")
    if challenger.scans_digest != holder.scans_digest:
        return Decision(False, "judged on other scans than the champion: not compared")
    if math.isinf(challenger.bound):
        return Decision(False, "the gap has no interval")
    if math.isinf(holder.bound):
        return Decision(True, "its gap has an interval, the champion's has none")
    if challenger.confidence != holder.confidence:
        confidences = f"{challenger.confidence}, the champion's of {holder.confidence}"
        return Decision(False, f"the gap's interval is of confidence {confidences}: not compared")
    score = f"P {challenger.score:.4f}, the champion's {holder.score:.4f}"
    bound = f"|gap| up to {challenger.bound:.4f}, the champion's up to {holder.bound:.4f}"
    if not challenger.score > holder.score:
        return Decision(False, f"P is not higher ({score})")
    if challenger.bound > holder.bound:
        return Decision(False, f"the gap's interval is worse ({bound})")
    return Decision(True, f"P is higher ({score}) and the gap's interval is not worse ({bound})")


def champion(candidates: Iterable[Candidate]) -> int | None:
    """The version that holds the alias after all candidates came in order of their versions; None of none.

    The first with a number for P is the first champion; each later one may :func:`challenge` it.
    """
    holder: Candidate | None = None
    for candidate in sorted(candidates, key=lambda candidate: candidate.version):
        judged = candidate.judgement
        if math.isfinite(judged.score) if holder is None else challenge(holder.judgement, judged).champion:
            holder = candidate
    return None if holder is None else holder.version
