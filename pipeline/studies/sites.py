"""What a study says of each site that was left out: its numbers by sex, over all sites, as a table and as words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..common.names import JOIN, SITE
from ..evaluation.audit_words import FEW_SITES
from ..evaluation.fairness_criteria import over_sites
from ..evaluation.predictions import Predictions
from ..evaluation.resampling import Estimate
from ..evaluation.wording import number_name, percent, span_text
from ..reports.document import Table
from ..reports.parts import NONE
from .numbers import SCANS, columns_of, make_row
from .results import Replicate, Results, numbers_of

ALL, SITES = "all sites", "sites"


@dataclass(frozen=True)
class SiteRow:
    label: str
    site: str  # or ALL
    scans: int
    seeds: int
    over: str  # what the intervals are over: SEEDS, SCANS, or SITES of the row ALL
    estimates: dict[str, Estimate]  # f1_<group>, score, gap of two groups, abs_gap; {} where nothing can be said
    lacking: str = ""  # why


def by_other_columns(table: Predictions) -> Predictions | None:
    """The scans of known group by the group columns other than the site; None where there is no other."""
    known = table.known()
    if SITE not in known.group_by:
        return known
    at = known.group_by.index(SITE)
    columns = tuple(column for column in known.group_by if column != SITE)
    if not columns:
        return None
    parts = (name.split(JOIN) for name in known.group_names)
    left = [JOIN.join(part[:at] + part[at + 1 :]) for part in parts]
    names = tuple(dict.fromkeys(left))
    group = np.array([names.index(name) for name in left])[known.group]
    return replace(known, group=group, group_names=names, group_by=columns)


def site_rows(
    results: Results, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[SiteRow, ...]:
    """Each configuration at each site, and over all of them; () of a study that left no site out.

    A site's intervals are those of :func:`~.make_row`, over seeds or scans: they say nothing of other sites. Those of
    the row :data:`ALL` are :func:`~.over_sites`, of the means over seeds.
    """
    rows: list[SiteRow] = []
    for label in results.study.labels if results.study.sites else ():
        for fold, site in enumerate(results.study.sites):
            runs = [run for run in results.study.runs if (run.label, run.fold) == (label, fold)]
            made = []
            for run in (run for run in runs if run.id in results.tables):
                table = by_other_columns(results.tables[run.id])
                if table is None:
                    return ()
                table = table.present_groups()
                device, numbers = run.device or "", numbers_of(table)
                made.append(Replicate(label, run.seed, run.repeat, device, table, numbers, fold))
            if not made:
                continue
            scans, lacking = len(made[0].predictions.label), _lacking(made[0].predictions)
            if lacking:
                rows.append(SiteRow(label, site, scans, len(made), NONE, {}, lacking))
                continue
            row = make_row(made, runs[0].system, runs[0].alpha, len(runs), confidence, resamples, seed)
            rows.append(SiteRow(label, site, scans, len(made), row.over, dict(row.estimates)))
        tables = [by_other_columns(replicate.predictions) for replicate in results.replicates[label]]
        whole = [table.present_groups() for table in tables if table is not None]
        if whole and len(whole[0].group_names) > 1:
            rows.append(_over_all(label, whole, confidence))
    return tuple(rows)


def _over_all(label: str, tables: Sequence[Predictions], confidence: float) -> SiteRow:
    found = over_sites(tables, confidence)
    estimates: dict[str, Estimate] = {}
    if found is not None and found.score is not None:
        estimates = {"score": found.score} | ({} if found.gap is None else {"gap": found.gap})
    lacking = "" if estimates else "without one of the sites some class and group has no scan, or all have the same P"
    return SiteRow(label, ALL, len(tables[0].label), len(tables), SITES, estimates, lacking)


def _lacking(table: Predictions) -> str:
    """Why there is no P of these scans alone; "" where there is."""
    if len(table.group_names) < 2:
        return f"scans of {table.group_names[0]} only"
    empty = table.confusion()[:-1].sum(-1) == 0
    return "; ".join(f"no {table.class_names[c]} of {table.group_names[g]}" for g, c in np.argwhere(empty))


def keys_of(rows: Sequence[SiteRow]) -> list[str]:
    """The numbers that some row has, in their order, without |gap| where there is the gap."""
    keys = dict.fromkeys(key for row in rows if row.site != ALL for key in row.estimates)
    return [key for key in keys if key != "abs_gap" or "gap" not in keys]


def sites_table(rows: Sequence[SiteRow], name: str, confidence: float) -> Table:
    keys = keys_of(rows)
    groups = [key.removeprefix("f1_") for key in keys if key.startswith("f1_")]
    shown = []
    for row in rows:
        values = [row.estimates.get(key) for key in keys]
        spans = [NONE if one is None else span_text(one, key == "gap").replace(" (", "\n(", 1)
                 for key, one in zip(keys, values, strict=True)]  # fmt: skip
        shown.append((row.label, row.site, str(row.scans), *spans, str(row.seeds), row.over))
    names = (number_name(key, groups if len(groups) == 2 else ()) for key in keys)
    columns = ("configuration", "left out", "scans", *names, "seeds", "interval over")
    caption = f"{name}: each site judged by models that never saw it, mean and {percent(confidence)} interval"
    return Table(caption, columns, tuple(shown))


def sites_notes(rows: Sequence[SiteRow]) -> tuple[str, ...]:
    """What a reader of the table must know."""
    notes = ["The interval of a site is over seeds, or with one seed over its scans: it says nothing of other sites."]
    count = len({row.site for row in rows} - {ALL})
    if any(row.site == ALL and row.estimates for row in rows):
        text = f"The row of {ALL} is over the judged scans of all {count} sites; in its interval (jackknife) sites are "
        notes.append(f"{text}what chance draws.{' So few say little of others.' if count < FEW_SITES else ''}")
    reasons = dict.fromkeys(f"{row.site}: {row.lacking}" for row in rows if row.lacking)
    if reasons:
        notes.append(f"Without a number, as F1 of a class that is not there would count as 0: {'. '.join(reasons)}.")
    if any(row.over == SCANS for row in rows):
        notes.append("With one seed nothing is known about other seeds.")
    return tuple(notes)


def sites_frame(rows: Sequence[SiteRow], synthetic: bool) -> pd.DataFrame:
    """The table for machines: full precision, a column a number and end of its interval."""
    lines = [
        {"configuration": row.label, "left_out": row.site, "scans": row.scans, "seeds": row.seeds,
         "interval_over": row.over, "lacking": row.lacking} | columns_of(row.estimates)
        for row in rows
    ]  # fmt: skip
    return pd.DataFrame(lines).assign(**({"synthetic": "yes"} if synthetic else {}))
