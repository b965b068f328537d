"""The report of a comparison of systems."""

from pathlib import Path

from ..comparison.paired_auc import LEAST_SCANS
from ..comparison.records import Comparison
from ..comparison.words import NO_INTERVAL
from ..evaluation.records import NoRecordError, read_record
from ..evaluation.wording import SHARE_HIGHER, number_name, percent, span_text, value_text
from .document import Document, Paragraph, Picture, Pictures, Section, Table, Verdicts, figure_picture, write_document
from .evidence import EvidenceError
from .evidence_figures import differences_figure, trade_off_figure
from .parts import NONE, library_versions, scan_facts, synthetic_badge, value_and_span


def write_comparison_report(comparison: str | Path, path: str | Path) -> Path:
    """The report of a compare.json as HTML and Markdown; EvidenceError when it is missing or no comparison."""
    try:
        result = read_record(Comparison, comparison)
    except NoRecordError as error:
        raise EvidenceError(
            f"{comparison} is no comparison of this version: fairlung compare writes one with -o ({error})"
        ) from error
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{comparison} cannot be read: {error}") from error
    return write_document(comparison_report(result), path)


def comparison_report(result: Comparison) -> Document:
    confidence = percent(result.settings.confidence)
    names = [system.name for system in result.systems]
    sections = (
        Section("Verdicts", (Verdicts(result.verdicts),)),
        Section("Systems", (_trade_off_picture(result, confidence), _systems_table(result))),
        Section("Differences", _comparison_blocks(result, confidence)),
        Section("Tests", _test_blocks(result)),
        Section("AUC", _auc_blocks(result, confidence)),
        Section("How the numbers were made", _comparison_method(result, confidence)),
    )
    facts = (("Reference", result.reference), ("Systems", ", ".join(names)), *scan_facts(result))
    title = f"Comparison: {' and '.join(names) if len(names) == 2 else f'{len(names)} systems'}"
    return Document(title, facts, sections, *synthetic_badge(result.synthetic))


def _trade_off_picture(result: Comparison, confidence: str) -> Picture:
    key = "gap" if "gap" in result.systems[0].values else "abs_gap"
    said = [
        f"{system.name}{f' run {number}' if len(system.runs) > 1 else ''}: P {span_text(run['score'])}, "
        f"{number_name(key, result.group_names)} {span_text(run[key], signed=key == 'gap')}"
        for system in result.systems
        for number, run in enumerate(system.runs, 1)
    ]
    caption = f"A point a run, with its {confidence} intervals over scans as a cross. Higher is better; nearer to the "
    caption += "line is fairer."
    return figure_picture(trade_off_figure(result), "trade_off", f"P against the gap. {'; '.join(said)}.", caption)


def _systems_table(result: Comparison) -> Table:
    systems = result.systems
    rows = [("runs", *(str(len(system.runs)) for system in systems))]
    for key in systems[0].values:
        values = [value_text(system.values[key], key == "gap") for system in systems]
        spread = [f" (SD {s.sd[key]:.3f})" if s.sd and key in s.sd else "" for s in systems]
        rows.append((number_name(key, result.group_names), *map("".join, zip(values, spread, strict=True))))
    columns = ("", *(system.name for system in systems))
    return Table("Mean over the runs of each system (standard deviation over runs)", columns, tuple(rows))


def _comparison_blocks(result: Comparison, confidence: str) -> tuple[Paragraph | Pictures | Table, ...]:
    groups = result.group_names
    pictures, rows = [], []
    for number, comparison in enumerate(result.comparisons, 1):
        who = f"{comparison.system} minus {comparison.reference}"
        said = []
        for key, estimate in comparison.differences.items():
            name = number_name(key, groups)
            said.append(f"{name} {span_text(estimate, signed=True)}")
            rows.append((f"{name}, {who}", *value_and_span(estimate, True)))
        if comparison.share_higher is not None:
            rows.append((f"{SHARE_HIGHER}, {who}", value_text(comparison.share_higher), NONE))
        figure = differences_figure(comparison, groups)
        pictures.append(figure_picture(figure, f"differences_{number}", f"Differences, {who}: {'; '.join(said)}."))
    text = f"Differences on the same scans, with {confidence} intervals."
    without = [number_name(key) for key in result.systems[0].values if key not in result.comparisons[0].differences]
    text += f" There is none of {' and '.join(without)}: {NO_INTERVAL}." if without else ""
    table = Table("Differences", ("difference", "value", f"{confidence} interval"), tuple(rows))
    return Paragraph(text), Pictures(tuple(pictures), column=360), table


