"""Frozen features: the features of a full-size scan, and what a run of a study on cached ones takes."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from . import bundle
from .harness import Options, Result, in_process

NETWORKS = ("R3D18Classifier", "I3D", "CTResNet152")
PRECISIONS = ("float32", "bfloat16")
RUNS = 600  # of fifty seeds and twelve systems
MEASURED = (4, 44)  # of them
LIMIT = 30.0  # seconds of a scan, minutes of the study


def measure(options: Options) -> Result:
    result = Result("frozen")
    size = (16, 32) if options.small else (64, 224)
    for name in NETWORKS[1:2] if options.small else NETWORKS:
        found = in_process("frozen", "features", name, *size, options.repeats or 3)
        seconds = {precision: statistics.median(found[precision]["seconds"]) for precision in PRECISIONS}
        for precision in PRECISIONS:
            row = {"body": name, "precision": precision, "seconds a scan": f"{seconds[precision]:.2f}"}
            row |= {"times float32": f"{seconds['float32'] / seconds[precision]:.2f}x"}
            row |= {"relative difference of the features": f"{found[precision]['difference']:.1e}"}
            result.rows.append(row)
        measured = ", ".join(f"{seconds[precision]:.1f} s in {precision}" for precision in PRECISIONS)
        result.target(f"features of a scan, {name}", f"<= {LIMIT:.0f} s", measured, max(seconds.values()) <= LIMIT)
    place = Path(options.scratch, "frozen")
    alone = statistics.median(in_process("frozen", "head_run", str(place), options.repeats or 3)["seconds"])
    few, many = (2, 4) if options.small else MEASURED
    start, end = study(place, few), study(place, many)
    a_run = (end - start) / (many - few)
    minutes = (end + (RUNS - many) * a_run) / 60
    result.extra = {"runs": many, "a run": a_run, "the rest": end - many * a_run}
    result.target("a head's run on cached features", "<= 3 s", f"{alone:.1f} s", alone <= 3)
    result.target(
        f"{RUNS} runs of a study, each with its evaluation", f"<= {LIMIT:.0f} min",
        f"{minutes:.0f} min, from {many} runs", minutes <= LIMIT,
    )  # fmt: skip
    result.notes.append(
        "Random weights: the time is that of any. The runs are of the demo phantoms, 119 to train on, with cached "
        "features of an I3D, 40 epochs each; the study's are two at a time, its start and its tables included."
    )
    return result


def features(name: str, slices: int, side: int, repeats: int) -> dict[str, Any]:
    """Seconds of the features of one volume, and how far they are from those in single precision."""
    from fairlung.pipeline.networks.frozen import FrozenBody

    config = {"network_def": {"_target_": f"fairlung.pipeline.networks.{name}", "num_classes": 4}}
    image = torch.rand(1, 1, slices, side, side, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {}
    exact = None
    for precision in PRECISIONS:
        body = FrozenBody(config, pretrained=False, precision=precision)
        made = body(image)
        exact = made if exact is None else exact
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            body(image)
            seconds.append(time.perf_counter() - start)
        found[precision] = {"seconds": seconds, "difference": ((made - exact).norm() / exact.norm()).item()}
    return found


def cohort(place: Path) -> Path:
    from typer.testing import CliRunner

    from fairlung.pipeline.cli.app import app

    if not (place / "cohort" / "cohort.csv").is_file():
        CliRunner().invoke(app, ["phantom", str(place / "cohort"), "--preset", "demo", "--format", "nifti"])
    return place / "cohort" / "cohort.csv"


def settings(place: Path) -> dict[str, Any]:
    """Of small volumes, whose features are soon there: the head's are of the same size."""
    found = {"pretrained": False, "num_slices": 16, "image_size": 40, "crop_size": 32, "views": 2}
    return found | {"cache_dir": str(place / "cache"), "tracking_uri": ""}


def head_run(place: str, repeats: int) -> dict[str, Any]:
    """Seconds of trainings of a head in a process that has done one already."""
    from monai.bundle import run

    folder = Path(place)
    configs = [str(bundle.CONFIGS / f"{name}.yaml") for name in ("train", "networks/i3d", "frozen", "systems/la_cvar")]
    seconds = []
    for seed in range(repeats + 1):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run(
                config_file=configs, bundle_root=str(bundle.BUNDLE), cohort=str(cohort(folder)), overwrite=True,
                output_dir=str(folder / "head"), seed=seed, model_file="", **settings(folder),
            )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:]}


def study(place: Path, runs: int) -> float:
    """Seconds of a study by ``fairlung study``, two runs at a time, once the features are cached."""
    import yaml
    from typer.testing import CliRunner

    from fairlung.pipeline.cli.app import app

    written = yaml.safe_load((bundle.BUNDLE.parents[1] / "studies" / "demo.yaml").read_text())
    written |= {"cohort": str(cohort(place)), "bundle_root": str(bundle.BUNDLE), "settings": settings(place)}
    written |= {"systems": written["systems"][:2], "seeds": list(range(runs // 2))}
    name = f"study-{time.time():.0f}"
    (place / f"{name}.yaml").write_text(yaml.safe_dump(written))
    start = time.perf_counter()
    done = CliRunner().invoke(app, ["study", str(place / f"{name}.yaml"), "-o", str(place / name), "--workers", "2"])
    if done.exit_code:
        raise RuntimeError(done.output)
    return time.perf_counter() - start
