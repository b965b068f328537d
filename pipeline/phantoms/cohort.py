"""Cohorts of synthetic scans on disk: which scans, in which cells, sites and formats, and the files themselves."""

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..common.names import CLASS_NAMES, SEXES
from . import writers
from .anatomy import SHIFTED_SITES, SITES, PhantomScan, check_choice, check_shift, synthesize

COHORT_FORMATS = ("jpg", "dicom", "nifti")
SCAN_FORMATS = (*COHORT_FORMATS, "nrrd", "mha")
SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}  # the others are folders
COHORT_COLUMNS = ("scan", "label", "sex", "split", "patient", "site", "age", "slices", "thickness_mm", "synthetic",
                  "presentation")  # fmt: skip
ALL_SITES = {**SITES, **SHIFTED_SITES}


@dataclass(frozen=True)
class Preset:
    cells: Mapping[str, Mapping[tuple[str, str], int]]  # split: {(label, sex): scans}
    size: int  # rows and columns of a slice
    slices: tuple[int, int]  # fewest and most of a scan
    presentation_shift: float = 0.6  # see synthesize
    # Of each site that scans come from, the shares of CLASS_NAMES that it sees, in whole numbers.
    sites: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: dict.fromkeys(SITES, (1,) * len(CLASS_NAMES)))

    def __post_init__(self) -> None:
        for site, shares in self.sites.items():
            check_choice("sites", site, tuple(ALL_SITES))
            if len(shares) != len(CLASS_NAMES) or min(shares) < 0:
                raise ValueError(f"sites[{site!r}] must be {len(CLASS_NAMES)} shares of at least 0, got {shares}")
        for label in CLASS_NAMES:
            if not self.deck(label):
                raise ValueError(f"sites: none of {', '.join(self.sites) or 'no site'} sees {label}")
        for split, cells in self.cells.items():
            for (label, sex), count in cells.items():
                check_choice("label", label, CLASS_NAMES)
                check_choice("sex", sex, SEXES)
                if count < 0:
                    raise ValueError(f"cells[{split!r}][{label!r}, {sex!r}] must be >= 0, got {count}")
        if self.size < 32:
            raise ValueError(f"size must be >= 32, got {self.size}")
        if not 8 <= self.slices[0] <= self.slices[1]:
            raise ValueError(f"slices must be (fewest, most) with 8 <= fewest <= most, got {self.slices}")
        check_shift(self.presentation_shift)

    def deck(self, label: str) -> list[str]:
        """The sites of a class, each as often as its share."""
        return [site for site, shares in self.sites.items() for _ in range(shares[CLASS_NAMES.index(label)])]


def _cells(*male_female: tuple[int, int]) -> dict[tuple[str, str], int]:
    rows = zip(CLASS_NAMES, male_female, strict=True)
    return {(label, sex): count for label, counts in rows for sex, count in zip(SEXES, counts, strict=True)}


PRESETS: Mapping[str, Preset] = {
    "tiny": Preset({"train": _cells(*[(2, 2)] * 4), **{split: _cells(*[(1, 1)] * 4) for split in ("val", "test")}},
                   size=64, slices=(50, 56)),
    "demo": Preset({
        "train": _cells((20, 20), (13, 2), (16, 16), (16, 16)), "val": _cells((6, 6), (5, 5), (6, 6), (6, 6)),
        "test": _cells((8, 8), (6, 6), (8, 8), (8, 8)),
    }, size=128, slices=(50, 80)),
    # The published cells of the challenge's data, 734 + 155 scans; it has no labelled test split.
    "benchmark": Preset({
        "train": _cells((125, 125), (79, 5), (100, 100), (100, 100)),
        "val": _cells((25, 25), (12, 13), (20, 20), (20, 20)),
    }, size=512, slices=(50, 700)),
    # Hospitals that differ: each sees half of one class, and what it sees looks like its scanner.
    "shifted": Preset({
        "train": _cells(*[(12, 12)] * 4), "val": _cells(*[(6, 6)] * 4),
    }, size=128, slices=(50, 100), sites={
        "dogwood": (3, 1, 1, 1), "elder": (1, 1, 3, 1), "fir": (1, 1, 1, 3), "hazel": (1, 3, 1, 1),
    }),
}  # fmt: skip


