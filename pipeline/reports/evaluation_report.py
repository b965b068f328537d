"""The report of an evaluation, and of a comparison: verdicts first, then every number with its interval."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..common import run_folder
from ..common.distributed import is_primary
from ..common.names import TRAINING_SETTINGS
from ..common.run_folder import REPORT_FILES
from ..evaluation.audit import NoAuditError
from ..evaluation.audit_words import few_groups, p_text, tipping_records
from ..evaluation.predictions import load_predictions
from ..evaluation.records import Audit, ByGroup, Clinical
from ..evaluation.resampling import Estimate, Interval
from ..evaluation.wording import ABOUT_NUMBERS, NO_NORMAL_CLASS, number_name, percent, span, span_text, value_text
from . import document
from .document import Block, Document, Paragraph, Picture, Pictures, Section, Table, figure_picture
from .evidence import Evidence, evidence_of_table, read_evidence
from .evidence_figures import cells_figure, estimates_figure, learning_curves_figure, reliability_figure
from .features_report import duplicate_blocks, probe_blocks
from .figures import cohort_chart, confusion_figure
from .parts import NONE, OPTIMISTIC, library_versions, readable_width, scan_facts, synthetic_badge, value_and_span

logger = logging.getLogger(__name__)

Names = Sequence[str] | None
FURTHEST = "The difference is that of the two groups furthest apart, with an interval that allows for the choice."


def write_report(evaluation_dir: str | Path, path: str | Path | None = None) -> Path | None:
    """Write the report of an evaluation (:func:`~.read_evidence`) as HTML, by default report.html, and as Markdown.

    Returns the path of the HTML; None in processes other than the first, and, with a warning, without an audit. Raises
    EvidenceError for a file that is missing or damaged, and ValueError for a ``path`` that does not end in .html.
    """
    path = Path(evaluation_dir, run_folder.REPORT) if path is None else Path(path)
    document.require_html(path)
    if not is_primary():
        return None
    try:
        report = evaluation_report(read_evidence(evaluation_dir))
    except NoAuditError as error:
        logger.warning("no report: %s", error)
        return None
    return document.write_document(report, path)


def report_evaluation(evaluation_dir: str | Path, wanted: bool = True) -> Path | None:
    """:func:`write_report`, if ``wanted``, after an evaluation: an earlier report goes, a failure is a warning."""
    if not is_primary():
        return None
    folder = Path(evaluation_dir)
    for old in [old for pattern in REPORT_FILES for old in folder.glob(pattern)]:
        old.unlink()
    if not wanted:
        return None
    try:
        return write_report(folder)
    except Exception as error:  # a library that is missing, a full disk, a damaged history
        logger.warning("no report: %s", error)
        (folder / run_folder.REPORT).unlink(missing_ok=True)
        return None


def report_of_table(
    table: Path, class_names: Names = None, group_names: Names = None, group_by: Names = None
) -> Document:
    """The report of a table of predictions: of its evaluation when it lies in one, else of the table alone.

    The arguments are those of :func:`~.load_predictions`; with one of the names given the table is read alone.
    """
    named = class_names or group_names or group_by
    if not named and table.name == run_folder.PREDICTIONS and table.with_name(run_folder.METRICS).is_file():
        return evaluation_report(read_evidence(table.parent))
    return evaluation_report(evidence_of_table(load_predictions(table, class_names, group_names, group_by), table.name))


def evaluation_report(evidence: Evidence) -> Document:
    """The report of one evaluation; what it lacks is left out, and said so in the last section."""
    audit, confidence = evidence.audit, percent(evidence.audit.settings.confidence)
    optimistic = (Paragraph(OPTIMISTIC),) if evidence.split == "val" else ()
    sections: list[Section] = []
    left_out: list[str] = []

    def add(title: str, blocks: Sequence[Block], otherwise: str = "") -> None:
        if blocks:
            sections.append(Section(title, tuple(blocks)))
        else:
            left_out.append(otherwise)

    add("Verdicts", (document.Verdicts(audit.verdicts), *optimistic))
    add("Headline numbers", (Paragraph(ABOUT_NUMBERS), _estimates_picture(audit, confidence), headline_table(audit)))
    add("Classes and groups", _cell_blocks(audit, confidence))
    incomparable = _incomparable(audit)
    wrong = f"what wrong records would change ({incomparable or _not_changed(audit)})"
    add("If records are wrong", _tipping_blocks(audit, confidence), wrong)
    if incomparable:
        left_out.append(f"equivalence, and the gap with the classes of every group in one mix ({incomparable})")
    add("Confusion matrices", (_confusion_picture(evidence),))
    none = "calibration and AUC (the predictions have no probabilities)"
    add("Calibration", _calibration_blocks(audit, confidence), none)
    add("Learning curves", _curves_blocks(evidence), "learning curves (no history.csv of the training)")
    add("Cohort", _cohort_blocks(evidence), "the cohort (no cells.csv in the evaluation)")
    why = evidence.errors_problem or "no gallery in the evaluation"
    add("Worst errors", _error_blocks(evidence), f"the worst errors ({why})")
    add("Differences between groups by class", _difference_blocks(audit))
    clinical = audit.clinical
    if clinical is not None:
        further = FURTHEST if len(audit.group_names) > 2 else ""
        none = f"underdiagnosis and overdiagnosis ({NO_NORMAL_CLASS})"
        add("Missed and false diagnoses", _diagnosis_blocks(clinical, confidence, further), none)
        none = "sensitivity at one threshold (no probabilities, or too few scans of each kind)"
        add("Sensitivity at one threshold", _operating_blocks(clinical, confidence, further), none)
        add("AUPRC and ES-AUC", _curve_blocks(audit, clinical, confidence), "AUPRC and ES-AUC (likewise)")
    # asked for by name: nothing is left out without these two
    if audit.duplicates and audit.duplicates.pairs:
        add("Scans that may be of one patient", duplicate_blocks(audit.duplicates))
    if evidence.probes:
        add("What can be read from the features", probe_blocks(evidence.probes))
    add("How the numbers were made", _method_blocks(audit, left_out))
    title = f"Fairness report: {evidence.source or (f'{evidence.split} split' if evidence.split else 'an evaluation')}"
    return Document(title, evaluation_facts(evidence), tuple(sections), *synthetic_badge(evidence.synthetic))


def evaluation_facts(evidence: Evidence) -> tuple[tuple[str, str], ...]:
    """What was judged: (name, value) pairs."""
    facts = [("Predictions", evidence.source), ("Split", evidence.split), ("Checkpoint", evidence.checkpoint)]
    known = [name for name in TRAINING_SETTINGS if evidence.settings.get(name) is not None]
    facts += [("Training", ", ".join(f"{name} {evidence.settings[name]}" for name in known))]
    facts += [("Run", evidence.run), ("Commit", evidence.commit), ("Judged on", evidence.judged_on)]
    return (*(fact for fact in facts if fact[1]), *scan_facts(evidence.audit))


def headline_table(audit: Audit) -> Table:
    """P, gap, F1 and accuracy with their intervals, beside what a fair model shows."""
    overall, fair, size = audit.overall, audit.fair_model, number_name("abs_gap")
    rows: list[tuple[str, Interval]] = [(f"{number_name('score')} (mean over groups of the macro F1)", overall.score)]
    if overall.gap is not None:
        rows.append((number_name("gap", audit.group_names), overall.gap))
    rows.append((size if overall.gap is not None else f"{size} (largest between two groups)", overall.abs_gap))
    rows += [(f"{number_name(f'f1_{group.group}')} ({_scans(audit, group.n)})", group.f1) for group in audit.groups]
    rows.append((number_name("f1_macro"), overall.f1_macro))
    rows += [(number_name(f"accuracy_{group.group}"), group.accuracy) for group in audit.groups]
    if same := audit.standardised:
        name = f"{number_name('gap' if same.gap else 'abs_gap', audit.group_names)} in one mix of classes"
        rows.append((f"{name} ({p_text(same.p_value)})", same.gap or same.abs_gap))
    if lowest := audit.lowest:
        rows.append(("lowest F1 of a class and group, whichever it is", lowest.cell_f1))
        rows.append(("lowest F1 of a group, whichever it is", lowest.group_f1))
    signed = (overall.gap, same.gap if same else None)
    texts = [(name, *value_and_span(one, any(one is gap for gap in signed))) for name, one in rows]
    if alike := audit.equivalence:
        inner = span(alike.gap, signed=True) if alike.gap else NONE
        name = f"smallest margin of equivalence ({percent(alike.confidence)} interval of the gap)"
        texts.append((name, value_text(alike.smallest_margin), inner))
    p = audit.permutation.p_value
    if p is not None:  # else nobody could change the group, as in a fair model
        expected = value_text(fair.abs_gap_mean), f"up to {value_text(fair.abs_gap_p95)}"
        texts.append((f"{size} of a perfectly fair model of this score", *expected))
    texts.append(("p of the permutation test of the gap", NONE if p is None else f"{p:.3g}", NONE))
    share = percent(audit.settings.confidence)
    columns = ("", "value", f"{share} interval")
    return Table(f"Headline numbers (the fair model: mean, and {share} of its samples)", columns, tuple(texts))


def cells_table(audit: Audit) -> Table:
    """Precision, recall and F1 of each class and group with their intervals, and the scans behind them."""
    rows = []
    for cell in sorted(audit.cells, key=lambda cell: audit.class_names.index(cell.class_name)):
        scans = f"{cell.n} (no statement)" if cell.small else str(cell.n)
        values = map(span_text, (cell.precision, cell.recall, cell.f1))
        pooled = span_text(cell.recall_pooled) if cell.recall_pooled else NONE
        rows.append((f"{cell.class_name}, {cell.group}", scans, *values, pooled))
    columns = ("class, group", "scans", *map(number_name, ("precision", "recall", "f1")), "recall, partly pooled")
    return Table(f"Each class and group, value ({percent(audit.settings.confidence)} interval)", columns, tuple(rows))


def _scans(audit: Audit, n: int) -> str:
    """The scans of a group in a table, marked where they are too few for a statement."""
    return f"{n} scans{', no statement' * (n < audit.settings.min_cell)}"


def calibration_table(audit: Audit) -> Table | None:
    """AUC, Brier score and calibration error of each group; None without probabilities."""
    rows = []
    for group in audit.groups:
        if found := group.calibration:
            name, auc = f"{group.group} ({_scans(audit, group.n)})", span_text(found.auc) if found.auc else NONE
            chance = f"{found.ece_if_calibrated.mean:.3f}, up to {found.ece_if_calibrated.p95:.3f}"
            sure = f"{found.mean_confidence:.3f}, {group.accuracy.value:.3f}"
            rows.append((name, auc, span_text(found.brier), span_text(found.ece), chance, sure))
    columns = ("group", *map(number_name, ("auc", "brier", "ece")), "ECE if calibrated", "confidence, accuracy")
    interval = f"{percent(audit.settings.confidence)} interval"
    return Table(f"Probabilities of each group, value ({interval})", columns, tuple(rows)) if rows else None


def _estimates_picture(audit: Audit, confidence: str) -> Picture:
    overall, fair = audit.overall, audit.fair_model
    said = [f"P {span_text(overall.score)}"]
    said += [f"{number_name(f'f1_{group.group}')} {span_text(group.f1)}" for group in audit.groups]
    said += [f"gap {span_text(overall.gap, signed=True)}"] if overall.gap is not None else []
    said += [f"|gap| {span_text(overall.abs_gap)}"]
    expected = f"a fair model shows |gap| {fair.abs_gap_mean:.3f} on average, up to {fair.abs_gap_p95:.3f}"
    alt, caption = f"Intervals ({confidence}): {'; '.join(said)}.", f"Points with their {confidence} intervals."
    if audit.permutation.p_value is not None:
        alt += f" Beside it, {expected}."
        caption += f" Shaded: where {confidence} of the samples of a perfectly fair model of this score fall on scans "
        caption += "like these."
    return figure_picture(estimates_figure(audit), "estimates", alt, caption)


def _cell_blocks(audit: Audit, confidence: str) -> tuple[Block, ...]:
    said = [
        f"{cell.class_name} {cell.group} {span_text(cell.f1)}, {cell.n} scans{', no statement' * cell.small}"
        for cell in audit.cells
    ]
    caption = f"F1 of each class and group with its {confidence} interval. Hatched: fewer than "
    caption += f"{audit.settings.min_cell} scans, of which nothing is said."
    alt = f"Heat map of F1 by class and group: {'; '.join(said)}."
    text = "Recall, partly pooled, is an estimate that leans on the same class in the other groups, the more the fewer "
    text += "the scans and the more alike the groups are in all classes. It hides a cell that is truly odd."
    return figure_picture(cells_figure(audit), "cells", alt, caption), cells_table(audit), Paragraph(text)


def _incomparable(audit: Audit) -> str:
    """Why nothing more is said of the gap over all classes; "" where it is."""
    if few_groups(audit):
        return "a group has too few scans"
    filled = {name: {cell.n > 0 for cell in audit.cells if cell.class_name == name} for name in audit.class_names}
    return "a group lacks a class that another has" if {True, False} in filled.values() else ""


def _not_changed(audit: Audit) -> str:
    """Why no record was changed where the groups can be compared."""
    if len(audit.group_names) > 2:
        return f"asked of two groups, and there are {len(audit.group_names)}"
    return "no patient could change the group" if audit.permutation.p_value is None else "an audit of 0.1"


def _tipping_blocks(audit: Audit, confidence: str) -> tuple[Block, ...]:
    """What becomes of the gap when groups or labels are changed."""
    found = audit.tipping_point
    if found is None:
        return ()
    rows = []
    for row in found.rows:
        name = f"{percent(row.share)} of the {row.what}s ({row.n})"
        rows.append((name, span_text(row.gap, signed=True), f"{row.p_value:.3g}", "yes" if row.finding else "no"))
    unit = "patients" if audit.patients else "scans"
    text = (
        f"Groups of {unit}, or labels of scans, were changed at random; the numbers are means over such tables. Errors "
    )
    text += "of this kind that are in the records already have made the gap smaller, and this does not undo them."
    chosen = tipping_records(found, bool(audit.patients))
    text += f" Chosen for it, {chosen} would turn the verdict; fewer may." if chosen else ""
    columns = ("changed", f"{number_name('gap', audit.group_names)} ({confidence} interval)", "p", "finding")
    return Paragraph(text), Table("The gap if records are wrong", columns, tuple(rows))


def _confusion_picture(evidence: Evidence) -> Picture:
    audit = evidence.audit
    classes, groups, counts = audit.class_names, audit.group_names, audit.confusion
    figure = confusion_figure(np.array(counts), classes, groups, synthetic=bool(evidence.synthetic))
    said = []
    for group, matrix in zip(groups, counts, strict=True):
        for name, row in zip(classes, matrix, strict=True):
            predicted = [f"{n} {prediction}" for n, prediction in zip(row, classes, strict=True) if n]
            said.append(f"{group}, true {name}: {', '.join(predicted) or 'no scan'}")
    alt = f"Confusion matrices by group, predictions of each true class. {'; '.join(said)}."
    caption = "Rows are the true class, columns the predicted one; the colour is the share of the row."
    return figure_picture(figure, "confusion", alt, caption, readable_width(figure))


def _calibration_blocks(audit: Audit, confidence: str) -> tuple[Block, ...]:
    table, pictures = calibration_table(audit), []
    if table is None:
        return ()
    for index, group in enumerate(audit.groups):
        if group.calibration is None:
            continue
        bins = [f"{b.confidence:.2f}: {b.accuracy:.2f} of {b.n}" for b in group.calibration.reliability]
        alt = f"Reliability of {group.group} scans, accuracy by mean confidence of the bin: {'; '.join(bins)}."
        pictures.append(figure_picture(reliability_figure(group, index), f"reliability_{index + 1}", alt))
    text = f"Accuracy of the predictions in ten bins of confidence, with {confidence} Wilson intervals; below, the "
    text += "scans of each bin. Points under the line are over-confident."
    return Paragraph(text), Pictures(tuple(pictures)), table


def _curves_blocks(evidence: Evidence) -> tuple[Block, ...]:
    history, groups = evidence.history, evidence.audit.group_names
    if history is None:
        return ()
    try:
        figure = learning_curves_figure(history, groups, evidence.marked_epoch)
    except ValueError:  # the history holds other numbers
        return ()
    values = history.set_index(["metric", "epoch"])["value"]
    keys = ("score", *(f"f1_{name}" for name in groups), "gap")
    shown = [("train_loss", "training loss"), *((f"val_{key}", number_name(key)) for key in keys)]
    last = int(history["epoch"].max())
    said = [
        f"{name} {values[metric, epoch]:.3f} at epoch {epoch}"
        for metric, name in shown
        for epoch in (evidence.marked_epoch, last)
        if epoch is not None and (metric, epoch) in values.index
    ]
    marked = f" The dashed line is epoch {evidence.marked_epoch}, {evidence.marked_by}." if evidence.marked_by else ""
    alt = f"Learning curves of {history['epoch'].nunique()} epochs: {'; '.join(dict.fromkeys(said))}."
    caption = f"Training loss, and the scores on the validation split, by epoch.{marked}"
    return (figure_picture(figure, "learning_curves", alt, caption),)


def _cohort_blocks(evidence: Evidence) -> tuple[Block, ...]:
    if evidence.cells is None:
        return ()
    pictures: list[Picture] = []
    for split, rows in evidence.cells.groupby("split", sort=False):
        counts = rows.groupby(["label", "group"], sort=False)["n"].sum()
        figure, said = cohort_chart(rows), [f"{label} {group} {n}" for (label, group), n in counts.items()]
        alt = f"Scans of the {split} split by class and group: {'; '.join(said)}."
        pictures.append(figure_picture(figure, f"cohort_{len(pictures) + 1}", alt, min_width=readable_width(figure)))
    return (Pictures(tuple(pictures), column=470),)


def _error_blocks(evidence: Evidence) -> tuple[Block, ...]:
    if not evidence.errors:
        return () if evidence.errors is None else (Paragraph("No prediction was wrong."),)
    cards = []
    for number, error in enumerate(evidence.errors, 1):
        alt = f"Slice of {error.scan}, and the same slice with the regions that spoke for {error.prediction}."
        caption = f"{error.scan}: {error.label}, {error.group or 'unknown group'}; predicted {error.prediction} with "
        caption += f"probability {error.confidence:.3f}"
        cards.append(Picture(f"error_{number:02d}", alt, error.png, caption=caption))
    text = "Wrong predictions, the surest first, taken from the groups in turn. Left the middle slice, right the same "
    text += "with the regions that spoke for the predicted class (Grad-CAM)."
    return Paragraph(text), Pictures(tuple(cards), column=280)


def differences_table(audit: Audit) -> Table:
    """Equalized-odds and demographic-parity differences of each class, by fairlearn, with intervals where known."""
    found = audit.differences
    kinds = (
        (found.equalized_odds, found.equalized_odds_intervals),
        (found.demographic_parity, found.demographic_parity_intervals),
    )

    def shown(name: str, points: Mapping[str, float], intervals: Mapping[str, Estimate]) -> str:
        if name not in points:
            return NONE
        return span_text(intervals[name]) if name in intervals else value_text(points[name])

    rows = [(name, *(shown(name, *kind) for kind in kinds)) for name in audit.class_names]
    columns = ("class", "equalized odds", "demographic parity")
    return Table("Differences between groups, each class against the rest", columns, tuple(rows))


def _difference_blocks(audit: Audit) -> tuple[Paragraph | Table, ...]:
    text = "Largest difference between two groups, each class against the rest, by fairlearn: equalized odds (of the "
    text += "true and false positive rates) and demographic parity (of the share predicted). The largest of several "
    text += "is more than 0 by chance alone, which the intervals allow for. Parity also differs when a class is more "
    text += "frequent in one group."
    return Paragraph(text), differences_table(audit)


def _by_group_rows(name: str, number: ByGroup) -> list[tuple[str, str, str, str]]:
    """Rows of a number of each group, and of its difference between two."""
    rows = []
    for one in number.groups:
        found = (NONE, NONE) if one.value is None else value_and_span(one.value, False)
        rows.append((f"{name}, {one.group}", f"{one.n}{' (no statement)' * one.small}", *found))
    if pair := number.difference:
        rows.append((f"{name}, {pair.first} minus {pair.second}", NONE, *value_and_span(pair.difference, True)))
    return rows


def _diagnosis_blocks(clinical: Clinical, confidence: str, further: str) -> tuple[Block, ...]:
    found = clinical.diagnosis
    if found is None:
        return ()
    rows = _by_group_rows(number_name("underdiagnosis"), found.underdiagnosis)
    rows += _by_group_rows(number_name("overdiagnosis"), found.overdiagnosis)
    text = (
        f"Underdiagnosis is the share of the scans of other classes that were called {found.normal}, overdiagnosis the "
        f"share of {found.normal} scans that were called another class (Seyyed-Kalantari et al. 2021). Intervals are "
        "Wilson's, and Newcombe's for a difference. "
    )
    return Paragraph(text + further), Table("Missed and false diagnoses", _columns(confidence), tuple(rows))


def _operating_blocks(clinical: Clinical, confidence: str, further: str) -> tuple[Block, ...]:
    tables = []
    for point in clinical.operating_points:
        found = clinical.diagnosis
        target = point.target or (f"not {found.normal}" if found else NONE)
        rows = _by_group_rows(number_name("sensitivity"), point.sensitivities)
        rows += _by_group_rows(number_name("specificity"), point.specificities)
        caption = (
            f"{target}: a probability above {point.threshold:.3f}, where all scans together have a specificity of "
        )
        tables.append(Table(f"{caption}{value_text(point.reached)}", _columns(confidence), tuple(rows)))
    if not tables:
        return ()
    asked = clinical.operating_points[0].specificity
    text = (
        f"The threshold is chosen on all scans together, the lowest with a specificity of at least {asked:g}; each "
        "group is then judged at that one threshold. Every draw (a Bayesian bootstrap) chooses it anew, so that the "
        "intervals are about the threshold that does so among all scans like these, not about the number given here. "
        f"{further}"
    )
    return Paragraph(text), *tables


def _columns(confidence: str) -> tuple[str, ...]:
    return "", "scans", "value", f"{confidence} interval"


def _curve_blocks(audit: Audit, clinical: Clinical, confidence: str) -> tuple[Block, ...]:
    rows = tuple(
        (f"{one.class_name}, {one.group}", str(one.n), span_text(one.average_precision), f"{one.prevalence:.3f}",
         span_text(one.auc))
        for one in sorted(clinical.retrieval, key=lambda one: audit.class_names.index(one.class_name))
    )  # fmt: skip
    blocks: list[Block] = []
    if rows:
        text = (
            "The AUPRC (average precision) of a class against the rest is its prevalence for a model that knows "
            "nothing, so that groups with other prevalences cannot be compared by it: no verdict is drawn from the "
            "difference. Its interval is Wilson's of the positive scans, with the variance scaled by the bootstrap's. "
            f"Of classes and groups with {audit.settings.min_cell} scans, and as many others."
        )
        curves = tuple(map(number_name, ("average_precision", "auc")))
        columns = ("class, group", "scans", curves[0], "prevalence", curves[1])
        blocks += [Paragraph(text), Table(f"Each class against the rest, value ({confidence} interval)", columns, rows)]
    if scaled := clinical.equity_scaled_auc:
        text = (
            f"{number_name('equity_scaled_auc')}, the AUC scaled by equity as Luo et al. publish it (FairVision, "
            f"2023), is {value_text(scaled.value)}: the AUC of all scans, {value_text(scaled.auc)}, by 1 + the sum "
            "over groups of how far theirs lie from it. It is given for comparison with papers. Chance in the groups' "
            "AUCs lowers it on few scans whatever the model, so it has no interval, and no verdict is drawn from it."
        )
        blocks.append(Paragraph(text))
    return tuple(blocks)


def _method_blocks(audit: Audit, left_out: list[str]) -> tuple[Paragraph, ...]:
    settings = audit.settings
    how = {
        "smoothed": "with one scan a row of the confusion matrix added, spread evenly over the classes, so that a cell "
        "that was always right is not taken for certain",
        "percentile": "of the observed scans (percentile bootstrap; too narrow for small cells)",
    }[settings.method]
    unit, several = "scans", ""
    if audit.patients:
        unit = "patients"
        several = (
            " A patient's scans stay together in all of this; Wilson's intervals take them for as many scans fewer as "
        )
        several += "their correlation says. Only the bins of the reliability curves take each for another patient's."
    by_fairlearn = max(abs(group.f1.value - group.f1.by_fairlearn) for group in audit.groups)
    agree = "agree" if by_fairlearn < 1e-9 else f"differ by up to {by_fairlearn:.2g}"
    texts = [
        f"Intervals are {percent(settings.confidence)} intervals. Precision, recall and accuracy: Wilson. F1, P and "
        f"the gap: {settings.resamples:,} bootstrap resamples of the {unit} within each class and group, {how}. Brier "
        f"score and ECE: {max(100, settings.resamples // 5):,} plain resamples within each class and group. AUC: "
        "a score interval of Newcombe's variance, scaled by DeLong's. They speak of other scans like these, not of "
        "other seeds or sites.",
        f"The test of the gap shuffles the groups among the {unit} of each class {settings.permutations:,} times. "
        "The perfectly fair model draws each group's predictions from those of all groups together, class by class. "
        f"Seed {settings.seed}.{several}",
        "Conventions are scikit-learn's with zero_division=0: a class never predicted has precision 0, a class without "
        "a scan in a group has F1 0 there, and both count in the macro mean. F1 of each group, computed a second time "
        f"by scikit-learn through fairlearn: the two {agree}. Of a cell of fewer than {audit.settings.min_cell} scans "
        "nothing is said.",
        f"{library_versions()}.",
    ]
    return tuple(map(Paragraph, [*texts, f"Left out: {'; '.join(left_out)}."] if left_out else texts))
