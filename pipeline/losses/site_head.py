"""The loss of a network with a second head that names the source of a scan (:mod:`~.networks.site_head`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting, check_whole

from .aggregation import Aggregation
from .sample_losses import ClassCounts, LogitAdjustedCrossEntropy, promote
from .two_level import TwoLevelLoss, full_precision


class SiteHeadLoss(TwoLevelLoss):
    r"""The objective plus gamma times the logit-adjusted cross-entropy of the source (Pritha et al., arXiv:2604.03320).

    .. math:: L + \gamma \frac{1}{n} \sum_i [s_i \text{ known}] \, \ell_{LA}(z_i, s_i)

    with L the two-level loss of the class logits, z the source logits, s the sources, and :math:`\ell_{LA}` of
    :func:`~.logit_adjusted_cross_entropy` with tau 1 under the frequencies of the sources in training, so that a small
    site counts as much as a large one. A scan of unknown source, -1, adds nothing to the second term.

    A network that answers with class logits alone, as in evaluation or with ``gamma`` 0, has no second term.

    Args:
        num_classes: the first columns of the network's output; those after them are the sources.
        source_counts: training scans of each source, in the order of the source ids.
        gamma: weight of the second term, at least 0.
    """

    def __init__(
        self, sample_loss: nn.Module, aggregation: Aggregation, num_classes: int, source_counts: ClassCounts,
        gamma: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(sample_loss, aggregation)
        check_setting("gamma", gamma, 0 <= gamma < float("inf"), "in [0, inf)")
        check_whole("num_classes", num_classes, least=2)
        self.num_classes, self.gamma = num_classes, float(gamma)
        self.source_loss = LogitAdjustedCrossEntropy(source_counts)

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of outputs [N, C] or [N, C + S] for a target that also has ``source`` [N], -1 unknown."""
        loss = super().forward(logits, target)
        if logits.shape[1] == self.num_classes:
            return loss
        with full_precision(logits):
            known = target["source"] >= 0
            losses = self.source_loss(promote(logits[:, self.num_classes :]), target["source"].clamp(min=0))
            return loss + self.gamma * torch.where(known, losses, 0.0).mean()
