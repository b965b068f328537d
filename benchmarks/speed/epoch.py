"""Epochs of training with validation: the bundle, its volumes cached, against the published `train.py`."""

from __future__ import annotations

import contextlib
import csv
import io
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import bundle
from .harness import Options, Result, in_process
from .published import PublishedCode
from .scans import copy_of, jpeg_scan

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
SEXES = ("male", "female")
EPOCHS = 3


def cohort(options: Options) -> Path:
    """A scan of every class and sex in both splits, in the published layout, with its cohort.csv."""
    slices, size = (12, 64) if options.small else (300, 512)
    scan = jpeg_scan(options.scratch, slices, size)
    folder = options.scratch / f"epochs_{slices}_{size}"
    rows = []
    for split in ("Train", "Val"):
        for label in CLASSES:
            for sex in SEXES:
                copy = copy_of(scan, folder / split / label / sex / f"{label}-{sex}", backwards=split == "Val")
                rows.append({"scan": str(copy.relative_to(folder)), "label": label, "sex": sex, "split": split.lower()})
    with (folder / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def measure(options: Options) -> Result:
    result = Result("epoch")
    folder = cohort(options)
    depth, epochs = (4, 2) if options.small else (8, EPOCHS)
    found = {"ours": in_process("epoch", "train", str(folder), depth, epochs, options.small)}
    if options.published:
        found["published"] = in_process("epoch", "train_published", str(folder), depth, epochs, str(options.published))
    for name, run in found.items():
        later = run["epochs"][1:]
        row = {
            "training": name, "an epoch": f"{statistics.median(later):.3g} s ({min(later):.3g}-{max(later):.3g})",
            "before the first": f"{run['before']:.3g} s", "first epoch": f"{run['epochs'][0]:.3g} s",
            "times published": None,
        }  # fmt: skip
        if "published" in found:
            row["times published"] = (
                f"{statistics.median(found['published']['epochs'][1:]) / statistics.median(later):.3g}x"
            )
        result.rows.append(row)
    result.extra = found
    result.target(
        "70 epochs on 734 cached scans with validation, one H100", "<= 10 min, >= 20x published", None, None,
        "no GPU; benchmarks/gpu.sh measures it",
    )  # fmt: skip
    result.notes.append(
        f"8 scans of training and 8 of validation, each of {12 if options.small else 300} JPEG slices, "
        f"{depth} slices to the network (to fit a CPU), batch 2; published with its 4 loader processes. What comes "
        "before the first epoch is reading the scans into the cache, once."
    )
    return result


def train(folder: str, depth: int, epochs: int, small: bool) -> dict[str, Any]:
    """train.yaml; seconds of each epoch."""
    from ignite.engine import Events

    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        workflow = bundle.run_config(
            "train.yaml", cohort=str(Path(folder, "cohort.csv")), output_dir=f"{out}/run", cache_dir=f"{out}/cache",
            model_file="", pretrained=False, tracking_uri="", num_slices=depth, epochs=epochs, min_cell=1,
            **({"image_size": 64, "crop_size": 56} if small else {}),
        )  # fmt: skip
        workflow.initialize()
        stamps: list[float] = []
        trainer = workflow.parser.get_parsed_content("train::trainer")
        for event in (Events.EPOCH_STARTED, Events.COMPLETED):
            trainer.add_event_handler(event, lambda engine: stamps.append(time.perf_counter()))
        workflow.run()
    return {"before": stamps[0] - start, "epochs": [b - a for a, b in pairwise(stamps)]}


def train_published(folder: str, depth: int, epochs: int, published: str) -> dict[str, Any]:
    """train.py; seconds of each epoch, which end where it prints."""
    code = PublishedCode(Path(published))
    script = code.train
    script.LungCTDataset = partial(script.LungCTDataset, target_depth=depth)
    stamps = []

    def watched(*args: Any, **kwargs: Any) -> None:
        if str(args[0] if args else "").startswith(("Epoch [", "Parameters")):
            stamps.append(time.perf_counter())

    script.print = watched
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        script.train(
            Namespace(
                data_dir=folder, save_dir=out, alpha=0.8, tau=1.0, epochs=epochs, batch_size=2, lr=1e-4, wd=1e-5,
                seed=42,
            )
        )  # fmt: skip
    return {"before": stamps[0] - start, "epochs": [b - a for a, b in pairwise(stamps)]}
