"""The loss of a network whose features are in two halves, of classes and of groups (:mod:`~.networks.disentangled`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting, check_whole

from ..common.distributed import gather_batch, whole_batch_rows
from .aggregation import Aggregation
from .sample_losses import ClassCounts, LDAMLoss, promote
from .two_level import TwoLevelLoss, full_precision


def contrastive_loss(features: Tensor, label: Tensor, margin: float) -> Tensor:
    r"""Scans of one label nearer to each other than to those of other labels, by a margin (Lin et al. 2024).

    .. math:: \frac{1}{|A|} \sum_{i \in A} \frac{1}{|P_i| |N_i|} \sum_{p \in P_i} \sum_{n \in N_i}
              [m + \lVert z_i - z_p \rVert_2 - \lVert z_i - z_n \rVert_2]_+

    with P the other scans of i's label, N those of another label, A the scans that have both; 0 where none has. It is
    the mean over the draws of the authors' code, which takes one p and one n for each i (and sometimes i for p).

    Args:
        features: [N, F] z.
        label: [N] ids, -1 unknown: such a scan takes no part.
        margin: m.
    """
    # PyTorch's pairwise_distance has the same small shift: the root has no gradient at 0
    distance = torch.linalg.vector_norm(features[:, None] - features[None] + 1e-6, dim=-1)
    known = label >= 0
    same = (label[:, None] == label[None]) & known[:, None]
    positive = same & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    negative = ~same & known[:, None] & known[None]
    triplets = (positive[:, :, None] & negative[:, None, :]).to(distance)
    hinge = (margin + distance[:, :, None] - distance[:, None, :]).clamp(min=0)
    anchors = triplets.sum(dim=(1, 2))
    of_anchors = (triplets * hinge).sum(dim=(1, 2)) / anchors.clamp(min=1)
    return of_anchors.sum() / (anchors > 0).sum().clamp(min=1)


class DisentangledLoss(TwoLevelLoss):
    r"""The objective, the groups' loss, and the contrastive loss of both halves of the features (Lin et al. 2024).

    .. math:: L + \gamma \frac{1}{n} \sum_i [g_i \text{ known}] \, \ell_{LDAM}(v_i, g_i)
              + \rho \, (\ell_{con}(t, y) + \ell_{con}(d, g))

    with L the two-level loss of the class logits, in the source CVaR over groups of the CVaR inside each
    (:class:`~.HierarchicalCVaR`), v the group logits, t and d the classes' and the groups' half of the features, and
    :func:`contrastive_loss`. It is a small form of *Preserving Fairness Generalization in Deepfake Detection* (CVPR
    2024), whose authors' code has the numbers; docs/method.md says what is left out. Triplets are those of the batch of
    all processes.

    A network that answers with class logits alone, as in evaluation or with both weights 0, has the first term alone.

    Args:
        num_classes: the first columns of the network's output; those after them are groups and features.
        group_counts: training scans of each group, in the order of the group ids, at least 2.
        gamma: weight of the second term, at least 0.
        contrast: rho, at least 0.
        contrast_margin: of the contrastive loss, at least 0.
        max_margin: of the rarest group, as of :class:`~.LDAMLoss`; ``logit_scale`` is its factor of the logits.
    """

    def __init__(
        self, sample_loss: nn.Module, aggregation: Aggregation, num_classes: int, group_counts: ClassCounts,
        gamma: float = 0.1, contrast: float = 0.1, contrast_margin: float = 3.0, max_margin: float = 0.5,
        logit_scale: float = 30.0,
    ) -> None:  # fmt: skip
        super().__init__(sample_loss, aggregation)
        weights = {"gamma": gamma, "contrast": contrast, "contrast_margin": contrast_margin}
        for name, value in weights.items():
            check_setting(name, value, 0 <= value < float("inf"), "in [0, inf)")
        check_whole("num_classes", num_classes, least=2)
        check_whole("num_groups", len(group_counts), least=2)
        self.num_classes, self.num_groups = num_classes, len(group_counts)
        self.gamma, self.contrast, self.margin = float(gamma), float(contrast), float(contrast_margin)
        self.group_loss = LDAMLoss(group_counts, max_margin, logit_scale)

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of outputs [N, C] or [N, C + G + F]; a scan of unknown group, -1, has no term of the groups'."""
        loss = super().forward(logits, target)
        if logits.shape[1] == self.num_classes:
            return loss
        with full_precision(logits):
            outputs = promote(logits[:, self.num_classes :])
            groups, features = outputs.split([self.num_groups, outputs.shape[1] - self.num_groups], dim=1)
            known = target["group"] >= 0
            losses = self.group_loss(groups, target["group"].clamp(min=0))
            loss = loss + self.gamma * torch.where(known, losses, 0.0).mean()
            features, half = whole_batch_rows(features), features.shape[1] // 2
            parts = ((features[:, :half], "label"), (features[:, half:], "group"))
            contrast = [contrastive_loss(part, gather_batch(target[name]), self.margin) for part, name in parts]
            return loss + self.contrast * sum(contrast)
