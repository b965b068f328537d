"""The objective: the authors' value, the exact gradient, and what must hold for every batch."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from fairlung.pipeline.losses.aggregation import GroupCVaR, MeanAggregation
from fairlung.pipeline.losses.cvar import cvar_weights, group_means, published_cvar_weights
from fairlung.pipeline.losses.sample_losses import (
    CrossEntropy,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedCrossEntropy,
    WeightedCrossEntropy,
    inverse_frequency_weights,
    ldam_margins,
    log_class_prior,
    logit_adjusted_cross_entropy,
)
from fairlung.pipeline.losses.two_level import FairLACVaRLoss, TwoLevelLoss

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden/loss_table.json").read_text())
COUNTS = {"a": 250, "g": 84, "covid": 200, "normal": 200}

alphas = st.floats(0.05, 1.0)
# few distinct values, so that ties happen
losses_of_groups = st.lists(st.one_of(st.floats(0, 20), st.integers(0, 4).map(float)), min_size=1, max_size=7).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@st.composite
def batches(draw: st.DrawFn, lowest_group: int = -1) -> tuple[Tensor, Tensor]:
    """Losses and group ids of a batch."""
    size = draw(st.integers(1, 12))
    losses = draw(st.lists(st.floats(0, 20), min_size=size, max_size=size))
    group = draw(st.lists(st.integers(lowest_group, 4), min_size=size, max_size=size))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(group)


def close(actual: Tensor | float, expected: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def batch(seed: int = 0, size: int = 8, groups: int = 2, classes: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (size,), generator=generator)
    group = torch.randint(-1, groups, (size,), generator=generator)
    return logits.requires_grad_(), {"label": label, "group": group}


# --- against the published code and independent optimisers ----------------------------------------------------------


@pytest.mark.parametrize("gradient", ["exact", "published"])
@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_values_and_gradients(case: dict, gradient: str) -> None:
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    target = {"label": torch.tensor(case["labels"]), "group": torch.tensor(case["groups"])}
    loss = FairLACVaRLoss(case["class_counts"], case["alpha"], case["tau"], gradient)

    value = loss(logits, target)
    value.backward()

    close(value.detach(), case["loss" if gradient == "exact" else "published_loss"], 1e-6)
    close(logits.grad, case[f"{gradient}_gradient"], 1e-6)
    sample_losses, _ = loss.explain(logits, target)
    close(sample_losses, case["sample_losses"], 1e-6)
    means = group_means(sample_losses, target["group"])
    close(means.losses[means.used].sort().values, sorted(case["group_losses"]), 1e-6)


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
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_published_gradient_is_theirs_in_the_precision_of_training(alpha: float, dtype: torch.dtype) -> None:
    """In float32 lambda may round to the worst loss, and then no group has a gradient: not for us to improve."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        losses = 4 * torch.rand(2, generator=generator).to(dtype)
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


# --- the weights -----------------------------------------------------------------------------------------------------


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


# --- the aggregation -------------------------------------------------------------------------------------------------


@given(batches(lowest_group=0), alphas, st.randoms(use_true_random=False))
def test_order_of_samples_and_ids_of_groups_do_not_matter(
    sample: tuple[Tensor, Tensor], alpha: float, random: object
) -> None:
    losses, group = sample
    cvar = GroupCVaR(alpha)
    value, weights = cvar(losses, group), cvar.weights(losses, group)
    order = list(range(len(losses)))
    random.shuffle(order)  # type: ignore[attr-defined]
    close(cvar(losses[order], group[order]), value)
    close(cvar.weights(losses[order], group[order]), weights[order], 1e-7)
    other_ids = torch.tensor([7, 1000, 3, 0, 2**40])[group]
    close(cvar(losses, other_ids), value)
    close(cvar.weights(losses, other_ids), weights)


@given(batches(lowest_group=0), alphas)
def test_value_lies_between_the_mean_and_the_worst_group(sample: tuple[Tensor, Tensor], alpha: float) -> None:
    losses, group = sample
    means = torch.stack([losses[group == g].mean() for g in group.unique()])
    value = GroupCVaR(alpha)(losses, group)
    assert means.mean() - 1e-9 <= value <= means.max() + 1e-9
    close(GroupCVaR(1.0)(losses, group), means.mean())
    close(GroupCVaR(1 / len(means))(losses, group), means.max())
    close(GroupCVaR(0.5 / len(means))(losses, group), means.max())
    close(GroupCVaR(alpha)(losses, torch.full_like(group, 3)), losses.mean())


