"""The report of an evaluation, and of a comparison: verdicts first, then every number with its interval."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import __version__
from .audit import NoAuditError
from .distributed import is_primary
from .document import (
    Document,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Table,
    figure_picture,
    require_html,
    verdicts_of,
    write_document,
)
from .evidence import Evidence, EvidenceError, evidence_of_table, read_evidence
from .evidence_figures import (
    cells_figure,
    differences_figure,
    estimates_figure,
    learning_curves_figure,
    number_name,
    reliability_figure,
    span_text,
    trade_off_figure,
)
from .figures import cohort_chart, confusion_figure
from .groups import MIN_CELL
from .labelled_predictions import load_predictions
from .names import TRAINING_SETTINGS
from .predictions import REPORT_FILES

logger = logging.getLogger(__name__)

LIBRARIES = ("numpy", "scipy", "scikit-learn", "statsmodels", "fairlearn")
OPTIMISTIC = "The val split chooses the checkpoint of a training, so the numbers on it are optimistic."
NONE = "\u2013"  # in a table, where there is no number


def write_report(evaluation_dir: str | Path, path: str | Path | None = None) -> Path | None:
    """Write the report of an evaluation: HTML, the same as Markdown beside it, and the Markdown's pictures.

    Args:
        evaluation_dir: see :func:`~.evidence.read_evidence`.
        path: of the HTML; by default ``report.html`` in ``evaluation_dir``.

    Returns:
        path of the HTML; None in processes other than the first, and, with a warning, where the scans allow no audit.

    Raises:
        EvidenceError: a file of the evaluation is missing or damaged.
        ValueError: ``path`` does not end in .html.
    """
    path = Path(evaluation_dir, "report.html") if path is None else Path(path)
    require_html(path)
    if not is_primary():
        return None
    try:
        document = evaluation_report(read_evidence(evaluation_dir))
    except NoAuditError as error:
        logger.warning("no report: %s", error)
        return None
    return write_document(document, path)


def report_evaluation(evaluation_dir: str | Path) -> Path | None:
    """:func:`write_report` at the end of an evaluation, which must not be lost by it: a failure is a warning.

    The report of an earlier evaluation in the folder is removed first.
    """
    if not is_primary():
        return None
    folder = Path(evaluation_dir)
    for pattern in REPORT_FILES:
        for old in folder.glob(pattern):
            old.unlink()
    try:
        return write_report(folder)
    except Exception as error:  # a library that is missing, a full disk, a damaged history
        logger.warning("no report: %s", error)
        (folder / "report.html").unlink(missing_ok=True)
        return None


def write_comparison_report(comparison: str | Path, path: str | Path) -> Path:
    """Write the report of a compare.json: HTML, the same as Markdown beside it, and the Markdown's pictures.

    Raises:
        EvidenceError: the file is missing or is no comparison.
    """
    try:
        result = json.loads(Path(comparison).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{comparison} cannot be read: {error}") from error
    if not isinstance(result, dict) or not {"systems", "comparisons", "verdicts"} <= set(result):
        raise EvidenceError(f"{comparison} is no comparison: fairlung compare writes one with -o")
    return write_document(comparison_report(result), path)


def report_of_table(
    table: Path,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    group_by: Sequence[str] | None = None,
) -> Document:
    """The report of a table of predictions: of its evaluation when it lies in one, else of the table alone.

    Args:
        table: a CSV, see :func:`~.labelled_predictions.load_predictions` for it and the other arguments; when one of
            these is given, the table is read alone.
    """
    named = class_names or group_names or group_by
    if not named and table.name == "predictions.csv" and table.with_name("metrics.json").is_file():
        return evaluation_report(read_evidence(table.parent))
    return evaluation_report(evidence_of_table(load_predictions(table, class_names, group_names, group_by), table.name))


# ---------------------------------------------------------------------------------------------------------------------
# an evaluation
# ---------------------------------------------------------------------------------------------------------------------
def evaluation_report(evidence: Evidence) -> Document:
    """The report of one evaluation; what it lacks is left out, and said so in the last section."""
    audit = evidence.audit
    confidence = percent(audit["settings"]["confidence"])
    optimistic = (Paragraph(OPTIMISTIC),) if evidence.split == "val" else ()
    sections = [
        Section("Verdicts", (verdicts_of(audit), *optimistic)),
        Section("Headline numbers", (_estimates_picture(audit, confidence), headline_table(audit))),
        Section("Classes and groups", _cell_blocks(audit, confidence)),
        Section("Confusion matrices", (_confusion_picture(evidence),)),
    ]
    left_out = []
    if any("reliability" in group for group in audit["groups"]):
        sections.append(Section("Calibration", _calibration_blocks(audit, confidence)))
    else:
        left_out.append("calibration and AUC (the predictions have no probabilities)")
    if evidence.history is not None and (curves := _curves_picture(evidence)) is not None:
        sections.append(Section("Learning curves", (curves,)))
    else:
        left_out.append("learning curves (no history.csv of the training)")
    if evidence.cells is not None:
        sections.append(Section("Cohort", (_cohort_pictures(evidence.cells),)))
    else:
        left_out.append("the cohort (no cells.csv in the evaluation)")
    if evidence.errors:
        sections.append(Section("Worst errors", _error_blocks(evidence)))
    elif evidence.errors is None:
        left_out.append("the worst errors (no gallery in the evaluation)")
    else:
        sections.append(Section("Worst errors", (Paragraph("No prediction was wrong."),)))
    sections.append(Section("Differences between groups by class", _difference_blocks(audit)))
    sections.append(Section("How the numbers were made", _method_blocks(audit, left_out)))
    what = evidence.source or (f"{evidence.split} split" if evidence.split else "an evaluation")
    return Document(
        f"Fairness report: {what}", evaluation_facts(evidence), tuple(sections), *synthetic_badge(evidence.synthetic)
    )


def evaluation_facts(evidence: Evidence) -> tuple[tuple[str, str], ...]:
    """What was judged: (name, value) pairs."""
    audit = evidence.audit
    facts = [("Predictions", evidence.source), ("Split", evidence.split), ("Checkpoint", evidence.checkpoint)]
    known = [name for name in TRAINING_SETTINGS if evidence.settings.get(name) is not None]
    facts += [("Training", ", ".join(f"{name} {evidence.settings[name]}" for name in known))]
    return (*((name, value) for name, value in facts if value), *_scan_facts(audit))


def _scan_facts(result: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    unknown = result["n_unknown"]
    scans = f"{result['n']:,}" + (f" (and {unknown:,} of unknown group, left out)" if unknown else "")
    groups = f"{', '.join(result['group_names'])} (by {', '.join(result['group_by'])})"
    return ("Scans", scans), ("Classes", ", ".join(result["class_names"])), ("Groups", groups)


def synthetic_badge(synthetic: bool | None) -> tuple[str, str]:
    """Badge and text of a report on phantoms; empty for other scans."""
    return ("SYNTHETIC", "The scans are phantoms: nothing here is about patients.") if synthetic else ("", "")


def percent(share: float) -> str:
    """A share in per cent: ``95 %``."""
    return f"{100 * share:g} %"


def headline_table(audit: Mapping[str, Any]) -> Table:
    """P, gap, F1 and accuracy with their intervals, beside what a fair model shows."""
    overall, fair = audit["overall"], audit["fair_model"]
    rows = [("P (mean over groups of the macro F1)", overall["score"], False)]
    if "gap" in overall:
        rows.append((f"gap in macro F1 ({' minus '.join(audit['group_names'])})", overall["gap"], True))
    rows.append(("|gap|" if "gap" in overall else "|gap| (largest between two groups)", overall["abs_gap"], False))
    for group in audit["groups"]:
        rows.append((f"macro F1, {group['group']} ({group['n']} scans)", group["f1"], False))
    rows.append(("macro F1, all groups pooled", overall["f1_macro"], False))
    rows += [(f"accuracy, {group['group']}", group["accuracy"], False) for group in audit["groups"]]
    texts = [(name, *_value_and_span(estimate, signed)) for name, estimate, signed in rows]
    texts += [
        (
            "|gap| of a perfectly fair model of this score",
            f"{fair['abs_gap_mean']:.3f}",
            f"up to {fair['abs_gap_p95']:.3f}",
        ),
        ("p of the permutation test of the gap", f"{audit['permutation']['p_value']:.3g}", NONE),
    ]
    columns = ("", "value", f"{percent(audit['settings']['confidence'])} interval")
    return Table("Headline numbers (the fair model: mean, and 95 % of its samples)", columns, tuple(texts))


def cells_table(audit: Mapping[str, Any]) -> Table:
    """Precision, recall and F1 of each class and group with their intervals, and the scans behind them."""
    rows = [
        (
            f"{cell['class']}, {cell['group']}",
            str(cell["n"]) + (" (no statement)" if cell["small"] else ""),
            *(span_text(cell[score]) for score in ("precision", "recall", "f1")),
        )
        for name in audit["class_names"]
        for cell in audit["cells"]
        if cell["class"] == name
    ]
    interval = f"{percent(audit['settings']['confidence'])} interval"
    return Table(
        f"Each class and group, value ({interval})", ("class, group", "scans", "precision", "recall", "F1"), tuple(rows)
    )


def calibration_table(audit: Mapping[str, Any]) -> Table | None:
    """AUC, Brier score and calibration error of each group; None without probabilities."""
    groups = [group for group in audit["groups"] if "ece" in group]
    rows = [
        (
            f"{group['group']} ({group['n']} scans)",
            span_text(group["auc"]) if group["auc"] else NONE,
            span_text(group["brier"]),
            span_text(group["ece"]),
            f"{group['ece_if_calibrated']['mean']:.3f}, up to {group['ece_if_calibrated']['p95']:.3f}",
            f"{group['mean_confidence']:.3f}, {group['accuracy']['value']:.3f}",
        )
        for group in groups
    ]
    columns = ("group", "AUC", "Brier score", "ECE", "ECE if calibrated", "confidence, accuracy")
    interval = f"{percent(audit['settings']['confidence'])} interval"
    return Table(f"Probabilities of each group, value ({interval})", columns, tuple(rows)) if rows else None


def _value_and_span(estimate: Mapping[str, float], signed: bool) -> tuple[str, str]:
    value, interval = span_text(estimate, signed).split(" ", 1)
    return value, interval.strip("()")


def _estimates_picture(audit: Mapping[str, Any], confidence: str) -> Picture:
    overall, fair = audit["overall"], audit["fair_model"]
    said = [f"P {span_text(overall['score'])}"]
    said += [f"F1 {group['group']} {span_text(group['f1'])}" for group in audit["groups"]]
    said += [f"gap {span_text(overall['gap'], signed=True)}"] if "gap" in overall else []
    said += [f"|gap| {span_text(overall['abs_gap'])}"]
    expected = f"a fair model shows |gap| {fair['abs_gap_mean']:.3f} on average, up to {fair['abs_gap_p95']:.3f}"
    alt = f"Intervals ({confidence}): {'; '.join(said)}. Beside it, {expected}."
    caption = (
        f"Points with their {confidence} intervals. Shaded: where 95 % of the samples of a perfectly fair model of "
        "this score fall on scans like these."
    )
    return figure_picture(estimates_figure(audit), "estimates", alt, caption)


def _min_cell(audit: Mapping[str, Any]) -> int:
    return audit["settings"].get("min_cell", MIN_CELL)  # audits of earlier versions had no other


def _cell_blocks(audit: Mapping[str, Any], confidence: str) -> tuple[Picture, Table]:
    said = [
        f"{cell['class']} {cell['group']} {span_text(cell['f1'])}, {cell['n']} scans"
        + (", no statement" if cell["small"] else "")
        for cell in audit["cells"]
    ]
    caption = (
        f"F1 of each class and group with its {confidence} interval. Hatched: fewer than {_min_cell(audit)} scans, of "
        "which nothing is said."
    )
    alt = f"Heat map of F1 by class and group: {'; '.join(said)}."
    return figure_picture(cells_figure(audit), "cells", alt, caption), cells_table(audit)


def _confusion_picture(evidence: Evidence) -> Picture:
    audit = evidence.audit
    classes, groups, counts = audit["class_names"], audit["group_names"], audit["confusion"]
    figure = confusion_figure(np.array(counts), classes, groups, synthetic=bool(evidence.synthetic))
    said = []
    for group, matrix in zip(groups, counts, strict=True):
        for name, row in zip(classes, matrix, strict=True):
            predicted = [f"{n} {prediction}" for n, prediction in zip(row, classes, strict=True) if n]
            said.append(f"{group}, true {name}: {', '.join(predicted) or 'no scan'}")
    alt = f"Confusion matrices by group, predictions of each true class. {'; '.join(said)}."
    caption = "Rows are the true class, columns the predicted one; the colour is the share of the row."
    return figure_picture(figure, "confusion", alt, caption, _readable_width(figure))


def _calibration_blocks(audit: Mapping[str, Any], confidence: str) -> tuple[Paragraph | Pictures | Table, ...]:
    pictures = []
    for index, group in enumerate(audit["groups"]):
        if "reliability" not in group:
            continue
        bins = [f"{b['confidence']:.2f}: {b['accuracy']:.2f} of {b['n']}" for b in group["reliability"]]
        alt = f"Reliability of {group['group']} scans, accuracy by mean confidence of the bin: {'; '.join(bins)}."
        pictures.append(figure_picture(reliability_figure(group, index), f"reliability_{index + 1}", alt))
    table = calibration_table(audit)
    assert table is not None
    text = (
        f"Accuracy of the predictions in ten bins of confidence, with {confidence} Wilson intervals; below, the scans "
        "of each bin. Points under the line are over-confident."
    )
    return Paragraph(text), Pictures(tuple(pictures)), table


def _curves_picture(evidence: Evidence) -> Picture | None:
    assert evidence.history is not None
    history, groups = evidence.history, evidence.audit["group_names"]
    try:
        figure = learning_curves_figure(history, groups, evidence.marked_epoch)
    except ValueError:  # a history of other numbers
        return None
    values = history.set_index(["metric", "epoch"])["value"]
    shown = [
        ("train_loss", "training loss"),
        ("val_score", "P"),
        *((f"val_f1_{name}", f"F1 {name}") for name in groups),
    ]
    shown += [("val_gap", "gap")]
    last = int(history["epoch"].max())
    said = []
    for metric, name in shown:
        for epoch in [e for e in (evidence.marked_epoch, last) if e is not None and (metric, e) in values.index]:
            said.append(f"{name} {values[metric, epoch]:.3f} at epoch {epoch}")
    marked = f" The dashed line is epoch {evidence.marked_epoch}, {evidence.marked_by}." if evidence.marked_by else ""
    alt = f"Learning curves of {history['epoch'].nunique()} epochs: {'; '.join(dict.fromkeys(said))}."
    caption = f"Training loss, and the scores on the validation split, by epoch.{marked}"
    return figure_picture(figure, "learning_curves", alt, caption)


def _cohort_pictures(cells: pd.DataFrame) -> Pictures:
    pictures: list[Picture] = []
    for split, rows in cells.groupby("split", sort=False):
        counts = rows.groupby(["label", "group"], sort=False)["n"].sum()
        said = [f"{label} {group} {n}" for (label, group), n in counts.items()]
        figure = cohort_chart(rows)
        alt = f"Scans of the {split} split by class and group: {'; '.join(said)}."
        pictures.append(figure_picture(figure, f"cohort_{len(pictures) + 1}", alt, min_width=_readable_width(figure)))
    return Pictures(tuple(pictures), column=470)


def _error_blocks(evidence: Evidence) -> tuple[Paragraph | Pictures, ...]:
    assert evidence.errors is not None
    cards = [
        Picture(
            f"error_{number:02d}",
            f"Slice of {error.scan}, and the same slice with the regions that spoke for {error.prediction}.",
            error.png,
            caption=f"{error.scan}: {error.label}, {error.group or 'unknown group'}; predicted {error.prediction} with "
            f"probability {error.confidence:.3f}",
        )
        for number, error in enumerate(evidence.errors, 1)
    ]
    text = (
        "Wrong predictions, the surest first, taken from the groups in turn. Left the middle slice, right the same "
        "with the regions that spoke for the predicted class (Grad-CAM)."
    )
    return Paragraph(text), Pictures(tuple(cards), column=280)


def differences_table(audit: Mapping[str, Any]) -> Table:
    """Equalized-odds and demographic-parity differences of each class, by fairlearn."""
    found = audit["differences"]
    rows = [
        (
            name,
            *(
                f"{found[key][name]:.3f}" if name in found[key] else NONE
                for key in ("equalized_odds", "demographic_parity")
            ),
        )
        for name in audit["class_names"]
    ]
    columns = ("class", "equalized odds", "demographic parity")
    return Table("Differences between groups, each class against the rest", columns, tuple(rows))


def _difference_blocks(audit: Mapping[str, Any]) -> tuple[Paragraph | Table, ...]:
    text = (
        "Largest difference between two groups, each class against the rest, by fairlearn: equalized odds (of the true "
        "and false positive rates) and demographic parity (of the share predicted). They have no interval here; parity "
        "also differs when a class is more frequent in one group."
    )
    return Paragraph(text), differences_table(audit)


def _method_blocks(audit: Mapping[str, Any], left_out: list[str]) -> tuple[Paragraph, ...]:
    settings = audit["settings"]
    how = {
        "smoothed": "with one scan a row of the confusion matrix added, spread evenly over the classes, so that a cell "
        "that was always right is not taken for certain",
        "percentile": "of the observed scans (percentile bootstrap; too narrow for small cells)",
    }[settings["method"]]
    by_fairlearn = max(abs(group["f1"]["value"] - group["f1"]["by_fairlearn"]) for group in audit["groups"])
    agree = "agree" if by_fairlearn < 1e-9 else f"differ by up to {by_fairlearn:.2g}"
    texts = [
        f"Intervals are {percent(settings['confidence'])} intervals. Precision, recall and accuracy: Wilson. F1, P and "
        f"the gap: {settings['resamples']:,} bootstrap resamples of the scans within each class and group, {how}. AUC, "
        f"Brier score and ECE: {max(100, settings['resamples'] // 5):,} plain resamples within each class and group. "
        "They speak of other scans like these, not of other seeds or sites.",
        f"The test of the gap shuffles the groups among the scans of each class {settings['permutations']:,} times. "
        "The perfectly fair model draws each group's predictions from those of all groups together, class by class. "
        f"Seed {settings['seed']}.",
        "Conventions are scikit-learn's with zero_division=0: a class never predicted has precision 0, a class without "
        "a scan in a group has F1 0 there, and both count in the macro mean. F1 of each group, computed a second time "
        f"by scikit-learn through fairlearn: the two {agree}. Of a cell of fewer than {_min_cell(audit)} scans "
        "nothing is said.",
        f"{_versions()}.",
    ]
    texts += [f"Left out: {'; '.join(left_out)}."] if left_out else []
    return tuple(map(Paragraph, texts))


def _versions() -> str:
    return ", ".join([f"fairlung {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)])


def _readable_width(figure: Any) -> int:
    """CSS pixels under which the text of a wide figure would be too small; 0 for a narrow one."""
    pixels = 96 * figure.get_figwidth()
    return 0 if pixels <= 500 else int(0.77 * pixels)


# ---------------------------------------------------------------------------------------------------------------------
# a comparison
# ---------------------------------------------------------------------------------------------------------------------
def comparison_report(result: Mapping[str, Any]) -> Document:
    """The report of a comparison.

    Args:
        result: of :func:`~.compare.compare`.
    """
    confidence = percent(result["settings"]["confidence"])
    names = [system["name"] for system in result["systems"]]
    sections = (
        Section("Verdicts", (verdicts_of(result),)),
        Section("Systems", (_trade_off_picture(result, confidence), _systems_table(result))),
        Section("Differences", _comparison_blocks(result, confidence)),
        Section("Tests", _test_blocks(result)),
        Section("How the numbers were made", _comparison_method(result, confidence)),
    )
    facts = (("Reference", result["reference"]), ("Systems", ", ".join(names)), *_scan_facts(result))
    title = f"Comparison: {' and '.join(names) if len(names) == 2 else f'{len(names)} systems'}"
    return Document(title, facts, sections, *synthetic_badge(result.get("synthetic")))


def _trade_off_picture(result: Mapping[str, Any], confidence: str) -> Picture:
    key = "gap" if "gap" in result["systems"][0]["values"] else "abs_gap"
    said = [
        f"{system['name']}{f' run {number}' if len(system['runs']) > 1 else ''}: P {span_text(run['score'])}, "
        f"{number_name(key, result['group_names'])} {span_text(run[key], signed=key == 'gap')}"
        for system in result["systems"]
        for number, run in enumerate(system["runs"], 1)
    ]
    caption = (
        f"A point a run, with its {confidence} intervals over scans as a cross. Higher is better; nearer to the line "
        "is fairer."
    )
    return figure_picture(trade_off_figure(result), "trade_off", f"P against the gap. {'; '.join(said)}.", caption)


def _systems_table(result: Mapping[str, Any]) -> Table:
    systems = result["systems"]
    rows = [("runs", *(str(len(system["runs"])) for system in systems))]
    for key in systems[0]["values"]:
        values = [f"{system['values'][key]:{'+' if key == 'gap' else ''}.3f}" for system in systems]
        spread = ["" if system["sd"] is None else f" (SD {system['sd'][key]:.3f})" for system in systems]
        rows.append((number_name(key, result["group_names"]), *map("".join, zip(values, spread, strict=True))))
    columns = ("", *(system["name"] for system in systems))
    return Table("Mean over the runs of each system (standard deviation over runs)", columns, tuple(rows))


def _comparison_blocks(result: Mapping[str, Any], confidence: str) -> tuple[Paragraph | Pictures | Table, ...]:
    groups: list[str] = result["group_names"]
    pictures: list[Picture] = []
    rows: list[tuple[str, ...]] = []
    for number, comparison in enumerate(result["comparisons"], 1):
        who = f"{comparison['system']} minus {comparison['reference']}"
        said = []
        for key, estimate in comparison["differences"].items():
            name, better = number_name(key, groups), comparison["probability_better"].get(key)
            said.append(f"{name} {span_text(estimate, signed=True)}")
            rows.append(
                (f"{name}, {who}", *_value_and_span(estimate, True), NONE if better is None else f"{better:.3f}")
            )
        figure = differences_figure(comparison, groups)
        pictures.append(figure_picture(figure, f"differences_{number}", f"Differences, {who}: {'; '.join(said)}."))
    text = f"Differences on the same scans, with {confidence} intervals."
    columns = ("difference", "value", f"{confidence} interval", "probability of being better")
    table = Table(
        "Differences (better: share of the bootstrap with the higher P, or the smaller |gap|)", columns, tuple(rows)
    )
    return Paragraph(text), Pictures(tuple(pictures), column=360), table


def _test_blocks(result: Mapping[str, Any]) -> tuple[Table, ...]:
    groups = result["group_names"]
    rows: list[tuple[str, ...]] = []
    given: list[tuple[str, ...]] = []
    for comparison in result["comparisons"]:
        who = f"{comparison['system']} against {comparison['reference']}"
        for key, test in comparison["tests"].items():
            p = (f"{test['p_value']:.3g}", f"{test['p_holm']:.3g}", f"{test['smallest_p']:.2g}")
            rows.append((f"{number_name(key, groups)}, {who}", test["unit"], *p))
        for key, test in (comparison["tests_of_these_runs"] or {}).items():
            estimate = span_text(comparison["differences_of_these_runs"][key], signed=True)
            name = f"{number_name(key, groups)}, {who}"
            given.append((name, estimate, f"{test['p_value']:.3g}", f"{test['p_holm']:.3g}"))
    columns = ("number, comparison", "permuted", "p", "p after Holm", "smallest possible p")
    tables = [Table(f"Permutation tests, adjusted by Holm over {len(rows)} tests", columns, tuple(rows))]
    if given:
        caption = "With these runs taken as given: chance in the scans only"
        tables.append(Table(caption, ("number, comparison", "difference", "p", "p after Holm"), tuple(given)))
    return tuple(tables)


def _comparison_method(result: Mapping[str, Any], confidence: str) -> tuple[Paragraph, ...]:
    settings = result["settings"]
    several = any(len(system["runs"]) > 1 for system in result["systems"])
    over = (
        "the same draw of scans for all runs, and the runs of each system drawn too"
        if several
        else "the same draw for all systems"
    )
    texts = [
        f"Intervals of differences are {confidence} percentile intervals of {settings['resamples']:,} bootstrap "
        f"resamples of the scans within each class and group, {over}. The intervals of single runs are those of their "
        "audits.",
        f"Tests are permutation tests ({settings['permutations']:,} permutations): with one run each the predictions "
        "of a scan are swapped between the systems, with several the runs are. Holm's adjustment is over all tests of "
        f"a table. Seed {settings['seed']}.",
        f"{_versions()}.",
    ]
    return tuple(map(Paragraph, texts))
