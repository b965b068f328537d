"""The maths of weights over groups: means of groups, CVaR's exact, published and nested weights, KL-penalised ones."""

from typing import NamedTuple

import torch
from scipy.optimize import fminbound
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


def published_nested_cvar_weights(
    losses: Tensor, parent: Tensor, alpha: float, alpha_inner: float, used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Weights of :func:`nested_cvar_weights` as DAW-FDD's authors' code has them: right in value, wrong in gradient.

    The code (Ju et al. 2024, as in their benchmark AI-Face-FairnessBench) searches the threshold lambda of each level
    with SciPy's ``fminbound`` between the smallest loss - 1000 and the largest one, and takes it as a constant in
    :math:`\lambda + \frac{1}{\alpha n} \sum_i [L_i - \lambda]_+`. So a loss above it weighs
    :math:`1 / (\alpha n)` and one below it nothing, at both levels. A loss that is the exact threshold is above or
    below by the error of the search, about 1e-6: the weights are the code's only with the same search, which therefore
    is run. It reads the losses back from the device.

    Returned are [N] detached weights and what must be added to the weighted sum to give the value. Losses that are not
    all finite are averaged, so that the value is not finite either.
    """
    values, ids = losses.detach().cpu(), parent.cpu()
    members = torch.ones_like(ids, dtype=torch.bool) if used is None else used.cpu()
    weights = torch.zeros_like(values)
    if not members.any():
        return weights.to(losses), losses.new_zeros(())
    children = [(ids == p) & members for p in ids[members].unique()]
    inner = [_searched_cvar(values[rows], alpha_inner) for rows in children]
    outer, value = _searched_cvar(torch.stack([of_parent for _, of_parent in inner]), alpha)
    for rows, weight, (within, _) in zip(children, outer, inner, strict=True):
        weights[rows] = weight * within
    return weights.to(losses), (value - weights[members] @ values[members]).to(losses)


def _searched_cvar(losses: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """[n] weights and the value of CVaR at a threshold that was searched, as a constant."""
    if not losses.isfinite().all():
        return torch.full_like(losses, 1 / len(losses)), losses.mean()

    def objective(threshold: float) -> float:
        return threshold + (1 / alpha) * (losses - threshold).relu().mean().item()

    threshold = float(fminbound(objective, losses.min().item() - 1000.0, losses.max().item()))
    above = (losses - threshold).relu()
    return (above > 0).to(losses) / (alpha * len(losses)), threshold + (1 / alpha) * above.mean()


def kl_weights(group_losses: Tensor, prior: Tensor, eta: float, used: Tensor) -> Tensor:
    r"""[G] group weights that are worst for the mean loss, but for a penalty on leaving a prior p.

    .. math:: \max_q \sum_g q_g L_g - \eta \, \mathrm{KL}(q \,\|\, p) = \eta \log \sum_g p_g e^{L_g / \eta},
              \qquad q_g = \frac{p_g e^{L_g / \eta}}{\sum_{g'} p_{g'} e^{L_{g'} / \eta}}

    (Gibbs' variational principle). For a large eta q is p, for a small one the worst group alone. As q is the optimum,
    the gradient of the maximum is that of :math:`\sum_g q_g L_g` with q held constant. Entries that are not ``used``
    [G] have no weight.
    """
    losses = group_losses.detach().masked_fill(~used, -torch.inf)
    return (prior.log() + (losses - losses.amax()) / eta).masked_fill(~used, -torch.inf).softmax(0)


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