@given(batches(lowest_group=0), st.lists(alphas, min_size=2, max_size=2).map(sorted))
def test_a_smaller_alpha_never_gives_a_smaller_loss(sample: tuple[Tensor, Tensor], levels: list[float]) -> None:
    small, large = (GroupCVaR(alpha)(*sample) for alpha in levels)
    assert small >= large - 1e-9


@given(batches(lowest_group=0), alphas)
def test_groups_weigh_what_their_samples_weigh(sample: tuple[Tensor, Tensor], alpha: float) -> None:
    losses, group = sample
    weights = GroupCVaR(alpha).weights(losses, group)
    ids = group.unique()
    means = torch.stack([losses[group == g].mean() for g in ids])
    expected = cvar_weights(means, alpha)
    for g, weight in zip(ids, expected, strict=True):
        inside = weights[group == g]
        if (means - means[ids == g]).abs().gt(1e-9).sum() == len(means) - 1:  # near ties turn on rounding
            close(inside.sum(), weight, 1e-7)
        assert inside.min() == inside.max()


@given(batches(), alphas)
def test_exact_weights_are_the_gradient_and_reproduce_the_loss(sample: tuple[Tensor, Tensor], alpha: float) -> None:
    losses, group = sample
    losses = losses.requires_grad_()
    cvar = GroupCVaR(alpha)
    value = cvar(losses, group)
    value.backward()
    weights = cvar.weights(losses, group)
    close(losses.grad, weights)
    close(weights.sum(), 1.0)
    close(weights @ losses.detach(), value.detach())


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.6, 0.8, 0.95, 1.0])
def test_gradcheck_away_from_ties(alpha: float) -> None:
    losses = torch.tensor([3.0, 0.5, 1.1, 2.4, 0.2, 7.0], dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1, 2, 0, 2, -1])
    assert torch.autograd.gradcheck(lambda values: GroupCVaR(alpha)(values, group), losses)
    logits, target = batch(seed=3, groups=3)
    assert torch.autograd.gradcheck(lambda values: FairLACVaRLoss(COUNTS, alpha)(values, target), logits)


@pytest.mark.parametrize("gradient", ["exact", "published"])
@given(sample=batches(), alpha=alphas)
def test_unknown_group_takes_part_at_its_share_of_the_batch(
    gradient: str, sample: tuple[Tensor, Tensor], alpha: float
) -> None:
    losses, group = sample
    losses = losses.requires_grad_()
    known = group >= 0
    cvar = GroupCVaR(alpha, gradient)
    value = cvar(losses, group)
    value.backward()
    close(losses.grad[~known], torch.full_like(losses[~known], 1 / len(losses)).detach())
    of_known = cvar(losses[known], group[known]) * known.sum() if known.any() else 0.0
    close(value.detach(), torch.as_tensor((of_known + losses[~known].sum()) / len(losses)).detach(), 1e-7)


@pytest.mark.parametrize("gradient", ["exact", "published"])
def test_all_unknown_is_the_plain_mean(gradient: str) -> None:
    logits, target = batch()
    target["group"] = torch.full_like(target["group"], -1)
    expected = logit_adjusted_cross_entropy(logits, target["label"], log_class_prior(COUNTS)).mean()
    close(FairLACVaRLoss(COUNTS, gradient=gradient)(logits, target).detach(), expected.detach())


def test_published_gradient_leaves_the_better_group_out_at_the_same_value() -> None:
    losses = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1])
    value = GroupCVaR(0.8, "published")(losses, group)
    value.backward()
    close(losses.grad, [0.625, 0])
    close(value.detach(), GroupCVaR(0.8)(losses, group).detach())


def test_a_broken_sample_is_not_hidden() -> None:
    """A NaN loss must reach the user, not fall out of the sorting with weight 0."""
    for group in ([0, 0, 1], [0, 1, 1], [-1, 0, 1]):
        assert GroupCVaR(0.5)(torch.tensor([math.nan, 1.0, 5.0]), torch.tensor(group)).isnan()


