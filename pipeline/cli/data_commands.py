"""Commands that make and check data: cohort, check, phantom, submit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from ..common.errors import EXIT_SOME_FAILED, UserError, user_error
from .console import cells_table, console, drawn, say, show_intake, stop, stops

if TYPE_CHECKING:
    from ..reports.intake_page import IntakeCollector

COLOURS = {"refused": "red", "with warnings": "yellow", "fine": "green", "skipped": "dim"}


def cohort(
    source: Annotated[Path, Argument(metavar="FOLDER_OR_ARCHIVE",
        help="Root of the data, e.g. with Train/ and Val/ in it; a zip, tar or RAR archive; or a folder of them.")],
    output: Annotated[Path, Option("-o", "--output", help="The cohort file to write.")] = Path("cohort.csv"),
    layout: Annotated[Literal["auto", "paper", "challenge"], Option(help="Folder layout.")] = "auto",
    class_name: Annotated[list[str] | None,
        Option("--class-name", help="Classes to take, in order; repeat the option.")] = None,
    chart: Annotated[Path | None, Option(help="Also draw the cohort (the paper's Figure 1) to this file.")] = None,
    unpack_to: Annotated[Path | None,
        Option(help="Folder for what archives hold; else <name>_unpacked beside them.")] = None,
) -> None:  # fmt: skip
    """Describe a folder tree of scans, or archives of it, as a cohort file: scan, label, sex, split."""
    from ..common.names import CLASS_NAMES, SEXES
    from ..data.archives import build_with_archives
    from ..data.cohort import load_cohort
    from ..data.cohort_checks import CohortError
    from ..data.cohort_folders import write_cohort

    with stops():
        intake = build_with_archives(source, unpack_to, layout=layout, class_names=class_name)
        built = intake.built
        found = set(built.table["label"])
        names = class_name or [*(n for n in CLASS_NAMES if n in found), *sorted(found - set(CLASS_NAMES))]
        output.parent.mkdir(parents=True, exist_ok=True)
        path = write_cohort(built.table, output, root=intake.root)
    show_intake(intake)
    for entry in built.skipped:
        say(f"{entry.path}: {entry.reason}", "left out")
    try:
        loaded = load_cohort(path, class_names=names, group_names=SEXES, allow_empty_cells=True)
    except CohortError as error:
        stop(ValueError(f"wrote {path}, which is not ready to train on: {error}"))
    console.print(drawn(cells_table(loaded)))
    if empty := [f"{r.group} {r.label} in {r.split}" for r in loaded.cells().itertuples() if r.n == 0]:
        say(", ".join(empty), "no scan of")
    say(f"wrote {path}")
    if chart is not None:
        from ..reports.figures import cohort_chart

        try:
            cohort_chart(loaded.cells(), chart)
        except (OSError, ValueError) as error:
            stop(ValueError(f"no chart: {error}"))
        say(f"wrote {chart}")


def check(
    scans: Annotated[str, Argument(help="A folder tree, a scan, an archive, or a CSV of paths.")],
    output: Annotated[Path, Option("-o", "--output", help="Folder for tables, pictures and the page.")] = Path("check"),
    all_series: Annotated[bool, Option("--all-series", help="Look at every DICOM series of a folder.")] = False,
    one_per_study: Annotated[bool, Option("--one-per-study", help="Take a study's folders for one scan.")] = False,
    min_slices: Annotated[int | None, Option(help="Fewer slices are refused; else the bundle's.")] = None,
    workers: Annotated[int | None, Option(help="Processes that read; else the bundle's.")] = None,
    bundle_root: Annotated[Path, Option(help="Folder of the bundle.")] = Path("bundles/fair_lung_ct"),
) -> None:
    """Look at scans as inference would read them, without a network: what is refused or doubtful, and why.

    Exit code 3: some scans are refused.
    """
    from monai.bundle import ConfigWorkflow

    configs = [str(bundle_root / "configs" / name) for name in ("inference.yaml", "check.yaml")]
    settings: dict[str, Any] = {"scans": scans, "output_dir": str(output), "bundle_root": str(bundle_root)}
    settings |= {"all_series": all_series, "one_per_study": one_per_study}
    settings |= {"min_slices": min_slices, "num_workers": workers}
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        if absent := [config for config in configs if not Path(config).is_file()]:
            raise FileNotFoundError(f"no {absent[0]}: name the bundle's folder with --bundle-root")
        workflow = ConfigWorkflow(configs, workflow_type="infer", **settings)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except Exception as error:  # MONAI wraps every kind
        found = user_error(error)
        if not isinstance(found, Exception):
            raise
        stop(found)


def show_check(records: Sequence[Mapping[str, Any]], fine: int = 30) -> None:
    """What the intake says of scans: refused ones first, then those with warnings; up to ``fine`` of the others."""
    from ..data.intake_records import GROUPS, group_counts, group_of, warning_counts
    from ..reports.intake_page import scans_table

    counts = group_counts(records)
    limits = {"fine": fine, "skipped": fine}  # all doubtful scans are shown
    members = {group: [record for record in records if group_of(record) == group] for group in GROUPS}
    shown = [record for group, found in members.items() for record in found[: limits.get(group)]]
    table = replace(scans_table(shown), caption=f"{len(records)} scans")
    console.print(drawn(table, ("kind", "voxel (mm)"), COLOURS))
    if left := [f"{counts[group] - fine} {group}" for group in limits if counts[group] > fine]:
        say(f"not shown: {', '.join(left)}")
    if codes := warning_counts(records):
        say(f"Warnings: {', '.join(f'{count} {code}' for code, count in codes.items())}.")
    say(f"{len(records)} scans: {', '.join(f'{count} {GROUPS[group].lower()}' for group, count in counts.items())}.")


def report_intake(collector: IntakeCollector) -> None:
    """What ``fairlung check`` shows on the console; exits with :data:`EXIT_SOME_FAILED` when scans are refused."""
    from ..reports.intake_page import PAGE, TABLE

    show_check(collector.records)
    say(f"wrote {collector.output_dir / PAGE} and {TABLE}")
    if any(record["status"] == "refused" for record in collector.records):
        sys.exit(EXIT_SOME_FAILED)


def phantom(
    out: Annotated[Path, Argument(help="Folder for scans/ and cohort.csv.")],
    preset: Annotated[Literal["tiny", "demo", "benchmark"], Option(help="Size of the cohort.")] = "demo",
    format: Annotated[Literal["jpg", "dicom", "nifti", "mixed"], Option(help="File format of the scans.")] = "mixed",
    seed: Annotated[int, Option(help="Same seed, same scans.")] = 0,
    workers: Annotated[int, Option(help="Processes that write.")] = 2,
    new_scans: Annotated[int,
        Option(help="Write this many unlabelled new scans for inference instead of a cohort.")] = 0,
) -> None:  # fmt: skip
    """Write a SYNTHETIC chest-CT cohort: procedural phantoms, no patients."""
    from itertools import cycle, islice, product

    from ..common.names import CLASS_NAMES, SEXES
    from ..data.cohort import load_cohort
    from ..phantoms.cohort import write_phantom_cohort, write_phantom_scans

    with stops((FileExistsError, ValueError)):
        if new_scans:
            cells = cycle((label, sex) for sex, label in product(SEXES, CLASS_NAMES))
            chosen = list(islice(cells, new_scans))
            write_phantom_scans(out, chosen, preset=preset, fmt=format, seed=seed, workers=workers, progress=True)
            say(f"wrote {new_scans} synthetic scans to {out}")
            return
        path = write_phantom_cohort(out, preset, format, seed, workers=workers)
    console.print(drawn(cells_table(load_cohort(path, class_names=CLASS_NAMES, group_names=SEXES))))
    say(f"wrote {path} (synthetic scans)")


def submit(
    predictions: Annotated[Path, Argument(help="predictions.csv that inference wrote for the test scans.")],
    output: Annotated[Path, Option("-o", "--output", help="Folder for the four files.")],
    allow_missing: Annotated[bool, Option("--allow-missing", help="Leave out scans that failed.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the files of an earlier submission.")] = False,
) -> None:
    """Write the challenge's submission: A.csv, G.csv, covid.csv and normal.csv, one scan name a line."""
    from ..inference.submission import write_submission

    with stops((UserError, OSError)):
        written = write_submission(predictions, output, allow_missing=allow_missing, overwrite=overwrite)
    for text in written.missing:
        say(text, "in no file")
    for path, count in written.files.items():
        say(f"wrote {path}: {count} scans")
