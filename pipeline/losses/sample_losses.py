"""The losses of samples: pure functions of logits [N, C] and class indices [N] that return [N], and their modules.

Nothing here reads a value back from the device, so a training step never waits for the loss.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from monai.losses.focal_loss import softmax_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from fairlung.transforms.checks import check_setting

logger = logging.getLogger(__name__)

# training scans of each class, in class order; a mapping gives the classes' names to error messages
ClassCounts = Sequence[float] | Mapping[str, float]


def _counts(class_counts: ClassCounts) -> Tensor:
    """[C] float64; ValueError, with the class's name, for fewer than two classes or a count that is not positive."""
    named = class_counts if isinstance(class_counts, Mapping) else {str(i): n for i, n in enumerate(class_counts)}
    if len(named) < 2:
        raise ValueError(f"class_counts must name at least 2 classes, got {dict(named)}")
    if bad := {name: n for name, n in named.items() if not 0 < float(n) < float("inf")}:
        listed = ", ".join(f"class {name!r} has {n}" for name, n in bad.items())
        raise ValueError(f"class_counts must be positive and finite: {listed}")
    return torch.tensor([float(n) for n in named.values()], dtype=torch.float64)


def log_class_prior(class_counts: ClassCounts) -> Tensor:
    """[C] float64 log pi_y, the logarithm of the empirical class frequencies.

    A count that is not positive is a ValueError, as log 0 turns every loss into NaN; so are fewer than two classes.
    """
    counts = _counts(class_counts)
    return torch.log(counts / counts.sum())


def inverse_frequency_weights(class_counts: ClassCounts) -> Tensor:
    """[C] n / (C n_y) for each class y, scikit-learn's ``balanced``: the mean weight of the n training scans is 1."""
    counts = _counts(class_counts)
    return counts.sum() / (len(counts) * counts)