def test_a_thousand_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(2000, generator=generator, dtype=torch.float64)
    group = torch.randperm(2000, generator=generator) % 1000
    means = torch.stack([losses[group == g].mean() for g in range(1000)])
    close(GroupCVaR(0.25)(losses, group), means.topk(250).values.mean())
    assert GroupCVaR(0.25).weights(losses, group).count_nonzero() == 500


# --- the sample level ------------------------------------------------------------------------------------------------


def test_tau_zero_is_cross_entropy_and_tau_shifts_logits() -> None:
    logits, target = batch()
    prior = torch.log(torch.tensor([250, 84, 200, 200], dtype=torch.float64) / 734)
    close(log_class_prior(COUNTS), prior)
    for tau in (0.0, 0.5, 1.0, 2.0):
        actual = LogitAdjustedCrossEntropy(COUNTS, tau).double()(logits, target["label"])
        expected = F.cross_entropy(logits + tau * prior, target["label"], reduction="none")
        close(actual.detach(), expected.detach())
    plain = F.cross_entropy(logits, target["label"], reduction="none")
    torch.testing.assert_close(LogitAdjustedCrossEntropy(COUNTS, 0.0)(logits, target["label"]), plain, rtol=0, atol=0)


def test_equal_counts_are_cross_entropy() -> None:
    logits, target = batch()
    expected = F.cross_entropy(logits, target["label"], reduction="none")
    close(LogitAdjustedCrossEntropy([9, 9, 9, 9], 1.7)(logits, target["label"]).detach(), expected.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["exact", "published"])
def test_half_precision_is_promoted(dtype: torch.dtype, gradient: str) -> None:
    logits, target = batch(groups=3)
    half = (logits.detach() * 1000).to(dtype).requires_grad_()
    loss = FairLACVaRLoss(COUNTS, gradient=gradient)
    value = loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite() and half.grad is not None and half.grad.isfinite().all()
    close(value.detach(), loss(half.detach().double(), target), 1e-4)
    assert CrossEntropy()(half, target["label"]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    logits, target = batch()
    expected = FairLACVaRLoss(COUNTS)(logits, target)
    assert FairLACVaRLoss(COUNTS)(logits, {**target, "label": target["label"].to(dtype)}) == expected


def samples(loss: torch.nn.Module, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    logits, target = batch(seed)
    return loss(logits, target["label"]), logits, target["label"]


def test_balanced_softmax_is_logit_adjustment_with_tau_one() -> None:
    """Ren et al. 2020, Eq. 3: n_y e^{f_y} over the sum of n_y' e^{f_y'}."""
    found, logits, label = samples(LogitAdjustedCrossEntropy(COUNTS, tau=1.0))
    weighted = torch.tensor([250, 84, 200, 200]) * logits.exp()
    expected = -(weighted.gather(1, label[:, None])[:, 0] / weighted.sum(1)).log()
    close(found.detach(), expected.detach())


def test_inverse_frequency_weights_are_scikit_learns() -> None:
    labels = np.repeat(np.arange(4), list(COUNTS.values()))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = inverse_frequency_weights(COUNTS)
    close(weights, expected)
    close(weights[labels].mean(), 1.0)
    found, logits, label = samples(WeightedCrossEntropy(COUNTS))
    close(found.detach(), (weights[label] * F.cross_entropy(logits, label, reduction="none")).detach())


def test_equal_counts_leave_cross_entropy_as_it_is() -> None:
    found, logits, label = samples(WeightedCrossEntropy([7, 7, 7, 7]))
    close(found.detach(), F.cross_entropy(logits, label, reduction="none").detach())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_loss_is_its_formula(gamma: float) -> None:
    found, logits, label = samples(FocalLoss(gamma))
    p = logits.softmax(1).gather(1, label[:, None])[:, 0]
    close(found.detach(), (-((1 - p) ** gamma) * p.log()).detach())
    if gamma == 0:
        close(found.detach(), F.cross_entropy(logits, label, reduction="none").detach())
    (ours,) = torch.autograd.grad(found.sum(), logits)
    (expected,) = torch.autograd.grad((-((1 - p) ** gamma) * p.log()).sum(), logits)
    close(ours, expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_of_a_certain_answer_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]], requires_grad=True)
    value = FocalLoss(gamma)(logits, torch.tensor([0, 0]))
    value.sum().backward()
    assert value.tolist() == [0, 200]
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_ldam_is_its_formula() -> None:
    margins = 0.5 * (84 / torch.tensor([250.0, 84, 200, 200], dtype=torch.float64)) ** 0.25
    close(ldam_margins(COUNTS), margins)
    assert ldam_margins(COUNTS).argmax() == 1  # the rarest class
    found, logits, label = samples(LDAMLoss(COUNTS, scale=3.0))
    for i, y in enumerate(label.tolist()):
        own = torch.exp(3 * (logits[i, y] - margins[y]))
        others = torch.exp(3 * logits[i]).sum() - torch.exp(3 * logits[i, y])
        close(found[i].detach(), -torch.log(own / (own + others)).detach())


