"""The group level of the objective: how the losses of samples become one loss, over groups or blind to them.

The modules hold settings and, where batches are remembered, the memory; the maths are in :mod:`.cvar`. Nothing here
reads a value back from the device, so a training step never waits for the loss.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting, check_whole

from ..common.distributed import gather_batch, local_part, world_size
from .cvar import (
    cvar_weights,
    group_means,
    group_sums,
    kl_weights,
    nested_cvar_weights,
    published_cvar_weights,
    published_nested_cvar_weights,
)


class RunningGroupLoss(nn.Module):
    r"""An exponential moving average of each group's mean loss, and how often the group came.

    When group g is in a batch with mean loss :math:`\hat L_g`, and only then, with m = ``momentum`` in [0, 1),

    .. math:: s_g \leftarrow m s_g + (1 - m) \hat L_g, \quad c_g \leftarrow m c_g + (1 - m), \quad
              \tilde L_g = s_g / c_g.

    Division by c removes the bias towards the start at 0, so the first batch alone gives its own mean. The share of a
    group is counted over all batches: batches are drawn in the same way throughout, and what an importance weight is
    divided by must not be noisy. A loss that is not finite does not enter; the step's own loss shows it. All of it is
    part of the ``state_dict``, so that a resumed training goes on where it stood.
    """

    loss_sum: Tensor  # [G] s
    loss_mass: Tensor  # [G] c
    samples: Tensor  # [G] samples seen

    def __init__(self, num_groups: int, momentum: float = 0.9) -> None:
        super().__init__()
        check_whole("num_groups", num_groups, least=1)
        check_setting("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        self.num_groups, self.momentum = num_groups, float(momentum)
        for name in ("loss_sum", "loss_mass", "samples"):
            self.register_buffer(name, torch.zeros(num_groups, dtype=torch.float64))

    @torch.no_grad()
    def update(self, sample_losses: Tensor, group: Tensor) -> None:
        """Take in a batch: [N] losses, [N] group ids, -1 unknown."""
        sums, counts = group_sums(sample_losses, group, self.num_groups)
        means = sums / counts.clamp(min=1)
        met = (counts > 0) & means.isfinite()
        for average, value in ((self.loss_sum, means), (self.loss_mass, torch.ones_like(means))):
            average.copy_(torch.where(met, self.momentum * average + (1 - self.momentum) * value, average))
        self.samples.add_(counts)

    @property
    def seen(self) -> Tensor:
        """[G] bool."""
        return self.loss_mass > 0

    @property
    def losses(self) -> Tensor:
        """[G] estimates, 0 where not seen."""
        return self.loss_sum / torch.where(self.seen, self.loss_mass, 1.0)

    @property
    def shares(self) -> Tensor:
        """[G] shares of the samples of known group, summing to 1 once there are any."""
        return self.samples / self.samples.sum().clamp(min=1)


class Aggregation(nn.Module):
    """The outer level: a scalar loss out of sample losses [N] and groups [N], as a weighted sum.

    A subclass says what a sample weighs (:meth:`sample_weights`). One that remembers batches keeps that in buffers and
    moves it in :meth:`observe`, once a training step and before the step is weighed. :meth:`weights` moves nothing, so
    that after a step it gives the weights of that step.

    Samples of unknown group (-1) have a class to learn from but no group to compare. Wherever groups count, they take
    part as in a plain mean, at their share of the batch: ``loss = (n_known L(known) + sum(unknown losses)) / n``.

    In a process group the batch is the global one: losses are gathered without gradient, each process weighs its own
    samples, and the processes' mean gradient (DistributedDataParallel) is that of the global batch. So is what is
    remembered, which is therefore the same in all processes.
    """

    num_groups: int | None = None  # G, of one that has to know it: group ids are below it

    def groups(self, target: Mapping[str, Tensor]) -> Tensor:
        """[N] ids of the groups to weigh, of a batch's ``label`` and ``group``; -1 unknown."""
        return target["group"]

    def sample_weights(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, Tensor | float]:
        """[N] detached weights of a whole batch, and what to add to the weighted sum to give the loss's value."""
        raise NotImplementedError

    def observe(self, sample_losses: Tensor, group: Tensor) -> None:
        """Remember a whole batch of a training step; without memory, nothing."""

    def forward(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        batch = gather_batch(sample_losses), gather_batch(group)
        if self.training and torch.is_grad_enabled():  # a training step, not a validation's or an explanation's look
            self.observe(*batch)
        weights, constant = self.sample_weights(*batch)
        # every process gets its own samples' part; the mean over processes, as of their gradients, is the whole
        return world_size() * local_part(weights) @ sample_losses + constant

    @torch.no_grad()
    def weights(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        """[N] detached weight of each sample in the aggregated loss; after a step, those that the step had."""
        return world_size() * local_part(self.sample_weights(gather_batch(sample_losses), gather_batch(group))[0])


class MeanAggregation(Aggregation):
    """The mean over samples, blind to groups: the outer level of the CE and LA-only systems."""

    def weights(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        return torch.full_like(sample_losses.detach(), 1 / len(sample_losses))

    def forward(self, sample_losses: Tensor, group: Tensor) -> Tensor:
        return sample_losses.mean()


class GroupCVaR(Aggregation):
    r"""CVaR over the mean losses of groups (paper, Eq. 3-4). ``alpha <= 1/G`` is the worst group.

    ``estimator="batch"``, the paper's: the groups are those present in the batch, with their mean losses in it. A batch
    with one group has nothing to weigh.

    ``estimator="running"``: the groups are all that were seen so far, with moving averages of their losses
    (:class:`RunningGroupLoss`), the present batch included. Their CVaR weights w hold for every batch, whichever groups
    are in it, and a sample counts

    .. math:: \frac{1}{n} \frac{w_{g(i)}}{q_{g(i)}}, \qquad q_g = \text{the group's share of all samples so far,}

    that is, w/q times what it counts in a plain mean. A group makes up q of the samples of a batch on average, and
    these are drawn from all of its samples, so the gradient of :math:`\frac1n \sum_i \frac{w_{g(i)}}{q_{g(i)}} \ell_i`
    has the expectation :math:`\sum_g w_g \nabla L_g`: with w at the optimum, the gradient of the CVaR of the whole
    training set. Its value has the expectation :math:`\sum_g w_g L_g`, and weights of a batch sum to 1 on average only.
    It is the running form of stochastic compositional gradients (Wang, Fang & Liu 2017); docs/method.md has its costs.

    Args:
        alpha: in (0, 1]; 1 is the mean over groups, towards 0 the worst group.
        gradient: ``exact`` (:func:`cvar_weights`) or ``published`` (:func:`published_cvar_weights`).
        num_groups: G, which the running estimate needs, as it does ``momentum``; group ids are then below it.
    """

    def __init__(
        self, alpha: float = 0.8, gradient: str = "exact", estimator: str = "batch", momentum: float = 0.9,
        num_groups: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_setting("alpha", alpha, 0 < alpha <= 1, "in (0, 1]")
        check_setting("gradient", gradient, gradient in ("exact", "published"), "'exact' or 'published'")
        check_setting("estimator", estimator, estimator in ("batch", "running"), "'batch' or 'running'")
        self.alpha, self.gradient = float(alpha), gradient
        self.running: RunningGroupLoss | None = None
        if estimator == "running":
            if num_groups is None:
                raise ValueError("estimator 'running' needs num_groups, the number of groups")
            self.running = RunningGroupLoss(num_groups, momentum)
            self.num_groups = num_groups

    def observe(self, sample_losses: Tensor, group: Tensor) -> None:
        if self.running is not None:
            self.running.update(sample_losses, group)

    def sample_weights(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        known = (group >= 0).to(sample_losses)
        if self.running is None:
            means = group_means(sample_losses, group)
            group_weights, constant = self._group_weights(means.losses, means.used)
            return _with_unknown(group_weights @ means.share, known), known.mean() * constant
        seen, shares = self.running.seen, self.running.shares
        group_weights, constant = self._group_weights(self.running.losses, seen)
        weights = _importance(group_weights, shares, seen, group).to(sample_losses)
        return weights, known.mean() * constant.to(sample_losses)

    def _group_weights(self, losses: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Group weights, and what must be added to the weighted sum to give the CVaR's value."""
        if self.gradient == "exact":
            return cvar_weights(losses, self.alpha, used), losses.new_zeros(())
        group_weights, lambda_ = published_cvar_weights(losses, self.alpha, used)
        return group_weights, lambda_ * (1 - group_weights.sum())


class GroupDRO(Aggregation):
    r"""Group distributionally robust optimisation: weights that grow with a group's loss (Sagawa et al. 2020, Alg. 1).

    Every training step, before it is weighed,

    .. math:: w_g \leftarrow \frac{w_g \exp(\eta \hat L_g)}{\sum_{g'} w_{g'} \exp(\eta \hat L_{g'})}, \qquad
              \text{loss} = \sum_{g \text{ in the batch}} w_g \hat L_g,

    with :math:`\hat L_g` the group's mean loss in the batch, 0 for a group that is not in it, and w uniform at first:
    the exponentiated gradient of the maximum over all weights, so that w moves towards the worst group.

    The algorithm draws groups uniformly. Where some groups come more often, their weights grow more; a sampler that
    puts every group into every batch prevents it. As in the authors' code the weights are not scaled up when groups are
    missing. They are part of the ``state_dict``, so that a resumed training goes on where it stood. Group ids are below
    ``num_groups``, G; the step size ``eta`` is positive, 0.01 is the authors' default. Groups that are
    ``left_out`` have no scan to train on and no weight: they would keep their share of the loss for good.
    """

    num_groups: int
    log_weights: Tensor

    def __init__(self, num_groups: int, eta: float = 0.01, left_out: Iterable[int] = ()) -> None:
        super().__init__()
        check_whole("num_groups", num_groups, least=1)
        left = sorted(set(left_out))
        ids = set(range(num_groups))
        check_setting("left_out", left, ids > set(left), f"ids below num_groups = {num_groups}, and not all of them")
        check_setting("eta", eta, 0 < eta < float("inf"), "positive and finite")
        self.num_groups, self.eta = num_groups, float(eta)
        # logarithms: a weight that has shrunk to nothing can still come back
        equal = torch.tensor([-torch.inf if g in left else 0.0 for g in range(num_groups)], dtype=torch.float64)
        self.register_buffer("log_weights", equal.log_softmax(0))

    @torch.no_grad()
    def observe(self, sample_losses: Tensor, group: Tensor) -> None:
        sums, counts = group_sums(sample_losses, group, self.num_groups)
        means = sums / counts.clamp(min=1)
        # a loss that is not finite shows in the step's own loss and must not stay in the weights
        ascent = self.eta * torch.where(means.isfinite(), means, 0.0)
        self.log_weights.copy_((self.log_weights + ascent).log_softmax(0))

    def sample_weights(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, float]:
        _, counts = group_sums(sample_losses, group, self.num_groups)
        weights = (self.log_weights.exp() / counts.clamp(min=1)).to(sample_losses)
        known = (group >= 0).to(sample_losses)
        return _with_unknown(_of_samples(weights, group) * known, known), 0.0


class KLGroupDRO(Aggregation):
    r"""Group DRO with a penalty on leaving the groups' own shares, as of a challenge entry on this benchmark.

    The weights are :func:`kl_weights` of the groups' running losses (:class:`RunningGroupLoss`), with the groups'
    shares of all samples so far as p, and a sample counts :math:`q_{g(i)} / (n \, p_{g(i)})`, as with the running
    :class:`GroupCVaR`. So a large ``eta`` (positive) is the mean over samples, a small one the worst group. Where a
    sampler draws all groups equally often, p is even. Unlike :class:`GroupDRO`'s, the weights are those of the groups'
    losses at any time, and end at no single group.

    The entry (Johnny et al. 2026, arXiv 2603.15941) takes groups of class and sex. Only its abstract was at hand: its
    penalty's weight, its prior and how it follows the weights in small batches may be others.

    Args:
        num_groups: G; group ids are below it.
        momentum: in [0, 1), weight of the past in the running losses.
        num_classes: C, when every pair of class and group is a group of its own; None: the groups as they are.
    """

    num_groups: int

    def __init__(
        self, num_groups: int, eta: float = 0.5, momentum: float = 0.9, num_classes: int | None = None
    ) -> None:
        super().__init__()
        check_whole("num_groups", num_groups, least=1)
        check_setting("eta", eta, 0 < eta < float("inf"), "positive and finite")
        check_whole("num_classes", 1 if num_classes is None else num_classes, least=1)
        self.num_groups, self.num_classes, self.eta = num_groups, num_classes, float(eta)
        self.running = RunningGroupLoss(num_groups * (num_classes or 1), momentum)

    def groups(self, target: Mapping[str, Tensor]) -> Tensor:
        group = target["group"].long()
        if self.num_classes is None:
            return group
        return torch.where(group < 0, group, group * self.num_classes + target["label"].long())

    def observe(self, sample_losses: Tensor, group: Tensor) -> None:
        self.running.update(sample_losses, group)

    def sample_weights(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, float]:
        seen, shares = self.running.seen, self.running.shares
        group_weights = kl_weights(self.running.losses, shares, self.eta, seen)
        return _importance(group_weights, shares, seen, group).to(sample_losses), 0.0


class HierarchicalCVaR(Aggregation):
    """CVaR over groups of the CVaR over the samples of each group (DAW-FDD, Ju et al. 2024).

    Inside a group the worst samples count, which the authors mean for imbalanced classes; outside the worst groups.
    ``gradient`` is ``exact`` (:func:`nested_cvar_weights`) or ``published``: the authors' code searches for the
    thresholds of both levels and takes them as constants (:func:`published_nested_cvar_weights`).

    The groups and samples are those of the batch. With one sample of a group in it there is nothing to weigh inside,
    and the CVaR of few samples is on average smaller than that of the group. ``alpha`` is the level over the groups,
    ``alpha_inner`` over the samples of a group, both in (0, 1]; an inner 1, their mean, makes this :class:`GroupCVaR`.
    """

    def __init__(self, alpha: float = 0.5, alpha_inner: float = 0.9, gradient: str = "exact") -> None:
        super().__init__()
        check_setting("alpha", alpha, 0 < alpha <= 1, "in (0, 1]")
        check_setting("alpha_inner", alpha_inner, 0 < alpha_inner <= 1, "in (0, 1]")
        check_setting("gradient", gradient, gradient in ("exact", "published"), "'exact' or 'published'")
        self.alpha, self.alpha_inner, self.gradient = float(alpha), float(alpha_inner), gradient

    def sample_weights(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, Tensor | float]:
        known, levels = group >= 0, (self.alpha, self.alpha_inner)
        if self.gradient == "exact":
            weights = nested_cvar_weights(sample_losses, group, *levels, known)
            return _with_unknown(weights, known.to(sample_losses)), 0.0
        weights, constant = published_nested_cvar_weights(sample_losses, group, *levels, known)
        return _with_unknown(weights, known.to(sample_losses)), known.to(sample_losses).mean() * constant


class GroupTreeCVaR(HierarchicalCVaR):
    """CVaR over parent groups of the CVaR over the groups inside each, such as sex x age band inside sex.

    Plain CVaR over intersections lets a parent with many children outvote one with few; here each parent counts once.
    The gradient is exact (:func:`nested_cvar_weights`). Groups and parents are those present in the batch.
    ``alpha`` is the level over the parents, ``alpha_inner`` over the groups of a parent, both in (0, 1]. ``parents``
    [G] gives the parent id (0 or more) of each group id: ``[0, 0, 1, 1]`` puts groups 0 and 1 under parent 0.
    """

    parents: Tensor

    def __init__(self, parents: Sequence[int], alpha: float = 0.8, alpha_inner: float = 0.8) -> None:
        super().__init__(alpha, alpha_inner)
        if not parents or any(parent != int(parent) or parent < 0 for parent in parents):
            raise ValueError(f"parents must give each group the id, 0 or more, of its parent, got {list(parents)}")
        self.num_groups = len(parents)
        self.register_buffer("parents", torch.tensor([int(parent) for parent in parents]), persistent=False)

    def sample_weights(self, sample_losses: Tensor, group: Tensor) -> tuple[Tensor, float]:
        means = group_means(sample_losses, group)
        parent = _of_samples(self.parents, group)
        weights = nested_cvar_weights(means.losses, parent, self.alpha, self.alpha_inner, means.used)
        return _with_unknown(weights @ means.share, (group >= 0).to(sample_losses)), 0.0


def _of_samples(of_groups: Tensor, group: Tensor) -> Tensor:
    """[N] a group's entry for each of its samples; any entry for samples of unknown group."""
    return of_groups[group.long().clamp(min=0)]


def _importance(group_weights: Tensor, shares: Tensor, seen: Tensor, group: Tensor) -> Tensor:
    """[N] weights w/(n q) of the samples of a batch, for groups [G] of weight w and share q of all samples.

    A group that was not seen yet, as in a look before the first step, and unknown groups enter as in a plain mean.
    """
    factor = torch.where(seen, group_weights / torch.where(seen, shares, 1.0), 1.0)
    return torch.where(group >= 0, _of_samples(factor, group), 1.0) / len(group)


def _with_unknown(weights: Tensor, known: Tensor) -> Tensor:
    """Weights of all samples: samples of unknown group take part at their share of the batch."""
    return weights * known.mean() + (1 - known) / len(known)
