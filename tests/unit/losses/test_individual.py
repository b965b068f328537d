"""Individual fairness: the pairs' term against SciPy's distances, its gradient, what it leaves alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor, nn

from fairlung.pipeline.losses.aggregation import GroupCVaR
from fairlung.pipeline.losses.individual import IndividualFairnessLoss, individual_unfairness
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.two_level import TwoLevelLoss
from fairlung.pipeline.networks.spectrum import WithSpectrum
from fairlung.pipeline.training.accumulation import in_micro_batches

CLASSES = 3


def samples(n: int = 7, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Logits and spectra."""
    rng = torch.Generator().manual_seed(5)
    return 2 * torch.randn(n, classes, generator=rng).double(), 100 * torch.rand(n, 11, generator=rng).double()


def target(n: int) -> dict[str, Tensor]:
    return {"label": torch.arange(n) % CLASSES, "group": torch.arange(n) % 3 - 1}


@pytest.mark.parametrize("lipschitz", [0.0, 0.003, 0.01])
def test_with_two_classes_it_is_the_authors_term_of_one_output(lipschitz: float) -> None:
    logits, spectra = samples(classes=2)
    output = (logits[:, 1] - logits[:, 0]).numpy()
    distances = pdist(255 * spectra.numpy() / spectra.numpy().max())
    hinge = np.maximum(pdist(output[:, None], "cityblock") - lipschitz * distances, 0)
    found = individual_unfairness(logits, spectra, lipschitz).item()
    assert found == pytest.approx(hinge.mean())
    assert lipschitz == 0 or 0 < (hinge > 0).mean() < 1  # some pairs are within the bound


def test_it_is_the_largest_difference_of_the_log_odds_of_two_classes() -> None:
    logits, spectra = samples()
    odds = logits[:, :, None] - logits[:, None, :]
    largest = [(odds[i] - odds[j]).abs().max().item() for i, j in combinations(range(len(logits)), 2)]
    assert individual_unfairness(logits, spectra, 0.0).item() == pytest.approx(np.mean(largest))
    shifted = logits + torch.arange(len(logits))[:, None]  # the same probabilities
    torch.testing.assert_close(
        individual_unfairness(shifted, spectra, 0.002), individual_unfairness(logits, spectra, 0.002)
    )


def test_wide_bounds_equal_answers_and_a_single_scan_cost_nothing() -> None:
    logits, spectra = samples()
    assert individual_unfairness(logits, spectra, 1e3) == 0
    assert individual_unfairness(torch.ones_like(logits), torch.zeros_like(spectra), 0.0) == 0
    assert individual_unfairness(logits[:1], spectra[:1], 0.0) == 0


def test_the_gradient_is_that_of_finite_differences_and_leaves_the_spectra_out() -> None:
    logits, spectra = samples()
    assert torch.autograd.gradcheck(lambda z: individual_unfairness(z, spectra, 0.004), logits.requires_grad_())
    spectra.requires_grad_()
    individual_unfairness(logits, spectra, 0.004).backward()
    assert spectra.grad is None


def test_the_loss_is_the_objective_and_gamma_times_the_term() -> None:
    logits, spectra = samples()
    output = torch.cat([logits, spectra], dim=1)
    plain = TwoLevelLoss(CrossEntropy(), GroupCVaR(0.7))
    loss = IndividualFairnessLoss(CrossEntropy(), GroupCVaR(0.7), CLASSES, gamma=0.3, lipschitz=0.004)
    expected = plain(logits, target(7)) + 0.3 * individual_unfairness(logits, spectra, 0.004)
    assert loss(output, target(7)).item() == pytest.approx(expected.item())
    assert torch.equal(loss(logits, target(7)), plain(logits, target(7)))  # of an evaluation: there is no spectrum
    none = IndividualFairnessLoss(CrossEntropy(), GroupCVaR(0.7), CLASSES, gamma=0.0)
    assert torch.equal(none(output, target(7)), plain(logits, target(7)))
    for mine, theirs in zip(loss.explain(output, target(7)), plain.explain(logits, target(7)), strict=True):
        assert torch.equal(mine, theirs)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 6, CLASSES)).double()
    model = WithSpectrum(network, patches=1)  # which draws nothing that the size of a micro-batch could change
    image = torch.rand(7, 1, 2, 6, 6).double()
    loss = IndividualFairnessLoss(CrossEntropy(), GroupCVaR(0.7), CLASSES, gamma=1.0)
    found = []
    for size in (7, 3):
        model.zero_grad()
        loss(in_micro_batches(model, image, size), target(7)).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["gamma", "lipschitz"])
def test_what_cannot_be_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, inf\), got -1"):
        IndividualFairnessLoss(CrossEntropy(), GroupCVaR(0.7), CLASSES, **{name: -1})
