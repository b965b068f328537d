"""Features in two halves: the loss against PyTorch's own, what each half gets a gradient from, the network alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlung.pipeline.losses.aggregation import HierarchicalCVaR
from fairlung.pipeline.losses.disentangled import DisentangledLoss, contrastive_loss
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.two_level import TwoLevelLoss
from fairlung.pipeline.networks.disentangled import Disentangled
from fairlung.pipeline.training.accumulation import in_micro_batches

CLASSES, COUNTS, HALF, FEATURES = 3, [81.0, 16.0], 3, 7  # of seven features three are the classes'


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, FEATURES), nn.Tanh(), nn.Linear(FEATURES, CLASSES)).double()


def batch(n: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(2)
    target = {"label": torch.arange(n) % CLASSES, "group": torch.tensor([0, 1, 1, -1, 0, 1, 0, 1])[:n]}
    return torch.randn(n, 5, generator=rng).double(), target


def objective() -> tuple[CrossEntropy, HierarchicalCVaR]:
    return CrossEntropy(), HierarchicalCVaR(alpha=0.5, alpha_inner=0.9)


def loss(**settings: Any) -> DisentangledLoss:
    return DisentangledLoss(*objective(), CLASSES, COUNTS, **settings)


def halves(**settings: Any) -> Disentangled:
    return Disentangled(network(), CLASSES, 2, **settings)


def all_triplets(features: Tensor, label: list[int], margin: float) -> float:
    """PyTorch's triplet loss, the mean over the triplets of each scan that has any, over those scans."""
    of_scans = []
    for i, mine in enumerate(label):
        positives = [p for p, other in enumerate(label) if other == mine >= 0 and p != i]
        negatives = [n for n, other in enumerate(label) if mine >= 0 and other >= 0 and other != mine]
        pairs = [(p, n) for p in positives for n in negatives]
        if pairs:
            p, n = map(list, zip(*pairs, strict=True))
            anchors = features[[i] * len(pairs)]
            of_scans.append(F.triplet_margin_loss(anchors, features[p], features[n], margin=margin).item())
    return sum(of_scans) / max(len(of_scans), 1)


@pytest.mark.parametrize("margin", [0.01, 0.7, 3.0])
@pytest.mark.parametrize("label", [[0, 1, 1, -1, 0, 2], [0, 0, 0, 0, 0, -1], [0, 1, 2, 3, 4, 5], [-1] * 6])
def test_contrast_is_the_mean_of_pytorchs_triplet_losses(margin: float, label: list[int]) -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).double()
    found = contrastive_loss(features, torch.tensor(label), margin).item()
    assert found == pytest.approx(all_triplets(features, label, margin), abs=1e-12)
    assert (found > 0) == (label == [0, 1, 1, -1, 0, 2])  # the others have no triplet: one label, or no two of one


def test_contrast_of_equal_features_has_a_finite_gradient() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    contrastive_loss(features, torch.tensor([0, 0, 1, 1]), 1.0).backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_the_loss_is_the_objective_and_both_terms_by_their_weights() -> None:
    image, target = batch()
    output = halves()(image)
    classes, groups, features = output.split([CLASSES, 2, FEATURES], dim=1)
    plain = TwoLevelLoss(*objective())(classes, target)
    margins = 0.5 * torch.tensor([16 / 81, 1.0]) ** 0.25
    shifted = 30 * (groups - margins * F.one_hot(target["group"].clamp(min=0), 2))
    of_groups = F.cross_entropy(shifted, target["group"], ignore_index=-1, reduction="sum") / len(image)
    contrast = sum(
        all_triplets(part, target[name].tolist(), 3.0)
        for part, name in ((features[:, :HALF], "label"), (features[:, HALF:], "group"))
    )
    expected = plain + 0.1 * of_groups + 0.1 * contrast
    assert loss()(output, target).item() == pytest.approx(expected.item())
    expected = plain + 0.4 * of_groups + 0.2 * contrast
    assert loss(gamma=0.4, contrast=0.2)(output, target).item() == pytest.approx(expected.item())
    assert torch.equal(loss(gamma=0, contrast=0)(output, target), plain)
    assert torch.equal(loss()(classes, target), plain)  # of an evaluation: there is neither group nor feature
    for mine, theirs in zip(
        loss().explain(output, target), TwoLevelLoss(*objective()).explain(classes, target), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_gradient_is_that_of_finite_differences() -> None:
    image, target = batch()
    output = halves()(image).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda out: loss(logit_scale=2.0)(out, target), output)


