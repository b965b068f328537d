"""CVaR over groups: the authors' value, the exact weights, and what must hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_cases import alphas, close, losses_of_groups
from scipy.optimize import fminbound, linprog, minimize, minimize_scalar
from torch import Tensor

from fairlung.pipeline.losses.aggregation import GroupCVaR
from fairlung.pipeline.losses.cvar import (
    cvar_weights,
    kl_weights,
    nested_cvar_weights,
    published_cvar_weights,
    published_nested_cvar_weights,
)


@pytest.mark.parametrize(
    ("alpha", "published", "exact"),
    [
        (0.3, [1.667, 0], [1, 0]),
        (0.4, [1.25, 0], [1, 0]),
        (0.5, [1, 0], [1, 0]),
        (0.6, [0.833, 0], [0.833, 0.167]),
        (0.7, [0.714, 0], [0.714, 0.286]),
        (0.8, [0.625, 0], [0.625, 0.375]),
        (0.9, [0.556, 0], [0.556, 0.444]),
        (1.0, [0.5, 0.5], [0.5, 0.5]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_two_groups(alpha: float, published: list, exact: list, dtype: torch.dtype) -> None:
    losses = torch.tensor([2.0, 1.0], dtype=dtype)
    close(cvar_weights(losses, alpha), exact, 1e-3)
    close(published_cvar_weights(losses, alpha)[0], published, 1e-3)


def published_weights(losses: Tensor, alpha: float) -> Tensor:
    """The search of the published code, step by step: its ends are Python floats, its comparisons the losses' type."""
    low, high = losses.min().item(), losses.max().item()
    for _ in range(32):
        middle = (low + high) / 2
        if 1 - (losses > middle).float().mean().item() / alpha < 0:
            low = middle
        else:
            high = middle
    return ((losses - (low + high) / 2) > 0).to(losses) / (alpha * len(losses))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("groups", [2, 3, 5])
def test_published_gradient_is_theirs_in_the_precision_of_training(
    groups: int, alpha: float, dtype: torch.dtype
) -> None:
    """In float32 lambda may round to the worst loss, and then no group has a gradient: not for us to improve."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        losses = 4 * torch.rand(groups, generator=generator).to(dtype)
        close(published_cvar_weights(losses, alpha)[0], published_weights(losses, alpha), 1e-6)


@given(losses_of_groups, alphas)
def test_cvar_solves_the_linear_programme(losses: Tensor, alpha: float) -> None:
    groups = len(losses)
    solution = linprog(-losses.numpy(), A_eq=np.ones((1, groups)), b_eq=[1], bounds=(0, 1 / (alpha * groups)))
    assert solution.success
    close(cvar_weights(losses, alpha) @ losses, -solution.fun, 1e-7)


@given(losses_of_groups, alphas, st.sampled_from(["exact", "published"]))
def test_value_is_the_minimum_of_equation_4(losses: Tensor, alpha: float, gradient: str) -> None:
    values = losses.numpy()

    def objective(threshold: float) -> float:
        return threshold + np.maximum(values - threshold, 0).sum() / (alpha * len(values))

    found = minimize_scalar(objective, bounds=(values.min() - 1, values.max() + 1), options={"xatol": 1e-9}).fun
    found = min(found, *(objective(value) for value in values), objective(values.max()))
    close(GroupCVaR(alpha, gradient)(losses, torch.arange(len(losses))), found, 1e-5)


@given(losses_of_groups, alphas)
def test_weights_are_a_capped_distribution_that_follows_the_losses(losses: Tensor, alpha: float) -> None:
    weights = cvar_weights(losses, alpha)
    close(weights.sum(), 1.0)
    assert weights.min() >= 0
    assert weights.max() <= 1 / (alpha * len(losses)) + 1e-12
    for i, loss in enumerate(losses):
        for j, other in enumerate(losses):
            if loss > other:
                assert weights[i] >= weights[j]
            if loss == other:
                close(weights[i], weights[j], 1e-15)  # a matrix product adds up in an order of its own


@given(losses_of_groups, alphas)
def test_unused_entries_do_not_count(losses: Tensor, alpha: float) -> None:
    used = torch.tensor([True, False] * len(losses))
    padded = torch.stack([losses, torch.full_like(losses, 99.0)], dim=1).flatten()
    weights = cvar_weights(padded, alpha, used)
    close(weights[used], cvar_weights(losses, alpha))
    assert not weights[~used].any()


@given(losses_of_groups, alphas, st.randoms(use_true_random=False))
def test_weights_follow_a_permutation_of_groups(losses: Tensor, alpha: float, random: object) -> None:
    order = list(range(len(losses)))
    random.shuffle(order)  # type: ignore[attr-defined]
    close(cvar_weights(losses[order], alpha), cvar_weights(losses, alpha)[order])


def test_no_group_has_no_weight() -> None:
    unused = torch.zeros(3, dtype=torch.bool)
    assert cvar_weights(torch.ones(3), 0.8, unused).tolist() == [0, 0, 0]
    weights, constant = published_cvar_weights(torch.ones(3), 0.8, unused)
    assert weights.tolist() == [0, 0, 0] and constant == 0


def test_tied_groups_share_with_the_exact_gradient_and_get_nothing_with_the_published() -> None:
    tied = torch.tensor([1.5, 1.5])
    assert cvar_weights(tied, 0.8).tolist() == [0.5, 0.5]
    assert published_cvar_weights(tied, 0.8)[0].tolist() == [0, 0]
    # a tie across the cap: the two share what the worst leaves
    close(cvar_weights(torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64), 0.5), [1 / 6, 2 / 3, 1 / 6])


@pytest.mark.parametrize("gradient", ["exact", "published"])
def test_weights_are_detached(gradient: str) -> None:
    losses = torch.tensor([2.0, 1.0], requires_grad=True)
    assert not GroupCVaR(0.8, gradient).weights(losses, torch.tensor([0, 1])).requires_grad


# ---- DAW-FDD's published code, and a KL penalty ----------------------------------------------------------------------
def daw_fdd(losses: Tensor, group: Tensor, alpha: float, alpha_inner: float) -> Tensor:
    """The authors' loss as their code computes it: thresholds are searched, and enter as numbers."""

    def level(values: Tensor, a: float) -> Tensor:
        low, high = values.min().item() - 1000.0, values.max().item()
        found = fminbound(lambda x: x + (1.0 / a) * torch.relu(values - x).mean().item(), low, high)
        return found + (1.0 / a) * torch.mean(torch.relu(values - found))

    return level(torch.stack([level(losses[group == g], alpha_inner) for g in group.unique()]), alpha)


