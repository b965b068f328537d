"""CVaR over groups: the authors' value, the exact weights, and what must hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_cases import alphas, close, losses_of_groups
from scipy.optimize import linprog, minimize_scalar
from torch import Tensor

from fairlung.pipeline.losses.aggregation import GroupCVaR
from fairlung.pipeline.losses.cvar import cvar_weights, published_cvar_weights


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
                assert weights[i] == weights[j]


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
