"""The tables and the page of a study: the numbers of :class:`~.StudyTables` as words, tables, pictures and files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import __version__
from ..common.tables import frame_csv
from ..comparison.paired import TESTED
from ..evaluation.resampling import Estimate
from ..evaluation.wording import Verdict, number_name, percent, span_text
from ..reports import document as page
from ..reports.document import Block, Document, Paragraph, Picture, Section, Table, Verdicts, figure_picture
from ..reports.figures import cohort_chart
from ..reports.latex import latex_table
from ..reports.parts import NONE, synthetic_badge
from ..shortcuts.probe import NOT_USED, read_probes
from .figures import curves_figure, encoding_figure, pareto_front, sites_figure, study_trade_off_figure
from .numbers import SCANS, Row, alike, columns_of, number_keys
from .record import StudyRun, status_text
from .results import Results, numbers_of, one_answer_notes, read_cells, read_history
from .selection import expected_best
from .sites import keys_of, sites_frame, sites_notes, sites_table
from .summary import StudyTables, fair_gap, quoted_paper, study_tables

SEEN_SPREAD = (0.020, 0.036)  # standard deviations of P between runs that were measured with the paper's recipe


def optimism_text(tables: StudyTables) -> str:
    """Whether the reported numbers flatter, and by how much."""
    study = tables.results.study
    several = any(len(selection.alphas) > 1 for selection in tables.selections)
    what = "epoch and alpha" if several else "the epoch"
    if study.fixed_epoch:
        return (
            "The epoch of each run is its last one, fixed before the study: no scans chose it. A configuration picked "
            f"out of this table is chosen on {study.judged_on}, so that its number flatters."
        )
    if not study.optimistic:
        return (
            f"{what[0].upper()}{what[1:]} of each run {'were' if several else 'was'} chosen on {study.chosen_on}; the "
            f"numbers are of {study.judged_on}, which chose neither. A configuration picked out of this table "
            "afterwards is chosen on them, though: the rows of a chosen alpha are not."
        )
    low, high = SEEN_SPREAD
    text = (
        f"Optimistic: {what} {'are' if several else 'is'} chosen on the very scans that are reported "
        f"({study.judged_on}). Of configurations of one run that are all alike, with a standard deviation of "
        f"{low:.3f} to {high:.3f} in P between runs as with the paper's recipe, the best of 6 looks better than it is "
        f"by {expected_best(6, low):.3f} to {expected_best(6, high):.3f}, the best of 30 by "
        f"{expected_best(30, low):.3f} to {expected_best(30, high):.3f}."
    )
    for selection in tables.selections:
        if selection.optimism is not None:
            text += (
                f" At this study's own spread between seeds the best mean of the {len(selection.alphas)} alphas of "
                f"{selection.name.removesuffix(', alpha chosen')} is expected to look {selection.optimism:.3f} better."
            )
    return text


def table_notes(tables: StudyTables, alone: bool = True) -> tuple[str, ...]:
    """What a reader of Table 1 must know; on the page the verdicts and warnings stand above it already."""
    study = tables.results.study
    notes = _interval_notes(tables) + [best.verdict.text for best in tables.best if alone]
    label, gap = fair_gap(tables)
    fair = f"|gap| is never 0 on few scans: one run of a perfectly fair model as good as {label} shows |gap| {gap:.3f}"
    notes.append(f"{fair} on average on these scans.")
    notes += [*_lacking_notes(tables.results), *one_answer_notes(tables.results)]
    if tables.quoted:
        paper = quoted_paper()
        source = f"{paper['source']}; {paper['conditions']}" if study.quoted is None else "as the study gives them"
        notes.append(f"Quoted: printed numbers of others, not computed here ({source}).")
    if alone or not study.optimistic:
        notes.append(optimism_text(tables))
    return tuple(notes)


def _interval_notes(tables: StudyTables) -> list[str]:
    """What the values and intervals are over."""
    study, confidence, notes = tables.results.study, percent(tables.confidence), []
    repeated = study.repeats > 1
    single = [row.label for row in tables.rows if row.over == SCANS]
    if any(run.fold is not None for run in study.runs):
        one = f"one {'repeat and ' if repeated else ''}seed"
        notes.append(f"The judged scans of all folds of {one} are one table, over which P and the gap are computed.")
    if len(single) < len(tables.rows):
        text = f"Values are means over seeds{' and repeats' if repeated else ''} with {confidence} t intervals"
        text += ": they speak of other seeds, not of other scans."
        notes.append(text + (" Repeats share scans, so that theirs are too narrow." if repeated else ""))
        several = [row for row in tables.rows if row.over != SCANS]
        if any(alike(values) for row in several for values in row.values.values()):
            notes.append("A number that is the same with all seeds has the interval of the audit, over scans.")
        if "gap" in several[0].values:
            notes.append("|gap| is the size of the mean gap: a mean of |gap| over seeds would grow with their noise.")
    if single:
        which = f"{', '.join(single)}: only" if len(single) < len(tables.rows) else "Every configuration has"
        text = f"{which} one seed; the {confidence} interval is the audit's, over scans"
        notes.append(f"{text}, and nothing is known about other seeds.")
    return notes


def _lacking_notes(results: Results) -> list[str]:
    """Seeds, groups and devices that a reader could take for others than they are."""
    study, notes = results.study, []
    if len(results.tables) < len(study.runs):
        missing = {label: results.planned[label] - len(made) for label, made in results.replicates.items()}
        left = ", ".join(f"{label} {n} of {results.planned[label]}" for label, n in missing.items() if n > 0)
        notes.append(f"{status_text(study)}. Seeds that are not in the table: {left or 'none'}.")
    present = results.judged.present_groups().group_names
    if absent := [name for name in results.judged.group_names if name not in present]:
        notes.append(f"No scan that judges is of group {', '.join(absent)}: no statement.")
    if len(devices := results.devices) > 1:
        text = f"The seeds ran on several devices ({', '.join(devices)}), which Table 2 tells apart."
        if any(len({(r.seed, r.repeat, r.fold) for r in made}) < len(made) for made in results.replicates.values()):
            text += " One seed on two devices counts as two, though they may be alike: intervals are then too narrow."
        notes.append(text)
    return notes


def _stacked(found: Estimate, number: str) -> str:
    return span_text(found, signed=number == "gap").replace(" (", "\n(", 1)


def _caption(tables: StudyTables, text: str) -> str:
    return f"{'SYNTHETIC scans (phantoms). ' if tables.results.synthetic else ''}{text}"


def table_1(tables: StudyTables) -> Table:
    """Table 1: a row a configuration, ours beside what is quoted."""
    results = tables.results
    keys, groups = number_keys(results.judged), results.any_table.group_names
    rows_shown = all_rows(tables)
    mixed = len({row.over for row in rows_shown}) > 1
    names = {key: number_name(key, groups) for key in keys}
    quoted = [key for key in keys if any(key in row for row in tables.quoted.values())]
    # A page has room for two columns: the F1 of the groups, and the numbers made of them.
    of_groups = [key for key in quoted if key.startswith("f1_")]
    parts = [part for part in (of_groups, [key for key in quoted if key not in of_groups]) if part]
    rows, strong = [], set()
    for index, row in enumerate(rows_shown):
        strong |= {(index, 1 + keys.index(b.number)) for b in tables.best if b.apart and b.label == row.label}
        seeds = str(row.replicates) if row.replicates == row.planned else f"{row.replicates} of {row.planned}"
        values = [_stacked(row.estimates[key], key) for key in keys]
        printed = {key: f"{value:{'+' * (key == 'gap')}.4f}" for key, value in tables.quoted.get(row.label, {}).items()}
        beside = [",\n".join(printed.get(key, NONE) for key in part) if printed else NONE for part in parts]
        rows.append((row.label, *values, seeds, *([row.over] if mixed else []), *beside))
    seeds = "seeds" if results.study.repeats <= 1 else "seeds x repeats"
    columns = ("configuration", *names.values(), seeds, *(["interval over"] if mixed else []))
    columns += tuple(f"quoted {', '.join(names[key] for key in part)}" for part in parts)
    text = f"Table 1. {results.study.name}: mean and {percent(tables.confidence)} interval"
    text += f", on {results.study.judged_on}"
    return Table(_caption(tables, text), columns, tuple(rows), frozenset(strong))


def all_rows(tables: StudyTables) -> tuple[Row, ...]:
    """The rows of Table 1, and, where the scans that chose do not judge, those of a chosen alpha."""
    chosen = () if tables.results.study.optimistic else tables.selections
    return (*tables.rows, *(selection.row for selection in chosen if selection.row is not None))


def table_1_frame(tables: StudyTables) -> pd.DataFrame:
    """Table 1 for machines: full precision, a column a number and end of its interval."""
    bold = {best.number: best.label for best in tables.best if best.apart}
    rows = []
    for row in all_rows(tables):
        line: dict[str, Any] = {"configuration": row.label, "system": row.system, "alpha": row.alpha}
        line |= {"seeds": row.replicates, "seeds_planned": row.planned, "interval_over": row.over}
        line |= columns_of(row.estimates)
        line |= {f"best_{number}": "yes" if bold.get(number) == row.label else "" for number in TESTED}
        line |= {f"quoted_{key}": value for key, value in tables.quoted.get(row.label, {}).items()}
        rows.append(line | ({"synthetic": "yes"} if tables.results.synthetic else {}))
    return pd.DataFrame(rows)


def table_2(tables: StudyTables) -> tuple[Table, tuple[str, ...]]:
    """Table 2 and what is to be said below it."""
    found, groups = tables.devices, tables.results.any_table.group_names
    keys = number_keys(tables.results.judged)
    tested = [f"p_{key}" for key in TESTED if f"p_{key}" in found]
    rows = []
    for line in found.to_dict("records"):
        difference = line["kind"] == "difference"
        ends = {key: Estimate(line[key], line[f"{key}_low"], line[f"{key}_high"]) for key in keys}
        signs = {key: "gap" if difference else key for key in keys}
        spans = [NONE if np.isnan(found.value) else _stacked(found, signs[key]) for key, found in ends.items()]
        p = [f"{line[key]:.3g}" if difference else NONE for key in tested]
        device = line["device"].replace(" minus ", "\nminus ") if difference else line["device"]
        rows.append((line["configuration"], device, str(line["seeds"]), *spans, *p))
    names = [number_name(key, groups) for key in keys]
    columns: tuple[str, ...] = ("configuration", "device", "seeds", *names)
    columns += tuple(f"p of {number_name(key.removeprefix('p_'))}" for key in tested)
    text = "Table 2. The same configurations and seeds on different devices: value and "
    table = Table(_caption(tables, f"{text}{percent(tables.confidence)} interval"), columns, tuple(rows))
    devices = list(dict.fromkeys(found.loc[found["kind"] == "device", "device"]))
    over = "Intervals of a device are over its seeds, with one seed over scans."
    if "difference" in set(found["kind"]):
        over += " Differences are over the seeds that both devices have, paired over scans; with several seeds chance"
        return table, (f"{over} in the seeds counts too. p of fairlung compare, adjusted by Holm over the table.",)
    if len(devices) == 1:
        note = f"All finished runs are of one device ({devices[0]}): there is no other to compare it with. "
        return table, (f"{note}Run the study on another one and give both folders to fairlung tables.",)
    return table, (f"{over} No configuration ran with the same seed on two devices: there is no difference to show.",)


def quoted_table_2() -> Table:
    paper = quoted_paper()
    keys = ("f1_male", "f1_female", "score", "abs_gap")
    rows = tuple(
        (f"{row['configuration']} alpha {row['alpha']}", row["device"], *(f"{row[key]:.4f}" for key in keys))
        for row in paper["table2"]["rows"]
    )
    columns = ("configuration", "device", *(number_name(key, paper["groups"]) for key in keys))
    return Table(f"Quoted, not computed here: Table 2 of {paper['source']}", columns, rows)


def selection_tables(tables: StudyTables) -> tuple[Block, ...]:
    """What was chosen in each fold, and what the chosen ones score."""
    study = tables.results.study
    if not tables.selections:
        return (Paragraph("No system was run with several values of alpha: there was nothing to choose."),)
    keys = [key for key in number_keys(tables.results.judged) if not key.startswith("f1_")]
    names = {key: number_name(key, tables.results.any_table.group_names) for key in keys}
    blocks: list[Block] = []
    for selection in tables.selections:
        if selection.choices.empty:
            blocks.append(Paragraph(f"{selection.name}: no seed and fold has a finished run of every alpha yet."))
            continue
        counts = selection.choices["alpha"].value_counts()
        often = ", ".join(f"alpha {alpha:g} in {n}" for alpha, n in counts.items())
        among = ", ".join(f"{alpha:g}" for alpha in selection.alphas)
        text = f"{selection.name} among {among}: of {len(selection.choices)} choices, {often}."
        text += f" {selection.lacking} more cannot be made yet: a run is missing." if selection.lacking else ""
        if selection.row is not None:
            said = [f"{names[key]} {span_text(selection.row.estimates[key], key == 'gap')}" for key in keys]
            text += f" On {study.judged_on}: {', '.join(said)}, "
            text += f"{percent(tables.confidence)} interval over {selection.row.over}."
            text += " The same scans chose, so this is optimistic." if study.optimistic else ""
        where = [name for name in ("repeat", "fold", "device") if selection.choices[name].nunique() > 1]
        rows = tuple(
            (f"seed {choice['seed']}", *(str(choice[name]) for name in where), f"{choice['alpha']:g}",
             f"{choice['score_choosing']:.3f}",
             *(NONE if np.isnan(choice[key]) else f"{choice[key]:{'+' if key == 'gap' else ''}.3f}" for key in keys))
            for choice in selection.choices.to_dict("records")
        )  # fmt: skip
        columns = ("", *where, "chosen alpha", "P where chosen", *(f"{names[key]} where judged" for key in keys))
        caption = _caption(tables, f"{selection.name}: the alpha of the highest P on the choosing scans")
        blocks += [Paragraph(text), Table(caption, columns, rows)]
    return tuple(blocks)


def selection_frame(tables: StudyTables) -> pd.DataFrame:
    made = (selection for selection in tables.selections if not selection.choices.empty)
    parts = [selection.choices.assign(configuration=selection.name) for selection in made]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["configuration", "alpha"])
    found = found[["configuration", *(column for column in found if column != "configuration")]]
    return found.assign(synthetic="yes") if tables.results.synthetic else found


def study_document(tables: StudyTables) -> Document:
    """Everything on one page: warnings first, then what can be said, tables, figures, and how they were made."""
    results, study = tables.results, tables.results.study
    devices, device_notes = table_2(tables)
    unfinished = [run for run in study.runs if run.status != "finished"]
    warnings = [*study.warnings, *results.problems, *([optimism_text(tables)] if study.optimistic else [])]
    warnings += [f"{status_text(study)}: the tables are of the finished ones."] if unfinished else []
    sections = [Section("Warnings", (Verdicts(tuple(Verdict("note", text) for text in warnings)),))] if warnings else []
    if tables.best:
        sections.append(Section("What can be said", (Verdicts(tuple(best.verdict for best in tables.best)),)))
    below = map(Paragraph, table_notes(tables, alone=False))
    sections += [
        Section("Table 1: configurations", (table_1(tables), *below)),
        Section("Figure 3: P against the gap", (trade_off_picture(tables),)),
        Section("Selection of alpha", selection_tables(tables)),
    ]
    if tables.sites:
        said = map(Paragraph, sites_notes(tables.sites))
        sections.insert(-1, Section("Left-out sites", (_sites_table(tables), *said, *_sites_pictures(tables))))
    several = tables.devices["device"].nunique() > 1  # on one device Table 2 would repeat Table 1
    blocks: tuple[Block, ...] = (*((devices,) if several else ()), *map(Paragraph, device_notes))
    sections.append(Section("Table 2: devices", (*blocks, quoted_table_2()) if tables.quoted else blocks))
    left_out = []
    for title, picture, lack in (
        ("Figure 1: the cohort", cohort_picture(tables), "the cohort (no cells.csv in an evaluation)"),
        ("Learning curves", curves_picture(tables), "learning curves (no history.csv with P in a run)"),
    ):
        if picture is None:
            left_out.append(lack)
        else:
            sections.append(Section(title, (picture,)))
    if encoded := encoding_pictures(tables):
        sections.append(Section("How well attributes are read, against the gap", encoded))
    sections += [Section("Runs that are not in the tables", (_unfinished_table(unfinished),))] if unfinished else []
    sections.append(Section("How the numbers were made", tuple(map(Paragraph, _method(tables, left_out)))))
    return Document(f"Study: {study.name}", study_facts(results), tuple(sections), *synthetic_badge(results.synthetic))


def study_facts(results: Results) -> tuple[tuple[str, str], ...]:
    """What was run, which scans chose and which judged: (name, value) pairs."""
    study, table = results.study, results.any_table
    judged = results.judged.known()
    patients = f" of {judged.n_patients:,} patients" if judged.n_patients else ""
    scans = f"{len(judged.label):,}{patients}"
    protocol = {
        "given": "the cohort's own splits", "nested": "nested folds", "final": "held-out split",
        "cross_validation": "cross-validation by patient",
        "leave_site_out": f"leave one site out ({', '.join(study.sites)})",
    }[study.protocol]  # fmt: skip
    protocol += f", {study.folds} folds" if study.folds > 1 and not study.sites else ""
    protocol += f" x {study.repeats} repeats" if study.repeats > 1 else ""
    return (
        ("Protocol", protocol), ("Chosen on", study.chosen_on), ("Judged on", study.judged_on),
        ("Runs", status_text(study)), ("Seeds", ", ".join(map(str, dict.fromkeys(run.seed for run in study.runs)))),
        ("Devices", ", ".join(results.devices)), ("Scans that judge", scans),
        ("Classes", ", ".join(table.class_names)),
        ("Groups", f"{', '.join(table.group_names)} (by {', '.join(table.group_by)})"),
    )  # fmt: skip


def _unfinished_table(runs: Sequence[StudyRun]) -> Table:
    shown = ((run, NONE if run.fold is None else str(run.fold), " ".join(run.reason.split()) or NONE) for run in runs)
    rows = tuple((run.id, run.label, str(run.seed), fold, run.status, reason) for run, fold, reason in shown)
    columns = ("run", "configuration", "seed", "fold", "status", "reason")
    return Table("Failed, unfinished and pending runs", columns, rows)


def _method(tables: StudyTables, left_out: Sequence[str]) -> list[str]:
    confidence, unit = percent(tables.confidence), "patients" if tables.results.judged.known().repeated else "scans"
    texts = [
        f"Intervals over seeds are {confidence} t intervals of the mean (scipy). With one seed it is the audit's "
        f"interval: {tables.resamples:,} bootstrap resamples of the {unit} within each class and group.",
        "The best P (and the smallest |gap|) is in bold only where the difference to the next is beyond the noise: the "
        f"t test of fairlung compare, over seeds and over {tables.resamples:,} resamples of the {unit}, finds a "
        f"difference at {percent(1 - tables.confidence)} after Holm's adjustment over the tests made. "
        "Configurations with fewer seeds than the next are tested too.",
        "The Pareto front of Figure 3 holds the configurations whose mean no other beats or equals in both P and |gap| "
        "while beating it in one. It is a front of means, each with its own noise.",
        f"Seed {tables.seed}. fairlung {__version__}.",
    ]
    return texts + ([f"Left out: {'; '.join(left_out)}."] if left_out else [])


def trade_off_picture(tables: StudyTables) -> Picture:
    front = pareto_front(*([row.estimates[key].value for row in tables.rows] for key in TESTED))
    spans = [[span_text(row.estimates[key]) for key in TESTED] for row in tables.rows]
    said = [f"{row.label}: P {p}, |gap| {gap}" for row, (p, gap) in zip(tables.rows, spans, strict=True)]
    names = ", ".join(tables.rows[index].label for index in front)
    drawn = [(row.label, row.estimates, row.values) for row in tables.rows]
    figure = study_trade_off_figure(drawn, synthetic=tables.results.synthetic)
    caption = f"Means with their {percent(tables.confidence)} intervals as crosses, seeds as faint points. Up and to"
    caption += f" the left is better. Dashed: the Pareto front of the means ({names}); it says nothing of the noise."
    return figure_picture(figure, "figure3", f"P against |gap|. {'; '.join(said)}.", caption, min_width=480)


def _sites_table(tables: StudyTables) -> Table:
    return sites_table(
        tables.sites, _caption(tables, f"{tables.results.study.name}, left-out sites"), tables.confidence
    )


def _sites_pictures(tables: StudyTables) -> tuple[Picture, ...]:
    """F1 of each group at each site; none where no site has a number."""
    rows = tables.sites
    keys = [key for key in keys_of(rows) if key.startswith("f1_")]
    drawn = [(row.label, row.site, {key: row.estimates[key] for key in keys if key in row.estimates}) for row in rows]
    drawn = [part for part in drawn if part[2]]
    if not drawn:
        return ()
    said = "; ".join(
        f"{label}, {site}: {', '.join(f'{number_name(k)} {v.value:.3f}' for k, v in at.items())}"
        for label, site, at in drawn
    )
    caption = f"Macro F1 at each site by models that never saw it, with {percent(tables.confidence)} intervals."
    figure = sites_figure(drawn, synthetic=tables.results.synthetic)
    return (figure_picture(figure, "sites", f"F1 at left-out sites. {said}.", caption, min_width=480),)


def cohort_picture(tables: StudyTables) -> Picture | None:
    """Figure 1; None when no evaluation noted the cohort."""
    cells = read_cells(tables.results)
    if cells is None:
        return None
    said = [f"{row.split} {row.label} {row.group} {row.n}" for row in cells.itertuples()]
    figure = cohort_chart(cells, synthetic=tables.results.synthetic)
    return figure_picture(figure, "figure1", f"Scans by class and group: {'; '.join(said)}.", min_width=480)


def curves_picture(tables: StudyTables) -> Picture | None:
    """Learning curves; None when no run has a history of P."""
    results = tables.results
    histories = ((run, read_history(run)) for run in results.study.runs if run.id in results.tables)
    parts = [found.assign(configuration=run.label, run=run.id) for run, found in histories if found is not None]
    curves = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["metric"])
    if not (curves["metric"] == "val_score").any():
        return None
    groups = results.any_table.group_names
    figure = curves_figure(curves, groups, synthetic=results.synthetic)
    scores = curves.loc[curves["metric"] == "val_score"].sort_values("epoch")
    last = scores.groupby(["configuration", "run"], sort=False)["value"].last()
    ends = last.groupby("configuration", sort=False).mean()
    said = "; ".join(f"{label} {value:.3f}" for label, value in ends.items())
    caption = "On the validation scans of each run: the mean over the runs of a configuration, shaded one standard "
    caption += "deviation. Grey: the means of the others."
    caption += f" The gap is {' minus '.join(groups)}." if len(groups) == 2 else ""
    alt = f"Learning curves: P and the gap by epoch. P of the last epoch: {said}."
    return figure_picture(figure, "curves", alt, caption, min_width=480)


def encoding_pictures(tables: StudyTables) -> tuple[Picture, ...]:
    """Of each attribute that was probed: how well it is read against |gap|, a point a run (Brown et al. 2023)."""
    results, points = tables.results, dict[str, list[tuple[str, float, float]]]()
    for run in (run for run in results.study.runs if run.id in results.tables):
        gap = numbers_of(results.tables[run.id])["abs_gap"]
        for probe in read_probes(run.output_dir / results.study.reported_split / "evaluation"):
            points.setdefault(probe.target, []).append((run.label, probe.readings[0].auc.value, gap))
    found = []
    for number, (target, of_target) in enumerate(points.items(), 1):
        figure = encoding_figure(of_target, results.study.labels, target, synthetic=results.synthetic)
        said = "; ".join(f"{label} AUC {auc:.3f}, |gap| {gap:.3f}" for label, auc, gap in of_target)
        caption = f"{len(of_target)} of {len(results.tables)} runs were probed for {target} (fairlung probe). Where "
        caption += (
            "|gap| rises with the AUC over a sweep of trainings, the answers may rest on the attribute; points of "
        )
        caption += f"few scans scatter by chance. {NOT_USED}"
        found.append(figure_picture(figure, f"encoding_{number}", f"{target}: {said}.", caption, min_width=480))
    return tuple(found)


@dataclass(frozen=True)
class Written:
    paths: tuple[Path, ...]
    table: Table
    verdicts: tuple[Verdict, ...]


def write_tables(
    folders: Sequence[str | Path], output: str | Path | None = None, confidence: float = 0.95, resamples: int = 10_000,
    seed: int = 0,
) -> Written:  # fmt: skip
    """Write the tables, the figures and the page of a study, by default into ``tables`` in its folder.

    The arguments and errors are those of :func:`study_tables`.
    """
    tables = study_tables(folders, confidence, resamples, seed)
    folder = Path(folders[0], "tables") if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    document = study_document(tables)
    texts = {"index.html": page.render_html(document), "tables.md": page.render_markdown(document, ".")}
    first, (second, device_notes) = table_1(tables), table_2(tables)

    def alone(title: str, *blocks: Block) -> str:
        facts, badge = study_facts(tables.results), synthetic_badge(tables.results.synthetic)
        return page.render_markdown(Document(tables.results.study.name, facts, (Section(title, blocks),), *badge), ".")

    both = [("table1", "Configurations", first, table_notes(tables)), ("table2", "Devices", second, device_notes)]
    if tables.sites:
        both.append(("sites", "Left-out sites", _sites_table(tables), sites_notes(tables.sites)))
        texts["sites.csv"] = frame_csv(sites_frame(tables.sites, tables.results.synthetic))
    for name, title, table, notes in both:
        texts[f"{name}.md"] = alone(title, table, *map(Paragraph, notes))
        texts[f"{name}.tex"] = latex_table(table, f"tab:{name}", notes)
    texts["selection.md"] = alone("Selection of alpha", *selection_tables(tables))
    synthetic = {"synthetic": "yes"} if tables.results.synthetic else {}
    texts["table1.csv"] = frame_csv(table_1_frame(tables))
    texts["table2.csv"] = frame_csv(tables.devices.assign(**synthetic))
    texts["selection.csv"] = frame_csv(selection_frame(tables))
    for name, text in texts.items():
        page.write_text(folder / name, text)
    for picture in document.pictures():
        (folder / f"{picture.name}.png").write_bytes(picture.png)
        (folder / f"{picture.name}.svg").write_bytes(picture.svg or b"")
    names = [*texts, *(f"{picture.name}.{kind}" for picture in document.pictures() for kind in ("png", "svg"))]
    return Written(tuple(folder / name for name in names), first, tuple(best.verdict for best in tables.best))