def _test_blocks(result: Comparison) -> tuple[Table, ...]:
    groups = result.group_names
    rows, given = [], []
    for comparison in result.comparisons:
        who = f"{comparison.system} against {comparison.reference}"
        for key, test in comparison.tests.items():
            over = "scans and seeds" if comparison.seeds else "scans"
            p = (f"{test.p_value:.3g}", f"{test.p_holm:.3g}")
            rows.append((f"{number_name(key, groups)}, {who}", over, *p))
        found = comparison.differences_of_these_runs or {}
        for key, alone in (comparison.tests_of_these_runs or {}).items():
            name = f"{number_name(key, groups)}, {who}"
            given.append((name, span_text(found[key], signed=True), f"{alone.p_value:.3g}", f"{alone.p_holm:.3g}"))
    columns = ("number, comparison", "chance in", "p", "p after Holm")
    tables = [Table(f"Tests, adjusted by Holm over {len(rows)} tests", columns, tuple(rows))]
    if given:
        caption = "With these runs taken as given: chance in the scans only"
        tables.append(Table(caption, ("number, comparison", "difference", "p", "p after Holm"), tuple(given)))
    return tuple(tables)


def _auc_blocks(result: Comparison, confidence: str) -> tuple[Paragraph | Table, ...]:
    number = number_name("auc")
    rows = tuple(
        (f"{one.class_name or 'mean over classes'}, {pair.system} minus {pair.reference}",
         *value_and_span(one.difference, True), f"{one.p_value:.3g}")
        for pair in result.comparisons for one in pair.aucs
    )  # fmt: skip
    unit = "patients" if result.n_patients else "scans"
    text = (
        f"Differences of the {number} of a class against the rest, and of its mean over classes, by DeLong's "
        f"covariance of scores on the same scans. None is given of a class with fewer than {LEAST_SCANS} {unit} or "
        "others, of the mean where some class has fewer, nor without probabilities. No verdict is drawn."
    )
    columns = ("class, comparison", "difference", f"{confidence} interval", "p, unadjusted")
    return (Paragraph(text), Table(f"Differences in {number}", columns, rows)) if rows else (Paragraph(text),)


def _comparison_method(result: Comparison, confidence: str) -> tuple[Paragraph, ...]:
    settings = result.settings
    unit, one = ("patients", "patient's scans") if result.n_patients else ("scans", "scan")
    of_pairs = []
    if any(pair.share_higher is not None for pair in result.comparisons):
        of_pairs.append(
            "With one run each, intervals of differences are percentiles of the resamples, and the test of P swaps the "
            f"two predictions of a {one} ({settings.permutations:,} permutations): could they have been each other's?"
        )
    if any(pair.share_higher is None for pair in result.comparisons):
        of_pairs.append(
            "With more runs, intervals and tests of differences are t, of the spread over the resamples and, where "
            "both systems have several runs, of that between their runs: is the difference 0?"
        )
    texts = [
        f"{settings.resamples:,} bootstrap resamples of the {unit} within each class and group are the same for all "
        f"runs. {' '.join(of_pairs)} The intervals of single runs are those of their audits.",
        "|gap| of several runs is the size of their mean gap. The test of a difference in |gap| asks whether the two "
        "gaps are of one size, of whatever sign: it takes the larger p of the tests that they are equal, and that one "
        f"is minus the other. Holm's adjustment is over all tests of a table. Seed {settings.seed}.",
        f"{library_versions()}.",
    ]
    return tuple(map(Paragraph, texts))
