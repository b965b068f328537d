"""The console program ``fairlung``: data sets in, tables out. Training and inference run through ``monai.bundle``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from . import __version__
from .console import (
    console,
    show_audit,
    show_before_after,
    show_comparison,
    show_evaluation,
    show_intake,
    show_study,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A chest-CT classifier that is fair between the sexes: data sets, phantoms, results.",
)


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


class PostprocessMethod(StrEnum):
    """Post-processing of probabilities."""

    temperature = "temperature"
    offsets = "offsets"
    prior = "prior"


class OffsetObjective(StrEnum):
    """What offsets are chosen for."""

    score = "score"
    gap = "gap"


class StudyEngine(StrEnum):
    """Where the runs of a study are carried out."""

    local = "local"
    ray = "ray"


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
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_OR_ARCHIVE",
            help="Root of the data, e.g. with Train/ and Val/ in it; a zip, tar or RAR archive; or a folder of them.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The cohort file to write.")] = Path("cohort.csv"),
    layout: Annotated[Layout, typer.Option(help="Folder layout.")] = Layout.auto,
    class_name: Annotated[
        list[str] | None, typer.Option("--class-name", help="Classes to take, in order; repeat the option.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Also draw the cohort (the paper's Figure 1) to this file.")
    ] = None,
    unpack_to: Annotated[
        Path | None, typer.Option(help="Folder for what archives hold; else <name>_unpacked beside them.")
    ] = None,
) -> None:
    """Describe a folder tree of scans, or archives of it, as a cohort file: scan, label, sex, split."""
    from .archives import build_with_archives
    from .cohort import CohortError, format_cells, load_cohort, write_cohort
    from .errors import UserError
    from .names import CLASS_NAMES, SEXES

    try:
        intake = build_with_archives(source, unpack_to, layout=layout.value, class_names=class_name)
        built = intake.built
        found = set(built.table["label"])
        names = class_name or [*(n for n in CLASS_NAMES if n in found), *sorted(found - set(CLASS_NAMES))]
        output.parent.mkdir(parents=True, exist_ok=True)
        path = write_cohort(built.table, output, root=intake.root)
    except (UserError, ValueError) as error:
        _stop(error)
    show_intake(intake)
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
def check(
    scans: Annotated[str, typer.Argument(help="A folder tree, a scan, an archive, or a CSV of paths.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for tables, pictures and the page.")] = Path(
        "check"
    ),
    all_series: Annotated[bool, typer.Option("--all-series", help="Look at every DICOM series of a folder.")] = False,
    min_slices: Annotated[int | None, typer.Option(help="Fewer slices are refused; else the bundle's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read; else the bundle's.")] = None,
    bundle_root: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bundles/fair_lung_ct"),
) -> None:
    """Look at scans as inference would read them, without a network: what is refused or doubtful, and why.

    Exit code 3: some scans are refused.
    """
    from monai.bundle import ConfigWorkflow

    from .errors import user_error

    configs = [str(bundle_root / "configs" / name) for name in ("inference.yaml", "check.yaml")]
    given = {"min_slices": min_slices, "num_workers": workers}
    settings: dict[str, Any] = {"scans": scans, "output_dir": str(output), "bundle_root": str(bundle_root)}
    settings |= {"all_series": all_series, **{name: value for name, value in given.items() if value is not None}}
    try:
        for config in configs:
            if not Path(config).is_file():
                raise FileNotFoundError(f"no {config}: name the bundle's folder with --bundle-root")
        workflow = ConfigWorkflow(configs, workflow_type="infer", **settings)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except Exception as error:  # MONAI wraps every kind
        found = user_error(error)
        if not isinstance(found, Exception):
            raise
        _stop(found)


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
def submit(
    predictions: Annotated[Path, typer.Argument(help="predictions.csv that inference wrote for the test scans.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the four files.")],
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Leave out scans that failed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier submission.")] = False,
) -> None:
    """Write the challenge's submission: A.csv, G.csv, covid.csv and normal.csv, one scan name a line."""
    from .errors import UserError
    from .submission import write_submission

    try:
        written = write_submission(predictions, output, allow_missing=allow_missing, overwrite=overwrite)
    except (UserError, OSError) as error:
        _stop(error)
    for text in written.missing:
        console.print(f"[yellow]in no file[/] {escape(text)}", highlight=False, soft_wrap=True)
    for path, count in written.files.items():
        console.print(f"wrote {escape(str(path))}: {count} scans", highlight=False, soft_wrap=True)


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
        show_evaluation(json.loads(path.read_text()))