def ldam_margins(class_counts: ClassCounts, max_margin: float = 0.5) -> Tensor:
    """[C] margins C / n_y^(1/4), with C such that the rarest class has ``max_margin`` logits (Cao et al. 2019)."""
    counts = _counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def logit_adjusted_cross_entropy(logits: Tensor, label: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    r"""Cross-entropy on logits shifted by the class prior (paper, Eq. 2; Menon et al. 2021).

    .. math:: \ell(x, y) = -\log \frac{\exp(f_y(x) + \tau \log \pi_y)}{\sum_{y'} \exp(f_{y'}(x) + \tau \log \pi_{y'})}

    The shift is in the loss only: predictions use the raw logits, which then estimate the class-balanced posterior (of
    the plain mean; other aggregations move it, :func:`answered_frequencies`).
    With ``tau = 1`` it is the balanced softmax (Ren et al. 2020), whose class counts n_y stand for pi_y.

    Args:
        logits: [N, C], any floating type; half precision is promoted to float32.
        log_prior: [C], see :func:`log_class_prior`.
        tau: strength, 0 gives plain cross-entropy, 1 is Fisher-consistent for the balanced error.
    """
    logits = promote(logits)
    return F.cross_entropy(logits + tau * log_prior.to(logits), label.long(), reduction="none")


def weighted_cross_entropy(logits: Tensor, label: Tensor, class_weights: Tensor) -> Tensor:
    r"""Cross-entropy times the weight of the sample's class: :math:`\ell(x, y) = -w_y \log p_y(x)`.

    The weights are not normalised again in each batch, as PyTorch's weighted mean does: with
    :func:`inverse_frequency_weights` the mean over batches is then the mean of the classes' losses. They change how
    much a class counts but not its margin, and a network that can separate its training set ends up much as without
    them (Byrd & Lipton 2019).
    """
    logits = promote(logits)
    return F.cross_entropy(logits, label.long(), weight=class_weights.to(logits), reduction="none")


def focal_loss(logits: Tensor, label: Tensor, gamma: float = 2.0) -> Tensor:
    r"""Cross-entropy that counts less the surer the network is (Lin et al. 2017), by MONAI's ``softmax_focal_loss``.

    .. math:: \ell(x, y) = -(1 - p_y(x))^\gamma \log p_y(x)
    """
    logits = promote(logits)
    return softmax_focal_loss(logits, _one_hot(label, logits), gamma).sum(dim=1)


def ldam_loss(logits: Tensor, label: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    r"""Cross-entropy that asks of rare classes a larger margin (LDAM, Cao et al. 2019).

    .. math:: \ell(x, y) = -\log \frac{\exp(s (f_y(x) - \Delta_y))}
              {\exp(s (f_y(x) - \Delta_y)) + \sum_{y' \ne y} \exp(s f_{y'}(x))}

    Their schedule that turns class weights on late in training (deferred re-weighting) is not part of it.

    Args:
        logits: [N, C]. The authors' are cosines, of normalised features and normalised weights.
        margins: [C], see :func:`ldam_margins`.
        scale: s. 30 is the authors', for cosines. Without a normalised last layer it is a temperature: the network's
            own probabilities, the softmax of f, are then less sure by this factor than what is trained; 1 keeps them.
    """
    logits = promote(logits)
    shifted = scale * (logits - margins.to(logits) * _one_hot(label, logits))
    return F.cross_entropy(shifted, label.long(), reduction="none")


def equalization_loss(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    r"""Cross-entropy without the classes that are masked, but for the sample's own (Tan et al. 2020, Sec. 3.3).

    .. math:: \ell(x, y) = -\log \frac{\exp f_y(x)}{\sum_k w_k \exp f_k(x)}, \qquad
              w_k = 1 - m_k \, [k \ne y]

    ``masked`` [C] or [N, C] is m, bool. A masked class gets no gradient from samples of others, which would push it
    down; its own samples see all classes that are not masked.
    """
    logits = promote(logits)
    others = _one_hot(label, logits) == 0
    return F.cross_entropy(logits.masked_fill(masked & others, -torch.inf), label.long(), reduction="none")


def _one_hot(label: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter(1, label.long()[:, None], 1.0)


def answered_frequencies(sample_loss: nn.Module, class_shares: Tensor) -> Tensor | None:
    """[C] class frequencies under which a network answers that was trained with these shares of the objective.

    A loss whose optimum is the class frequencies times a factor says its logarithm by ``log_factor``. None for a loss
    whose optimum is no such thing, as of focal loss and LDAM, and where a class had no share.
    """
    log_factor = getattr(sample_loss, "log_factor", None)
    if log_factor is None or not (class_shares > 0).all():
        return None
    return (class_shares.double().log() + log_factor.double().to(class_shares.device)).softmax(0)


def promote(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class CrossEntropy(nn.Module):
    """Plain cross-entropy, one loss a sample: the inner level of the CE and CVaR-only systems."""

    log_factor = torch.zeros(())  # answers are under the frequencies of training

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(promote(logits), label.long(), reduction="none")


class LogitAdjustedCrossEntropy(nn.Module):
    """:func:`logit_adjusted_cross_entropy` with the class prior of the training split; ``tau`` is at least 0."""

    log_prior: Tensor

    def __init__(self, class_counts: ClassCounts, tau: float = 1.0) -> None:
        super().__init__()
        check_setting("tau", tau, 0 <= tau < float("inf"), "in [0, inf)")
        self.tau = float(tau)
        # not part of the state dict: a checkpoint of the network must not depend on the training prior
        self.register_buffer("log_prior", log_class_prior(class_counts), persistent=False)

    @property
    def log_factor(self) -> Tensor:
        """[C] of :func:`answered_frequencies`: what is added in training is missing in the answers."""
        return -self.tau * self.log_prior

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        _require_classes(logits, self.log_prior)
        return logit_adjusted_cross_entropy(logits, label, self.log_prior, self.tau)


class WeightedCrossEntropy(nn.Module):
    """:func:`weighted_cross_entropy` with the inverse class frequencies of the training split."""

    class_weights: Tensor

    def __init__(self, class_counts: ClassCounts) -> None:
        super().__init__()
        self.register_buffer("class_weights", inverse_frequency_weights(class_counts), persistent=False)

    @property
    def log_factor(self) -> Tensor:
        """[C] of :func:`answered_frequencies`."""
        return self.class_weights.log()

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        _require_classes(logits, self.class_weights)
        return weighted_cross_entropy(logits, label, self.class_weights)


class FocalLoss(nn.Module):
    """:func:`focal_loss`, ``gamma`` 0 or at least 1: between them a certain network has no finite gradient."""

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        check_setting("gamma", gamma, gamma == 0 or 1 <= gamma < float("inf"), "0 or in [1, inf)")
        self.gamma = float(gamma)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return focal_loss(logits, label, self.gamma)


class LDAMLoss(nn.Module):
    """:func:`ldam_loss` with the margins of the training split, ``max_margin`` (at least 0) for the rarest class."""

    margins: Tensor

    def __init__(self, class_counts: ClassCounts, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        check_setting("max_margin", max_margin, 0 <= max_margin < float("inf"), "in [0, inf)")
        check_setting("scale", scale, 0 < scale < float("inf"), "positive and finite")
        self.scale = float(scale)
        self.register_buffer("margins", ldam_margins(class_counts, max_margin), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        _require_classes(logits, self.margins)
        return ldam_loss(logits, label, self.margins, self.scale)


class EqualizationLoss(nn.Module):
    """:func:`equalization_loss` that masks the rare classes of a training step's samples with probability ``gamma``.

    One draw a sample, of torch's generator, which a training seeds by epoch. Looked at without gradient, in training,
    the samples of the last step have the masks of that step; in evaluation the loss is the mean over draws. ``gamma``
    is in [0, 1], 0 is cross-entropy. A class is rare whose share of the training scans is below ``rare_below``, in
    [0, 1]; where there is none the loss is cross-entropy, and a warning says so.
    """

    rare: Tensor

    def __init__(self, class_counts: ClassCounts, gamma: float = 0.9, rare_below: float = 0.2) -> None:
        super().__init__()
        check_setting("gamma", gamma, 0 <= gamma <= 1, "in [0, 1]")
        check_setting("rare_below", rare_below, 0 <= rare_below <= 1, "in [0, 1]")
        self.gamma = float(gamma)
        counts = _counts(class_counts)
        self.register_buffer("rare", counts / counts.sum() < rare_below, persistent=False)
        self._drawn: Tensor | None = None  # [N] bool, of the last training step
        if not self.rare.any():
            logger.warning("no class has less than %g of the training scans: nothing is masked", rare_below)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        _require_classes(logits, self.rare)
        plain = equalization_loss(logits, label, torch.zeros_like(self.rare))
        masked = equalization_loss(logits, label, self.rare)
        if self.training and torch.is_grad_enabled():
            self._drawn = torch.rand(len(label), device=logits.device) < self.gamma
        if self.training and self._drawn is not None and len(self._drawn) == len(label):
            return torch.where(self._drawn, masked, plain)
        return torch.lerp(plain, masked, self.gamma)


def _require_classes(logits: Tensor, of_classes: Tensor) -> None:
    if logits.shape[1] != len(of_classes):
        raise ValueError(f"logits have {logits.shape[1]} classes, class_counts has {len(of_classes)}")
