"""Micro-batches train as the whole batch does: gradient, weights, memory, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from workflows import SMALL_NETWORK, Start, group_objectives, run

from fairlung.pipeline.losses.two_level import TwoLevelLoss
from fairlung.pipeline.training.accumulation import MicroBatchInferer, in_micro_batches, whole_batch
from fairlung.pipeline.training.group_loss import GroupLoss, PrepareGroupBatch

COUNTS = [250, 84, 200, 200]
SCANS = 7  # in micro-batches of 2, 2, 2 and 1
LABEL = torch.tensor([0, 1, 2, 3, 1, 0, 2])
GROUPS = {
    "both": torch.tensor([0, 0, 1, 0, -1, 1, 0]),  # no micro-batch has the groups of the whole
    "one missing": torch.tensor([1, 1, 1, 1, -1, 1, 1]),
    "none known": torch.full((SCANS,), -1),
    "three": torch.tensor([0, 0, 1, 1, 2, 2, 2]),  # a micro-batch alone has nothing to weigh
}


def network(*, dropout: float = 0.0, norm: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3) if norm else nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(3 * 27, 4),
    )  # fmt: skip


def images() -> Tensor:
    return torch.randn(SCANS, 1, 5, 5, 5, generator=torch.Generator().manual_seed(1))


def objectives() -> dict[str, TwoLevelLoss]:
    return group_objectives(COUNTS, num_groups=3)


def gradients(net: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def step(net: nn.Module, loss: TwoLevelLoss, group: Tensor, size: int) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    """The loss, the gradients and what the objective remembers of a batch in micro-batches of ``size``."""
    value = loss(in_micro_batches(net, images().double(), size), {"label": LABEL, "group": group})
    value.backward()
    return value.detach(), gradients(net), loss.state_dict()


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("name", objectives())
def test_gradient_loss_and_memory_are_those_of_the_whole_batch(name: str, group: Tensor) -> None:
    whole = step(network().double(), objectives()[name], group, SCANS)
    for size in (1, 2, 3):
        torch.testing.assert_close(step(network().double(), objectives()[name], group, size), whole, atol=1e-9, rtol=0)


def test_the_mean_of_the_micro_batches_losses_is_another_objective() -> None:
    """What the tests above would miss if the two were the same here."""
    net, loss = network().double(), objectives()["exact"]
    for part in torch.arange(SCANS).split(2):
        target = {"label": LABEL[part], "group": GROUPS["both"][part]}
        (loss(net(images().double()[part]), target) / 4).backward()
    naive, (_, exact, _) = gradients(net), step(network().double(), loss, GROUPS["both"], 2)
    assert max((a - b).norm() / b.norm() for a, b in zip(naive, exact, strict=True)) > 0.1


def test_both_passes_draw_the_same_dropout() -> None:
    """The gradient is that of the very outputs from which the loss was computed: they are linear in the last bias."""
    net, group = network(dropout=0.5).double(), GROUPS["both"]
    masks: list[Tensor] = []
    net[4].register_forward_hook(lambda module, inputs, output: masks.append((output == 0) & (inputs[0] != 0)))
    state = torch.get_rng_state()
    step(net, objectives()["exact"], group, 2)
    first, second = masks[:4], masks[4:]
    assert len(second) == 4 and any(mask.any() for mask in first)
    used = {mask.numpy().tobytes() for mask in first}
    assert {mask.numpy().tobytes() for mask in second} == used and len(used) == 4
    after = torch.get_rng_state()  # the second pass leaves the generator where the first did
    torch.set_rng_state(state)
    net(images().double()[:1])
    assert not torch.equal(after, torch.get_rng_state())
    torch.set_rng_state(state)
    with torch.no_grad():
        for part in images().double().split(2):
            net(part)
    assert torch.equal(after, torch.get_rng_state())


def test_running_statistics_move_once_a_micro_batch() -> None:
    net, plain = network(norm=True).double(), network(norm=True).double()
    step(net, objectives()["exact"], GROUPS["both"], 2)
    with torch.no_grad():
        for part in images().double().split(2):
            plain(part)
    assert plain[1].num_batches_tracked == 4
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), atol=0, rtol=0)
    assert net[1].momentum == plain[1].momentum


def test_with_frozen_statistics_batch_norm_is_exact() -> None:
    def frozen() -> nn.Sequential:
        net = network(norm=True).double()
        net[1].eval()
        return net

    whole = step(frozen(), objectives()["exact"], GROUPS["both"], SCANS)
    torch.testing.assert_close(step(frozen(), objectives()["exact"], GROUPS["both"], 2), whole, atol=1e-9, rtol=0)


class Activations:
    """Counts how many outputs of a layer are alive at once: what a batch needs memory for."""

    def __init__(self, layer: nn.Module) -> None:
        self.outputs: list[StorageWeakRef] = []
        self.most = 0
        layer.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs.append(StorageWeakRef(output.untyped_storage()))
        self.most = max(self.most, self.alive())

    def alive(self) -> int:
        return sum(not output.expired() for output in self.outputs)


def test_one_micro_batch_is_in_memory_at_a_time() -> None:
    net = network()
    kept = Activations(net[2])
    logits = in_micro_batches(net, images(), 1)
    assert (kept.most, kept.alive()) == (1, 0)
    objectives()["exact"](logits, {"label": LABEL, "group": GROUPS["both"]}).backward()
    assert len(kept.outputs) == 2 * SCANS and kept.most <= 2
    plain = network()
    kept = Activations(plain[2])
    logits = torch.cat([plain(part) for part in images().split(1)])
    assert kept.alive() == SCANS  # so the count sees what it is about


def test_mixed_precision_has_the_same_arithmetic_in_both_passes() -> None:
    """bfloat16 as autocast has it; a loss scale passes through, as GradScaler applies it before backward."""
    target = {"label": LABEL, "group": GROUPS["both"]}

    def trained(size: int, scale: float) -> tuple[Tensor, list[Tensor]]:
        net = network()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = in_micro_batches(net, images(), size)
            loss = objectives()["exact"](logits, target)
        assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
        (scale * loss).backward()
        return loss.detach(), [gradient / scale for gradient in gradients(net)]

    whole, parts = trained(SCANS, 1.0), trained(2, 1.0)
    torch.testing.assert_close(parts[0], whole[0], atol=1e-6, rtol=0)
    for ours, theirs in zip(parts[1], whole[1], strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()  # sums of bfloat16 in another order
    scaled = trained(2, 1024.0)  # a power of two: exact
    torch.testing.assert_close(scaled, parts, atol=0, rtol=0)


def loader(size: int) -> Iterator[dict[str, Tensor]]:
    batch = {"image": images().double(), "label": LABEL, "group": GROUPS["both"]}
    for _ in range(3):
        yield {name: value[:size] for name, value in batch.items()}


@pytest.mark.parametrize("name", ["exact", "published", "running"])
def test_the_stock_trainer_ends_with_the_same_weights_and_metrics(name: str) -> None:
    def trained(inferer: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        net, loss = network().double(), objectives()[name]
        trainer = SupervisedTrainer(
            device=torch.device("cpu"), max_epochs=1, epoch_length=3, train_data_loader=loader(SCANS), network=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1), loss_function=loss, inferer=inferer,
            prepare_batch=PrepareGroupBatch(), decollate=False,
            key_train_metric={"train_loss": GroupLoss(loss, ["a", "b", "c"])},
        )  # fmt: skip
        trainer.run()
        return net.state_dict(), trainer.state.metrics

    whole = trained(SimpleInferer())
    assert whole[1]["train_cvar_weight_a"] > 0
    torch.testing.assert_close(trained(MicroBatchInferer(2)), whole, atol=1e-9, rtol=0)


def test_without_gradient_or_micro_batches_it_is_the_plain_network() -> None:
    net = network(norm=True)
    calls: list[int] = []
    net.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    with torch.no_grad():
        in_micro_batches(net, images(), 2)
    in_micro_batches(net, images(), SCANS).sum().backward()
    assert calls == [SCANS, SCANS]


@pytest.mark.parametrize(("batch_size", "accumulate"), [(0, 1), (2, 0), (2, 1.5), (2, True), (2, "2")])
def test_sizes_are_whole_numbers_from_one(batch_size: Any, accumulate: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got"):
        whole_batch(batch_size, accumulate)


def test_more_than_images_is_refused() -> None:
    with pytest.raises(TypeError, match="the images alone"):
        MicroBatchInferer(2)(images(), network(), 1)


def test_the_shipped_config_trains_the_same_network(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    """Batches of 8 in one piece, and as four micro-batches of 2, in a network without batch normalisation."""
    small = SMALL_NETWORK | {"norm": ["group", {"num_groups": 1}]}
    settings = {"cohort": str(small_cohort), "network_def": small, "learning_rate": 1e-3}

    def trained(name: str, **overrides: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        workflow = run(start("train", **settings, output_dir=str(tmp_path / name), **overrides))
        trainer = workflow.parser.get_parsed_content("train::trainer")
        assert trainer.state.epoch_length == 2  # 16 scans, 8 a step
        return trainer.network.state_dict(), trainer.state.metrics

    whole = trained("whole", batch_size=8)
    parts = trained("parts", batch_size=2, accumulate=4)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-5, rtol=0)
    for name, value in whole[0].items():
        # Adam divides by the gradient's size: where that is next to nothing, rounding decides the direction
        assert (parts[0][name] - value).abs().mean() < 1e-4, name
