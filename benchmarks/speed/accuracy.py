"""What fast paths change in the answers: P of the phantom cohort, beside what another seed changes."""

from __future__ import annotations

import contextlib
import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from fairlung.pipeline.inference.runtimes import RUNTIMES
from fairlung.pipeline.phantoms.cohort import write_phantom_cohort

from . import bundle
from .harness import Options, Result, in_process

SPLIT = "test"
# path of a training -> the settings that make it; the first is what the others are held against
TRAININGS: dict[str, dict[str, Any]] = {
    "exact": {}, "fast_decode": {"fast_decode": True}, "bfloat16 training": {"amp": True, "device": "cpu"},
}  # fmt: skip
SEEDS = 5


def cohort(options: Options) -> Path:
    """The phantom cohort in JPEG slices of 128 x 128, which fast decoding halves on their way to 48 x 48."""
    preset = "tiny" if options.small else "demo"
    folder = options.scratch / f"accuracy_{preset}"
    if not (folder / "cohort.csv").exists():
        write_phantom_cohort(folder, preset, "jpg", seed=0, workers=2)
    table = pd.read_csv(folder / "cohort.csv")
    table.loc[table["split"] == SPLIT, ["scan"]].to_csv(folder / "asked.csv", index=False)
    return folder


def train(folder: str, out: str, seed: int, settings: dict[str, Any], small: bool) -> dict[str, Any]:
    """train.yaml with demo.yaml, under more settings."""
    workflow = bundle.run_config(
        ["train.yaml", "demo.yaml"], cohort=str(Path(folder, "cohort.csv")), output_dir=out, model_file="",
        tracking_uri="", cache_dir=f"{folder}/cache", seed=seed, min_cell=1, **settings,
        **({"epochs": 1} if small else {}),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return {"checkpoint": str(Path(out, "models", "best.pt"))}


def answers(folder: str, checkpoint: str, runtime: str) -> dict[str, Any]:
    """inference.yaml on the test split: probabilities, and macro F1 of each sex by scikit-learn."""
    names = bundle.SETTINGS["class_names"]
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        workflow = bundle.run_config(
            "inference.yaml", scans=str(Path(folder, "asked.csv")), output_dir=out, checkpoint=checkpoint,
            runtime=runtime, batch_size=8,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        found = pd.read_csv(Path(out, "predictions.csv")).set_index("scan")
    truth = pd.read_csv(Path(folder, "cohort.csv")).set_index("scan").loc[found.index]
    scores = {
        sex: f1_score(truth["label"][truth["sex"] == sex], found["prediction"][truth["sex"] == sex],
                      labels=names, average="macro", zero_division=0)
        for sex in ("male", "female")
    }  # fmt: skip
    probabilities = found[[f"prob_{name}" for name in names]].to_numpy().tolist()
    return {**scores, "prediction": found["prediction"].tolist(), "probabilities": probabilities}


def of_seed(folder: str, runs: str, seed: int, small: bool) -> list[dict[str, Any]]:
    """What each path of a seed answers, and how far that is from the exact one, which comes first."""
    found: list[dict[str, Any]] = []
    for name, settings in TRAININGS.items():
        out = f"{runs}/{name.replace(' ', '_')}-{seed}"
        model = in_process("accuracy", "train", folder, out, seed, settings, small)
        for runtime in RUNTIMES if name == "exact" else ("torch",):
            one = in_process("accuracy", "answers", folder, model["checkpoint"], runtime)
            exact = found[0] if found else one
            found.append(
                one | {
                    "seed": seed, "path": name if runtime == "torch" else f"{name}, runtime {runtime}",
                    "p": (one["male"] + one["female"]) / 2,
                    "change": (one["male"] + one["female"] - exact["male"] - exact["female"]) / 2,
                    "moved": np.abs(np.subtract(one["probabilities"], exact["probabilities"])).max(),
                    "others": sum(a != b for a, b in zip(one["prediction"], exact["prediction"], strict=True)),
                }
            )  # fmt: skip
    return found


def measure(options: Options) -> Result:
    result = Result("accuracy")
    folder = str(cohort(options))
    seeds = range(42, 42 + (options.repeats or (1 if options.small else SEEDS)))
    scores: dict[str, list[float]] = {name: [] for name in TRAININGS}
    changes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as runs, ThreadPoolExecutor(2) as pool:  # nothing is timed here
        for found in pool.map(lambda seed: of_seed(folder, runs, seed, options.small), seeds):
            for one in found:
                if one["path"] in scores:
                    scores[one["path"]].append(one["p"])
                changes[one["path"]] = max(changes.get(one["path"], 0.0), abs(one["change"]))
                result.rows.append(
                    {
                        "seed": one["seed"], "path": one["path"], "P": f"{one['p']:.3f}",
                        "F1 men": f"{one['male']:.3f}", "F1 women": f"{one['female']:.3f}",
                        "change of P": f"{one['change']:+.3f}",
                        "other answers": f"{one['others']} of {len(one['prediction'])}",
                        "largest change of a probability": f"{one['moved']:.1e}",
                    }
                )  # fmt: skip
    between = max(scores["exact"]) - min(scores["exact"])
    result.extra |= {"P": scores, "largest_change": changes, "between_seeds": between}
    for name in list(TRAININGS)[1:]:
        changed = np.subtract(scores[name], scores["exact"])
        mean = float(changed.mean())
        result.target(
            f"{name} changes P of the phantom cohort", "no more than another seed does",
            f"{mean:+.3f} in the mean of {len(seeds)} seeds ({changed.min():+.3f} to {changed.max():+.3f}); "
            f"seeds differ by {between:.3f}", abs(mean) <= between,
        )  # fmt: skip
    for kind, change in changes.items():
        if "runtime" in kind:
            result.target(
                f"{kind.partition('runtime ')[2]} changes P of the phantom cohort", "no more than another seed does",
                f"{change:.3f} at most; seeds differ by {between:.3f}", change <= between,
            )  # fmt: skip
    result.notes.append(
        "train.yaml with demo.yaml on the phantom cohort in JPEG (synthetic), its test split answered by "
        "inference.yaml. A fast_decode row is another training, on volumes that were decoded so, and bfloat16 training "
        "one with amp, answered in float32. Changes are against the exact path of the same seed."
    )
    return result
