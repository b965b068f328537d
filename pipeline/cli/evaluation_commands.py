"""Commands that judge predictions, and plan how many to judge: results, audit, compare, plan, report, postprocess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from ..common import run_folder
from .console import say, show_audit, show_before_after, show_comparison, show_evaluation, show_plan, show_probe

if TYPE_CHECKING:
    from ..comparison.records import Comparison
    from ..evaluation.records import Audit
    from ..shortcuts.features import Features

GroupBy = Annotated[list[str] | None, Option(help="Group column, by default sex; repeat it for every combination.")]
GroupName = Annotated[list[str] | None, Option(help="Groups in order; repeat the option.")]
ClassName = Annotated[list[str] | None, Option(help="Classes in order; repeat the option.")]

PatientColumn = Annotated[str | None,
    Option(help="Column that says whose scan it is, by default patient if there is one.")]  # fmt: skip
Split = Annotated[str | None, Option(help="Split, where a source has several.")]
TrackingUri = Annotated[str | None, Option(help="MLflow store of the runs.")]
Resamples = Annotated[int, Option(help="Bootstrap draws, and permutations.")]


def results(folder: Annotated[Path, Argument(help="An output_dir, or one metrics.json.")]) -> None:
    """Show evaluations: F1 of each group, P, the gap, and F1 of each class and group with the scans behind it."""
    found = [folder] if folder.is_file() else sorted(folder.glob("*/evaluation/metrics.json"))
    found = found or sorted(folder.glob("val/metrics.json"))  # right after a training: its best epoch
    if not found:
        raise ValueError(f"{folder} holds no evaluation")
    for path in found:
        show_evaluation(json.loads(path.read_text()))


def show_results(metrics: str | Path) -> None:
    """What a training or evaluation shows at its end: the numbers of its metrics.json, and where its report lies."""
    from ..common.distributed import is_primary

    if is_primary():
        results(Path(metrics))
        report = Path(metrics).with_name(run_folder.REPORT)
        say(f"report: {report}" if report.is_file() else f"numbers: {metrics}")


def audit(
    source: Annotated[str,
        Argument(help="A table of predictions, the output_dir of an evaluation, or an MLflow run (runs:/ID).")],
    output: Annotated[Path | None, Option("-o", "--output", help="Also write the audit to this JSON file.")] = None,
    group_by: GroupBy = None, group_name: GroupName = None, class_name: ClassName = None,
    label_column: Annotated[str, Option(help="Column of the true class.")] = "label",
    prediction_column: Annotated[str, Option(help="Column of the predicted class.")] = "prediction",
    patient_column: PatientColumn = None,
    site_column: Annotated[str | None,
        Option(help="Column of sites: also give intervals in which sites, not scans, are what chance draws.")] = None,
    rename: Annotated[list[str] | None,
        Option(help="What a column's values stand for: COLUMN:VALUE=NAME,VALUE=NAME; repeat the option.")] = None,
    split: Split = None, tracking_uri: TrackingUri = None,
    confidence: Annotated[float, Option(help="Of the intervals.")] = 0.95,
    resamples: Resamples = 10_000,
    method: Annotated[str,
        Option(help="Bootstrap: smoothed, or percentile (the plain one, too narrow for small cells).")] = "smoothed",
    seed: Annotated[int, Option(help="Same seed, same audit.")] = 0,
    normal: Annotated[str | None,
        Option(help="Class of those without a disease, by default that called normal, healthy or no finding.")] = None,
    specificity: Annotated[float,
        Option(help="Of all scans together, at which the sensitivities of groups are compared.")] = 0.9,
    margin: Annotated[float | None,
        Option(help="Gap within which the groups count as served alike: test for equivalence.")] = None,
) -> None:  # fmt: skip
    """Say what the fairness numbers of any model's predictions can bear: verdicts, intervals, tests, calibration.

    The table has a row a scan: label, group columns, and prediction or one prob_CLASS column a class.
    """
    from ..evaluation.audit import audit as audit_of
    from ..evaluation.audit import known_duplicates
    from ..evaluation.predictions import load_predictions

    columns: dict[str, Any] = {"label_column": label_column, "prediction_column": prediction_column}
    columns |= {"rename": _renamed(rename), "patient_column": patient_column, "site_column": site_column}
    path = _one_table(source, split, tracking_uri)
    table = load_predictions(path, class_name, group_name, group_by, **columns)  # type: ignore[arg-type]
    beside: dict[str, Any] = {"normal": normal, "specificity": specificity, "margin": margin}
    beside["duplicates"] = known_duplicates(path)  # which only the features tell
    result = audit_of(table, resamples, resamples, confidence, method, seed, **beside)  # type: ignore[arg-type]
    _write(result, output)
    show_audit(result)


def plan(
    mix: Annotated[list[str],
        Option(help="Scans of a class in each group, CLASS:GROUP=NUMBER,GROUP=NUMBER; repeat it for every class. Only "
        "their proportions count.")],
    recall: Annotated[str, Option(help="Expected recall: one number, or CLASS=NUMBER,CLASS=NUMBER.")],
    gap: Annotated[float | None, Option(help="The gap that is to be found.")] = None,
    margin: Annotated[float | None, Option(help="The margin that a fair model's gap is to be shown within.")] = None,
    scans_per_patient: Annotated[float, Option(help="Scans of each patient.")] = 1,
    correlation: Annotated[float,
        Option(help="Of the scans of a patient being right: 1 if they are all answered alike.")] = 1,
    confidence: Annotated[float, Option(help="Of the interval of the gap; equivalence at 1 minus it.")] = 0.95,
    output: Annotated[Path | None,
        Option("-o", "--output", help="Also draw what more and fewer scans show, to this .png, .svg or .pdf.")] = None,
) -> None:  # fmt: skip
    """Say, before data are collected, how many scans and patients 80 % of studies of a gap between two groups need."""
    from ..evaluation import planning
    from ..reports.evidence_figures import plan_figure

    if gap is None and margin is None:
        raise ValueError("give --gap, --margin, or both")
    of_classes = planning.numbers_by_name(mix, "mix must be CLASS:GROUP=NUMBER,GROUP=NUMBER")
    by_class = "=" in recall
    found = planning.numbers_by_name(
        [recall if by_class else f"all={recall}"], "recall must be 0.8 or CLASS=0.8,CLASS=0.7"
    )
    recalls = found[""] if by_class else dict.fromkeys(of_classes, found[""]["all"])
    design = planning.Design(of_classes, recalls, scans_per_patient, correlation, confidence)
    plans = [design.plan("difference", gap)] if gap is not None else []
    plans += [design.plan("equivalence", margin)] if margin is not None else []
    for made in plans:
        show_plan(made, design)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        plan_figure(design, plans).savefig(output, dpi=150)
        _say_written(output)


def probe(
    source: Annotated[str, Argument(help="The output_dir of an evaluation that ran with --save_features True.")],
    target: Annotated[list[str] | None, Option(help="What to read from the network's features: a column of its "
        "predictions.csv, such as sex or site, or of --table; repeat the option.")] = None,
    table: Annotated[Path | None, Option(help="A CSV with a column scan and the target, such as a cohort.")] = None,
    age_bands: Annotated[list[int] | None, Option(help="Edge in years of the target age_band, which is made of the "
        "column age; repeat the option. By default those of the run.")] = None,
    duplicates: Annotated[str | None, Option(help="Also list scans that may be of one patient here and there: another "
        "split of this output_dir, or another evaluation of the same checkpoint. The audit and its report say it too.")
    ] = None,
    split: Split = None,
    permutations: Annotated[int, Option(help="Of the test.")] = 1000,
    confidence: Annotated[float, Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, Option(help="Same seed, same folds and permutations.")] = 0,
) -> None:  # fmt: skip
    """Say how well sex, site or another attribute can be read from what the network made of the scans."""
    from ..common.tables import read_frame
    from ..data.groups import AGE_BAND
    from ..evaluation.predictions import load_predictions
    from ..reports.features_report import probe_table
    from ..shortcuts import probe as probes
    from ..shortcuts.features import load_features

    if not target and duplicates is None:
        raise ValueError("give --target, --duplicates, or both")
    if age_bands and AGE_BAND not in (target or ()):
        raise ValueError(f"--age-bands is for --target {AGE_BAND}")
    path = _one_table(source, split, None)
    features = load_features(path.with_name(run_folder.FEATURES))
    judged, rows = load_predictions(path), read_frame(path)
    beside = None if table is None else read_frame(table)
    for name in target or []:
        values = probes.attribute(rows, name, beside, age_bands, probes.trained_age_bands(path.parent))
        found = probes.probe(features, judged, name, values, permutations, confidence, seed)
        written = probes.write_probe(path.parent, found)
        show_probe(found.verdict, probe_table(found))
        _say_written(written)
    if duplicates is not None:
        _say_written(_searched(path, features, duplicates))


def _searched(table: Path, features: Features, other: str) -> Path:
    """Search another split, or evaluation, for the patients of a table: say the pairs, and put them into its audit."""
    from ..evaluation.audit import add_duplicates
    from ..evaluation.audit_words import DUPLICATE_LIMITS, duplicate_text
    from ..shortcuts.duplicates import near_duplicates, write_duplicates
    from ..shortcuts.features import features_of_split, load_features

    output_dir = table.absolute().parents[2]
    if Path(other).exists() and not (output_dir / other).is_dir():
        others = load_features(_one_table(other, None, None).with_name(run_folder.FEATURES))
    else:
        others = features_of_split(output_dir, other, features.judged)
    found = near_duplicates(features, others, other)
    for pair in found.pairs:
        say(duplicate_text(pair), "same patient?")
    looks = "pair looks" if len(found.pairs) == 1 else "pairs look"
    say(f"{len(found.pairs)} {looks} like one patient's. {DUPLICATE_LIMITS}")
    add_duplicates(table.parent, found)
    return write_duplicates(table.parent, found)


def _renamed(options: list[str] | None) -> dict[str, dict[str, str]]:
    """``["sex:0=male,1=female"]`` as ``{"sex": {"0": "male", "1": "female"}}``."""
    found = {}
    for option in options or ():
        column, _, pairs = option.partition(":")
        names = dict(pair.partition("=")[::2] for pair in pairs.split(","))
        if not column or not all(names.values()):
            raise ValueError(f"rename must be COLUMN:VALUE=NAME,VALUE=NAME, got {option!r}")
        found[column] = names
    return found


def compare(
    sources: Annotated[list[str], Argument(metavar="[NAME=]SOURCE...",
        help="Systems, the reference first: a table of predictions, a quoted pattern of several (its runs), the "
        "output_dir of an evaluation, or an MLflow run (runs:/ID). Repeat a NAME to give it more runs.")],
    output: Annotated[Path | None,
        Option("-o", "--output", help="Also write the comparison to this JSON file.")] = None,
    group_by: GroupBy = None, group_name: GroupName = None, class_name: ClassName = None,
    patient_column: PatientColumn = None, split: Split = None, tracking_uri: TrackingUri = None,
    confidence: Annotated[float, Option(help="Of the intervals; tests are at the level 1 - this.")] = 0.95,
    resamples: Resamples = 10_000,
    seed: Annotated[int, Option(help="Same seed, same comparison.")] = 0,
) -> None:  # fmt: skip
    """Say whether a system is better than the first one on the same scans: verdicts, intervals, tests, power."""
    from ..comparison.compare import compare as compare_systems
    from ..evaluation.predictions import load_predictions
    from .sources import find_predictions, named_sources

    systems = {}
    for name, given in named_sources(sources).items():
        paths = [path for source in given for path in find_predictions(source, split, tracking_uri)]
        systems[name] = [
            load_predictions(path, class_name, group_name, group_by, patient_column=patient_column) for path in paths
        ]
    result = compare_systems(systems, resamples, resamples, confidence, seed)
    _write(result, output)
    show_comparison(result)


def report(
    source: Annotated[str | None,
        Argument(help="The output_dir of an evaluation, a table of predictions, or an MLflow run (runs:/ID).")] = None,
    comparison: Annotated[Path | None,
        Option("--compare", help="Report on the file of fairlung compare -o instead.")] = None,
    output: Annotated[Path | None, Option("-o", "--output",
        help="The HTML file; else report.html, of an output_dir beside its evaluation.")] = None,
    split: Split = None, group_by: GroupBy = None, group_name: GroupName = None, class_name: ClassName = None,
    tracking_uri: TrackingUri = None,
) -> None:  # fmt: skip
    """Write a report that stands alone, as HTML and as Markdown: verdicts, intervals, cells, calibration, errors."""
    from ..reports.comparison_report import write_comparison_report
    from ..reports.document import write_document
    from ..reports.evaluation_report import report_of_table

    if comparison is not None and source is None:
        path = write_comparison_report(comparison, output or Path(run_folder.REPORT))
    elif source is not None and comparison is None:
        table = _one_table(source, split, tracking_uri)
        beside = table.with_name(run_folder.REPORT) if Path(source).is_dir() else Path(run_folder.REPORT)
        path = write_document(report_of_table(table, class_name, group_name, group_by), output or beside)
    else:
        raise ValueError("give a SOURCE, or --compare with a file")
    say(f"wrote {path}, {path.with_suffix('.md').name}")


def model_card(
    output_dir: Annotated[Path, Argument(help="The output_dir of an evaluation.")],
    split: Annotated[str | None, Option(help="Split, where several were evaluated.")] = None,
    output: Annotated[Path, Option("-o", "--output", help="The Markdown file to write.")] = Path("MODEL_CARD.md"),
    bundle_readme: Annotated[Path | None,
        Option(help="Also put the performance between the marks in this README, and into its bundle's metadata.json.")
    ] = None,
) -> None:  # fmt: skip
    """Write the model card of an evaluated checkpoint, and fill in the performance section of its bundle's README."""
    from ..reports.model_card import update_performance, write_model_card

    evaluation_dir = _one_table(str(output_dir), split, None).parent
    write_model_card(evaluation_dir, output)
    if bundle_readme is not None:
        update_performance(bundle_readme, evaluation_dir)
    _say_written(output, bundle_readme)