@app.command()
def audit(
    source: Annotated[
        str,
        typer.Argument(help="A table of predictions, the output_dir of an evaluation, or an MLflow run (runs:/ID)."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the audit to this JSON file.")
    ] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="Group column, by default sex; repeat it for every combination.")
    ] = None,
    group_name: Annotated[list[str] | None, typer.Option(help="Groups in order; repeat the option.")] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Classes in order; repeat the option.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of the true class.")] = "label",
    prediction_column: Annotated[str, typer.Option(help="Column of the predicted class.")] = "prediction",
    split: Annotated[str | None, typer.Option(help="Split, where the source has several.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store of the run.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Bootstrap draws, and permutations.")] = 10_000,
    method: Annotated[
        str, typer.Option(help="Bootstrap: smoothed, or percentile (the plain one, too narrow for small cells).")
    ] = "smoothed",
    seed: Annotated[int, typer.Option(help="Same seed, same audit.")] = 0,
) -> None:
    """Say what the fairness numbers of any model's predictions can bear: verdicts, intervals, tests, calibration.

    The table has a row a scan: label, group columns, and prediction or one prob_CLASS column a class.
    """
    from .audit import audit as audit_of
    from .errors import UserError
    from .labelled_predictions import load_predictions

    try:
        table = load_predictions(
            _one_table(source, split, tracking_uri),
            class_name,
            group_name,
            group_by,
            label_column=label_column,
            prediction_column=prediction_column,
        )
        result = audit_of(table, resamples, resamples, confidence, method, seed)  # type: ignore[arg-type]
    except (UserError, ValueError) as error:
        _stop(error)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    show_audit(result)


@app.command()
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SOURCE...",
            help="Systems, the reference first: a table of predictions, a quoted pattern of several (its runs), the "
            "output_dir of an evaluation, or an MLflow run (runs:/ID). Repeat a NAME to give it more runs.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the comparison to this JSON file.")
    ] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="Group column, by default sex; repeat it for every combination.")
    ] = None,
    group_name: Annotated[list[str] | None, typer.Option(help="Groups in order; repeat the option.")] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Classes in order; repeat the option.")] = None,
    split: Annotated[str | None, typer.Option(help="Split, where a source has several.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store of the runs.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals; tests are at the level 1 - this.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Bootstrap draws, and permutations.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Same seed, same comparison.")] = 0,
) -> None:
    """Say whether a system is better than the first one on the same scans: verdicts, intervals, tests, power."""
    from .compare import compare as compare_systems
    from .errors import UserError
    from .labelled_predictions import load_predictions
    from .prediction_sources import find_predictions, named_sources

    try:
        systems = {
            name: [
                load_predictions(path, class_name, group_name, group_by)
                for source in given
                for path in find_predictions(source, split, tracking_uri)
            ]
            for name, given in named_sources(sources).items()
        }
        result = compare_systems(systems, resamples, resamples, confidence, seed)
    except (UserError, ValueError) as error:
        _stop(error)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    show_comparison(result)


@app.command()
def report(
    source: Annotated[
        str | None,
        typer.Argument(help="The output_dir of an evaluation, a table of predictions, or an MLflow run (runs:/ID)."),
    ] = None,
    comparison: Annotated[
        Path | None, typer.Option("--compare", help="Report on the file of fairlung compare -o instead.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The HTML file; else report.html, of an output_dir beside its evaluation."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split, where the source has several.")] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="Group column of a table, by default sex; repeat it for every combination.")
    ] = None,
    group_name: Annotated[list[str] | None, typer.Option(help="Groups in order; repeat the option.")] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Classes in order; repeat the option.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store of the run.")] = None,
) -> None:
    """Write a report that stands alone, as HTML and as Markdown: verdicts, intervals, cells, calibration, errors."""
    from .document import write_document
    from .errors import UserError
    from .report import report_of_table, write_comparison_report

    try:
        if (source is None) == (comparison is None):
            raise ValueError("give a SOURCE, or --compare with a file")
        if comparison is not None:
            path = write_comparison_report(comparison, output or Path("report.html"))
        else:
            assert source is not None
            table = _one_table(source, split, tracking_uri)
            beside = table.with_name("report.html") if Path(source).is_dir() else Path("report.html")
            path = write_document(report_of_table(table, class_name, group_name, group_by), output or beside)
    except (UserError, ValueError) as error:
        _stop(error)
    console.print(f"wrote {escape(str(path))}, {escape(path.with_suffix('.md').name)}", highlight=False, soft_wrap=True)


@app.command()
def tables(
    studies: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY...", help="Folder of a study; further ones (one a machine) join Table 2."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write to, by default tables/ in the first study.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals; tests are at the level 1 - this.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Bootstrap draws, and permutations.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Same seed, same tables.")] = 0,
) -> None:
    """Write the tables and figures of a study, finished or not: index.html, Markdown, CSV, LaTeX, PNG and SVG."""
    from .errors import UserError
    from .study_tables import write_tables

    try:
        written = write_tables(studies, output, confidence, resamples, seed)
    except (UserError, ValueError) as error:
        _stop(error)
    show_study(written.table, written.verdicts)
    folder = written.paths[0].parent
    names = ", ".join(path.name for path in written.paths)
    console.print(f"wrote {escape(str(folder))}: {escape(names)}", highlight=False, soft_wrap=True)


