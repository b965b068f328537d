"""Individual fairness: scans that are alike apart from what they show get answers that are alike."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting, check_whole

from ..common.distributed import whole_batch_rows
from .aggregation import Aggregation
from .sample_losses import promote
from .two_level import TwoLevelLoss, full_precision


def individual_unfairness(logits: Tensor, spectra: Tensor, lipschitz: float) -> Tensor:
    r"""How far the answers to two scans differ beyond what the distance of their spectra allows, the mean over pairs.

    .. math:: \frac{2}{N (N - 1)} \sum_{i < j} [d(z_i, z_j) - \tau \lVert r_i - r_j \rVert_2]_+, \qquad
              r = 255 \, s / \max s, \qquad
              d(z_i, z_j) = \max_y (z_i - z_j)_y - \min_y (z_i - z_j)_y

    d is the largest difference of the log-odds of two classes. With two classes it is that of their log-odds, which is
    the form in the code of Hou et al. (ACM MM 2025), where a network has one output. 0 for a single scan.

    Args:
        logits: [N, C] z.
        spectra: [N, K] s, at least 0, of :func:`~.noise_spectrum`.
        lipschitz: tau.
    """
    spectra = 255 * spectra.detach() / spectra.detach().amax().clamp(min=torch.finfo(spectra.dtype).tiny)
    apart = torch.cdist(spectra, spectra, compute_mode="donot_use_mm_for_euclid_dist")
    difference = logits[:, None] - logits[None]
    excess = (difference.amax(dim=2) - difference.amin(dim=2) - lipschitz * apart).clamp(min=0)
    return excess.triu(diagonal=1).sum() / max(len(logits) * (len(logits) - 1) / 2, 1)


class IndividualFairnessLoss(TwoLevelLoss):
    r"""The objective plus gamma times :func:`individual_unfairness` of the batch of all processes.

    It is the individual-fairness term of *Rethinking Individual Fairness in Deepfake Detection* (Hou et al., ACM MM
    2025), after the authors' code; of the paper the abstract alone was at hand. Its anchored input, the scan's
    difference from another one beside that other one, is left out; docs/method.md says what else.

    A network that answers with class logits alone, as in evaluation or with ``gamma`` 0, has no second term.

    Args:
        num_classes: the first columns of the network's output; those after them are spectra.
        gamma: weight of the second term, at least 0.
        lipschitz: tau, at least 0.
    """

    def __init__(
        self, sample_loss: nn.Module, aggregation: Aggregation, num_classes: int, gamma: float = 0.001,
        lipschitz: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(sample_loss, aggregation)
        for name, value in (("gamma", gamma), ("lipschitz", lipschitz)):
            check_setting(name, value, 0 <= value < float("inf"), "in [0, inf)")
        check_whole("num_classes", num_classes, least=2)
        self.num_classes, self.gamma, self.lipschitz = num_classes, float(gamma), float(lipschitz)

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of outputs [N, C] or [N, C + K]."""
        loss = super().forward(logits, target)
        if logits.shape[1] == self.num_classes:
            return loss
        with full_precision(logits):
            whole = whole_batch_rows(promote(logits))
            answers, spectra = whole[:, : self.num_classes], whole[:, self.num_classes :]
            return loss + self.gamma * individual_unfairness(answers, spectra, self.lipschitz)
