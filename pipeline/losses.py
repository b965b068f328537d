"""The two-level objective: a per-sample loss inside, an aggregation over groups outside.

The maths are pure functions; the modules only hold settings and call them. Nothing here reads a value back from the
device, so a training step never waits for the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .distributed import gather_batch, local_part, world_size

_BISECTION_STEPS = 32  # what the published code runs; its gradient depends on it


# ---------------------------------------------------------------------------------------------------------------------
# the sample level
# ---------------------------------------------------------------------------------------------------------------------
def log_class_prior(class_counts: Sequence[float] | Mapping[str, float]) -> Tensor:
    """log pi_y, the logarithm of the empirical class frequencies.

    Args:
        class_counts: scans of each class, in class order; a mapping gives the classes' names to error messages.

    Returns:
        float64 tensor of shape [C].

    Raises:
        ValueError: fewer than two classes, or a count that is not positive (log 0 turns every loss into NaN).
    """
    named = class_counts if isinstance(class_counts, Mapping) else {str(i): n for i, n in enumerate(class_counts)}
    if len(named) < 2:
        raise ValueError(f"class_counts must name at least 2 classes, got {dict(named)}")
    bad = {name: n for name, n in named.items() if not float(n) > 0 or float(n) == float("inf")}
    if bad:
        listed = ", ".join(f"class {name!r} has {n}" for name, n in bad.items())
        raise ValueError(f"class_counts must be positive and finite: {listed}")
    counts = torch.tensor([float(n) for n in named.values()], dtype=torch.float64)
    return torch.log(counts / counts.sum())


def logit_adjusted_cross_entropy(logits: Tensor, label: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    r"""Cross-entropy on logits shifted by the class prior (paper, Eq. 2; Menon et al. 2021).

    .. math:: \ell(x, y) = -\log \frac{\exp(f_y(x) + \tau \log \pi_y)}{\sum_{y'} \exp(f_{y'}(x) + \tau \log \pi_{y'})}

    The shift is in the loss only: predictions use the raw logits, which then estimate the class-balanced posterior.

    Args:
        logits: [N, C], any floating type; half precision is promoted to float32.
        label: [N] class indices.
        log_prior: [C], see :func:`log_class_prior`.
        tau: strength, 0 gives plain cross-entropy, 1 is Fisher-consistent for the balanced error.

    Returns:
        [N] losses, one a sample.
    """
    logits = _promote(logits)
    return F.cross_entropy(logits + tau * log_prior.to(logits), label.long(), reduction="none")


# ---------------------------------------------------------------------------------------------------------------------
# the group level
# ---------------------------------------------------------------------------------------------------------------------
class GroupMeans(NamedTuple):
    """Mean loss of each group of a batch, in *slots*: one slot a sample, filled where a group is seen first.

    Slots let any number of groups with any ids be averaged without asking the device how many there are.
    """

    losses: Tensor  # [N], the group's mean loss in its slot, 0 in unused slots
    used: Tensor  # [N] bool, True in slots that hold a group
    share: Tensor  # [N, N], share[s, i] = 1/n_g where sample i belongs to the group in slot s, else 0


def group_means(sample_losses: Tensor, group: Tensor) -> GroupMeans:
    """Mean loss over the samples of each group present in the batch (paper, Eq. 3).

    Args:
        sample_losses: [N].
        group: [N] integer group ids; :data:`~.names.UNKNOWN_GROUP` (-1) belongs to no group.
    """
    same = (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    first = ~torch.tril(same, diagonal=-1).any(dim=1) & (group >= 0)
    share = same.to(sample_losses) / same.sum(dim=1, keepdim=True).clamp(min=1)
    share = share * first[:, None].to(share)
    return GroupMeans(share @ sample_losses, first, share)


def cvar_weights(group_losses: Tensor, alpha: float, used: Tensor | None = None) -> Tensor:
    r"""Group weights whose weighted mean is the CVaR of the group losses, with the exact (sub)gradient.

    CVaR's dual form (Rockafellar & Uryasev 2000) of the paper's Eq. 4:

    .. math:: \min_\lambda \lambda + \frac{1}{\alpha G} \sum_g [L_g - \lambda]_+
              = \max_w \sum_g w_g L_g \quad\text{s.t. } 0 \le w_g \le \tfrac{1}{\alpha G}, \sum_g w_g = 1

    The maximum fills the worst groups up to the cap until the weights sum to 1; tied groups share equally. As w is an
    optimum, the gradient of the loss is that of ``sum w_g L_g`` with w held constant. ``alpha = 1`` is the mean over
    groups, ``alpha <= 1/G`` the worst group.

    Args:
        group_losses: [G].
        alpha: in (0, 1].
        used: [G] bool, which entries hold a group (default: all). Others get weight 0.

    Returns:
        [G] detached weights, summing to 1 (all 0 when no entry is used).
    """
    losses = group_losses.detach()
    used = torch.ones_like(losses, dtype=torch.bool) if used is None else used
    cap = _weight_cap(alpha, used, losses)
    losses = losses.masked_fill(~used, -torch.inf)
    order = torch.argsort(losses, descending=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    weights = torch.minimum((1 - rank * cap).clamp(min=0), cap) * used
    tied = ((losses[:, None] == losses[None, :]) & used[None, :]).to(losses)
    return (tied @ weights) / tied.sum(dim=1).clamp(min=1) * used


def published_cvar_weights(group_losses: Tensor, alpha: float, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Group weights and lambda as the authors' published code has them: right in value, wrong in gradient.

    It finds lambda by bisection between the smallest and the largest group loss, detaches it and differentiates
    ``lambda + 1/(alpha G) sum [L_g - lambda]_+``. The gradient through lambda is lost: groups at or below lambda get
    none, those above get 1/(alpha G) each, so the weights do not sum to 1. Kept to reproduce published runs.

    Args:
        group_losses: [G].
        alpha: in (0, 1]; 1 gives the mean over groups.
        used: [G] bool, which entries hold a group.

    Returns:
        ([G] detached weights, scalar lambda). With one group, or ``alpha = 1``: equal weights and lambda 0.
    """
    losses = group_losses.detach()
    used = torch.ones_like(losses, dtype=torch.bool) if used is None else used
    cap = _weight_cap(alpha, used, losses)
    # as theirs: the ends of the search are Python floats, the comparisons are made in the losses' own type
    low = losses.masked_fill(~used, torch.inf).amin().double()
    high = losses.masked_fill(~used, -torch.inf).amax().double()
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        above = ((losses > middle.to(losses)) & used).sum()
        rising = above <= alpha * used.sum().double()  # the slope 1 - |{L_g > lambda}| / (alpha G) is not negative
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    lambda_ = ((low + high) / 2).to(losses)
    plain = (used.sum() <= 1) if alpha < 1 else torch.ones_like(used).any()
    equal = used.to(losses) / used.sum().clamp(min=1)
    weights = torch.where(plain, equal, cap * ((losses > lambda_) & used))
    return weights, torch.where(plain | ~used.any(), torch.zeros_like(lambda_), lambda_)


def _weight_cap(alpha: float, used: Tensor, like: Tensor) -> Tensor:
    return 1 / (alpha * used.sum().clamp(min=1).to(like))


def _promote(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _full_precision(like: Tensor) -> AbstractContextManager:
    """Autocast off for a tensor's device."""
    kind = like.device.type
    if not torch.amp.autocast_mode.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


# ---------------------------------------------------------------------------------------------------------------------
# modules
# ---------------------------------------------------------------------------------------------------------------------
class CrossEntropy(nn.Module):
    """Plain cross-entropy, one loss a sample: the inner level of the CE and CVaR-only systems."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(_promote(logits), label.long(), reduction="none")


class LogitAdjustedCrossEntropy(nn.Module):
    """:func:`logit_adjusted_cross_entropy` with the class prior of the training split.

    Args:
        class_counts: training scans of each class, in class order (a mapping names them in errors).
        tau: strength of the adjustment, at least 0.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Sequence[float] | Mapping[str, float], tau: float = 1.0) -> None:
        super().__init__()
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau must be in [0, inf), got {tau}")
        self.tau = float(tau)
        # not part of the state dict: a checkpoint of the network must not depend on the training prior
        self.register_buffer("log_prior", log_class_prior(class_counts), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        if logits.shape[1] != len(self.log_prior):
            raise ValueError(f"logits have {logits.shape[1]} classes, class_counts has {len(self.log_prior)}")
        return logit_adjusted_cross_entropy(logits, label, self.log_prior, self.tau)


class Aggregation(nn.Module):
    """The outer level: a scalar loss out of sample losses [N] and groups [N], as a weighted sum."""

    def weights(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        """[N] detached weight of each sample in the aggregated loss."""
        raise NotImplementedError


class MeanAggregation(Aggregation):
    """The mean over samples, blind to groups: the outer level of the CE and LA-only systems."""

    def weights(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        return torch.full_like(sample_losses.detach(), 1 / len(sample_losses))

    def forward(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        return sample_losses.mean()


class GroupCVaR(Aggregation):
    """CVaR over the mean losses of the groups present in the batch (paper, Eq. 3-4).

    Samples of unknown group (-1) have a class to learn from but no group to compare: they take part as in a plain mean,
    ``loss = (n_known CVaR(known) + sum(unknown losses)) / n``, at their share of the batch and outside the CVaR.

    In a process group the groups are those of the global batch: losses are gathered without gradient, each process
    weighs its own samples, and the processes' mean gradient (DistributedDataParallel) is that of the global batch.

    Args:
        alpha: in (0, 1]; 1 is the mean over groups, towards 0 the worst group.
        gradient: ``exact`` (:func:`cvar_weights`) or ``published`` (:func:`published_cvar_weights`).
    """

    def __init__(self, alpha: float = 0.8, gradient: str = "exact") -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha}")
        if gradient not in ("exact", "published"):
            raise ValueError(f"gradient must be 'exact' or 'published', got {gradient!r}")
        self.alpha = float(alpha)
        self.gradient = gradient

    def weights(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        return self._weights_and_constant(sample_losses, group)[0]

    def forward(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        weights, constant = self._weights_and_constant(sample_losses, group)
        return weights @ sample_losses + constant

    def _weights_and_constant(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Sample weights, and what must be added to the weighted sum to give the CVaR's value."""
        sample_losses, group = gather_batch(sample_losses), gather_batch(group)
        means = group_means(sample_losses, group)
        if self.gradient == "exact":
            group_weights, constant = cvar_weights(means.losses, self.alpha, means.used), means.losses.new_zeros(())
        else:
            group_weights, lambda_ = published_cvar_weights(means.losses, self.alpha, means.used)
            constant = lambda_ * (1 - group_weights.sum())
        known = (group >= 0).to(sample_losses)
        weights = (group_weights @ means.share) * known.mean() + (1 - known) / len(known)
        # every process gets its own samples' part; the mean over processes, as of their gradients, is the whole
        return world_size() * local_part(weights), known.mean() * constant


class TwoLevelLoss(nn.Module):
    """``aggregation(sample_loss(logits, label), group)``: any inner level with any outer level.

    Args:
        sample_loss: module ``(logits [N, C], label [N]) -> [N]``.
        aggregation: how sample losses and groups become one loss.
    """

    def __init__(self, sample_loss: nn.Module, aggregation: Aggregation) -> None:
        super().__init__()
        self.sample_loss = sample_loss
        self.aggregation = aggregation

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of a batch.

        Args:
            logits: [N, C] raw network outputs.
            target: ``{"label": [N] class indices, "group": [N] group ids, -1 unknown}``.
        """
        # autocast would compute the group weights in half precision, where close losses tie and gradients overflow
        with _full_precision(logits):
            return self.aggregation(self.sample_loss(_promote(logits), target["label"]), target["group"])

    @torch.no_grad()
    def explain(self, logits: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """[N] loss and [N] weight of each sample; their product sums to the loss (with the exact gradient)."""
        with _full_precision(logits):
            losses = self.sample_loss(_promote(logits), target["label"])
            return losses, self.aggregation.weights(losses, target["group"])


class FairLACVaRLoss(TwoLevelLoss):
    """The paper's objective: logit-adjusted cross-entropy a sample, CVaR over the groups (Algorithm 1).

    Args:
        class_counts: training scans of each class, in class order (a mapping names them in errors).
        alpha: CVaR level in (0, 1].
        tau: strength of the logit adjustment.
        gradient: ``exact``, or ``published`` to reproduce the authors' code.

    Example:
        >>> loss = FairLACVaRLoss({"a": 250, "g": 84}, alpha=0.8)
        >>> target = {"label": torch.tensor([0, 1]), "group": torch.tensor([0, 1])}
        >>> loss(torch.zeros(2, 2), target).item() > 0
        True
    """

    def __init__(
        self,
        class_counts: Sequence[float] | Mapping[str, float],
        alpha: float = 0.8,
        tau: float = 1.0,
        gradient: str = "exact",
    ) -> None:
        super().__init__(LogitAdjustedCrossEntropy(class_counts, tau), GroupCVaR(alpha, gradient))
