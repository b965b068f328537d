"""The objective: how often a step waits for it, and what share of a step it takes, against the published loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import bundle
from .harness import Options, Result, per_call
from .published import PublishedCode

COUNTS = [250, 84, 200, 200]
# operators whose result the host has to know before it goes on
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")


class Waits(TorchDispatchMode):
    """Counts the operators that make a GPU's host wait; they are the same ones whatever the device is."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.counts[name] += 1
        elif name in ("index", "index_put", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        ):
            self.counts["index by a mask"] += 1
        return func(*args, **(kwargs or {}))


def waits(run: Callable[[], Any]) -> int:
    """Times that a call would wait for a GPU."""
    with Waits() as counted:
        run()
    return sum(counted.counts.values())


def batch(samples: int, groups: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and groups, the groups in turn."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, len(COUNTS), generator=generator).to(device).requires_grad_()
    label = torch.randint(len(COUNTS), (samples,), generator=generator).to(device)
    return logits, label, (torch.arange(samples) % groups).to(device)


def ours(alpha: float = 0.8, device: torch.device | str = "cpu", gradient: str = "exact") -> Callable[..., Tensor]:
    from fairlung.pipeline.losses.two_level import FairLACVaRLoss

    loss = FairLACVaRLoss(COUNTS, alpha=alpha, gradient=gradient).to(device)
    return lambda logits, label, group: loss(logits, {"label": label, "group": group})


def forward_backward(loss: Callable[..., Tensor], made: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    def call() -> None:
        made[0].grad = None
        loss(*made).backward()

    return call


def step_seconds(options: Options) -> tuple[float, str]:
    """A training step without the loss, batch 2, and what it is of."""
    depth, side = (8, 32) if options.small else (64, 224)
    net = bundle.network(True, options.device).train()
    x = torch.rand(2, 1, depth, side, side, device=options.device)
    label = torch.tensor([0, 1], device=options.device)
    from .harness import alternate

    def step() -> None:
        torch.nn.functional.cross_entropy(net(x), label).backward()

    times = alternate({"step": step}, 1 if options.device.type == "cpu" else 5, device=options.device)
    return times["step"].median, f"batch 2, {depth} x {side} x {side}"


def measure(options: Options) -> Result:
    result = Result("loss")
    code = PublishedCode(options.published) if options.published else None
    step, size = step_seconds(options)
    shares = {}
    for groups, samples in ((2, 2), (2, 64), (1000, 1000)):
        made = batch(samples, groups, options.device)
        variants = {"ours": ours(device=options.device)}
        if code is not None:
            theirs = code.losses.FairLACVaRLoss(COUNTS, alpha=0.8).to(options.device)
            mine = ours(device=options.device, gradient="published")
            a, b = float(mine(*made)), float(theirs(*made))
            if abs(a - b) > 1e-5 * max(1.0, abs(b)):
                raise AssertionError(f"{groups} groups: the loss is {a}, published {b}")
            exact = float(variants["ours"](*made))
            if abs(exact - b) > 1e-5 * max(1.0, abs(b)):
                raise AssertionError(f"{groups} groups: the exact loss is {exact}, published {b}")
            result.equal[f"loss, {samples} samples in {groups} groups"] = (
                f"within {max(abs(a - b), abs(exact - b)):.1e}"
            )
            variants["published"] = theirs
        for name, loss in variants.items():
            call = forward_backward(loss, made)
            counted = waits(call)
            if options.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = per_call(call, 0.05 if options.small else 0.5)
            result.rows.append(
                {
                    "groups": groups, "samples": samples, "loss": name, "waits a step": counted,
                    "forward and backward": f"{seconds * 1e3:.3g} ms",
                    "share of a step": f"{seconds / (step + seconds):.2%}",
                }
            )  # fmt: skip
            if name == "ours":
                shares[groups, samples] = counted, seconds / (step + seconds)
    worst = max(counted for counted, _ in shares.values())
    result.target("waits for the loss a step", "0", str(worst), worst == 0)
    for (groups, samples), limit in (((2, 2), 0.01), ((1000, 1000), 0.03)):
        share = shares[groups, samples][1]
        result.target(
            f"share of the loss in a step on {options.device.type}, {groups} groups", f"< {limit:.0%}", f"{share:.2%}",
            share < limit,
        )  # fmt: skip
    result.extra["step_seconds"] = step
    result.notes.append(
        f"The step is forward and backward of the network ({size}, float32, channels last). Waits are counted where "
        "PyTorch dispatches operators: reading a value back, searching for unique or non-zero values, indexing by a "
        "mask. A GPU's host waits at each of them; on a CPU they cost nothing."
    )
    return result