@pytest.mark.parametrize(("alpha", "alpha_inner"), [(0.5, 0.9), (0.3, 0.5), (0.8, 0.6)])
def test_published_nested_weights_are_the_gradient_of_the_published_code(alpha: float, alpha_inner: float) -> None:
    generator, differs = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        losses = (4 * torch.rand(12, generator=generator)).requires_grad_()
        group = torch.randint(3, (12,), generator=generator)
        value = daw_fdd(losses, group, alpha, alpha_inner)
        (theirs,) = torch.autograd.grad(value, losses)
        weights, constant = published_nested_cvar_weights(losses, group, alpha, alpha_inner)
        close(weights, theirs, 1e-6)
        exact = nested_cvar_weights(losses, group, alpha, alpha_inner)
        close((weights @ losses + constant).detach(), value.detach(), 1e-5)
        close(value.detach(), (exact @ losses).detach(), 1e-3)  # the value is right, the gradient is not
        differs += bool((weights - exact).abs().max() > 0.01)
    assert differs >= 5


def test_published_nested_weights_without_groups_or_with_a_broken_loss() -> None:
    nobody = published_nested_cvar_weights(torch.ones(2), torch.tensor([-1, -1]), 0.5, 0.9, torch.zeros(2) > 0)
    assert [part.tolist() for part in nobody] == [[0, 0], 0]
    broken = torch.tensor([1.0, float("nan"), 2.0])
    weights, constant = published_nested_cvar_weights(broken, torch.tensor([0, 0, 1]), 0.5, 0.9)
    assert not (weights @ broken + constant).isfinite()


@given(losses_of_groups, st.floats(0.05, 50), st.integers(0, 100))
def test_kl_weights_are_the_gradient_of_the_penalised_maximum(losses: Tensor, eta: float, seed: int) -> None:
    prior = torch.rand(len(losses), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    prior = prior / prior.sum()
    losses = losses.requires_grad_()
    (gradient,) = torch.autograd.grad(eta * torch.logsumexp(prior.log() + losses / eta, 0), losses)
    close(kl_weights(losses, prior, eta, prior > 0), gradient)


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds")  # by a rounding error, scipy before 1.16
def test_kl_weights_solve_the_penalised_maximum() -> None:
    losses, prior, eta = np.array([1.0, 2.5, 0.3]), np.array([0.5, 0.1, 0.4]), 0.7
    solution = minimize(
        lambda q: eta * (q * np.log(q / prior)).sum() - q @ losses, prior, bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1}, tol=1e-12,
    )  # fmt: skip
    assert solution.success
    close(kl_weights(torch.tensor(losses), torch.tensor(prior), eta, torch.ones(3) > 0), solution.x, 1e-5)


@given(losses_of_groups)
def test_kl_weights_go_from_the_prior_to_the_worst_group(losses: Tensor) -> None:
    prior = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    used = torch.ones(len(losses)) > 0
    close(kl_weights(losses, prior / prior.sum(), 1e12, used), prior / prior.sum())
    worst = kl_weights(losses, prior / prior.sum(), 1e-300, used)
    close(worst @ losses, losses.max())
    extended = torch.cat([losses, torch.tensor([99.0, 99.0])]), torch.cat([prior / prior.sum(), torch.zeros(2)])
    close(kl_weights(*extended, 0.5, extended[1] > 0)[:-2], kl_weights(losses, prior / prior.sum(), 0.5, used))
