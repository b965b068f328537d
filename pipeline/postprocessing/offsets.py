"""Class offsets that raise P or lower the gap on the fitted scans."""

from typing import Any, Literal, get_args

import numpy as np

from ..evaluation.fairness_criteria import summaries
from ..evaluation.predictions import Ints, Predictions
from .fitted import Fitted, Floats, PostprocessError, log_probabilities, make_fitted, most_probable_only

Objective = Literal["score", "gap"]
MAX_LOSS = 0.01  # of P that a smaller gap may cost
STARTS = 32  # starting points of the search; the first is no offset at all
NARROWEST = 1e-9  # narrower intervals between breakpoints are skipped, as rounding could cross one


def fit_offsets(validation: Predictions, objective: Objective = "score", max_loss: float | None = None) -> Fitted:
    """Class offsets, chosen on validation scans of known group: thresholds, in the sense of several classes.

    Args:
        objective: ``score`` maximises P, the mean over groups of the macro F1; ``gap`` minimises the largest
            difference between the groups' macro F1 while P falls by no more than ``max_loss``.
        max_loss: in [0, 1), with ``gap`` only; None is 0.01.

    Raises:
        ValueError: a setting is out of range.
        PostprocessError: no probabilities, a class without a scan, predictions that are not the most probable class,
            or, for ``gap``, fewer than two groups with a scan.
    """
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be score or gap, got {objective!r}")
    if objective == "score" and max_loss is not None:
        raise ValueError(f"max_loss belongs to the objective gap, got {max_loss} with the objective score")
    max_loss = MAX_LOSS if max_loss is None else max_loss
    if not 0 <= max_loss < 1:
        raise ValueError(f"max_loss must be in [0, 1), got {max_loss}")
    known = validation.known()
    probabilities = most_probable_only(known)
    if empty := [name for c, name in enumerate(known.class_names) if not (known.label == c).any()]:
        raise PostprocessError(f"no validation scan of class {empty[0]!r} with a known group: no offset can be chosen")
    present, group = np.unique(known.group, return_inverse=True)
    if objective == "gap" and len(present) < 2:
        only = known.group_names[present[0]]
        raise PostprocessError(f"a gap needs validation scans of two groups; there are scans of {only} only")
    log_p = log_probabilities(probabilities)
    offsets = best_offsets(log_p, known.label, group, objective, max_loss)
    before, after = (summaries(_confusion(log_p + b, known.label, group)) for b in (0.0, offsets))
    settings: dict[str, Any] = {"objective": objective, "starts": STARTS, "group_by": list(known.group_by)}
    settings |= {"max_loss": max_loss} if objective == "gap" else {}
    times = (("before", before), ("after", after))
    did = {f"{name}_{when}": float(found[name]) for name in ("score", "abs_gap") for when, found in times}
    by_name = dict(zip(known.class_names, offsets.tolist(), strict=True))
    return make_fitted("offsets", by_name, settings, did, known.scan)


def best_offsets(
    log_p: Floats, label: Ints, group: Ints, objective: Objective = "score", max_loss: float = MAX_LOSS
) -> Floats:
    """Offsets b [C] for which the predictions argmax(log p + b) are best, by coordinate search over exact breakpoints.

    With the other offsets fixed, scan i is predicted as c if b_c > t_i = max_{k != c}(log p_ik + b_k) - log p_ic.
    The objective only changes at the t_i, so trying one b_c between each two neighbours is an exact line search. The
    search goes round the classes until none improves, from no offset and from 31 fixed random starts. For two classes
    the optimum is global; for more it is the best of the local ones. Of equally good offsets the smallest are taken,
    then each is put halfway between its two breakpoints. They sum to 0. Every group in ``group`` [N] needs a scan.
    """
    classes = log_p.shape[1]
    floor = float(summaries(_confusion(log_p, label, group))["score"]) - max_loss
    spread = float(np.std(log_p - log_p.mean(1, keepdims=True)))
    starts = np.random.default_rng(0).normal(0, spread, (STARTS, classes))
    starts[0] = 0
    best: tuple[tuple[float, ...], Floats] | None = None
    for start in starts:
        offsets, improved = start, True
        reached = _rank(_confusion(log_p + offsets, label, group)[None], objective, floor)[:, 0]
        while improved:
            improved = False
            for c in range(classes):
                intervals, confusion = _line(log_p, label, group, offsets, c)
                ranks = _rank(confusion, objective, floor)
                moved = np.repeat(offsets[None], len(intervals), axis=0)
                moved[:, c] = intervals.mean(1)
                first = np.lexsort((_size(moved), *ranks[::-1]))[0]
                if tuple(ranks[:, first]) < tuple(reached):
                    offsets, reached, improved = moved[first] - moved[first].mean(), ranks[:, first], True
        found = (*reached.tolist(), float(_size(offsets[None])[0]))
        if best is None or found < best[0]:
            best = (found, offsets - offsets.mean())
    assert best is not None  # STARTS > 0
    offsets = best[1].copy()
    # The same predictions, with every offset as far from its breakpoints as it can be.
    for c in range(classes) if offsets.any() else ():
        intervals, _ = _line(log_p, label, group, offsets, c)
        around = intervals[(intervals[:, 0] < offsets[c]) & (offsets[c] < intervals[:, 1])]
        if len(around):
            offsets[c] = around[0].mean()
    return offsets - offsets.mean()


def _line(log_p: Floats, label: Ints, group: Ints, offsets: Floats, c: int) -> tuple[Floats, Ints]:
    """The intervals [M, 2] of offset c without a breakpoint in them, and the confusion counts [M, G, C, C] in each."""
    n, classes = log_p.shape
    others = log_p + offsets
    others[:, c] = -np.inf
    second, breakpoints = others.argmax(1), others.max(1) - log_p[:, c]
    order = np.argsort(breakpoints, kind="stable")
    row = (group * classes + label)[order] * classes
    steps = np.zeros((n + 1, (int(group.max()) + 1) * classes**2), dtype=np.int64)
    steps[0] = np.bincount(row + second[order], minlength=steps.shape[1])
    steps[np.arange(1, n + 1), row + c] += 1  # scan by scan, in the order in which b_c reaches them, c wins
    steps[np.arange(1, n + 1), row + second[order]] -= 1
    t = breakpoints[order]
    edges = np.concatenate([[t[0] - 2], t, [t[-1] + 2]])
    wide = np.diff(edges) > NARROWEST
    confusion = steps.cumsum(0)[wide].reshape(-1, steps.shape[1] // classes**2, classes, classes)
    return np.stack([edges[:-1], edges[1:]], axis=1)[wide], confusion


def _confusion(log_p: Floats, label: Ints, group: Ints) -> Ints:
    shape = (int(group.max()) + 1, log_p.shape[1], log_p.shape[1])
    cell = np.ravel_multi_index((group, label, log_p.argmax(1)), shape)
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)


def _rank(confusion: Ints, objective: Objective, floor: float) -> Floats:
    """What is minimised, the most important first: [K, M]; rounded, so that equal counts are equal."""
    found = summaries(confusion)
    keys = [np.maximum(0, floor - found["score"]), found["abs_gap"]] if objective == "gap" else []
    return np.round([*keys, -found["score"]], 12)


def _size(offsets: Floats) -> Floats:
    """Squared norm [M] of offsets [M, C], less what all classes share."""
    return ((offsets - offsets.mean(1, keepdims=True)) ** 2).sum(1)