@dataclass(frozen=True)
class ScanSpec:
    """One scan to be made. ``stream`` and ``seed`` give its generator, whatever is made before or beside it."""

    path: str  # relative to the output folder
    label: str
    sex: str
    split: str
    patient: str
    site: str
    fmt: str
    preset: Preset
    seed: int
    stream: tuple[int, int]
    take: int = 0  # how many scans of the patient came before


def plan_cohort(
    preset: str | Preset, *, fmt: str = "mixed", seed: int = 0, scans_per_patient: int = 1
) -> list[ScanSpec]:
    """The scans of a cohort in order of cells; sites, by their shares, and formats are dealt out evenly in each.

    So formats do not tell the class, nor do sites unless the preset gives them other classes than their neighbours.

    With several scans a patient the cells count patients. Each further scan is of the next site and format; a patient's
    first one is what it is with one scan a patient. ValueError for an unknown preset or format, a negative seed, or no
    scan a patient.
    """
    if scans_per_patient < 1:
        raise ValueError(f"scans_per_patient must be at least 1, got {scans_per_patient}")
    preset = _preset(preset)
    check_choice("fmt", fmt, (*COHORT_FORMATS, "mixed"))
    specs: list[ScanSpec] = []
    cells = [(split, *cell, count) for split, part in preset.cells.items() for cell, count in part.items()]
    for number, (split, label, sex, count) in enumerate(cells):
        rng = _generator(seed, (0, number))
        deck = np.array(preset.deck(label))
        sites = deck[(rng.permutation(count) + rng.integers(len(deck))) % len(deck)]
        for place in range(count):
            index = len(specs) // scans_per_patient + 1
            for take in range(scans_per_patient):
                kind, name = _format(fmt, place + number + take), f"phantom-{index:04d}" + f"-{take + 1}" * (take > 0)
                path = f"scans/{split}/{label}/{sex}/{name}{SUFFIXES.get(kind, '')}"
                family = list(SITES if sites[place] in SITES else SHIFTED_SITES)
                site = family[(family.index(sites[place]) + take) % len(family)]
                at = label, sex, split, f"P{index:04d}", site
                specs.append(ScanSpec(path, *at, kind, preset, seed, (1, index), take))
    return specs


def synthesize_spec(spec: ScanSpec) -> PhantomScan:
    """The volume of a planned scan; the number of slices is drawn from the range its site uses."""
    rng, preset = _generator(spec.seed, spec.stream), spec.preset
    low, high = np.log(preset.slices)
    start, stop = (low + (high - low) * part for part in ALL_SITES[spec.site].slices)
    shape = int(np.rint(np.exp(rng.uniform(start, stop)))), preset.size, preset.size
    shift = preset.presentation_shift
    how = {"site": spec.site, "presentation_shift": shift, "take": spec.take}
    return synthesize(spec.label, spec.sex, rng=rng, shape=shape, **how)  # type: ignore[arg-type]


