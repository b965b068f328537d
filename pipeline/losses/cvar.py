"""The maths of CVaR over groups: means of groups, and the exact, published and nested weights."""

from typing import NamedTuple

import torch
from torch import Tensor

_BISECTION_STEPS = 32  # what the published code runs; its gradient depends on it


class GroupMeans(NamedTuple):
    """Mean loss of each group of a batch, in *slots*: one slot a sample, filled where a group is seen first.

    Slots let any number of groups with any ids be averaged without asking the device how many there are.
    """

    losses: Tensor  # [N], the group's mean loss in its slot, 0 in unused slots
    used: Tensor  # [N] bool, True in slots that hold a group
    share: Tensor  # [N, N], share[s, i] = 1/n_g where sample i belongs to the group in slot s, else 0


def group_means(sample_losses: Tensor, group: Tensor) -> GroupMeans:
    """Mean loss over the samples of each group present in the batch (paper, Eq. 3); id -1 belongs to no group."""
    same = group[:, None] == group[None, :]
    first = ~torch.tril(same, diagonal=-1).any(dim=1) & (group >= 0)
    share = same.to(sample_losses) / same.sum(dim=1, keepdim=True).clamp(min=1)
    share = share * first[:, None].to(share)
    return GroupMeans(share @ sample_losses, first, share)


def group_sums(sample_losses: Tensor, group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """([G] sum of the losses, [G] number of samples) of groups 0 to ``num_groups - 1``, in float64."""
    member = torch.arange(num_groups, device=group.device)[:, None] == group[None, :]
    losses = sample_losses.detach().double().expand(num_groups, -1)
    return torch.where(member, losses, 0.0).sum(dim=1), member.double().sum(dim=1)


def cvar_weights(group_losses: Tensor, alpha: float, used: Tensor | None = None) -> Tensor:
    r"""Group weights whose weighted mean is the CVaR of the group losses, with the exact (sub)gradient.

    CVaR's dual form (Rockafellar & Uryasev 2000) of the paper's Eq. 4:

    .. math:: \min_\lambda \lambda + \frac{1}{\alpha G} \sum_g [L_g - \lambda]_+
              = \max_w \sum_g w_g L_g \quad\text{s.t. } 0 \le w_g \le \tfrac{1}{\alpha G}, \sum_g w_g = 1

    The maximum fills the worst groups up to the cap until the weights sum to 1; tied groups share equally. As w is an
    optimum, the gradient of the loss is that of ``sum w_g L_g`` with w held constant. ``alpha = 1`` is the mean over
    groups, ``alpha <= 1/G`` the worst group. ``used`` [G] tells which entries hold a group (default: all). The weights
    [G] are detached and sum to 1 (all 0 when no entry is used).
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
    none, those above get 1/(alpha G) each, so the weights do not sum to 1. Kept to reproduce published runs. Returned
    are [G] detached weights and the scalar lambda; with one group, or ``alpha = 1``, equal weights and 0.
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
        share = (
            above.float() / used.sum().float()
        )  # theirs has this precision: 1/3 of the groups is more than alpha = 1/3
        rising = share.double() / alpha <= 1  # the slope 1 - share / alpha is not negative
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    lambda_ = ((low + high) / 2).to(losses)
    plain = (used.sum() <= 1) if alpha < 1 else torch.ones_like(used).any()
    equal = used.to(losses) / used.sum().clamp(min=1)
    weights = torch.where(plain, equal, cap * ((losses > lambda_) & used))
    return weights, torch.where(plain | ~used.any(), torch.zeros_like(lambda_), lambda_)


def nested_cvar_weights(
    losses: Tensor, parent: Tensor, alpha: float, alpha_inner: float, used: Tensor | None = None
) -> Tensor:
    r"""Weights of CVaR over parents of the CVaR over each parent's children, with the exact (sub)gradient.

    .. math:: \mathrm{CVaR}_\alpha \big( \{ \mathrm{CVaR}_{\alpha'} ( \{ L_i : p(i) = p \} ) \}_p \big)
              = \max_{w, v} \sum_p w_p \sum_{i : p(i) = p} v_i L_i

    Both levels are :func:`cvar_weights`: v sums to 1 over the children of a parent, each at most
    :math:`1/(\alpha' n_p)`, and w to 1 over the parents. It is a maximum of maxima, so the gradient is that of the
    weighted sum with both held constant. The weights [N], :math:`w_{p(i)} v_i`, are detached and sum to 1 (all 0 when
    no entry is used).

    Args:
        losses: [N] of the children.
        parent: [N] integer id of each child's parent.
        alpha: in (0, 1], over the parents present; ``alpha_inner`` is the level over the children of a parent.
        used: [N] bool, which entries hold a child (default: all).
    """
    losses = losses.detach()
    used = torch.ones_like(losses, dtype=torch.bool) if used is None else used
    siblings = (parent[:, None] == parent[None, :]) & used[:, None] & used[None, :]
    first = ~torch.tril(siblings, diagonal=-1).any(dim=1) & used  # a parent's slot, as of GroupMeans
    inner = _cvar_weights_within(losses, alpha_inner, siblings)
    of_parents = siblings.to(losses) @ (inner * losses)
    outer = cvar_weights(of_parents, alpha, first)
    return inner * (outer @ siblings.to(losses))


def _cvar_weights_within(losses: Tensor, alpha: float, siblings: Tensor) -> Tensor:
    """:func:`cvar_weights` of each set of siblings by itself: [N] weights out of [N] losses and [N, N] membership."""
    cap = 1 / (alpha * siblings.sum(dim=1).clamp(min=1).to(losses))
    equal = losses[:, None] == losses[None, :]
    before = (losses[None, :] > losses[:, None]) | torch.tril(equal, diagonal=-1)
    rank = (before & siblings).sum(dim=1)
    weights = torch.minimum((1 - rank * cap).clamp(min=0), cap) * siblings.diagonal()
    tied = (equal & siblings).to(losses)
    return (tied @ weights) / tied.sum(dim=1).clamp(min=1)


def _weight_cap(alpha: float, used: Tensor, like: Tensor) -> Tensor:
    return 1 / (alpha * used.sum().clamp(min=1).to(like))
