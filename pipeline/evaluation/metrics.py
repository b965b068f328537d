"""Per-group classification metrics, all derived from one confusion tensor.

Conventions are scikit-learn's with ``zero_division=0``: a class that is never predicted has precision 0, a class
without a scan in the group has recall 0, and both count in the macro mean over all classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from ..common.names import UNKNOWN_GROUP


def group_confusion(prediction: Tensor, label: Tensor, group: Tensor, num_groups: int, num_classes: int) -> Tensor:
    """Confusion counts int64 [G + 1, C, C], rows true, columns predicted; the last matrix is of unknown group.

    ``prediction`` and ``label`` are class indices [N], ``group`` group ids [N] in [-1, G), -1 unknown.
    """
    group = torch.where(group == UNKNOWN_GROUP, num_groups, group)
    index = (group * num_classes + label) * num_classes + prediction
    counts = torch.bincount(index.long(), minlength=(num_groups + 1) * num_classes**2)
    return counts.reshape(num_groups + 1, num_classes, num_classes)


def class_scores(confusion: Tensor) -> dict[str, Tensor]:
    """``precision``, ``recall``, ``f1``, ``support`` [..., C] of counts [..., C, C], rows true; 0 if undefined.

    Counts may be fractions, as those that are expected are.
    """
    confusion = confusion.double()
    hit = confusion.diagonal(dim1=-2, dim2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return part / whole.where(whole > 0, 1)

    return {
        "precision": share(hit, predicted),
        "recall": share(hit, true),
        "f1": share(2 * hit, true + predicted),
        "support": true,
    }


def fairness_summary(confusion: Tensor, class_names: Sequence[str], group_names: Sequence[str]) -> dict[str, float]:
    """Every number that a run reports, by name.

    With two groups the gap is the paper's: first minus second group, signed (``gap > 0``: the first is served better).
    With more, ``gap`` is left out and ``abs_gap`` is the largest difference between two groups. A group without a scan
    is left out of ``score`` and of the gaps, and its own numbers are 0.

    ``confusion`` [G + 1, C, C] is of :func:`group_confusion`; the last (unknown group) counts in no number here, as in
    an audit.

    Returns:
        ``score`` (P, paper Eq. 5: mean over groups of the macro F1), ``gap``, ``abs_gap``, ``f1_macro`` (the
        groups pooled), ``f1_<group>``, and ``f1|precision|recall_<group>_<class>``.
    """
    shape = (len(group_names) + 1, len(class_names), len(class_names))
    if confusion.shape != shape:
        raise ValueError(f"confusion must have shape {shape}, got {tuple(confusion.shape)}")
    by_group = class_scores(confusion[:-1])
    f1 = by_group["f1"].mean(-1)
    present = confusion[:-1].sum((-1, -2)) > 0
    judged = f1[present] if present.any() else f1  # without any scan every group counts, with 0
    summary = {"score": judged.mean().item()}
    if len(group_names) == 2 and present.all():
        summary["gap"] = (f1[0] - f1[1]).item()
    summary["abs_gap"] = (judged.max() - judged.min()).item()
    summary["f1_macro"] = class_scores(confusion[:-1].sum(0))["f1"].mean().item()
    by_name = [(f"f1_{group}", f1[g].item()) for g, group in enumerate(group_names)]
    by_name += [
        (f"{score}_{group}_{name}", by_group[score][g, c].item())
        for g, group in enumerate(group_names)
        for c, name in enumerate(class_names)
        for score in ("f1", "precision", "recall")
    ]
    for name, value in by_name:
        if name in summary:
            raise ValueError(f"group and class names give the metric name {name!r} twice; rename a group or a class")
        summary[name] = value
    return summary


class GroupConfusion(Metric):
    """Ignite metric over one confusion tensor, summed over batches and processes.

    A scan whose output is not finite has no class: then every number is NaN, not that of the scans which have one.

    Args:
        key: a name out of the :func:`fairness_summary` that the metric is attached by as a key metric, which must be
            a scalar (MONAI takes a dictionary for never better) and better when larger (so not a gap). The engine gets
            that number under that name, and the whole summary beside it. None gives it the summary alone.
        prefix: put before every name, e.g. ``val_``.
        output_transform: engine output -> ``(logits [N, C], {"label": [N], "group": [N]})``.

    Example:
        >>> import torch
        >>> from fairlung.pipeline import GroupConfusion
        >>> metric = GroupConfusion(["covid", "normal"], ["male", "female"])
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
        >>> metric.update((logits, {"label": torch.tensor([0, 1, 0, 1]), "group": torch.tensor([0, 0, 1, 1])}))
        >>> found = metric.compute()
        >>> {name: round(found[name], 3) for name in ("f1_male", "f1_female", "score", "gap")}
        {'f1_male': 1.0, 'f1_female': 0.333, 'score': 0.667, 'gap': 0.667}
    """

    def __init__(
        self, class_names: Sequence[str], group_names: Sequence[str], key: str | None = None, prefix: str = "",
        output_transform: Callable[[Any], Any] = lambda output: (output["pred"], output["label"]),
        device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.class_names, self.group_names = tuple(class_names), tuple(group_names)
        self.shape = (len(self.group_names) + 1, len(self.class_names), len(self.class_names))
        # MONAI keeps the checkpoint of the largest key metric; a gap is not better when larger.
        summary = fairness_summary(torch.zeros(self.shape), self.class_names, self.group_names)
        known = [name for name in summary if name not in ("gap", "abs_gap")]
        if key is not None and key.removeprefix(prefix) not in known:
            raise ValueError(f"key must be one of {', '.join(prefix + name for name in known)}, got {key!r}")
        self.key, self.prefix = key, prefix
        super().__init__(output_transform, device, skip_unrolling=True, metrics_result_mode="flatten")

    @reinit__is_reduced
    def reset(self) -> None:
        self.confusion = torch.zeros(self.shape, dtype=torch.int64, device=self._device)
        self.unanswered = torch.zeros((), dtype=torch.int64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor]]) -> None:
        logits, target = output
        said, groups, classes = logits.detach().argmax(dim=1), *self.shape[:2]
        self.unanswered += (~torch.softmax(logits.detach().float(), 1).isfinite().all(1)).sum().to(self._device)
        counts = group_confusion(said, target["label"], target["group"], groups - 1, classes)
        self.confusion += counts.to(self._device)

    @sync_all_reduce("confusion", "unanswered")
    def compute(self) -> dict[str, float]:
        if not self.confusion.any():
            raise NotComputableError("no scan was evaluated")
        summary = fairness_summary(self.confusion.cpu(), self.class_names, self.group_names)
        return {self.prefix + name: math.nan if self.unanswered else value for name, value in summary.items()}

    def completed(self, engine: Engine, name: str) -> None:
        summary = self.compute()
        if self.key is not None:
            engine.state.metrics[name] = summary[self.prefix + self.key.removeprefix(self.prefix)]
        engine.state.metrics.update(summary)
