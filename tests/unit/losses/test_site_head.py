"""The site head: its loss against PyTorch's, the gradients that reach network and head, accumulation, processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlung.pipeline.losses.aggregation import GroupCVaR
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.site_head import SiteHeadLoss
from fairlung.pipeline.losses.two_level import TwoLevelLoss
from fairlung.pipeline.networks.site_head import SiteHead
from fairlung.pipeline.training.accumulation import in_micro_batches

CLASSES, COUNTS = 3, [30.0, 10.0]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def batch(n: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(2)
    target = {"label": torch.arange(n) % CLASSES, "group": torch.arange(n) % 2, "source": torch.arange(n) % 3 - 1}
    return torch.randn(n, 5, generator=rng).double(), target


def site_loss(gamma: float) -> SiteHeadLoss:
    return SiteHeadLoss(CrossEntropy(), GroupCVaR(0.7), CLASSES, COUNTS, gamma)


def test_the_loss_is_the_objective_and_gamma_times_the_adjusted_source_loss_of_known_sources() -> None:
    image, target = batch()
    output = SiteHead(network(), CLASSES, 2).double()(image)
    classes, sources = output[:, :CLASSES], output[:, CLASSES:]
    plain = TwoLevelLoss(CrossEntropy(), GroupCVaR(0.7))
    adjusted = sources + torch.tensor([0.75, 0.25]).double().log()
    second = F.cross_entropy(adjusted, target["source"], ignore_index=-1, reduction="sum") / len(image)
    loss = site_loss(0.4)
    assert loss(output, target).item() == pytest.approx((plain(classes, target) + 0.4 * second).item())
    assert torch.equal(loss(classes, target), plain(classes, target))  # of an evaluation: no source is asked for
    for mine, theirs in zip(loss.explain(output, target), plain.explain(classes, target), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reversed_gradient_turns_the_network_and_not_the_head(reverse: bool) -> None:
    image, target = batch()

    def gradients(gamma: float) -> tuple[Tensor, Tensor]:
        """Of the first layer, and of the head, which is the same each time."""
        model = SiteHead(network(), CLASSES, 2, reverse=reverse).double()
        nn.init.constant_(model.head.bias, 0.1)
        with torch.no_grad():
            model.head.weight.copy_(torch.linspace(-1, 1, 12).view(2, 6))
        site_loss(gamma)(model(image), target).backward()
        return model.network[0].weight.grad, model.head.weight.grad

    (without, _), (first, head), (double, double_head) = gradients(0), gradients(0.5), gradients(1.0)
    assert not torch.allclose(first, without) and torch.allclose(double - without, 2 * (first - without))
    model = network()
    features = model[:2](image)
    weight = torch.linspace(-1, 1, 12).view(2, 6).double().requires_grad_()
    adjusted = features @ weight.T + 0.1 + torch.tensor([0.75, 0.25]).double().log()
    (0.5 * F.cross_entropy(adjusted, target["source"], ignore_index=-1, reduction="sum") / len(image)).backward()
    sign = -1 if reverse else 1
    torch.testing.assert_close(first - without, sign * model[0].weight.grad)
    torch.testing.assert_close(head, weight.grad)
    torch.testing.assert_close(double_head, 2 * weight.grad)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    image, target = batch()
    model = SiteHead(network(), CLASSES, 2, reverse=True).double()
    found = []
    for size in (8, 3):
        model.zero_grad()
        site_loss(0.5)(in_micro_batches(model, image, size), target).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0


def test_evaluation_and_gamma_0_are_the_network() -> None:
    image, _ = batch()
    plain = network()
    assert torch.equal(SiteHead(plain, CLASSES, 2).eval()(image), plain(image))
    before = torch.get_rng_state()
    without = SiteHead(plain, CLASSES, 2, gamma=0)
    SiteHead(plain, CLASSES, 2)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else draws other numbers
    assert torch.equal(without(image), plain(image))
    assert {name.removeprefix("network.") for name in without.state_dict()} == set(plain.state_dict())


def test_what_cannot_be_is_named() -> None:
    for make in (lambda: site_loss(-1), lambda: SiteHead(network(), CLASSES, 2, gamma=-1)):
        with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\), got -1"):
            make()
    with pytest.raises(ValueError, match="Sequential to end in a linear layer of 4 classes; its last one gives 3"):
        SiteHead(network(), 4, 2)
    with pytest.raises(ValueError, match="Identity to end in a linear layer of 3 classes; it has none"):
        SiteHead(nn.Identity(), 3, 2)
    with pytest.raises(ValueError, match="num_sources must be a whole number of at least 2, got 1"):
        SiteHead(network(), CLASSES, 1)