@app.command("model-card")
def model_card(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of an evaluation.")],
    split: Annotated[str | None, typer.Option(help="Split, where several were evaluated.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The Markdown file to write.")] = Path("MODEL_CARD.md"),
    bundle_readme: Annotated[
        Path | None, typer.Option(help="Also put the performance between the marks in this README.")
    ] = None,
) -> None:
    """Write the model card of an evaluated checkpoint, and fill in the performance section of its bundle's README."""
    from .errors import UserError
    from .model_card import update_performance, write_model_card

    try:
        evaluation_dir = _one_table(str(output_dir), split, None).parent
        write_model_card(evaluation_dir, output)
        if bundle_readme is not None:
            update_performance(bundle_readme, evaluation_dir)
    except (UserError, ValueError) as error:
        _stop(error)
    for path in filter(None, (output, bundle_readme)):
        console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)


@app.command()
def postprocess(
    method: Annotated[PostprocessMethod, typer.Argument(help="What to do to the probabilities.")],
    judged: Annotated[Path, typer.Option("--apply", help="Table of labelled predictions to post-process and judge.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The table to write.")],
    fit_on: Annotated[
        Path | None, typer.Option("--fit", help="Table of predictions to fit on, of other scans: the validation split.")
    ] = None,
    load: Annotated[Path | None, typer.Option(help="A saved fit to apply instead.")] = None,
    save: Annotated[Path | None, typer.Option(help="Also save the fit to this JSON file.")] = None,
    objective: Annotated[
        OffsetObjective | None, typer.Option(help="offsets: largest P (score, the default), or smallest gap.")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="offsets for the gap: how much P may fall on the fitted scans, by default 0.01."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="prior: CLASS=FREQUENCY or CLASS=COUNT of the target population, for each class; or labels (the "
            "default) or em, to count the labels of --fit or to estimate from its probabilities alone."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="prior: CLASS=FREQUENCY under which the model answers, for each class; by default even."),
    ] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="Group column, by default sex; repeat it for every combination.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Bootstrap draws.")] = 2000,
    seed: Annotated[int, typer.Option(help="Same seed, same intervals.")] = 0,
) -> None:
    """Post-process probabilities, fitted on other scans than those judged; always shows what it costs."""
    from . import postprocess as post
    from .errors import UserError

    outputs = list(filter(None, (output, save)))
    try:
        given: dict[str, Any] = {
            "objective": None if objective is None else objective.value,
            "max_loss": max_loss,
            "target": None if target is None else post.read_target(target),
            "source": None if source is None else post.read_frequencies(source, "source"),
        }
        settings = {name: value for name, value in given.items() if value is not None}
        post.refuse_overwriting(filter(None, (judged, fit_on, load)), outputs)
        if load is not None:
            if fit_on is not None or settings:
                raise ValueError("--load takes a fit as it was saved: leave out --fit and the settings of the method")
            fitted = post.load_fitted(load)
            if fitted.method != method.value:
                raise ValueError(f"{load} holds a fit of {fitted.method}, not of {method.value}")
        else:
            if fit_on is None and not isinstance(settings.get("target"), dict):
                raise ValueError("give --fit with a table, --load with a saved fit, or for prior --target by name")
            unlabelled = settings.get("target") == "em"
            table = None
            if fit_on is not None:
                table = post.load_unlabelled(fit_on) if unlabelled else post.load_table(fit_on, group_by)
            fitted = post.fit(method.value, table, **settings)
        before = post.load_table(judged, group_by)
        after = post.apply(fitted, before)
        result = post.before_after(before, after, resamples, confidence, seed)
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        post.write_table(output, judged, after, fitted.method)
        if save is not None:
            fitted.save(save)
    except (UserError, ValueError) as error:
        _stop(error)
    console.print(escape(post.describe(fitted)), highlight=False, soft_wrap=True)
    show_before_after(result)
    for path in outputs:
        console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)


