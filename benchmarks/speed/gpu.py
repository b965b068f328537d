"""What needs a GPU, in one call: steps, epochs of cached volumes, inference, the loss; see ../gpu.sh.

Needs torch, torchvision, numpy, pillow, monai and pytorch-ignite, nothing else; volumes are made on the spot.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bundle, harness, loss, scans, step
from .harness import Options, Result, Timing, alternate, ratio_text
from .published import PublishedCode

TRAIN, VAL, EPOCHS = 734, 155, 70
MINUTES = 10.0
LOADED = 100.0  # volumes a second into the device


class Clock:
    """Leaves out what no longer fits into the time."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    def allows(self, result: Result, what: str, seconds: float) -> bool:
        if time.monotonic() + seconds < self.end:
            print(f"{what} ({self.end - time.monotonic():.0f} s left)", file=sys.stderr, flush=True)
            return True
        result.notes.append(f"Left out for want of time: {what}.")
        return False


def augmentation(depth: int, crop: int) -> Any:
    """train.yaml's augmentation of 8-bit volumes, wherever they lie; of stock transforms, as no more is installed."""
    from monai.transforms import Compose, EnsureTyped, RandFlipd, RandRotate90d, RandScaleIntensityd, RandSpatialCropd

    return Compose(
        [
            RandSpatialCropd("image", (depth, crop, crop), random_size=False),
            RandFlipd("image", 0.5, spatial_axis=2),
            RandRotate90d("image", 0.75, max_k=3, spatial_axes=(1, 2)),
            RandScaleIntensityd("brightness", factors=0.2, prob=1.0),
            EnsureTyped(("image", "brightness"), track_meta=False),
        ]
    )


def batches(volumes: Tensor, augment: Any, size: int) -> Iterator[Tensor]:
    """Augmented batches of volumes that lie on the device."""
    from fairlung.pipeline.common.volumes import unit_range

    order = torch.randperm(len(volumes)).tolist()
    for start in range(0, len(order) - size + 1, size):
        items = [augment({"image": volumes[k], "brightness": torch.ones(1)}) for k in order[start : start + size]]
        yield unit_range(*(torch.stack([item[name] for item in items]) for name in ("image", "brightness")))


def steps(options: Options, result: Result, clock: Clock, code: PublishedCode | None, shape: tuple[int, int]) -> None:
    """Training steps of batch 2 and of the largest that fits."""
    device, (depth, side) = options.device, shape
    half = device.type == "cuda"
    one = step.flops(bundle.network(True, device), torch.rand(1, 1, depth, side, side, device=device), backward=True)
    for batch in (2, largest(options, depth, side)):
        if batch == 2 and result.rows:
            continue
        if not clock.allows(result, f"steps of batch {batch}", 60 if half else 0):
            return
        x = torch.rand(batch, 1, depth, side, side, device=device)
        makers: dict[str, Callable[[], Callable[[], None]]] = {}
        if code is not None:
            makers["published"] = lambda x=x: step.published_step(code, x, amp=half)  # type: ignore[misc]
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16} if half else {"bf16": torch.bfloat16}
        for name, kind in kinds.items():
            makers[f"channels_last_3d, {name}"] = lambda x=x, kind=kind: step.Step(x, autocast=kind)  # type: ignore[misc]
            makers[f"channels_last_3d, {name}, fused Adam"] = lambda x=x, kind=kind: step.Step(  # type: ignore[misc]
                x, autocast=kind, fused=True
            )
        name, kind = next(iter(kinds.items()))
        makers[f"contiguous, {name}, fused Adam"] = lambda x=x, kind=kind: step.Step(  # type: ignore[misc]
            x, channels_last=False, autocast=kind, fused=True
        )
        if half:
            makers[f"channels_last_3d, {name}, fused Adam, compiled"] = lambda x=x, kind=kind: step.Step(  # type: ignore[misc]
                x, autocast=kind, fused=True, compiled=True
            )
        times = timed_alone(makers, options, result)
        step.add_rows(result, "step", (batch, depth, side), times, one * batch)
        ours = {name: timing for name, timing in times.items() if name != "published"}
        best = min(ours, key=lambda name: ours[name].median)
        rate = one * batch / ours[best].median / 1e9 / result.limits["matmul_bfloat16_gflops"]
        result.extra[f"step_seconds_batch_{batch}"] = {name: timing.median for name, timing in times.items()}
        said, met = f"{best}: {rate:.0%} of the bf16 rate", None
        if "published" in times:
            ratio = ours[best].ratio_of(times["published"])
            said, met = f"{ratio_text(ratio)}, {said}", ratio[0] >= 2.5 and rate >= 0.35
        measured = half and not options.small
        result.target(
            f"training step, H100, batch {batch if batch == 2 else 'as large as fits'}, full size, AMP",
            "2.5x published, >= 35 % of bf16 rate", said if measured else None, met if measured else None,
        )  # fmt: skip


