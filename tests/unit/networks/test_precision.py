"""Training in bfloat16 on a CPU is autocast by hand, with a loss in float32, and resumes to the bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from workflows import SMALL_NETWORK, Start, cause, group_objectives, run

from fairlung.pipeline import networks
from fairlung.pipeline.networks import precision
from fairlung.pipeline.networks.precision import AmpInferer, has_bfloat16
from fairlung.pipeline.training.accumulation import MicroBatchInferer, in_micro_batches
from fairlung.pipeline.training.bad_steps import SkipBadSteps
from fairlung.pipeline.training.group_loss import GroupLoss, PrepareGroupBatch
from fairlung.pipeline.training.sharpness import SharpnessAware

COUNTS = [250, 84, 200, 200]
LABEL, GROUP = torch.tensor([0, 1, 2, 3, 1, 0]), torch.tensor([0, 0, 1, 0, -1, 1])
CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 27, 4))


def batch(number: int) -> dict[str, Any]:
    image = torch.rand(len(LABEL), 1, 5, 5, 5, generator=torch.Generator().manual_seed(number))
    return {"image": image, "label": LABEL, "group": GROUP, "scan": [*map(str, range(len(LABEL)))]}


def trained(
    amp: bool, size: int, rho: float | None, seen: list[Any] | None = None, batches: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Tensor]:
    """The weights after a step a batch of MONAI's trainer as train.yaml sets it up."""
    net, loss = network(), group_objectives(COUNTS, 2)["exact"]
    trainer = SupervisedTrainer(
        device=CPU, max_epochs=1, train_data_loader=[batch(n) for n in batches], network=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1), loss_function=loss, decollate=False,
        inferer=AmpInferer(amp, CPU, MicroBatchInferer(size)), prepare_batch=PrepareGroupBatch(),
        key_train_metric={"train_loss": GroupLoss(loss, ["a", "b"])},
        train_handlers=[SkipBadSteps(loss) if rho is None else SharpnessAware(loss, rho=rho)],
    )  # fmt: skip
    if seen is not None:
        trainer.add_event_handler(
            IterationEvents.LOSS_COMPLETED, lambda engine: seen.append((engine.state.output, engine.scaler))
        )
    trainer.run()
    return copy.deepcopy(net.state_dict())


def by_hand(size: int, rho: float | None) -> dict[str, Tensor]:
    """The same steps with autocast around the network, and SAM's two passes, written out."""
    net, loss = network(), group_objectives(COUNTS, 2)["exact"]

    def gradients(item: dict[str, Any]) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = in_micro_batches(net, item["image"], size)
        assert logits.dtype == torch.bfloat16
        return list(torch.autograd.grad(loss(logits.float(), item), [*net.parameters()]))

    for number in range(3):
        found = gradients(batch(number))
        weights = [parameter.detach().clone() for parameter in net.parameters()]
        if rho is not None:
            length = rho / torch.nn.utils.get_total_norm(found)
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), found, strict=True):
                    parameter.add_(gradient * length)
            found = gradients(batch(number))
        with torch.no_grad():
            for parameter, weight, gradient in zip(net.parameters(), weights, found, strict=True):
                parameter.copy_(weight - 0.1 * gradient)
    return net.state_dict()


@pytest.mark.parametrize("rho", [None, 0.3], ids=["plain", "SAM"])
@pytest.mark.parametrize("size", [6, 2], ids=["whole", "micro-batches"])
def test_a_training_is_autocast_by_hand(size: int, rho: float | None) -> None:
    seen: list[Any] = []
    found, expected, plain = trained(True, size, rho, seen), by_hand(size, rho), trained(False, size, rho)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert max((found[name] - plain[name]).abs().max() for name in found) > 1e-4  # which float32 would not be
    assert all(value.dtype == torch.float32 for value in found.values())
    for output, scaler in seen:
        assert output["pred"].dtype == output["loss"].dtype == torch.float32 and scaler is None


def test_it_lowers_its_loss() -> None:
    seen: list[Any] = []
    trained(True, 2, None, seen, batches=(0,) * 60)
    losses = [output["loss"].detach().item() for output, _ in seen]
    assert losses[-1] < 0.7 * losses[0]


def test_where_it_is_off_or_the_engines_own_the_inferer_is_the_plain_one() -> None:
    image, net = batch(0)["image"], network()
    for inferer in (AmpInferer(False, CPU), AmpInferer(True, "cuda")):
        assert torch.equal(inferer(image, net), SimpleInferer()(image, net))
    with pytest.raises(ValueError, match="amp must be false on the device mps, got True"):
        AmpInferer(True, "mps")
    AmpInferer(False, "mps")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd i8mm bf16 dgh\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\nmodel name : A bf16x\n", False),
        (None, False),
    ],
)
def test_what_a_processor_says(tmp_path: Path, text: str | None, expected: bool) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert has_bfloat16(tmp_path / "cpuinfo") is expected


def test_a_processor_without_it_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    precision._warn.cache_clear()
    for able in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda able=able: able)
        for amp, device in ((True, CPU), (True, CPU), (False, CPU), (True, "cuda")):
            AmpInferer(amp, device)
        assert caplog.text.count("slower") == (not able)
    precision._warn.cache_clear()


def leave_behind(value: float) -> None:
    """Fill memory that is free again afterwards, for whoever reads what was never written."""
    kept = [torch.full((count,), value) for power in range(3, 16) for count in (2**power, 3 << power) for _ in range(6)]
    del kept