def write_phantom_cohort(
    out: Path | str, preset: str | Preset = "demo", fmt: str = "mixed", seed: int = 0, *, workers: int = 2,
    progress: bool = True, scans_per_patient: int = 1,
) -> Path:  # fmt: skip
    """Write OUT/scans/<split>/<class>/<sex>/<name> and return OUT/cohort.csv (columns ``COHORT_COLUMNS``).

    ``fmt`` is jpg, dicom, nifti or mixed (the three in turn). The files do not depend on ``workers`` (1: no pool).
    cohort.csv is written last. FileExistsError when OUT/scans holds anything, ValueError for wrong arguments.
    """
    specs = plan_cohort(preset, fmt=fmt, seed=seed, scans_per_patient=scans_per_patient)
    out = Path(out)
    if (out / "scans").exists() and any((out / "scans").iterdir()):
        raise FileExistsError(f"{out / 'scans'} is not empty; remove it or choose another folder, cohorts never mix")
    rows = sorted(write_planned(out, specs, workers=workers, progress=progress), key=lambda row: str(row["scan"]))
    path = out / "cohort.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COHORT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_phantom_scans(
    out: Path | str, specs: Sequence[tuple[str, str]], *, preset: str | Preset = "demo", fmt: str = "mixed",
    seed: int = 0, workers: int = 1, progress: bool = False,
) -> list[Path]:  # fmt: skip
    """Write one unlabelled scan per (label, sex) as OUT/new-0001 and so on; return their paths in order.

    ``fmt`` is jpg, dicom, nifti, nrrd, mha or mixed (jpg, dicom and nifti in turn). No cohort of the same seed has
    these patients. Raises FileExistsError when one of the paths exists.
    """
    preset = _preset(preset)
    check_choice("fmt", fmt, (*SCAN_FORMATS, "mixed"))
    planned = []
    for index, (label, sex) in enumerate(specs, start=1):
        check_choice("label", label, CLASS_NAMES)
        check_choice("sex", sex, SEXES)
        kind = _format(fmt, index - 1)
        site = str(_generator(seed, (2, index)).choice(list(preset.sites)))
        path = f"new-{index:04d}{SUFFIXES.get(kind, '')}"
        planned.append(ScanSpec(path, label, sex, "new", f"N{index:04d}", site, kind, preset, seed, (3, index)))
    paths = [Path(out, spec.path) for spec in planned]
    for there in filter(Path.exists, paths):
        raise FileExistsError(f"{there} already exists")
    write_planned(Path(out), planned, workers=workers, progress=progress)
    return paths


def _format(fmt: str, index: int) -> str:
    return COHORT_FORMATS[index % len(COHORT_FORMATS)] if fmt == "mixed" else fmt


def write_planned(out: Path, specs: Sequence[ScanSpec], *, workers: int, progress: bool) -> list[dict[str, object]]:
    """Write planned scans below ``out``; the rows of a cohort.csv, in their order."""
    from tqdm import tqdm

    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        alone = workers == 1 or len(specs) < 2
        each = map if alone else stack.enter_context(ProcessPoolExecutor(max_workers=workers)).map
        written = each(partial(_write_one, out), specs)
        shown = None if progress else True  # None: on a terminal
        return list(tqdm(written, total=len(specs), desc="synthetic scans", unit="scan", disable=shown))


def _write_one(out: Path, spec: ScanSpec) -> dict[str, object]:
    scan, path = synthesize_spec(spec), out / spec.path
    rng = _generator(spec.seed, (*spec.stream, 1, *[spec.take] * (spec.take > 0)))
    if spec.fmt == "jpg":
        writers.write_jpg_folder(path, scan.hu)
    elif spec.fmt == "nifti":
        writers.write_nifti(path, scan.hu, scan.spacing)
    elif spec.fmt == "dicom":  # what archives really hold: half the series numbered from above, some patients prone
        writers.write_dicom_series(
            path, scan.hu, scan.spacing, sex=scan.sex, age=scan.age, patient_id=spec.patient,
            uid_seed=f"{spec.seed}" + f" take {spec.take}" * (spec.take > 0),
            manufacturer=f"fairlung phantom {scan.site}", reverse_names=bool(rng.random() < 0.5),
            prone=bool(rng.random() < 0.1),
        )  # fmt: skip
    else:
        writers.write_nrrd_or_mha(path, scan.hu, scan.spacing)
    presentation = "shifted" if scan.truth["presentation_shift"] > 0 else "typical"
    row: dict[str, object] = {"scan": spec.path, "label": scan.label, "sex": scan.sex, "split": spec.split}
    row |= {"site": scan.site, "age": scan.age, "slices": scan.hu.shape[0], "thickness_mm": f"{scan.spacing[0]:.4f}"}
    return row | {"patient": spec.patient, "synthetic": "yes", "presentation": presentation}


def _generator(seed: int, stream: Sequence[int]) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(stream)))


def _preset(preset: str | Preset) -> Preset:
    if not isinstance(preset, Preset):
        check_choice("preset", preset, tuple(PRESETS))
    return preset if isinstance(preset, Preset) else PRESETS[preset]