def timed_alone(makers: dict[str, Any], options: Options, result: Result) -> dict[str, Timing]:
    """Times in turn of all that can be made; their memory is held together, so batch sizes leave room."""
    made = {}
    for name, make in makers.items():
        try:
            call = make()
            call()
            made[name] = call
        except (RuntimeError, ImportError) as error:  # no compiler, out of memory
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result.notes.append(f"{name} could not run: {lines[0][:160]}.")
    return alternate(
        made, options.repeats or (1 if options.small else 10), warmup=0 if options.small else 2, device=options.device
    )


def largest(options: Options, depth: int, side: int) -> int:
    """The largest batch of a power of two that a step fits into the device with, half of it kept for the others."""
    if options.device.type != "cuda":
        return 4
    batch = 2
    while batch < 64:
        try:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            step.Step(torch.rand(2 * batch, 1, depth, side, side, device=options.device), autocast=torch.float16)()
        except torch.cuda.OutOfMemoryError:
            break
        if torch.cuda.max_memory_allocated() > 0.45 * torch.cuda.get_device_properties(0).total_memory:
            break
        batch *= 2
    torch.cuda.empty_cache()
    return max(4, batch)


def epoch(options: Options, result: Result, code: PublishedCode | None, shape: tuple[int, int]) -> None:
    """Epochs of 8-bit volumes held on the device, augmented there, then validated; and the whole training projected."""
    device, (depth, side) = options.device, shape
    number = 8 if options.small else 128
    stored = side * 256 // 224
    volumes = torch.from_numpy(scans.grey_volumes(number, (depth, stored, stored))).to(device)
    augment = augmentation(depth, side)
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    trained = step.Step(torch.zeros(2, 1, depth, side, side, device=device), autocast=kind, fused=device.type == "cuda")
    low = (stored - side) // 2

    def load() -> None:
        for _ in batches(volumes, augment, 2):
            pass

    def train() -> None:
        for x in batches(volumes, augment, 2):
            trained.x = x
            trained()

    def validate() -> None:
        trained.net.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype=kind):
            for start in range(0, number, 4):
                trained.net(volumes[start : start + 4, :, :, low : low + side, low : low + side].float() / 255)
        trained.net.train()

    times = alternate({"augmentation alone": load, "training": train, "validation": validate}, 2, device=device)
    for name, timing in times.items():
        result.extra[f"volumes_per_second_{name.replace(' ', '_')}"] = number / timing.median
        result.notes.append(
            f"{name.capitalize()}: {number / timing.median:.4g} volumes/s of {depth} x {side} x {side}, batch 2."
        )
    total = EPOCHS * (TRAIN * times["training"].median + VAL * times["validation"].median) / number / 60
    measured = device.type == "cuda" and not options.small
    said, met = f"{total:.3g} min projected from {number} volumes", total <= MINUTES
    if code is not None:
        theirs = result.extra.get("step_seconds_batch_2", {}).get("published", 0.0) / 2
        if importable("scipy"):
            folder = scans.jpeg_scan(options.scratch, 12 if options.small else 300, 64 if options.small else 512)
            reading = harness.per_call(lambda: code.scans([folder], train=True)[0]) / min(4, os.cpu_count() or 1)
        else:
            folder = pictures(options)
            reading = harness.per_call(lambda: code.scans([folder], train=True)[0]) / min(4, os.cpu_count() or 1)
        their_total = EPOCHS * (TRAIN * max(theirs, reading) + VAL * max(theirs / 3, reading)) / 60
        said += f"; published {their_total:.3g} min, its 4 processes and the device working side by side"
        said += f": {their_total / total:.3g}x"
        met = met and their_total >= 20 * total
        result.extra |= {"published_reading_seconds": reading, "published_minutes": their_total}
    result.extra["minutes"] = total
    result.target(
        "70 epochs on 734 cached scans with validation, one H100", "<= 10 min, >= 20x published",
        said if measured else None,
        met if measured else None,
    )  # fmt: skip
    rate = number / times["augmentation alone"].median
    result.target(
        "volumes into an H100", f">= {LOADED:g} a second", f"{rate:.4g} a second" if measured else None,
        rate >= LOADED if measured else None,
    )  # fmt: skip


def importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def pictures(options: Options) -> Path:
    """A folder of 300 JPEG slices of blobs, where the phantom's libraries are missing."""
    from PIL import Image

    number, size = (12, 64) if options.small else (300, 512)
    folder = options.scratch / f"blobs_{number}_{size}"
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(scans.grey_volumes(1, (number, size, size))[0, 0]):
        Image.fromarray(plane).save(folder / f"{k}.jpg", quality=95)
    return folder


def inference(options: Options, result: Result, code: PublishedCode | None, shape: tuple[int, int]) -> None:
    """The network alone, a scan at a time and four at a time."""
    device, (depth, side) = options.device, shape
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    x = torch.rand(1, 1, depth, side, side, device=device)
    plain, ours = bundle.network(False, device).eval(), bundle.network(True, device).eval()
    networks: dict[str, Any] = {"plain": plain, "channels_last_3d": ours}
    if code is not None:
        networks = {"published": code.network(bundle.network()).to(device).eval(), **networks}

    def call(network: Any, precision: torch.dtype | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                return network(x)

        return run

    made = {f"{name}, {said}": call(network, precision) for name, network in networks.items()
            for said, precision in (("float32", None), (str(kind).removeprefix("torch."), kind))}  # fmt: skip
    logits = {name: run().float() for name, run in made.items()}
    times = alternate(made, options.repeats or (1 if options.small else 10), device=device)
    base = logits["plain, float32"]
    result.extra["inference"] = {
        name: {"seconds": timing.median, "largest_change_of_a_logit": float((logits[name] - base).abs().max())}
        for name, timing in times.items()
    }
    result.notes += [
        f"Inference, {name}: {harness.seconds_text(timing)} a scan, logits within "
        f"{result.extra['inference'][name]['largest_change_of_a_logit']:.1e} of plain float32."
        for name, timing in times.items()
    ]


def no_waits(options: Options, result: Result) -> None:
    """CUDA itself refuses to wait while our loss runs forward and backward."""
    made = loss.batch(2, 2, options.device)
    call = loss.forward_backward(loss.ours(device=options.device), made)
    call()
    counted = loss.waits(call)
    if options.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    result.equal["waits of the loss"] = counted
    seconds = harness.per_call(call)
    result.extra["loss_seconds"] = seconds


def measure(options: Options, budget: float) -> Result:
    result = Result("gpu" if options.device.type == "cuda" and not options.small else "gpu_small")
    clock = Clock(budget)
    shape = (4, 56) if options.small else (64, 224)
    code = PublishedCode(options.published) if options.published else None
    torch.backends.cudnn.benchmark = True
    result.limits = harness.arithmetic_limits(options.device)
    if code is not None:
        difference = step.same_step(code, torch.rand(1, 1, *(4, 56, 56)))
        if difference > 1e-4:
            raise AssertionError(f"the logits differ from the published network's by {difference:.1e}")
        result.equal["logits"] = f"within {difference:.1e} of the largest"
    no_waits(options, result)
    steps(options, result, clock, code, shape)
    if clock.allows(result, "epochs", 90):
        epoch(options, result, code, shape)
    if clock.allows(result, "inference", 30):
        inference(options, result, code, shape)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--small", action="store_true", help="reduced sizes; also without a GPU")
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.small:
        raise SystemExit("no GPU: --small tries it out on the CPU")
    options = Options(given.published, given.small, results=given.results)
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(options, given.budget)
    print(harness.write(result, options).with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
