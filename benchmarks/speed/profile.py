"""Where the time goes: operators of one training step, functions of the reading of one scan."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from . import bundle
from .harness import ROOT, Options, Result
from .scans import jpeg_scan
from .step import Step


def operators(run: Callable[[], Any], most: int = 8) -> list[tuple[str, float, int]]:
    """(operator, its share of the time by itself, calls), the largest first."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    ranked = sorted(events, key=lambda event: -event.self_cpu_time_total)[:most]
    return [(event.key, event.self_cpu_time_total / total, event.count) for event in ranked]


def functions(run: Callable[[], Any], most: int = 10) -> list[tuple[str, float, int]]:
    """(function, its share of the time by itself, calls), the largest first."""
    run()
    profiler = cProfile.Profile()
    profiler.runcall(run)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(values[2] for values in stats.values())
    ranked = sorted(stats.items(), key=lambda item: -item[1][2])[:most]
    return [(_named(key), values[2] / total, values[0]) for key, values in ranked]


def _named(key: tuple[str, int, str]) -> str:
    file, _, name = key
    if file == "~":
        return name.strip("<>").replace("built-in method ", "").replace("method ", "")
    path = Path(file)
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) and ".venv" not in file else path.name
    return f"{where} {name}"


def measure(options: Options) -> Result:
    result = Result("profile")
    shape = (2, 1, 4, 32, 32) if options.small else (2, 1, 16, 112, 112)
    scan = jpeg_scan(options.scratch, *((12, 64) if options.small else (300, 512)))
    load = bundle.loader()
    parts = {
        "a training step (channels last, float32)": operators(Step(torch.rand(shape))),
        "a training step (contiguous, float32)": operators(Step(torch.rand(shape), channels_last=False)),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler follows one thread
    try:
        parts["reading a JPEG scan"] = functions(lambda: load(scan))
    finally:
        torch.set_num_threads(before)
    for part, found in parts.items():
        result.rows += [
            {"of": part, "what": f"`{name}`", "share of its time": f"{share:.1%}", "calls": calls}
            for name, share, calls in found
        ]
    result.notes.append(
        f"PyTorch's profiler on a step of {' x '.join(map(str, shape))}, cProfile on the reading of "
        f"{'12' if options.small else '300'} slices in one thread; time that an entry takes by itself."
    )
    return result