def postprocess(
    method: Annotated[Literal["temperature", "offsets", "prior"], Argument(help="What to do to the probabilities.")],
    judged: Annotated[Path, Option("--apply", help="Table of labelled predictions to post-process and judge.")],
    output: Annotated[Path, Option("-o", "--output", help="The table to write.")],
    fit_on: Annotated[Path | None,
        Option("--fit", help="Table of predictions to fit on, of other scans: the validation split.")] = None,
    load: Annotated[Path | None, Option(help="A saved fit to apply instead.")] = None,
    save: Annotated[Path | None, Option(help="Also save the fit to this JSON file.")] = None,
    objective: Annotated[Literal["score", "gap"] | None,
        Option(help="offsets: largest P (score, the default), or smallest gap.")] = None,
    max_loss: Annotated[float | None,
        Option(help="offsets for the gap: how much P may fall on the fitted scans, by default 0.01.")] = None,
    target: Annotated[list[str] | None,
        Option(help="prior: CLASS=FREQUENCY or CLASS=COUNT of the target population, for each class; or labels (the "
            "default) or em, to count the labels of --fit or to estimate from its probabilities alone.")] = None,
    source: Annotated[list[str] | None,
        Option(help="prior: CLASS=FREQUENCY under which the model answers, for each class, or even; by default what "
            "the checkpoint says whose evaluation the table is of.")] = None,
    group_by: GroupBy = None,
    confidence: Annotated[float, Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, Option(help="Bootstrap draws.")] = 2000,
    seed: Annotated[int, Option(help="Same seed, same intervals.")] = 0,
) -> None:  # fmt: skip
    """Post-process probabilities, fitted on other scans than those judged; always shows what it costs."""
    from ..postprocessing import before_after, fit, prevalence, prior, tables
    from ..postprocessing.fitted import load_fitted

    outputs = list(filter(None, (output, save)))
    given: dict[str, Any] = {"objective": objective, "max_loss": max_loss}
    given["target"] = None if target is None else prior.read_target(target)
    if source is not None and source != ["even"]:  # which None is to the fit
        given["source"] = prior.read_frequencies(source, "source")
    elif source is None and method == "prior" and load is None:
        given["source"] = prevalence.answered_under(judged)
    settings = {name: value for name, value in given.items() if value is not None}
    tables.refuse_overwriting(filter(None, (judged, fit_on, load)), outputs)
    if load is not None:
        if fit_on is not None or settings:
            raise ValueError("--load takes a fit as it was saved: leave out --fit and the settings of the method")
        fitted = load_fitted(load)
        if fitted.method != method:
            raise ValueError(f"{load} holds a fit of {fitted.method}, not of {method}")
    else:
        if fit_on is None and not isinstance(settings.get("target"), dict):
            raise ValueError("give --fit with a table, --load with a saved fit, or for prior --target by name")
        unlabelled = settings.get("target") == "em"
        table = None
        if fit_on is not None:
            table = tables.load_unlabelled(fit_on) if unlabelled else tables.load_table(fit_on, group_by)
        fitted = fit.fit(method, table, **settings)
    before = tables.load_table(judged, group_by)
    after = fit.apply(fitted, before)
    if fit_on is not None:
        tables.refuse_shared_patients(fit_on, judged)
    result = before_after.before_after(before, after, resamples, confidence, seed)
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(output, judged, after, fitted.method)
    if save is not None:
        fitted.save(save)
    say(fit.describe(fitted))
    show_before_after(result)
    _say_written(*outputs)


def _write(result: Audit | Comparison, output: Path | None) -> None:
    from ..evaluation.records import json_text

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json_text(result))


def _say_written(*paths: Path | None) -> None:
    for path in filter(None, paths):
        say(f"wrote {path}")


def _one_table(source: str, split: str | None, tracking_uri: str | None) -> Path:
    from .sources import find_predictions

    paths = find_predictions(source, split, tracking_uri)
    if len(paths) > 1:
        raise ValueError(f"{source} is {len(paths)} tables; this takes one (fairlung compare takes several)")
    return paths[0]