def test_each_half_learns_from_its_own_label() -> None:
    image, target = batch()

    def reaches(**weights: float) -> list[bool]:
        """Whether a gradient arrives at the first layer's rows of the classes' half, and of the groups'."""
        model = halves()
        assert model.head is not None
        output = model(image)
        (
            loss(**{"gamma": 0, "contrast": 0} | weights)(output, target)
            - (0 if not weights else TwoLevelLoss(*objective())(output[:, :CLASSES], target))
        ).backward()
        rows = model.network[0].weight.grad.abs().sum(dim=1)
        return [bool(part.sum() > 1e-12) for part in (rows[:HALF], rows[HALF:])]

    assert reaches() == [True, False]  # the classes' loss
    assert reaches(gamma=1.0) == [False, True]
    assert reaches(contrast=1.0) == [True, True]


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_the_network_alone_answers_as_it_was_trained(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    image, target = batch()
    model, objective = halves(), loss(logit_scale=1.0)
    steps = optimizer(model.parameters(), lr=0.05, weight_decay=0.1)
    values = []
    for _ in range(20):
        steps.zero_grad()
        value = objective(model(image), target)
        value.backward()
        steps.step()
        values.append(value.item())
    assert values[-1] < 0.95 * values[0]
    last = model.network[2]
    assert torch.count_nonzero(last.weight[:, HALF:]) == 0 and last.weight[:, :HALF].abs().min() > 0
    torch.testing.assert_close(model(image)[:, :CLASSES], model.eval()(image), rtol=0, atol=1e-12)
    assert torch.equal(model(image), model.network(image))


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    image, target = batch()
    model = halves()
    found = []
    for size in (8, 3):
        model.zero_grad()
        loss()(in_micro_batches(model, image, size), target).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0


def test_mixed_precision_computes_the_loss_in_single_precision() -> None:
    image, target = batch()
    model = halves().float()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image.float())
        value = loss()(output, target)
    assert output.dtype == torch.bfloat16 and value.dtype == torch.float32
    assert torch.equal(value, loss()(output.float(), target))
    value.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_weights_the_network_is_left_as_it_is() -> None:
    image, _ = batch()
    plain, without = network(), Disentangled(network(), CLASSES, 2, gamma=0, contrast=0)
    assert torch.equal(without(image), plain(image))
    assert {name.removeprefix("network.") for name in without.state_dict()} == set(plain.state_dict())


def test_a_head_draws_nothing_that_others_draw() -> None:
    plain = network()
    before = torch.get_rng_state()
    Disentangled(plain, CLASSES, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["gamma", "contrast", "contrast_margin"])
def test_a_weight_that_cannot_be_is_named(name: str) -> None:
    makers: list[Callable[..., object]] = [loss] if name == "contrast_margin" else [loss, halves]
    for make in makers:
        with pytest.raises(ValueError, match=rf"^{name} must be in \[0, inf\), got -1"):
            make(**{name: -1})


def test_what_cannot_be_split_is_named() -> None:
    with pytest.raises(ValueError, match="features in two halves needs Sequential to end in a linear layer of 4"):
        Disentangled(network(), 4, 2)
    with pytest.raises(ValueError, match="features of the last layer must be a whole number of at least 2, got 1"):
        Disentangled(nn.Sequential(nn.Linear(1, CLASSES)), CLASSES, 2)
    with pytest.raises(ValueError, match="num_groups must be a whole number of at least 2, got 1"):
        Disentangled(network(), CLASSES, 1)
    with pytest.raises(ValueError, match="num_groups must be a whole number of at least 2, got 1"):
        DisentangledLoss(*objective(), CLASSES, [7])
    with pytest.raises(ValueError, match="class 'women' has 0"):
        DisentangledLoss(*objective(), CLASSES, {"men": 7, "women": 0})
