"""SAM: the step of the paper by hand, for the whole batch, without a second memory of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from workflows import SMALL_NETWORK, Start, cause, group_objectives, run

from fairlung.pipeline.losses.aggregation import MeanAggregation
from fairlung.pipeline.losses.sample_losses import EqualizationLoss
from fairlung.pipeline.losses.two_level import TwoLevelLoss
from fairlung.pipeline.training.accumulation import MicroBatchInferer
from fairlung.pipeline.training.bad_steps import BAD_STEPS, SkipBadSteps
from fairlung.pipeline.training.group_loss import GroupLoss, PrepareGroupBatch
from fairlung.pipeline.training.sharpness import SharpnessAware

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")
COUNTS, SCANS = [2, 1, 3], 4
OBJECTIVES: dict[str, Callable[[], TwoLevelLoss]] = {
    name: lambda name=name: group_objectives(COUNTS, 2)[name]  # type: ignore[misc]
    for name in ("exact", "published", "running", "group DRO", "KL group DRO", "hierarchical")
} | {"EQL": lambda: TwoLevelLoss(EqualizationLoss(COUNTS, 0.5), MeanAggregation())}


def network(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def batch(number: int) -> dict[str, Any]:
    image = torch.rand(SCANS, 5, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    label, group = torch.tensor([0, 1, 2, number % 3]), torch.tensor([0, 0, 1, 1])
    return {"image": image, "label": label, "group": group, "scan": [f"scan-{number}-{i}" for i in range(SCANS)]}


def trainer(
    net: nn.Module, loss: TwoLevelLoss, handler: SkipBadSteps, batches: list[dict[str, Any]], **settings: Any
) -> SupervisedTrainer:
    scaler, kind = settings.pop("scaler", None), settings.pop("optimizer", torch.optim.SGD)
    made = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=batches,
        network=net,
        optimizer=kind(net.parameters(), lr=0.1, weight_decay=0.01),
        loss_function=loss,
        prepare_batch=PrepareGroupBatch(),
        key_train_metric={"train_loss": GroupLoss(loss, ["male", "female"])},
        train_handlers=[handler],
        decollate=False,
        **settings,
    )
    if scaler is not None:  # as MONAI has one on a GPU
        made.add_event_handler(Events.STARTED, lambda: made.__dict__.update(amp=True, scaler=scaler))
    return made


def trained(name: str, rho: float | None, batches: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """All that a training leaves: with SAM, or without where ``rho`` is None."""
    net, loss = settings.pop("net", network)(), OBJECTIVES[name]()
    handler = SkipBadSteps(loss) if rho is None else SharpnessAware(loss, rho=rho)
    torch.manual_seed(7)
    made = trainer(net, loss, handler, batches, **settings)
    made.run()
    parts = {"network": net, "optimizer": made.optimizer, "loss": loss}
    states = {part: copy.deepcopy(content.state_dict()) for part, content in parts.items()}
    return states | {"metrics": made.state.metrics, "random": torch.get_rng_state()}


def same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "EQL"])  # whose draws have a test below
def test_a_step_is_the_papers_by_hand(name: str) -> None:
    """Of a second step, so that there is something to remember."""
    rho, net = 0.3, network()
    losses = [OBJECTIVES[name]() for _ in range(2)]
    trainer(net, losses[0], SharpnessAware(losses[0], rho=0.0), [batch(1)]).run()
    found = copy.deepcopy(net)
    trainer(found, losses[0], SharpnessAware(losses[0], rho=rho), [batch(2)]).run()
    start = copy.deepcopy(net)
    losses[1](network()(batch(1)["image"]), batch(1))  # what the first step has left behind

    def gradient(weights: list[Tensor]) -> list[Tensor]:
        loss = copy.deepcopy(losses[1])
        named = dict(zip(dict(start.named_parameters()), weights, strict=True))
        value = loss(torch.func.functional_call(start, named, (batch(2)["image"],)), batch(2))
        return list(torch.autograd.grad(value, weights))

    weights = [parameter.detach().requires_grad_() for parameter in start.parameters()]
    first = gradient(weights)
    norm = math.sqrt(sum(float((part**2).sum()) for part in first))
    above = [(w + rho * part / norm).detach().requires_grad_() for w, part in zip(weights, first, strict=True)]
    second = gradient(above)
    expected = [w - 0.1 * (part + 0.01 * w) for w, part in zip(weights, second, strict=True)]
    plain = [w - 0.1 * (part + 0.01 * w) for w, part in zip(weights, first, strict=True)]
    same([*found.parameters()], expected, 1e-9)
    assert max((a - b).abs().max() for a, b in zip(expected, plain, strict=True)) > 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rho_0_is_the_plain_optimiser_to_the_bit(name: str) -> None:
    settings = {"net": lambda: network(dropout=0.4, norm=True), "optimizer": torch.optim.Adam}
    batches = [batch(number) for number in range(3)]
    plain = trained(name, None, batches, **settings)
    same(trained(name, 0.0, batches, **settings), plain)
    assert not torch.equal(trained(name, 0.5, batches, **settings)["network"]["0.weight"], plain["network"]["0.weight"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_remembered_once_as_it_was_at_the_weights(name: str) -> None:
    net = {"net": lambda: network(norm=True)}
    sharp, plain = (trained(name, rho, [batch(1)], **net) for rho in (5.0, None))
    same(sharp["loss"], plain["loss"])
    buffers = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    same([sharp["network"][key] for key in buffers], [plain["network"][key] for key in buffers])
    same(sharp["metrics"], plain["metrics"])


def test_both_passes_have_the_same_dropout_and_draws() -> None:
    net, loss = network(dropout=0.5), OBJECTIVES["EQL"]()
    masks: list[Tensor] = []
    net[3].register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    drawn: list[Tensor] = []
    loss.sample_loss.register_forward_hook(lambda module, *_: drawn.append(module._drawn.clone()))
    trainer(net, loss, SharpnessAware(loss), [batch(1), batch(2)]).run()
    assert len(masks) == 4 and not torch.equal(masks[0], masks[2])
    same(masks[::2], masks[1::2])
    # a step asks for the first pass, the second, and the explanation of the metric
    assert len(drawn) == 6 and all(torch.equal(drawn[i], drawn[i - i % 3]) for i in range(6))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "published"])
def test_micro_batches_step_as_the_whole_batch(name: str) -> None:
    batches = [batch(number) for number in range(3)]
    whole = trained(name, 0.3, batches)
    same(trained(name, 0.3, batches, inferer=MicroBatchInferer(1)), whole, 1e-9)


def test_the_factor_of_a_gradient_scaler_drops_out() -> None:
    batches = [batch(1), batch(2)]
    scaled = trained("running", 0.3, batches, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    same(scaled["network"], trained("running", 0.3, batches)["network"], 1e-9)


class Cliff(nn.Module):
    """A network that is not finite anywhere but at the weights, when told so."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls = network(norm=True), 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        bad = bool((image > 50).any()) and self.calls == 4
        return self.layers(image.clamp(max=1)) * (math.nan if bad else 1)


