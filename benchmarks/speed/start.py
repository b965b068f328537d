"""How long from a command to its first answer: processes that read as forks of the command, or that import anew."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fairlung.pipeline.inference.runtimes import RuntimeUnavailableError, import_openvino

from . import bundle
from .harness import Options, Result, Timing, ratio_text, seconds_text
from .scans import jpeg_scan

REPEATS = 3
BUNDLE_RUN = "import runpy; runpy.run_module('monai.bundle', run_name='__main__', alter_sys={})"
FAIRLUNG = "import sys; sys.argv[0] = 'fairlung'; from fairlung.pipeline.cli.app import main; main()"


def measure(options: Options) -> Result:
    result = Result("start")
    slices, size, number = (12, 64, 2) if options.small else (300, 512, 6)
    scans = options.scratch / f"start_{slices}_{size}_{number}"
    scans.mkdir(parents=True, exist_ok=True)
    for k in range(number):
        if not (scans / f"scan{k}").exists():
            os.symlink(jpeg_scan(options.scratch, slices, size), scans / f"scan{k}")
    model = bundle.checkpoint(options.scratch / "model.pt", bundle.network())
    runtimes = ["torch"]
    try:
        import_openvino()
        runtimes.append("openvino_bf16")
    except RuntimeUnavailableError:
        pass
    given = ["--scans", str(scans), "--checkpoint", str(model)]
    run = ["run", "--config_file", str(bundle.CONFIGS / "inference.yaml"), "--bundle_root", str(bundle.BUNDLE), *given]
    ways = {
        # a program that is not known as one of ours does not fork itself, as all did before
        "bundle run, readers import anew": [BUNDLE_RUN.format(False), *run],
        "bundle run": [BUNDLE_RUN.format(True), *run],
        "fairlung infer": [FAIRLUNG, "infer", *given],
    }
    for runtime in runtimes:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(1 if options.small else options.repeats or REPEATS):
            for way, arguments in ways.items():
                found[way].append(first_and_last([*arguments, "--runtime", runtime], number))
        first = {way: Timing([run[0] for run in runs]) for way, runs in found.items()}
        last = {way: Timing([run[1] for run in runs]) for way, runs in found.items()}
        before = next(iter(ways))
        for way in ways:
            result.rows.append(
                {"command": way, "runtime": runtime, "first answer": seconds_text(first[way]),
                 "times the first": ratio_text(first[way].ratio_of(first[before])),
                 f"all {number}": seconds_text(last[way])}
            )  # fmt: skip
        half = first["fairlung infer"].median / first[before].median
        result.target(f"first answer, {runtime}", "half of it", f"{half:.2f} of it", half <= 0.5)
    check(options, result)
    result.notes.append(
        "From the command's start, its imports included, to the first row on the disk. `times the first`: of the first "
        "row of the same runtime."
    )
    return result


def first_and_last(arguments: list[str], number: int) -> tuple[float, float]:
    """Seconds until a command has written a row, and until it has ended with all of them."""
    with tempfile.TemporaryDirectory() as out:
        table, first, start = Path(out, "predictions.csv"), 0.0, time.perf_counter()
        parts = (table.with_name("predictions.csv.part"), table)
        command = [sys.executable, "-W", "ignore", "-c", *arguments, "--output_dir", out]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                if not first and any(part.is_file() and part.read_bytes().count(b"\n") > 1 for part in parts):
                    first = time.perf_counter() - start
                time.sleep(0.01)
            said = process.stderr.read() if process.stderr else ""
        last = time.perf_counter() - start
        if process.returncode or not first or table.read_bytes().count(b"\n") != number + 1:
            raise RuntimeError(f"{arguments} failed:\n{said[-2000:]}")
    return first, last


def check(options: Options, result: Result) -> None:
    """`fairlung check` of one scan, beside what MONAI takes to be imported."""
    scan = str(jpeg_scan(options.scratch, 12, 64) if options.small else jpeg_scan(options.scratch, 300, 512))
    seconds: dict[str, list[float]] = {"fairlung check, one scan": [], "import monai.bundle": []}
    for _ in range(1 if options.small else options.repeats or REPEATS):
        with tempfile.TemporaryDirectory() as out:
            for name, words in zip(
                seconds, ([FAIRLUNG, "check", scan, "-o", out], ["import monai.bundle"]), strict=True
            ):
                start = time.perf_counter()
                subprocess.run([sys.executable, "-W", "ignore", "-c", *words], check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    times = {name: Timing(found) for name, found in seconds.items()}
    for name, timing in times.items():
        result.rows.append(
            dict.fromkeys(result.rows[0]) | {"command": name, list(result.rows[0])[-1]: seconds_text(timing)}
        )
    took = times["fairlung check, one scan"].median
    measured = f"{took:.1f} s, MONAI's import alone {times['import monai.bundle'].median:.1f} s"
    result.target("fairlung check of one scan, start to end", "<= 3 s", measured, took <= 3)
