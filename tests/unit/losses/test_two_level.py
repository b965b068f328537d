"""The objective: the authors' value, the exact gradient, and what must hold for every batch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_cases import COUNTS, alphas, batch, batches, close
from torch import Tensor
from torch.nn import functional as F

from fairlung.pipeline.losses.aggregation import GroupCVaR, MeanAggregation
from fairlung.pipeline.losses.cvar import cvar_weights, group_means
from fairlung.pipeline.losses.sample_losses import (
    CrossEntropy,
    EqualizationLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedCrossEntropy,
    WeightedCrossEntropy,
    log_class_prior,
    logit_adjusted_cross_entropy,
)
from fairlung.pipeline.losses.two_level import FairLACVaRLoss, TwoLevelLoss

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden/loss_table.json").read_text())


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
        (lambda: EqualizationLoss(COUNTS, gamma=1.1), r"gamma must be in [0, 1], got 1.1"),
        (lambda: EqualizationLoss(COUNTS, gamma=-0.1), r"gamma must be in [0, 1], got -0.1"),
        (lambda: EqualizationLoss(COUNTS, rare_below=2), r"rare_below must be in [0, 1], got 2"),
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
