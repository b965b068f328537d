"""Which scans of one patient on two sides of a split does `fairlung probe --duplicates` find, among phantoms?

    python benchmarks/duplicates.py FOLDER

Writes 120 synthetic patients, each scanned again in three ways, into FOLDER, trains on 80 of them, evaluates all, and
prints the table of docs/statistics.md: 20 draws of 60 patients on one side, and on the other 60 others and 20 of the
first again. Ten minutes on one core; what is in FOLDER already is not made again.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.phantoms.cohort import Preset, ScanSpec, plan_cohort, write_planned
from fairlung.pipeline.shortcuts.duplicates import near_duplicates
from fairlung.pipeline.shortcuts.features import Features, load_features

CELLS = [(label, sex) for label in CLASS_NAMES for sex in SEXES]
PATIENTS = Preset({"train": dict.fromkeys(CELLS, 10), "val": dict.fromkeys(CELLS, 5)}, size=96, slices=(40, 64))
AGAIN = {
    "none": "no patient is there twice", "format": "the same scan as JPG",
    "noise": "scanned again: other noise and position", "scanner": "scanned again, also on another scanner",
}  # fmt: skip
CONFIGS = Path(__file__).parents[1] / "bundles" / "fair_lung_ct" / "configs"
SIZES = ["--num_slices", "16", "--image_size", "64", "--crop_size", "56"]
RATIOS = (0.6, 0.7, 0.8)
DRAWS = 20
OF_SCANS = ("scan", "network", "untrained", "image", "label", "patient_known")


def plans() -> dict[str, list[ScanSpec]]:
    """The scans of each side: the first one of every patient, and those of 80 patients again."""
    specs = plan_cohort(PATIENTS, fmt="nifti", seed=11, scans_per_patient=2)
    first, other = specs[::2], specs[1::2]
    pairs = [pair for pair in zip(first, other, strict=True) if pair[0].split == "train"]
    moved = {"split": "val"}
    return {
        "first": first,
        "format": [replace(a, path=f"{a.path[:-7]}-jpg", fmt="jpg", **moved) for a, _ in pairs],
        "noise": [replace(b, path=f"{b.path[:-7]}-noise.nii.gz", site=a.site, **moved) for a, b in pairs],
        "scanner": [replace(b, path=f"{b.path[:-7]}-scanner.nii.gz", **moved) for a, b in pairs],
    }  # fmt: skip


def run(folder: Path, cohort: str, configs: tuple[str, ...], *settings: str) -> None:
    files = str([str(CONFIGS / f"{name}.yaml") for name in configs])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *settings]
    command += ["--bundle_root", str(CONFIGS.parent), "--cohort", str(folder / f"{cohort}.csv"), "--tracking_uri", ""]
    command += ["--cache_dir", str(folder / "cache"), "--num_workers", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def features(folder: Path) -> tuple[dict[str, Features], dict[str, str]]:
    """Features of each side, and the patient of every scan; trains and evaluates what is not there."""
    tables = {}
    for name, specs in plans().items():
        if not (path := folder / f"{name}.csv").exists():
            rows = pd.DataFrame(write_planned(folder, specs, workers=2, progress=True))
            if name != "first":  # an evaluation wants no other split, a cohort must have the classes of training
                rows["split"] = "val"
            rows.rename(columns={"patient": "who"}).to_csv(path, index=False)
        tables[name] = pd.read_csv(path, dtype=str)
    best = folder / "run" / "models" / "best.pt"
    if not best.exists():
        recipe = ("--pretrained", "False", "--epochs", "12", "--batch_size", "4", "--model_file", "", *SIZES)
        run(folder, "first", ("train",), "--output_dir", str(folder / "run"), *recipe)
    found = {}
    for name in tables:
        for split in ("train", "val") if name == "first" else ("val",):
            out = folder / ("run" if name == "first" else name)
            path = out / split / "evaluation" / "features.npz"
            if not path.exists():
                asked = ("--split", split, "--save_features", "True", "--error_images", "0", "--resamples", "100")
                run(folder, name, ("train", "evaluate"), "--output_dir", str(out), "--checkpoint", str(best), *asked)
            found[name if split == "val" and name != "first" else f"{name} {split}"] = load_features(path)
    everything = pd.concat(tables.values())
    return found, dict(zip(everything["scan"], everything["who"], strict=True))


def joined(parts: list[Features]) -> Features:
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in OF_SCANS})


def taken(features: Features, who: dict[str, str], patients: set[str]) -> Features:
    rows = np.array([who[scan] in patients for scan in features.scan])
    return replace(features, **{name: getattr(features, name)[rows] for name in OF_SCANS})


def of_kind(features: Features, kind: str) -> Features:
    """The features of one kind alone, in the place of all: three like parts weigh as one."""
    return features if kind == "all" else replace(features, **dict.fromkeys(features.kinds(), features.kinds()[kind]))


def main(folder: Path) -> None:
    found, who = features(folder)
    first = joined([found["first train"], found["first val"]])
    known = sorted({who[scan] for scan in found["first train"].scan})
    print("| scans on the other side | features | ratio | pairs listed, true | false | recall |\n" + "|---" * 6 + "|")
    for way, words in AGAIN.items():
        for kind in ("all", "network", "untrained", "image"):
            counts = {ratio: np.zeros(2) for ratio in RATIOS}
            rng = np.random.default_rng(0)
            for _ in range(DRAWS):
                order = rng.permutation(sorted({who[scan] for scan in first.scan}))
                here, there = set(order[:60]), set(order[60:])
                sides = [taken(first, who, here), taken(first, who, there)]
                if way != "none":
                    again = set([patient for patient in order[:60] if patient in known][:20])
                    sides[1] = joined([sides[1], taken(found[way], who, again)])
                for ratio, count in counts.items():
                    one, two = (of_kind(side, kind) for side in sides)
                    for pair in near_duplicates(one, two, way, ratio).pairs:
                        count[int(who[pair.scan] != who[pair.other])] += 1 / DRAWS
            for ratio, (true, false) in counts.items():
                recall = "" if way == "none" else f"{true / 20:.2f}"
                print(f"| {words} | {kind} | {ratio} | {true:.1f} of {20 * (way != 'none')} | {false:.1f} | {recall} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
