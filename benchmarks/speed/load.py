"""Long runs: many scans through inference, many epochs of training; what they hold must not grow with their length."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import bundle
from .harness import Options, Result, in_process

SAMPLES = 50  # over the length of a run
WARM = 0.2  # of a run, after which nothing is to grow any more
SMALL = {"num_slices": 8, "image_size": 32, "crop_size": 24}
DENSENET = {
    "_target_": "DenseNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 4, "init_features": 8,
    "growth_rate": 8, "block_config": [2, 2],
}  # fmt: skip


def measure(options: Options) -> Result:
    scans, epochs = (40, 6) if options.small else (2000, 150)
    result = Result("load")
    runs = {
        f"inference of {scans} scans": in_process("load", "infer", str(options.scratch), scans),
        f"training of {epochs} epochs": in_process("load", "train", str(options.scratch), epochs),
    }
    for name, samples in runs.items():
        begin, end = (statistics.median(s["memory"] for s in part) for part in _ends(samples))
        files = [[s["files"] for s in part] for part in _ends(samples)]
        growth, zombies = end / begin - 1, max(s["zombies"] for s in samples)
        handles = f"{statistics.median(files[0]):g} and {statistics.median(files[1]):g}"
        result.rows.append(
            {
                "run": name, "memory after a fifth": f"{begin / 2**20:.0f} MiB", "at the end": f"{end / 2**20:.0f} MiB",
                "growth": f"{growth:+.1%}", "open files": handles, "zombies": zombies,
                "processes": f"{min(s['processes'] for s in samples)}-{max(s['processes'] for s in samples)}",
            }
        )  # fmt: skip
        flat = growth < 0.05 and statistics.median(files[1]) <= statistics.median(files[0]) and not zombies
        result.target(f"{name}: memory, open files, zombies", "flat within 5 %, none", f"{growth:+.1%}", flat)
    result.extra = runs
    result.notes.append(
        "Memory is what the main process and all processes below it hold in RAM, pages that they share counted once a "
        "process. Small scans and a small network: it is the number of scans and epochs that is large. Medians of the "
        "samples from 20 to 40 % of a run and of the last 20 %."
    )
    options.results.mkdir(parents=True, exist_ok=True)
    draw(runs, options.results / "load.png")
    return result


def _ends(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The samples after the warm-up, and the last ones: as many."""
    first, share = int(WARM * len(samples)), max(1, int(WARM * len(samples)))
    return samples[first : first + share], samples[-share:]


def sampler(samples: list[dict[str, Any]], length: int) -> Callable[[int], None]:
    """A function of how far a run is, which notes what its processes hold, some :data:`SAMPLES` times."""
    import psutil

    me = psutil.Process()

    def note(done: int) -> None:
        if done % max(1, length // SAMPLES):
            return
        memory, zombies, processes = me.memory_info().rss, 0, 1
        for child in me.children(recursive=True):
            try:
                zombies += child.status() == psutil.STATUS_ZOMBIE
                memory += child.memory_info().rss
                processes += 1
            except psutil.NoSuchProcess:
                continue
        samples.append(
            {"done": done, "memory": memory, "files": me.num_fds(), "zombies": zombies, "processes": processes}
        )

    return note


def run_noted(workflow: Any, engine: str, event: Any, length: int, samples: list[dict[str, Any]]) -> None:
    """Run a workflow, and note what its processes hold after each iteration or epoch of one of its engines."""
    workflow.initialize()
    note = sampler(samples, length)
    running = workflow.parser.get_parsed_content(engine)
    running.add_event_handler(event, lambda engine: note(engine.state.get_event_attrib_value(event)))
    workflow.run()
    workflow.finalize()


def infer(scratch: str, number: int) -> list[dict[str, Any]]:
    """inference.yaml with two reading processes, by an untrained network."""
    import torch
    from ignite.engine import Events

    from fairlung.pipeline.networks.r3d18 import R3D18Classifier
    from fairlung.pipeline.phantoms.writers import write_nifti

    torch.set_num_threads(1)
    volume = np.random.default_rng(0).integers(-1000, 400, (12, 24, 24)).astype(np.int16)
    samples: list[dict[str, Any]] = []
    Path(scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        model = bundle.checkpoint(Path(folder, "model.pt"), R3D18Classifier(num_classes=4), **SMALL)
        first = Path(folder, "scans", "0.nii")
        first.parent.mkdir()
        write_nifti(first, volume, (2.5, 1.0, 1.0))
        for i in range(1, number):
            shutil.copy(first, first.with_name(f"{i}.nii"))
        workflow = bundle.run_config(
            "inference.yaml", scans=str(first.parent), output_dir=f"{folder}/out", checkpoint=str(model), num_workers=2,
            device="$torch.device('cpu')",
        )  # fmt: skip
        run_noted(workflow, "evaluator", Events.ITERATION_COMPLETED, number, samples)
        answers = json.loads(Path(folder, "out", "predictions.json").read_text())
    assert [answer["status"] for answer in answers] == ["ok"] * number
    return samples


def train(scratch: str, epochs: int) -> list[dict[str, Any]]:
    """train.yaml with a loader process, by a small network."""
    import torch
    from ignite.engine import Events

    from .epoch import cohort

    torch.set_num_threads(1)
    folder, samples = cohort(Options(small=True, scratch=Path(scratch))), []
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        workflow = bundle.run_config(
            "train.yaml", cohort=str(folder / "cohort.csv"), output_dir=f"{out}/run", cache_dir=f"{out}/cache",
            model_file="", pretrained=False, tracking_uri="", epochs=epochs, min_cell=1, keep_checkpoints=1,
            num_workers=1, network_def=DENSENET, device="$torch.device('cpu')", **SMALL,
        )  # fmt: skip
        run_noted(workflow, "train::trainer", Events.EPOCH_COMPLETED, epochs, samples)
    return samples


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Memory and open files over the length of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, samples in runs.items():
        share = [sample["done"] / samples[-1]["done"] for sample in samples]
        left.plot(share, [sample["memory"] / 2**20 for sample in samples], label=name)
        right.plot(share, [sample["files"] for sample in samples], label=name)
    left.set(xlabel="share of the run", ylabel="memory of all its processes (MiB)", ylim=(0, None))
    right.set(xlabel="share of the run", ylabel="open files of the main process", ylim=(0, None))
    left.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)
