"""Commands that make and check data: cohort, split, check, phantom, submit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from ..common.errors import EXIT_SOME_FAILED
from .console import cells_table, console, drawn, say, show_intake

if TYPE_CHECKING:
    import pandas as pd

    from ..data.cohort_drafts import Translated
    from ..reports.intake_page import IntakeCollector

TABLES = (".csv", ".tsv")
COLOURS = {"refused": "red", "with warnings": "yellow", "fine": "green", "skipped": "dim"}


def cohort(
    source: Annotated[Path, Argument(metavar="FOLDER_OR_ARCHIVE_OR_TABLE",
        help="Root of the data, e.g. with Train/ and Val/ in it; a zip, tar or RAR archive, a folder of them; a CSV.")],
    output: Annotated[Path, Option("-o", "--output", help="The cohort file to write.")] = Path("cohort.csv"),
    layout: Annotated[Literal["auto", "paper", "challenge", "any"],
        Option(help="Folder layout; any lists all scans, to be filled in, as auto does where it knows none.")] = "auto",
    class_name: Annotated[list[str] | None,
        Option("--class-name", help="Classes to take, in order; repeat the option.")] = None,
    columns: Annotated[str,
        Option(help="What a table calls the columns of a cohort file, such as path=scan,gender=sex.")] = "",
    folders: Annotated[Path | None, Option(help="Table of folders: folder (a name or P*), label, sex, site, ...; any "
        "layout. The label - leaves scans out.")] = None,
    chart: Annotated[Path | None, Option(help="Also draw the cohort (the paper's Figure 1) to this file.")] = None,
    unpack_to: Annotated[Path | None,
        Option(help="Folder for what archives hold; else <name>_unpacked beside them.")] = None,
) -> None:  # fmt: skip
    """Describe scans in folders, in archives or in a table as a cohort file: scan, label, sex, split."""
    from ..data.cohort_checks import renames
    from ..data.cohort_drafts import folder_table, names_of, translated
    from ..data.cohort_folders import write_cohort

    if source.is_file() and source.suffix.lower() in TABLES:
        if folders:
            raise ValueError(f"--folders is for a folder or an archive, and {source} is a table")
        table, said = translated(source, renames(columns), class_name)
        root, notes = source.absolute().parent, [(text, "") for text in said]
    else:
        if columns and not folders:
            raise ValueError(f"--columns is for a table, and {source} is none")
        if folders and layout not in ("auto", "any"):
            raise ValueError(f"--folders is for any layout, not for {layout}")
        named = folder_table(folders, renames(columns), class_name) if folders else None
        table, root, notes = _described(source, unpack_to, "any" if named else layout, class_name, named)
    if "patient" in table or source.suffix.lower() in TABLES:
        _refuse_existing(output)  # it may have been filled in
    output.parent.mkdir(parents=True, exist_ok=True)
    path = write_cohort(table, output, root=root)
    for note in notes:
        say(*note)
    empty = {name: sum(table[name] == "") for name in ("label", "sex", "split") if name in table}
    if empty["label"]:
        say(f"wrote {path}: {len(table)} scans; fill in {', '.join(f'{name} ({n})' for name, n in empty.items() if n)}")
        return
    _show_cohort(path, class_name or names_of(table["label"]), chart)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} is there already; choose another file with -o")


def _described(
    source: Path, unpack_to: Path | None, layout: str, class_names: list[str] | None, named: Translated | None
) -> tuple[pd.DataFrame, Path, list[tuple[str, str]]]:
    """The table of a folder or an archive, where its scans start from, and what was left out."""
    from ..data.archives import build_with_archives
    from ..data.cohort_checks import CohortError
    from ..data.cohort_drafts import unused_folders

    notes, folders = ([], None) if named is None else ([(text, "") for text in named.said], named.table)
    try:
        intake = build_with_archives(source, unpack_to, layout=layout, class_names=class_names, folders=folders)
    except CohortError as error:
        if layout != "auto" or class_names:
            raise
        try:
            intake = build_with_archives(source, unpack_to, layout="any")
        except CohortError:
            raise error from None
        notes = [
            ("every scan is listed, to be filled in: the folders say too little", ""),
            ("\n".join(str(error).splitlines()[1:]), ""),
        ]
    show_intake(intake)
    if folders is not None and (unused := unused_folders(folders, intake.built)):
        what = f"{len(unused)} of {len(folders)} rows of the table of folders, such as {unused[0]}"
        notes.append((what, "no scan in"))
    notes += [(f"{entry.path}: {entry.reason}", "left out") for entry in intake.built.skipped]
    return intake.built.table, intake.root, notes


def _show_cohort(path: Path, class_names: list[str], chart: Path | None = None) -> None:
    """A cohort file's cells, and which are empty; ends the command where it is not ready to train on."""
    from ..common.names import SEXES
    from ..data.cohort import load_cohort

    try:
        loaded = load_cohort(path, class_names=class_names, group_names=SEXES, allow_empty_cells=True)
    except ValueError as error:
        raise ValueError(f"wrote {path}, which is not ready to train on: {error}") from error
    console.print(drawn(cells_table(loaded)))
    if empty := [f"{r.group} {r.label} in {r.split}" for r in loaded.cells().itertuples() if r.n == 0]:
        say(", ".join(empty), "no scan of")
    if "split" not in loaded.table:
        say("it has no splits yet; `fairlung split` makes them")
    say(f"wrote {path}")
    if chart is not None:
        from ..reports.figures import cohort_chart

        try:
            cohort_chart(loaded.cells(), chart)
        except (OSError, ValueError) as error:
            raise ValueError(f"no chart: {error}") from error
        say(f"wrote {chart}")


