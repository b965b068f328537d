"""What all speed benchmarks share: alternating repeats, the machine and its limits, results as JSON and tables."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

try:
    from tqdm import tqdm
except ImportError:  # a machine that has only what a GPU needs (gpu.sh)
    tqdm = None

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "monai",
    "pytorch-ignite",
    "numpy",
    "pillow",
    "openvino",
    "onnxruntime",
    "SimpleITK",
)


@dataclass
class Options:
    """How a benchmark is run.

    Args:
        published: the user's checkout of the authors' repository; None leaves their side out.
        small: reduced sizes, to try the benchmark out; its numbers mean nothing.
        repeats: of every measurement, None is the benchmark's own number.
        results: folder for JSON and Markdown.
        scratch: folder for phantom scans, kept between runs.
        device: to compute on.
    """

    published: Path | None = None
    small: bool = False
    repeats: int | None = None
    results: Path = RESULTS
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir(), f"fairlung-benchmarks-{os.getuid()}"))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


# ---------------------------------------------------------------------------------------------------------------------
# timing
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class Timing:
    """Seconds of the repeats of one thing, by the clock and of the processor."""

    seconds: list[float]
    processor: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def busy(self) -> Timing:
        """The processor's time: what other programs do weighs less on it."""
        return Timing(self.processor)

    def ratio_of(self, other: Timing) -> tuple[float, float, float]:
        """How many times as long the other takes: median, lowest and highest over the repeats that ran side by side."""
        ratios = [b / a for a, b in zip(self.seconds, other.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def alternate(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Time variants in turn, so that what else the machine does falls on all of them.

    Args:
        variants: name -> what is timed.
        repeats: timed rounds.
        warmup: rounds that are not.
        before: called before each, untimed.
        device: waited for, when it is a GPU.
    """
    times = {name: Timing([], []) for name in variants}
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    gc.collect()
    gc.freeze()  # what the libraries hold need not be looked through again before each
    with _progress((repeats + warmup) * len(variants)) as progress:
        for turn in range(-warmup, repeats):
            for name, run in variants.items():
                progress.set_description(name, refresh=False)
                if before is not None:
                    before()
                gc.collect()
                wait()
                start, busy = time.perf_counter(), time.process_time()
                run()
                wait()
                if turn >= 0:
                    times[name].seconds.append(time.perf_counter() - start)
                    times[name].processor.append(time.process_time() - busy)
                progress.update()
    gc.unfreeze()
    return times


def _progress(total: int) -> Any:
    return mock.MagicMock() if tqdm is None else tqdm(total=total, leave=False, mininterval=2)


def per_call(run: Callable[[], Any], at_least: float = 0.2) -> float:
    """Seconds of one call of something short."""
    run()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < at_least:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the system's file cache, where it lets us."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


# ---------------------------------------------------------------------------------------------------------------------
# memory
# ---------------------------------------------------------------------------------------------------------------------
def resident() -> int:
    """Bytes of memory that this process holds."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes that this process held since it started, or since :func:`reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def in_process(module: str, function: str, *args: Any) -> dict[str, Any]:
    """Call ``speed.<module>.<function>(*args)`` in a process of its own and return the JSON that it returns."""
    code = (
        "import importlib, json, sys; sys.path.insert(0, sys.argv[1]); "
        "call = getattr(importlib.import_module('speed.' + sys.argv[2]), sys.argv[3]); "
        "print('RESULT ' + json.dumps(call(*json.loads(sys.argv[4]))))"
    )
    command = [sys.executable, "-c", code, str(HERE.parent), module, function, json.dumps(args, default=str)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module}.{function} failed:\n{done.stderr[-3000:]}")
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(found[-1].removeprefix("RESULT "))


def peak_of(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call, the peak of memory in it, and how far that is above what was held before; bytes."""
    gc.collect()
    before = resident()
    reset_peak()
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "peak": peak_resident(), "above": peak_resident() - before}


# ---------------------------------------------------------------------------------------------------------------------
# the machine
# ---------------------------------------------------------------------------------------------------------------------
def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].partition(":")[2].strip() if named else cpu
    found: dict[str, Any] = {
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": packages,
        "load_before": round(os.getloadavg()[0], 2),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
    return found


def matmul_gflops(dtype: torch.dtype, device: torch.device | str = "cpu", side: int = 2048) -> float:
    """GFLOP/s of a large matrix product: what the machine can do at best, measured in the same run."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2 * side**3 / _device_call(lambda: a @ b, device) / 1e9


def convolution_gflops(
    dtype: torch.dtype, device: torch.device | str = "cpu", depth: int = 16, side: int = 56
) -> float:
    """GFLOP/s of a 3x3x3 convolution of 64 channels, the most frequent one of the network, channels last."""
    x = torch.randn(1, 64, depth, side, side, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    w = torch.randn(64, 64, 3, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    seconds = _device_call(lambda: torch.nn.functional.conv3d(x, w, padding=1), device)
    return 2 * 27 * 64 * 64 * depth * side * side / seconds / 1e9


def _device_call(run: Callable[[], Any], device: torch.device | str) -> float:
    if torch.device(device).type != "cuda":
        return min(per_call(run, 0.3) for _ in range(3))
    run()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 20 / 1e3


def copy_gbs() -> float:
    """GB/s of copying memory."""
    source = np.ones(1 << 27, dtype=np.uint8)
    target = np.empty_like(source)
    return source.nbytes / min(per_call(lambda: np.copyto(target, source), 0.2) for _ in range(3)) / 1e9


def disk_gbs(files: Sequence[Path]) -> float:
    """GB/s of reading files that are not in the system's cache, where it can be emptied."""
    forget(files)
    start = time.perf_counter()
    total = sum(len(path.read_bytes()) for path in files)
    return total / (time.perf_counter() - start) / 1e9


def arithmetic_limits(device: torch.device | str = "cpu") -> dict[str, float]:
    """GFLOP/s of matrix products and convolutions in float32 and bfloat16."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if torch.device(device).type == "cuda":
        kinds["float16"] = torch.float16
    side = 8192 if torch.device(device).type == "cuda" else 2048
    return {
        **{f"matmul_{name}_gflops": matmul_gflops(dtype, device, side) for name, dtype in kinds.items()},
        **{f"convolution_{name}_gflops": convolution_gflops(dtype, device) for name, dtype in kinds.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# results
# ---------------------------------------------------------------------------------------------------------------------
Row = dict[str, Any]


@dataclass
class Result:
    """What a benchmark found.

    Args:
        name: of the benchmark.
        rows: a table, a dict a row, all with the same keys.
        targets: ``{"measure", "target", "measured", "met", "why"}``; ``met`` None is not measured.
        equal: what was shown to be equal before anything was timed.
        limits: of the machine, measured in the same run.
        notes: sentences below the table.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Row] = field(default_factory=list)
    equal: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def target(self, measure: str, target: str, measured: str | None, met: bool | None, why: str = "") -> None:
        self.targets.append(
            {"measure": measure, "target": target, "measured": measured or "not measured", "met": met, "why": why}
        )


def ratio_text(ratio: tuple[float, float, float]) -> str:
    median, low, high = ratio
    return f"{median:.3g}x ({low:.3g}-{high:.3g})"


def seconds_text(timing: Timing) -> str:
    low, high = min(timing.seconds), max(timing.seconds)
    unit, scale = ("s", 1.0) if timing.median >= 1 else ("ms", 1e3)
    return f"{timing.median * scale:.3g} {unit} ({low * scale:.3g}-{high * scale:.3g})"


def markdown(rows: Sequence[Row]) -> str:
    """A table of dicts that all have the same keys."""
    if not rows:
        return ""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in head) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def write(result: Result, options: Options, about: Mapping[str, Any] | None = None) -> Path:
    """``<results>/<name>.json`` and ``.md``; returns the first."""
    options.results.mkdir(parents=True, exist_ok=True)
    content = {
        "name": result.name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "small": options.small,
        "machine": dict(about or machine(options.device)),
        "limits": {name: round(value, 3) for name, value in result.limits.items()},
        "equal": result.equal,
        "rows": result.rows,
        "targets": result.targets,
        "notes": result.notes,
        **({"extra": result.extra} if result.extra else {}),
    }
    path = options.results / f"{result.name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(content))
    return path


def as_markdown(content: Mapping[str, Any]) -> str:
    """What a result says, for a reader."""
    found = content["machine"]
    where = f"{found['cores']} cores ({found['cpu']}, {found['cpu_capability']}{', AMX' if found['amx'] else ''})"
    where = f"{found['gpu']}, {where}" if "gpu" in found else where
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    parts = [f"{content['date']}, {where}, {found['threads']} threads; {versions}."]
    if content["small"]:
        parts.append("**Reduced sizes: the numbers only show that the benchmark runs.**")
    if content["limits"]:
        said = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in content["limits"].items())
        parts.append(f"Limits measured in the same run: {said}.")
    if content["equal"]:
        said = "; ".join(f"{name}: {value}" for name, value in content["equal"].items())
        parts.append(f"Equal before anything was timed: {said}.")
    parts.append(markdown(content["rows"]))
    parts += content["notes"]
    return "\n\n".join(part for part in parts if part) + "\n"
