"""The losses of samples: their formulas, other libraries, and finite gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from objective_cases import COUNTS, batch, close
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from fairlung.pipeline.losses.sample_losses import (
    CrossEntropy,
    EqualizationLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedCrossEntropy,
    WeightedCrossEntropy,
    inverse_frequency_weights,
    ldam_margins,
    log_class_prior,
)
from fairlung.pipeline.losses.two_level import FairLACVaRLoss


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


def test_focal_loss_has_its_papers_gamma() -> None:
    found, logits, label = samples(FocalLoss())
    close(found, FocalLoss(2.0)(logits, label))


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


def test_equalization_with_gamma_0_is_cross_entropy_and_with_1_its_formula() -> None:
    found, logits, label = samples(EqualizationLoss(COUNTS, gamma=0.0))
    close(found.detach(), F.cross_entropy(logits, label, reduction="none").detach())
    found, logits, label = samples(EqualizationLoss(COUNTS, gamma=1.0))
    found.sum().backward()
    assert logits.grad is not None
    for i, y in enumerate(label.tolist()):
        kept = [k for k in range(4) if k in (0, 2, 3, y)]  # class 1 has 84 of 734 scans
        close(found[i].detach(), torch.logsumexp(logits[i, kept], 0).detach() - logits[i, y].detach())
        assert (logits.grad[i, 1] == 0) == (y != 1)
    assert 1 in label


def test_equalization_draws_in_training_by_torchs_seed_and_explains_what_was_drawn() -> None:
    logits, target = torch.zeros(4000, 4, requires_grad=True), torch.zeros(4000, dtype=torch.long)
    loss = EqualizationLoss(COUNTS, gamma=0.7)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return loss(logits, target).detach()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    masked = (first - np.log(3)).abs() < 1e-6
    assert (masked | ((first - np.log(4)).abs() < 1e-6)).all()
    assert abs(masked.float().mean() - 0.7) < 0.03
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(loss(logits, target), other)
        mean = loss.eval()(logits, target)
    assert torch.equal(torch.get_rng_state(), state)
    close(mean, torch.full((4000,), 0.7 * np.log(3) + 0.3 * np.log(4)), 1e-6)


def test_equalization_says_when_no_class_is_rare(caplog: pytest.LogCaptureFixture) -> None:
    EqualizationLoss(COUNTS)
    assert not caplog.text
    found, logits, label = samples(EqualizationLoss([5, 5, 5, 5]))
    assert "no class has less than 0.2 of the training scans" in caplog.text
    close(found.detach(), F.cross_entropy(logits, label, reduction="none").detach())


SAMPLE_LOSSES = [
    EqualizationLoss(COUNTS, gamma=1.0),
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


@pytest.mark.parametrize("count", [0, -3, float("inf"), float("nan")])
def test_bad_class_counts_are_named(count: float) -> None:
    with pytest.raises(ValueError, match=rf"class 'covid' has {count}"):
        FairLACVaRLoss({"a": 5, "covid": count})
    with pytest.raises(ValueError, match=rf"class '1' has {count}"):
        FairLACVaRLoss([5, count, 4])


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 classes, got \{'a': 5\}"):
        FairLACVaRLoss({"a": 5})