def split(
    table: Annotated[Path, Argument(metavar="COHORT", help="A cohort file without splits.")],
    output: Annotated[Path | None,
        Option("-o", "--output", help="The cohort file to write; else <name>_split.csv beside it.")] = None,
    folds: Annotated[int, Option(help="Of so many folds one is test, one val, the others train.")] = 5,
    seed: Annotated[int, Option(help="Same seed, same splits.")] = 0,
    group_by: Annotated[list[str] | None, Option(help="Columns of groups, else sex; repeat the option.")] = None,
) -> None:  # fmt: skip
    """Split a cohort into train, val and test: no patient in two, classes and groups as even as can be."""
    from ..data.cohort import load_cohort
    from ..data.cohort_checks import read_table
    from ..data.cohort_drafts import names_of
    from ..data.cohort_folders import write_cohort
    from ..data.folds import fold_tables, fold_warnings

    output = output or table.with_name(f"{table.stem}_split.csv")
    names = names_of(read_table(table)[0].get("label", ()))
    loaded = load_cohort(table, class_names=names or ["label"], group_by=group_by or "sex", allow_empty_cells=True)
    if "split" in loaded.table:
        raise ValueError(f"{table} has splits already: {', '.join(loaded.splits())}; empty its column split first")
    (fold,) = fold_tables(loaded, folds, seed=seed)[:1]
    _refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    path = write_cohort(loaded.table.assign(split=fold.table["split"]), output, root=loaded.root)
    for text in fold_warnings(loaded, folds):
        say(text, "few")
    done = load_cohort(path, class_names=names, group_by=loaded.group_by, allow_empty_cells=True)
    console.print(drawn(cells_table(done)))
    say(f"wrote {path}")


def check(
    scans: Annotated[str, Argument(help="A folder tree, a scan, an archive, or a CSV of paths.")],
    output: Annotated[Path, Option("-o", "--output", help="Folder for tables, pictures and the page.")] = Path("check"),
    all_series: Annotated[bool, Option("--all-series", help="Look at every DICOM series of a folder.")] = False,
    one_per_study: Annotated[bool, Option("--one-per-study", help="Take a study's folders for one scan.")] = False,
    min_slices: Annotated[int | None, Option(help="Fewer slices are refused; else the bundle's.")] = None,
    workers: Annotated[int | None, Option(help="Processes that read; else the bundle's.")] = None,
    bundle_root: Annotated[Path | None, Option(help="Folder of another bundle than the one that came along.")] = None,
) -> None:
    """Look at scans as inference would read them, without a network: what is refused or doubtful, and why.

    Exit code 3: some scans are refused.
    """
    from ..common.bundle import bundle_folder, config_file
    from ..common.imports import NOT_READ_WITH, absent
    from ..common.settings import verbatim

    with absent(*(NOT_READ_WITH if bundle_root is None else ())):
        from monai.bundle import ConfigWorkflow

    root = bundle_folder(bundle_root)
    configs = [str(config_file(root, name)) for name in ("inference", "check")]
    settings: dict[str, Any] = {"scans": scans, "output_dir": str(output), "bundle_root": str(root)}
    settings |= {"all_series": all_series, "one_per_study": one_per_study}
    settings |= {"min_slices": min_slices, "num_workers": workers}
    settings = {name: verbatim(value) for name, value in settings.items() if value is not None}
    workflow = ConfigWorkflow(configs, workflow_type="infer", **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


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
    preset: Annotated[Literal["tiny", "demo", "benchmark", "shifted"], Option(help="Which cohort.")] = "demo",
    format: Annotated[Literal["jpg", "dicom", "nifti", "mixed"], Option(help="File format of the scans.")] = "mixed",
    seed: Annotated[int, Option(help="Same seed, same scans.")] = 0,
    workers: Annotated[int, Option(help="Processes that write.")] = 2,
    scans_per_patient: Annotated[int,
        Option(help="Scans of each patient, with other noise, position and scanner; the preset counts patients.")] = 1,
    new_scans: Annotated[int,
        Option(help="Write this many unlabelled new scans for inference instead of a cohort.")] = 0,
) -> None:  # fmt: skip
    """Write a SYNTHETIC chest-CT cohort: procedural phantoms, no patients."""
    from itertools import cycle, islice, product

    from ..common.names import CLASS_NAMES, SEXES
    from ..data.cohort import load_cohort
    from ..phantoms.cohort import write_phantom_cohort, write_phantom_scans

    if new_scans:
        if scans_per_patient != 1:
            raise ValueError("--new-scans writes one scan a patient: leave out --scans-per-patient")
        cells = cycle((label, sex) for sex, label in product(SEXES, CLASS_NAMES))
        chosen = list(islice(cells, new_scans))
        write_phantom_scans(out, chosen, preset=preset, fmt=format, seed=seed, workers=workers, progress=True)
        say(f"wrote {new_scans} synthetic scans to {out}")
        return
    path = write_phantom_cohort(out, preset, format, seed, workers=workers, scans_per_patient=scans_per_patient)
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

    written = write_submission(predictions, output, allow_missing=allow_missing, overwrite=overwrite)
    for text in written.missing:
        say(text, "in no file")
    for path, count in written.files.items():
        say(f"wrote {path}: {count} scans")
