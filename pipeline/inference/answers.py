"""The answer to a new scan, made of the network's output."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from ignite.engine import EventEnum
from torch import Tensor

from ..data.intake_records import not_made
from ..data.pseudonyms import Pseudonyms
from ..postprocessing.fitted import Fitted

logger = logging.getLogger(__name__)

Status = Literal["ok", "failed", "skipped"]
STATUSES = get_args(Status)


@dataclass(frozen=True)
class Answer:
    """What is said of one new scan; the numbers are empty or None where the status is not ``ok``."""

    scan: str  # its name
    status: Status  # skipped: its header says that it is no chest CT, such as a localizer; no failure
    reason: str  # why there is no answer; empty when ok
    prediction: str | None  # the most probable class
    probabilities: dict[str, float]  # by class, corrected where a correction was given
    spread: dict[str, float] | None  # by class, sample standard deviation between an ensemble's members; None of one
    warnings: list[str]  # each "code: text"
    intake: dict[str, Any]  # the record of how the scan was read, files included; empty where there is none
    agreement: float | None = None  # share of the members whose own most probable class it is; None of one
    uncorrected: dict[str, float] | None = None  # by class, before the correction; None without one
    study: str = ""  # a keyed digest, the same for the scans of one DICOM study
    runtime: str | None = None  # what computed it, as the engine's inferer names it

    def lacks(self, what: str, error: Exception) -> None:
        """Warn, in the answer and in the log, that something could not be made which was asked for."""
        self.warnings.append(not_made(what, error).replace(f" {self.scan}: ", " ", 1))
        logger.warning("%s: %s", self.scan, self.warnings[-1])

    def under(self, pseudonyms: Pseudonyms) -> Answer:
        """The same with its study's digest, and its texts without names."""
        said = pseudonyms.record(self.scan, {"reason": self.reason, "warnings": self.warnings})
        intake = pseudonyms.record(self.scan, self.intake)
        return replace(self, study=pseudonyms.study(self.intake), intake=intake, **said)


class AnswerEvents(EventEnum):
    """What happens within an iteration of an inference."""

    ANSWERED = "answered"  # engine.state.answers holds a batch's answers; what is made of them may add a warning


def answer_scans(
    batch: Mapping[str, Any], logits: Tensor, class_names: Sequence[str], correction: Fitted | None = None
) -> list[Answer]:
    """The answers to the N new scans of a batch, in its order.

    A member's probabilities are the softmax of its logits. The answer is the mean of the members' probabilities, and
    the correction, if any, is applied to that mean. Spread and agreement are of the members' probabilities, each under
    the same correction: they are read beside the corrected answer, and disagreement about a class that the prior makes
    rare is as small as its probability.

    Args:
        batch: ``scan`` (N names), ``reason`` (N texts, empty = readable), and perhaps ``intake`` (N records).
        logits: [N, C] of one network, or [N, M, C] of M members; ValueError for other numbers of scans or classes.
    """
    names, scans = tuple(class_names), list(batch["scan"])
    members = logits.detach().cpu().double()  # on the CPU first: not every accelerator has doubles
    members = members[:, None] if members.ndim == 2 else members
    if members.ndim != 3 or members.shape[0] != len(scans) or members.shape[2] != len(names):
        raise ValueError(
            f"logits must be [{len(scans)}, {len(names)}] or [{len(scans)}, members, {len(names)}] for {len(scans)} "
            f"scans and {len(names)} classes, got {list(logits.shape)}"
        )
    own = torch.softmax(members, dim=2).numpy()
    finite = np.isfinite(own).all((1, 2))
    own[~finite] = 1 / len(names)  # stands in, never shown
    raw = final = own.mean(1)
    if correction is not None:
        final = correction.transform(raw, names)
        own = correction.transform(own.reshape(-1, len(names)), names).reshape(own.shape)
    winner = final.argmax(1)
    several = own.shape[1] > 1
    spread = own.std(1, ddof=1) if several else None
    agreement = (own.argmax(2) == winner[:, None]).mean(1)
    intake = batch.get("intake") or [{}] * len(scans)

    def by_class(values: np.ndarray) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    answers = []
    for i, scan in enumerate(scans):
        record = dict(intake[i] or {})
        status, reason = _status(batch["reason"][i], record, bool(finite[i]))
        ok = status == "ok"
        answer = Answer(
            scan=scan, status=status, reason=_line(reason), prediction=names[winner[i]] if ok else None,
            probabilities=by_class(final[i]) if ok else {},
            spread=by_class(spread[i]) if ok and spread is not None else None,
            warnings=[_line(text) for text in record.get("warnings") or ()], intake=record,
            agreement=float(agreement[i]) if ok and several else None,
            uncorrected=by_class(raw[i]) if ok and correction is not None else None,
        )  # fmt: skip
        answers.append(answer)
    return answers


def _status(reason: str, intake: Mapping[str, Any], finite: bool) -> tuple[Status, str]:
    if intake.get("status") == "skipped":
        return "skipped", reason or intake.get("reason") or ""
    if reason or intake.get("status") == "refused":
        return "failed", reason or intake.get("reason") or "refused"
    return ("ok", "") if finite else ("failed", "the network's output is not finite")


def _line(text: str) -> str:
    return " ".join(str(text).split())
