"""The objective: a loss a sample, then an aggregation over groups; FairLACVaRLoss is the paper's."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .aggregation import Aggregation, GroupCVaR
from .sample_losses import ClassCounts, LogitAdjustedCrossEntropy, promote


def full_precision(like: Tensor) -> AbstractContextManager:
    """Autocast off for a tensor's device."""
    kind = like.device.type
    available = torch.amp.autocast_mode.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()


class TwoLevelLoss(nn.Module):
    """``aggregation(sample_loss(logits, label), group)``: any inner level with any outer level.

    Args:
        sample_loss: module ``(logits [N, C], label [N]) -> [N]``.
        aggregation: how sample losses and groups become one loss. What it remembers of earlier batches is in the
            ``state_dict`` and moves with each call in training mode with gradients enabled.

    Example:
        >>> import torch
        >>> from fairlung.pipeline import TwoLevelLoss
        >>> from fairlung.pipeline.losses import CrossEntropy, GroupCVaR
        >>> loss = TwoLevelLoss(CrossEntropy(), GroupCVaR(alpha=1.0))  # 1: the mean over groups
        >>> target = {"label": torch.tensor([0, 1, 2]), "group": torch.tensor([0, 0, 1])}
        >>> loss(torch.zeros(3, 4), target)  # log(4) in either group
        tensor(1.3863)
    """

    num_classes: int | None = None  # the first columns of the output; None: all of it are class logits

    def __init__(self, sample_loss: nn.Module, aggregation: Aggregation) -> None:
        super().__init__()
        self.sample_loss, self.aggregation = sample_loss, aggregation

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of raw outputs [N, C] for ``{"label": [N] classes, "group": [N] group ids, -1 unknown}``."""
        # autocast would compute the group weights in half precision, where close losses tie and gradients overflow
        with full_precision(logits):
            return self.aggregation(self._sample_losses(logits, target), self.aggregation.groups(target))

    @torch.no_grad()
    def explain(self, logits: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """[N] loss and [N] weight of each sample; their product sums to the loss (with the exact gradient).

        Changes nothing. Asked about a step's batch before the next step, it gives the losses and weights of that step.
        """
        with full_precision(logits):
            losses = self._sample_losses(logits, target)
            return losses, self.aggregation.weights(losses, self.aggregation.groups(target))

    def _sample_losses(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        return self.sample_loss(promote(logits[:, : self.num_classes]), target["label"])


class FairLACVaRLoss(TwoLevelLoss):
    """The paper's objective: logit-adjusted cross-entropy a sample, CVaR over the groups (Algorithm 1).

    ``class_counts`` are the training scans of each class, in class order (a mapping names them in errors); ``tau`` is
    the strength of the logit adjustment. The other arguments are those of :class:`~.GroupCVaR`.

    Example:
        A network that cannot tell the classes apart: the rarer class, here of group 1, has the larger loss, and the
        CVaR at a level of one half of two groups is the loss of the worse one.

        >>> import torch
        >>> from fairlung.pipeline import FairLACVaRLoss
        >>> loss = FairLACVaRLoss({"adenocarcinoma": 300, "squamous_cell": 100}, alpha=0.5)
        >>> target = {"label": torch.tensor([0, 1]), "group": torch.tensor([0, 1])}
        >>> loss(torch.zeros(2, 2), target)  # -log(1/4)
        tensor(1.3863)
    """

    def __init__(
        self, class_counts: ClassCounts, alpha: float = 0.8, tau: float = 1.0, gradient: str = "exact",
        estimator: str = "batch", momentum: float = 0.9, num_groups: int | None = None,
    ) -> None:  # fmt: skip
        cvar = GroupCVaR(alpha, gradient, estimator, momentum, num_groups)
        super().__init__(LogitAdjustedCrossEntropy(class_counts, tau), cvar)