def gradient_after(net: nn.Module, image: Tensor, amp: bool, left: float) -> Tensor:
    net.zero_grad()
    leave_behind(left)
    logits = AmpInferer(amp, CPU)(image, net)
    assert logits.dtype == torch.float32 and logits.shape == (len(image), 4)
    leave_behind(left)
    logits.square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert len(gradients) > 10 and all(gradient.dtype == torch.float32 for gradient in gradients)
    return torch.cat([gradient.flatten() for gradient in gradients])


NETWORKS = ["R3D18Classifier", "I3D", "CTResNet152", "ResNeSt50", "CNNRNNClassifier", "RACNet"]


@pytest.mark.parametrize("kind", [pytest.param(n, marks=[pytest.mark.slow] * (n != NETWORKS[0])) for n in NETWORKS])
def test_every_networks_gradient_is_its_own(kind: str) -> None:
    """That of float32 but for rounding, and the same to the bit whatever freed memory holds."""
    torch.manual_seed(0)
    settings = {"slices": 16} if kind == "RACNet" else {}
    net = getattr(networks, kind)(4, dropout=0.0, **settings).eval()
    image = torch.rand(2, 1, 16, 32, 32)
    exact = gradient_after(net, image, False, 0.0)
    found = [gradient_after(net, image, True, left) for left in (math.nan, 1e30)]
    assert torch.isfinite(found[0]).all() and torch.equal(*found)
    assert (found[0] - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("padding", [0, 1, "half", "same"])
def test_a_convolution_without_a_window_inside_computes_in_float32(kernel: int, stride: int, padding: Any) -> None:
    if padding == "same" and stride > 1:
        pytest.skip("PyTorch has no such convolution")
    around: Any = {"half": (kernel // 2, 1, 1)}.get(padding, padding if padding == "same" else (padding, 1, 1))
    conv = nn.Conv3d(2, 3, (kernel, 3, 3), (stride, 1, 1), around)
    front = kernel // 2 if isinstance(padding, str) else padding
    net = nn.Sequential(conv).to(memory_format=torch.channels_last_3d)
    inferer, kinds = AmpInferer(True, CPU), []
    conv.register_forward_hook(lambda *call: kinds.append(call[2].dtype))
    for depth in range(max(1, kernel - 2 * front), 10):
        starts = range(-front, depth + front - kernel + 1, stride)
        inside = any(start >= 0 and start + kernel <= depth for start in starts)
        image = torch.rand(1, 2, depth, 4, 4)
        inferer(image, net)
        assert kinds[-1] == (torch.bfloat16 if inside else torch.float32), depth
        conv(image)  # without autocast it is as it was
        assert kinds[-1] == torch.float32


def test_a_network_keeps_its_names_weights_and_copies() -> None:
    net = network()
    before, said = copy.deepcopy(net.state_dict()), repr(net)
    for _ in range(2):
        AmpInferer(True, CPU)(batch(0)["image"], net)
    assert repr(net) == said and type(net[0]).__name__ == "Conv3d" and len(type(net[0]).__mro__) < 8
    torch.testing.assert_close(net.state_dict(), before, atol=0, rtol=0)
    copied = copy.deepcopy(net)
    assert torch.equal(copied(batch(0)["image"]), network()(batch(0)["image"]))


class Interrupted(Exception):
    """What stops a training."""


def stop(*_: object) -> None:
    raise Interrupted


def test_the_shipped_config_computes_in_it_and_goes_on_to_the_bit(
    start: Start, small_cohort: Path, tmp_path: Path
) -> None:
    """With accumulation; a resume under other arithmetic is refused; evaluate.yaml takes the setting too."""
    settings: dict[str, Any] = {"cohort": str(small_cohort), "network_def": SMALL_NETWORK, "learning_rate": 3e-3}
    settings |= {"device": "cpu", "batch_size": 2, "accumulate": 2, "amp": True, "epochs": 2}

    def weights(folder: str) -> dict[str, Tensor]:
        return torch.load(tmp_path / folder / "models" / "checkpoint_epoch=2.pt", weights_only=True)["model"]

    whole = start("train", **settings, output_dir=str(tmp_path / "whole"))
    whole.initialize()
    trainer, evaluator = map(whole.parser.get_parsed_content, ("train::trainer", "validate::evaluator"))
    assert trainer.amp is evaluator.amp is False and trainer.scaler is None
    layers: list[torch.dtype] = []
    hook = trainer.network.features.conv0.register_forward_hook(lambda *call: layers.append(call[2].dtype))
    whole.run()
    hook.remove()
    assert set(layers) == {torch.bfloat16}  # in validation too
    whole.finalize()

    stopped = start("train", **settings, output_dir=str(tmp_path / "stopped"))
    stopped.initialize()
    made = stopped.parser.get_parsed_content("train::trainer")
    made.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.state.epoch == 2), stop)
    with pytest.raises(RuntimeError):
        stopped.run()
    other = start("train", **settings | {"amp": False}, output_dir=str(tmp_path / "stopped"), resume=True)
    assert "amp: was true, is false" in str(cause(other))
    run(start("train", **settings, output_dir=str(tmp_path / "stopped"), resume=True))
    torch.testing.assert_close(weights("stopped"), weights("whole"), atol=0, rtol=0)

    answers = []
    for amp in (True, False):
        judged = start(
            "train", "evaluate", **settings | {"amp": amp, "flip_tta": True}, output_dir=str(tmp_path / "whole")
        )
        judged.initialize()
        evaluator = judged.parser.get_parsed_content("validate::evaluator")
        outputs: list[Tensor] = []
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, kept=outputs: kept.append(engine.state.output["pred"])
        )
        judged.run()
        answers.append(torch.cat(outputs))
    assert answers[0].dtype == torch.float32 and 0 < (answers[0] - answers[1]).abs().max() < 0.1