def test_ldam_without_margin_is_cross_entropy_at_a_temperature() -> None:
    for scale in (1.0, 30.0):
        found, logits, label = samples(LDAMLoss(COUNTS, max_margin=0.0, scale=scale))
        close(found.detach(), F.cross_entropy(scale * logits, label, reduction="none").detach())


SAMPLE_LOSSES = [
    CrossEntropy(),
    LogitAdjustedCrossEntropy(COUNTS, 0.7),
    WeightedCrossEntropy(COUNTS),
    FocalLoss(),
    LDAMLoss(COUNTS, scale=2.0),
]


@pytest.mark.parametrize("loss", SAMPLE_LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_sample_loss(loss: torch.nn.Module) -> None:
    """Gradients agree with finite differences, half precision is promoted, no value is read back, no state is kept."""
    logits, target = batch(seed=2)
    label = target["label"]
    assert torch.autograd.gradcheck(lambda values: loss(values, label), logits)
    half = loss(logits.detach().half(), label.to(torch.uint8))
    assert half.dtype == torch.float32 and half.shape == (8,)
    close(half, loss(logits.detach().half().double(), label), 1e-4)
    assert loss.state_dict() == {}
    on_meta = copy.deepcopy(loss).to("meta")
    values = torch.empty(6, 4, device="meta", requires_grad=True)
    on_meta(values, torch.empty(6, dtype=torch.long, device="meta")).sum().backward()


# --- combinations ----------------------------------------------------------------------------------------------------


def test_the_four_systems_of_the_paper() -> None:
    logits, target = batch(seed=1)
    target["group"] = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0])
    label, group = target["label"], target["group"]
    plain = F.cross_entropy(logits, label, reduction="none")
    adjusted = F.cross_entropy(logits + log_class_prior(COUNTS), label, reduction="none")
    worst_first = sorted([plain[group == 0].mean(), plain[group == 1].mean()], reverse=True)

    def system(inner: torch.nn.Module, outer: torch.nn.Module) -> Tensor:
        return TwoLevelLoss(inner, outer)(logits, target).detach()

    close(system(CrossEntropy(), MeanAggregation()), plain.mean().detach())
    close(system(LogitAdjustedCrossEntropy(COUNTS), MeanAggregation()), adjusted.mean().detach())
    cvar_only = 0.625 * worst_first[0] + 0.375 * worst_first[1]
    close(system(CrossEntropy(), GroupCVaR(0.8)), cvar_only.detach())
    both = FairLACVaRLoss(COUNTS, 0.8)(logits, target).detach()
    close(system(LogitAdjustedCrossEntropy(COUNTS), GroupCVaR(0.8)), both)
    close(FairLACVaRLoss(COUNTS, 0.8, tau=0.0)(logits, target).detach(), cvar_only.detach())


@pytest.mark.parametrize("aggregation", [MeanAggregation(), GroupCVaR(0.7), GroupCVaR(1.0)])
def test_explanation_reproduces_the_loss(aggregation: torch.nn.Module) -> None:
    logits, target = batch(seed=4, size=20, groups=3)
    loss = TwoLevelLoss(LogitAdjustedCrossEntropy(COUNTS), aggregation)
    losses, weights = loss.explain(logits, target)
    close(weights @ losses, loss(logits, target).detach())
    assert not losses.requires_grad and not weights.requires_grad


