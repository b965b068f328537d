"""The console program ``fairlung``: data sets in, tables out. Training and inference run through ``monai.bundle``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A chest-CT classifier that is fair between the sexes: data sets, phantoms, results.",
)
console = Console()


class PresetName(StrEnum):
    """Sizes of the phantom cohort."""

    tiny = "tiny"
    demo = "demo"
    benchmark = "benchmark"


class PhantomFormat(StrEnum):
    """File formats of phantom scans; ``mixed`` is the three in turn."""

    jpg = "jpg"
    dicom = "dicom"
    nifti = "nifti"
    mixed = "mixed"


class Layout(StrEnum):
    """Folder layouts of the benchmark; ``auto`` takes both."""

    auto = "auto"
    paper = "paper"
    challenge = "challenge"


def _version(show: bool) -> None:
    if show:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def cohort(
    folder: Annotated[Path, typer.Argument(help="Root of the data, e.g. with Train/ and Val/ in it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The cohort file to write.")] = Path("cohort.csv"),
    layout: Annotated[Layout, typer.Option(help="Folder layout.")] = Layout.auto,
    class_name: Annotated[
        list[str] | None, typer.Option("--class-name", help="Classes to take, in order; repeat the option.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Also draw the cohort (the paper's Figure 1) to this file.")
    ] = None,
) -> None:
    """Describe a folder tree of scans as a cohort file: scan, label, sex, split."""
    from .cohort import CohortError, build_cohort, format_cells, load_cohort, write_cohort
    from .names import CLASS_NAMES, SEXES

    try:
        built = build_cohort(folder, layout=layout.value, class_names=class_name)
        found = set(built.table["label"])
        names = class_name or [*(n for n in CLASS_NAMES if n in found), *sorted(found - set(CLASS_NAMES))]
        output.parent.mkdir(parents=True, exist_ok=True)
        path = write_cohort(built.table, output, root=folder)
    except (CohortError, ValueError) as error:
        _stop(error)
    for entry in built.skipped:
        console.print(
            f"[yellow]left out[/] {escape(entry.path)}: {escape(entry.reason)}", highlight=False, soft_wrap=True
        )
    try:
        loaded = load_cohort(path, class_names=names, group_names=SEXES, allow_empty_cells=True)
    except CohortError as error:
        _stop(ValueError(f"wrote {path}, which is not ready to train on: {error}"))
    console.print(format_cells(loaded))
    empty = [f"{r.group} {r.label} in {r.split}" for r in loaded.cells().itertuples() if r.n == 0]
    if empty:
        console.print(f"[yellow]no scan of[/] {', '.join(empty)}", highlight=False)
    console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)
    if chart is not None:
        from .figures import cohort_chart

        try:
            cohort_chart(loaded.cells(), chart)
        except (OSError, ValueError) as error:
            _stop(ValueError(f"no chart: {error}"))
        console.print(f"wrote {escape(str(chart))}", highlight=False, soft_wrap=True)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for scans/ and cohort.csv.")],
    preset: Annotated[PresetName, typer.Option(help="Size of the cohort.")] = PresetName.demo,
    format: Annotated[PhantomFormat, typer.Option(help="File format of the scans.")] = PhantomFormat.mixed,
    seed: Annotated[int, typer.Option(help="Same seed, same scans.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that write.")] = 2,
    new_scans: Annotated[
        int, typer.Option(help="Write this many unlabelled new scans for inference instead of a cohort.")
    ] = 0,
) -> None:
    """Write a SYNTHETIC chest-CT cohort: procedural phantoms, no patients."""
    from itertools import cycle, islice, product

    from .cohort import format_cells, load_cohort
    from .names import CLASS_NAMES, SEXES
    from .phantom_cohort import write_phantom_cohort, write_phantom_scans

    try:
        if new_scans:
            specs = list(islice(cycle((label, sex) for sex, label in product(SEXES, CLASS_NAMES)), new_scans))
            paths = write_phantom_scans(
                out, specs, preset=preset.value, fmt=format.value, seed=seed, workers=workers, progress=True
            )
            console.print(f"wrote {len(paths)} synthetic scans to {out}", highlight=False, soft_wrap=True)
            return
        path = write_phantom_cohort(out, preset.value, format.value, seed, workers=workers)
    except (FileExistsError, ValueError) as error:
        _stop(error)
    console.print(format_cells(load_cohort(path, class_names=CLASS_NAMES, group_names=SEXES)))
    console.print(f"wrote {path} (synthetic scans)", highlight=False, soft_wrap=True)


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(help="An output_dir, or one metrics.json.")],
) -> None:
    """Show evaluations: F1 of each group, P, the gap, and F1 of each class and group with the scans behind it."""
    found = [folder] if folder.is_file() else sorted(folder.glob("*/evaluation/metrics.json"))
    found = found or sorted(folder.glob("val/metrics.json"))  # right after a training: its best epoch
    if not found:
        _stop(ValueError(f"{folder} holds no evaluation"))
    for path in found:
        _show_evaluation(json.loads(path.read_text()))


def _show_evaluation(result: dict[str, Any]) -> None:
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    kind = ", SYNTHETIC scans (phantoms)" if result["synthetic"] else ""
    overall = Table(title=f"{result['split']} split, {result['checkpoint']}{kind}")
    headings = {f"f1_{group}": f"F1 {group}" for group in groups}
    headings |= {"score": "P", "gap": f"gap ({' - '.join(groups)})", "abs_gap": "|gap|", "f1_macro": "pooled macro F1"}
    shown = {name: heading for name, heading in headings.items() if name in scores}
    for heading in shown.values():
        overall.add_column(heading, justify="right")
    overall.add_row(*(f"{scores[name]:+.4f}" if name == "gap" else f"{scores[name]:.4f}" for name in shown))
    console.print(overall)

    cells = Table(title="F1 (scans) of each class and group")
    cells.add_column("class")
    for group in groups:
        cells.add_column(group, justify="right")
    for c, name in enumerate(classes):
        supports = [sum(result["confusion"][g][c]) for g in range(len(groups))]
        cells.add_row(name, *(f"{scores[f'f1_{g}_{name}']:.4f} ({n})" for g, n in zip(groups, supports, strict=True)))
    console.print(cells)
    chance = 1 / len(classes)
    above = scores["score"] - chance
    console.print(f"Guessing evenly gives P of about {chance:.2f}; this is {above:+.2f} from it.\n", highlight=False)


def _stop(error: Exception) -> NoReturn:
    Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