def test_a_second_pass_that_is_not_finite_leaves_everything_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    spoilt = batch(2)
    spoilt["image"][0, 0] = 99
    with_it = trained("running", 0.3, [batch(1), spoilt, batch(3)], net=Cliff)
    without = trained("running", 0.3, [batch(1), batch(3)], net=Cliff)
    assert with_it["metrics"].pop(BAD_STEPS) == 1
    same({part: with_it[part] for part in without}, without)
    assert "step 2 is left out, its gradient is not finite" in caplog.text


@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_a_radius_out_of_range_is_named(rho: float) -> None:
    with pytest.raises(ValueError, match=r"rho must be in \[0, inf\), got"):
        SharpnessAware(nn.Identity(), rho=rho)


class Interrupted(Exception):
    """What stops a training."""


@pytest.mark.slow
def test_the_shipped_overlay_goes_on_to_the_bit_and_with_the_same_radius(
    start: Start, small_cohort: Path, tmp_path: Path
) -> None:
    names = ("train", "systems/recommended", "optimizers/sam")
    settings = {"cohort": str(small_cohort), "network_def": SMALL_NETWORK, "epochs": 2, "learning_rate": 1e-3}

    def weights(folder: str) -> Any:
        path = tmp_path / folder / "models" / "checkpoint_epoch=2.pt"
        return torch.load(path, weights_only=True)["model"]

    run(start(*names, **settings, output_dir=str(tmp_path / "whole")))
    stopped = start(*names, **settings, output_dir=str(tmp_path / "stopped"))
    stopped.initialize()

    def stop() -> None:
        raise Interrupted

    made = stopped.parser.get_parsed_content("train::trainer")
    made.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.state.epoch == 2), stop)
    with pytest.raises(RuntimeError):
        stopped.run()
    error = cause(start(*names, **settings, output_dir=str(tmp_path / "stopped"), resume=True, rho=0.1))
    assert "rho: was 0.05, is 0.1" in str(error)
    run(start(*names, **settings, output_dir=str(tmp_path / "stopped"), resume=True))
    same(weights("stopped"), weights("whole"))
    run(start(*names[:2], **settings, output_dir=str(tmp_path / "plain")))
    assert any(not torch.equal(a, b) for a, b in zip(weights("plain").values(), weights("whole").values(), strict=True))