def test_modules_hold_no_state_that_a_checkpoint_must_carry() -> None:
    loss = FairLACVaRLoss(COUNTS)
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert [name for name, _ in loss.named_buffers()] == ["sample_loss.log_prior"]  # so that .to(device) moves it


# --- no waiting for the device ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["exact", "published"])
@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_a_step_never_reads_a_value_back(gradient: str, alpha: float) -> None:
    """On the meta device there are no values: .item(), bool() and shapes that depend on data raise."""
    loss = FairLACVaRLoss(COUNTS, alpha, gradient=gradient).to("meta")
    logits = torch.empty(6, 4, device="meta", requires_grad=True)
    target = {name: torch.empty(6, dtype=torch.long, device="meta") for name in ("label", "group")}
    value = loss(logits, target)
    value.backward()
    loss.explain(logits, target)
    assert value.shape == () and logits.grad is not None and logits.grad.shape == (6, 4)
    with pytest.raises(RuntimeError):
        value.item()  # the check above can fail


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -3, float("inf"), float("nan")])
def test_bad_class_counts_are_named(count: float) -> None:
    with pytest.raises(ValueError, match=rf"class 'covid' has {count}"):
        FairLACVaRLoss({"a": 5, "covid": count})
    with pytest.raises(ValueError, match=rf"class '1' has {count}"):
        FairLACVaRLoss([5, count, 4])


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 classes, got \{'a': 5\}"):
        FairLACVaRLoss({"a": 5})


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_bad_alpha_is_named(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be in \(0, 1\], got {alpha}"):
        FairLACVaRLoss(COUNTS, alpha=alpha)


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf")])
def test_bad_tau_is_named(tau: float) -> None:
    with pytest.raises(ValueError, match=rf"tau must be in \[0, inf\), got {tau}"):
        FairLACVaRLoss(COUNTS, tau=tau)


def test_bad_gradient_and_class_mismatch_are_named() -> None:
    with pytest.raises(ValueError, match="gradient must be 'exact' or 'published', got 'detached'"):
        FairLACVaRLoss(COUNTS, gradient="detached")
    logits, target = batch(classes=3)
    for loss in (FairLACVaRLoss(COUNTS).sample_loss, WeightedCrossEntropy(COUNTS), LDAMLoss(COUNTS)):
        with pytest.raises(ValueError, match="logits have 3 classes, class_counts has 4"):
            loss(logits, target["label"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FocalLoss(gamma=0.5), r"gamma must be 0 or in [1, inf), got 0.5"),
        (lambda: FocalLoss(gamma=math.nan), r"gamma must be 0 or in [1, inf), got nan"),
        (lambda: LDAMLoss(COUNTS, max_margin=-1), r"max_margin must be in [0, inf), got -1"),
        (lambda: LDAMLoss(COUNTS, scale=0), r"scale must be positive and finite, got 0"),
        (lambda: WeightedCrossEntropy([3, 0]), r"class '1' has 0"),
        (lambda: LDAMLoss({"a": 5}), r"at least 2 classes, got {'a': 5}"),
        (lambda: FairLACVaRLoss(COUNTS, estimator="running"), r"estimator 'running' needs num_groups"),
    ],
)
def test_values_out_of_range_are_named(make: Callable[[], torch.nn.Module], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["exact", "published"])
def test_mixed_precision_changes_nothing(dtype: torch.dtype, gradient: str) -> None:
    """MONAI computes the loss under autocast, with GradScaler's scale of 65536 on it."""
    loss = FairLACVaRLoss([250, 84, 200, 200], alpha=0.8, gradient=gradient)
    logits = torch.tensor([[1.0, 0.3, -0.5, 0.2], [1.001, 0.3, -0.5, 0.2]], requires_grad=True)
    target = {"label": torch.tensor([0, 0]), "group": torch.tensor([0, 1])}
    plain = loss(logits, target)
    (expected,) = torch.autograd.grad(plain * 65536, logits)
    with torch.autocast("cpu", dtype):
        mixed = loss(logits, target)
        (found,) = torch.autograd.grad(mixed * 65536, logits)
        losses, weights = loss.explain(logits, target)
    assert mixed.dtype == torch.float32
    assert mixed.item() == plain.item()
    assert torch.equal(found, expected)
    assert weights[0] != weights[1]  # close losses are not tied
    assert losses.dtype == torch.float32
