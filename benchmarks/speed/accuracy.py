"""What fast paths change in the answers: P of the phantom cohort, beside what another seed changes."""

from __future__ import annotations

import contextlib
import io
import tempfile
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
    """train.yaml with demo.yaml."""
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


def measure(options: Options) -> Result:
    result = Result("accuracy")
    folder = str(cohort(options))
    seeds = range(42, 42 + (options.repeats or (1 if options.small else 3)))
    scores: dict[str, list[float]] = {"exact": [], "fast_decode": []}
    exact: dict[int, dict[str, Any]] = {}
    changes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as runs:
        for seed in seeds:
            for name in scores:
                fast = name == "fast_decode"
                out, settings = f"{runs}/{name}-{seed}", {"fast_decode": fast}
                model = in_process("accuracy", "train", folder, out, seed, settings, options.small)
                for runtime in RUNTIMES if not fast else ("torch",):
                    found = in_process("accuracy", "answers", folder, model["checkpoint"], runtime)
                    if not fast and runtime == "torch":
                        exact[seed] = found
                    against = exact[seed]
                    p = (found["male"] + found["female"]) / 2
                    if runtime == "torch":
                        scores[name].append(p)
                    moved = np.abs(np.subtract(found["probabilities"], against["probabilities"])).max()
                    others = sum(a != b for a, b in zip(found["prediction"], against["prediction"], strict=True))
                    change = p - (against["male"] + against["female"]) / 2
                    kind = name if runtime == "torch" else f"{name}, runtime {runtime}"
                    changes[kind] = max(changes.get(kind, 0.0), abs(change))
                    result.rows.append(
                        {
                            "seed": seed, "path": kind, "P": f"{p:.3f}", "F1 men": f"{found['male']:.3f}",
                            "F1 women": f"{found['female']:.3f}", "change of P": f"{change:+.3f}",
                            "other answers": f"{others} of {len(found['prediction'])}",
                            "largest change of a probability": f"{moved:.1e}",
                        }
                    )  # fmt: skip
    between = max(scores["exact"]) - min(scores["exact"])
    result.extra |= {"P": scores, "largest_change": changes, "between_seeds": between}
    fast = float(np.mean(scores["fast_decode"]) - np.mean(scores["exact"]))
    result.target(
        "fast_decode changes P of the phantom cohort", "no more than another seed does",
        f"{fast:+.3f} in the mean of {len(seeds)} seeds; seeds differ by {between:.3f}", abs(fast) <= between,
    )  # fmt: skip
    for kind, change in changes.items():
        if "runtime" in kind:
            result.target(
                f"{kind.partition('runtime ')[2]} changes P of the phantom cohort", "no more than another seed does",
                f"{change:.3f} at most; seeds differ by {between:.3f}", change <= between,
            )  # fmt: skip
    result.notes.append(
        "train.yaml with demo.yaml on the phantom cohort in JPEG (synthetic), its test split answered by "
        "inference.yaml. A fast_decode row is another training, on volumes that were decoded so. Changes are against "
        "the exact path of the same seed."
    )
    return result