def _one_table(source: str, split: str | None, tracking_uri: str | None) -> Path:
    from .prediction_sources import find_predictions

    paths = find_predictions(source, split, tracking_uri)
    if len(paths) > 1:
        raise ValueError(f"{source} is {len(paths)} tables; this takes one (fairlung compare takes several)")
    return paths[0]


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="The study's YAML, such as studies/paper.yaml.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Its folder; else runs/NAME.")] = None,
    cohort: Annotated[str | None, typer.Option(help="The cohort file, instead of the study's.")] = None,
    bundle_root: Annotated[str | None, typer.Option(help="Folder of the bundle, instead of the study's.")] = None,
    engine: Annotated[StudyEngine, typer.Option(help="Run here, or on a Ray cluster.")] = StudyEngine.local,
    workers: Annotated[int, typer.Option(help="local: runs at a time.")] = 1,
    address: Annotated[str | None, typer.Option(help="ray: of the cluster; else one is started here.")] = None,
    cpus: Annotated[float, typer.Option(help="ray: CPUs of a run.")] = 1,
    gpus: Annotated[float, typer.Option(help="ray: GPUs of a run.")] = 0,
    final: Annotated[
        str | None,
        typer.Option(help="Once the study is finished: judge this configuration on the cohort's held-out test split."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run.")] = False,
) -> None:
    """Train and judge a grid of systems, seeds and folds; what is finished stays, what was killed goes on."""
    from filelock import FileLock, Timeout

    from . import study_engines, study_tracking
    from .errors import UserError
    from .study import StudyError, StudyFolder, final_study, plan, read_study
    from .study_progress import show_progress

    try:
        written = read_study(file, cohort=cohort, bundle_root=bundle_root)
        place = output or Path("runs", written.name)
        if final is not None:
            written, place = final_study(written, place, final)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "study.lock", blocking=False):
            folder = StudyFolder(place, written, plan(written, place, final), write=not dry_run)
            waiting = [folder.run_file(run.id) for run in folder.to_run()]
            console.print(
                f"{written.name}: {len(waiting)} of {len(folder.planned)} runs to do, in {escape(str(place))}"
            )
            if dry_run:
                for run in folder.to_run():
                    console.print(escape(run.id), highlight=False, soft_wrap=True)
                return
            study_tracking.open_study_run(written, folder)
            tables_at = None
            try:
                with show_progress(folder) as (begins, ends):
                    if engine is StudyEngine.ray:
                        study_engines.run_by_ray(waiting, begins, ends, address, cpus, gpus)
                    else:
                        study_engines.run_locally(waiting, begins, ends, workers)
                tables_at = _tables_of(place)
            finally:  # interrupted too
                study_tracking.close_study_run(written, folder, tables_at)
    except Timeout:
        _stop(StudyError(f"{place} is being run by another process"))
    except (UserError, ValueError) as error:
        _stop(error)
    counts = folder.counts()
    if counts["finished"] < len(folder.planned):
        _stop(
            StudyError(f"{counts['failed']} of {len(folder.planned)} runs failed; run the study again to repeat them")
        )


def _tables_of(place: Path) -> Path | None:
    """A study's tables, written; None, with a word why, where nothing can be said yet."""
    from .errors import UserError
    from .study_tables import write_tables

    try:
        written = write_tables([place])
    except (UserError, ValueError) as error:
        console.print(f"[yellow]no tables[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        return None
    show_study(written.table, written.verdicts)
    return written.paths[0].parent


@app.command("mlflow-sync")
def mlflow_sync(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of a training or evaluation.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="Where to send to, if not to where the run was meant to go.")
    ] = None,
) -> None:
    """Send what MLflow did not take while it was away; twice changes nothing."""
    from .tracking_journal import TrackingError, sync

    try:
        done = sync(output_dir, tracking_uri)
    except TrackingError as error:
        _stop(error)
    if not done:
        console.print(f"nothing to send in {escape(str(output_dir))}", highlight=False, soft_wrap=True)
    for run in done:
        state = f"run {run.run_id}, {run.status}" if run.run_id else "[yellow]left alone[/], its process still runs"
        console.print(f"{escape(run.name)}: {state}", highlight=False, soft_wrap=True)
        for reason in run.refused:
            console.print(f"[yellow]not sent[/] {escape(reason)}", highlight=False, soft_wrap=True)


@app.command()
def register(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of a tracked training that was evaluated.")],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    split: Annotated[str, typer.Option(help="Split whose evaluation judges the version.")] = "test",
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint; else the evaluated one.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; else the one the training used.")] = None,
    bundle_root: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bundles/fair_lung_ct"),
) -> None:
    """Register an evaluated checkpoint in MLflow; it becomes `champion` when its P is higher and its gap not worse."""
    from .errors import UserError
    from .mlflow_model import register_output

    try:
        registered = register_output(output_dir, name, bundle_root, split, checkpoint, tracking_uri)
    except UserError as error:
        _stop(error)
    outcome = "now the champion" if registered.decision.champion else "not the champion"
    text = f"{name} version {registered.version}: {outcome} ({registered.decision.reason})"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _stop(error: Exception) -> NoReturn:
    Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
