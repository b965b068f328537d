"""A training step: arithmetic and memory layout against the published step and the machine's rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import bundle
from .harness import Options, Result, Timing, alternate, arithmetic_limits, ratio_text, seconds_text
from .loss import COUNTS
from .published import PublishedCode

SIZES = {"reduced": (2, 32, 112), "full": (2, 64, 224)}  # batch, slices, side
SMALL = {"reduced": (2, 4, 32)}


def flops(net: nn.Module, x: Tensor, backward: bool) -> float:
    """Floating-point operations of a forward pass, or of one with its backward pass."""
    counter = FlopCounterMode(display=False)
    net = net.to(x.device)
    with counter:
        y = net(x)
        if backward:
            y.sum().backward()
    net.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


class Step:
    """One of our training steps: forward, loss, backward, Adam.

    Args:
        x: [N, 1, D, H, W].
        channels_last: memory layout of the network.
        autocast: dtype, None for float32.
        fused: Adam in one kernel.
        compiled: the network through torch.compile.
    """

    def __init__(
        self,
        x: Tensor,
        channels_last: bool = True,
        autocast: torch.dtype | None = None,
        fused: bool = False,
        compiled: bool = False,
    ) -> None:
        from fairlung.pipeline.losses.two_level import FairLACVaRLoss

        device = x.device
        self.x, self.autocast = x, autocast
        self.net = bundle.network(channels_last, device).train()
        self.run = torch.compile(self.net) if compiled else self.net
        self.loss = FairLACVaRLoss(COUNTS, alpha=0.8).to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4, weight_decay=1e-5, fused=fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
        self.target = targets(len(x), device)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits = self.run(self.x)
            loss = self.loss(logits, self.target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def targets(batch: int, device: torch.device) -> dict[str, Tensor]:
    index = torch.arange(batch, device=device)
    return {"label": index % len(COUNTS), "group": index % 2}


def published_step(code: PublishedCode, x: Tensor, amp: bool) -> Callable[[], None]:
    """The step of their training loop, on their network, loss and settings."""
    device = x.device
    net = code.network(bundle.network()).to(device).train()
    criterion = code.losses.FairLACVaRLoss(COUNTS, alpha=0.8).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, weight_decay=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    target = targets(len(x), device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16, enabled=amp):
            outputs = net(x)
            loss = criterion(outputs, target["label"], target["group"])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()
        outputs.max(1)[1].eq(target["label"]).sum().item()

    return step


def same_step(code: PublishedCode, x: Tensor) -> float:
    """Largest difference of the logits of both networks, relative to the largest logit."""
    ours, theirs = bundle.network().eval(), code.network(bundle.network()).eval()
    with torch.inference_mode():
        a, b = ours(x.cpu()), theirs(x.cpu())
    return float((a - b).abs().max() / b.abs().max())


def variants_on(device: torch.device, x: Tensor) -> dict[str, Callable[[], Any]]:
    made: dict[str, Callable[[], Any]] = {
        "contiguous": Step(x, channels_last=False),
        "channels_last_3d (default)": Step(x),
        "channels_last_3d, bf16 autocast": Step(x, autocast=torch.bfloat16),
    }
    return made


def measure(options: Options) -> Result:
    result = Result("step")
    device = options.device
    code = PublishedCode(options.published) if options.published else None
    result.limits = arithmetic_limits(device)
    for name, (batch, depth, side) in (SMALL if options.small else SIZES).items():
        x = torch.rand(batch, 1, depth, side, side, device=device)
        operations = flops(bundle.network(True, device), x[:1, :, : max(4, depth // 8)], backward=True)
        operations *= batch * depth / max(4, depth // 8)
        variants: dict[str, Callable[[], Any]] = {}
        if code is not None:
            if name == "reduced":
                difference = same_step(code, x[:1])
                if difference > 1e-4:
                    raise AssertionError(f"the logits differ from the published network's by {difference:.1e}")
                result.equal["logits"] = f"within {difference:.1e} of the largest"
            variants["published"] = published_step(code, x, amp=False)
        variants |= variants_on(device, x)
        repeats = options.repeats or (1 if name == "full" else 3)
        times = alternate(variants, repeats, warmup=1 if name == "reduced" else 0, device=device)
        add_rows(result, name, (batch, depth, side), times, operations)
        if code is not None:
            ratio = times["channels_last_3d (default)"].ratio_of(times["published"])
            result.extra[f"{name}_ratio"] = ratio[0]
    result.target(
        "training step, H100, batch 2, full size, AMP", "2.5x published, >= 35 % of bf16 rate",
        None, None, "no GPU; benchmarks/gpu.sh measures it",
    )  # fmt: skip
    result.notes.append(
        "A step is forward, loss, backward and Adam; operations are those of the convolutions and matrix products, "
        "counted by PyTorch's counter on fewer slices and scaled. The limit is the rate of a matrix product of 2048 x "
        "2048 in the same arithmetic, measured in the same run; the rate of a 3x3x3 convolution of 64 channels stands "
        "beside it. The bf16 row is what train.yaml's amp does on a CPU; the published code computes in float32 there, "
        "as its autocast is for CUDA only."
    )
    return result


def add_rows(
    result: Result, name: str, shape: tuple[int, int, int], times: dict[str, Timing], operations: float
) -> None:
    batch, depth, side = shape
    for variant, timing in times.items():
        kind = "bfloat16" if "bf16" in variant else "float16" if "fp16" in variant else "float32"
        rate = operations / timing.median / 1e9
        row = {"size": f"{name}: {batch} x {depth} x {side} x {side}", "step": variant, "time": seconds_text(timing)}
        row["times published"] = ratio_text(timing.ratio_of(times["published"])) if "published" in times else None
        row["GFLOP/s"] = f"{rate:.0f}"
        row["share of matmul rate"] = f"{rate / result.limits[f'matmul_{kind}_gflops']:.0%}"
        row["share of convolution rate"] = f"{rate / result.limits[f'convolution_{kind}_gflops']:.0%}"
        result.rows.append(row)
