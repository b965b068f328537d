"""What the runs of tabular.py show: estimates with intervals over seeds, the effect of alpha, table and picture.

A seed's folds judge every patient once: their confusion counts are added; P, gap and worst cell are those of the sum.
Intervals are Student's over seeds, differences are paired by seed. They hold for these patients: a seed draws folds,
starts and order anew, not patients. How much the patients matter is shown beside, by the audit's bootstrap on one seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from fairlung.pipeline.common.names import SEXES
from fairlung.pipeline.common.plotting import GREY, MARKERS, PALETTE, new_figure
from fairlung.pipeline.evaluation.fairness_criteria import confusion_intervals, summaries
from fairlung.pipeline.reports.evidence_figures import LINES

SETTING = ["batch", "sampler", "estimator", "system", "gradient", "alpha"]
NUMBERS = ("score", "gap", "worst_cell_f1", "f1_male", "f1_female", "f1_macro")
LOSSES = tuple(f"{part}_loss_{sex}" for part in ("train", "test") for sex in SEXES)
TITLES = {"score": "P", "gap": "gap (men - women)", "worst_cell_f1": "worst cell", "worst_loss": "worse sex's loss"}
EFFECT = ("score", "gap", "worst_cell_f1", "f1_male", "f1_female", "train_worst_loss", "test_worst_loss")
NONE = "-"  # of a setting that a system does not have
SEED_CHECKED = 0  # whose patients are resampled


def by_seed(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a setting and seed whose folds are all there: numbers of the chosen and (``_last``) the last checkpoint."""
    runs = pd.DataFrame(list(records))
    runs[["estimator", "gradient", "alpha"]] = runs[["estimator", "gradient", "alpha"]].astype(object).fillna(NONE)
    rows = []
    budget = ["steps", "learning_rate", "patients", "folds"]
    for names, of_seed in runs.groupby([*SETTING, "seed", *budget], sort=False):
        if len(of_seed) != of_seed["folds"].iloc[0]:
            continue
        row: dict[str, Any] = dict(zip([*SETTING, "seed", *budget], names, strict=True))
        for suffix in ("", "_last"):
            row |= {name + suffix: value for name, value in _numbers(_total(of_seed, f"confusion{suffix}")).items()}
        for part in ("train", "test"):
            losses = pd.DataFrame(of_seed[f"{part}_loss"].tolist()).mean()
            row |= {f"{part}_loss_{sex}": losses[sex] for sex in SEXES}
            row[f"{part}_worst_loss"] = losses.max()
        row["confusion"] = _total(of_seed, "confusion")
        row["mixed_batches"] = of_seed["mixed_batches"].mean()
        row["worst_cell"] = _worst_cell(row["confusion"])
        rows.append(row)
    return pd.DataFrame(rows)


def _total(runs: pd.DataFrame, name: str) -> np.ndarray:
    return np.sum([np.array(counts) for counts in runs[name]], axis=0)


def _numbers(confusion: np.ndarray) -> dict[str, float]:
    found = summaries(confusion)
    pooled = summaries(confusion.sum(0, keepdims=True))
    return {
        "score": float(found["score"]),
        "gap": float(found["gap"]),
        "worst_cell_f1": float(found["cell_f1"].min()),
        **{f"f1_{sex}": float(f1) for sex, f1 in zip(SEXES, found["group_f1"], strict=True)},
        "f1_macro": float(pooled["score"]),
    }


def _worst_cell(confusion: np.ndarray) -> str:
    cells = summaries(confusion)["cell_f1"]
    group, label = np.unravel_index(cells.argmin(), cells.shape)
    return f"{label}:{SEXES[group]}"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Mean with Student's interval; of one value, or of values all alike, the interval is that value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"value": mean, "low": mean, "high": mean, "n": len(values)}
    low, high = DescrStatsW(values).tconfint_mean(1 - confidence)
    return {"value": mean, "low": float(low), "high": float(high), "n": len(values)}


def estimates(seeds: pd.DataFrame, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Each setting with its numbers, mean and interval over seeds, and the interval over patients of one seed."""
    found = []
    for names, rows in seeds.groupby(SETTING, sort=False):
        entry: dict[str, Any] = dict(zip(SETTING, names, strict=True))
        numbers = [*NUMBERS, *(f"{name}_last" for name in NUMBERS), *LOSSES, "train_worst_loss", "test_worst_loss"]
        entry["seeds"] = len(rows)
        entry |= {name: mean_interval(rows[name]) for name in numbers}
        label, sex = rows["worst_cell"].mode()[0].split(":")
        entry["worst_cell"] = f"{class_names[int(label)]}, {sex}"
        entry["worst_cell_share"] = float((rows["worst_cell"] == rows["worst_cell"].mode()[0]).mean())
        entry["mixed_batches"] = float(rows["mixed_batches"].mean())
        first = rows.sort_values("seed")["confusion"].iloc[0]
        over_patients, _ = confusion_intervals(first, np.random.default_rng(SEED_CHECKED), 1000)
        for name in ("score", "gap"):
            value, low, high = (float(x) for x in over_patients[name])
            entry[f"{name}_over_patients"] = {"value": value, "low": low, "high": high}
        found.append(entry)
    return found


def select(seeds: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows of a setting, by seed."""
    mask = np.ones(len(seeds), dtype=bool)
    for name, value in wanted.items():
        mask &= (seeds[name] == value).to_numpy()
    return seeds[mask].set_index("seed").sort_index()


def difference(first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> dict[str, Any] | None:
    """First minus second, paired by seed: mean, interval and the p of a paired t-test of each number."""
    common = first.index.intersection(second.index)
    if len(common) < 2:
        return None
    found: dict[str, Any] = {}
    for name in names:
        values = (first.loc[common, name] - second.loc[common, name]).to_numpy(dtype=float)
        same = np.ptp(values) == 0
        found[name] = mean_interval(values) | {"p": 1.0 if same else float(stats.ttest_1samp(values, 0).pvalue)}
    return found


def alpha_effects(seeds: pd.DataFrame) -> list[dict[str, Any]]:
    """Does alpha matter below 1? For each objective and gradient: its value at .5 minus that at .9, paired by seed.

    ``friedman_p`` tests whether any of the alphas below 1 differs from the others (None with fewer than 3 of them),
    ``range`` is the largest difference between their means. p values are Holm-adjusted over all rows of a number.
    """
    found = []
    with_alpha = seeds[seeds["alpha"] != NONE]
    for names, rows in with_alpha.groupby(["batch", "sampler", "estimator", "system", "gradient"], sort=False):
        entry: dict[str, Any] = dict(zip(["batch", "sampler", "estimator", "system", "gradient"], names, strict=True))
        below = sorted(alpha for alpha in rows["alpha"].unique() if alpha < 1)
        if len(below) < 2:
            continue
        entry["alphas"] = [below[0], below[-1]]
        effect = difference(select(rows, alpha=below[0]), select(rows, alpha=below[-1]), EFFECT)
        if effect is None:
            continue
        entry |= effect
        for name in EFFECT:
            table = rows[rows["alpha"] != 1].pivot(index="seed", columns="alpha", values=name).dropna().astype(float)
            means = table.mean()
            entry[name]["range"] = float(np.ptp(means))
            varied = len(below) >= 3 and len(table) >= 2 and (np.ptp(table.to_numpy(), axis=1) > 0).any()
            p = float(stats.friedmanchisquare(*(table[alpha] for alpha in below)).pvalue) if varied else None
            entry[name]["friedman_p"] = p
        found.append(entry)
    for name in EFFECT:
        _holm([entry[name] for entry in found])
    return found


def _holm(tests: Sequence[dict[str, Any]]) -> None:
    if tests:
        adjusted = multipletests([test["p"] for test in tests], method="holm")[1]
        for test, p in zip(tests, adjusted, strict=True):
            test["p_holm"] = float(p)


def differences(seeds: pd.DataFrame) -> list[dict[str, Any]]:
    """The comparisons that the text makes, paired by seed, Holm-adjusted over all of a number."""
    base = {"sampler": "shuffled", "estimator": "batch"}
    none = {"estimator": NONE, "gradient": NONE, "alpha": NONE}
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for batch in seeds["batch"].unique():
        plain = {"batch": batch, "sampler": "shuffled", **none}
        ce, la = {**plain, "system": "CE"}, {**plain, "system": "LA"}
        asked.append(("LA - CE", la, ce))
        for system, reference in (("CVaR", ce), ("LA+CVaR", la)):
            for alpha in (0.5, 0.7, 0.8, 0.9, 1.0):
                exact = {"batch": batch, "system": system, "gradient": "exact", "alpha": alpha, **base}
                asked.append((f"{system} {alpha} exact - {reference['system']}", exact, reference))
                if alpha > 1 / len(SEXES):  # there both give the worse sex the whole weight
                    asked.append((f"{system} {alpha}: exact - published", exact, {**exact, "gradient": "published"}))
                for change in ({"sampler": "balanced"}, {"estimator": "running"}):
                    (changed,) = change.values()
                    asked.append((f"{system} {alpha} exact: {changed} - paper's batches", {**exact, **change}, exact))
        for reference in (ce, la):
            balanced = {**reference, "sampler": "balanced"}
            asked.append((f"{reference['system']}: balanced - paper's batches", balanced, reference))
    found = []
    for name, first, second in asked:
        made = difference(select(seeds, **first), select(seeds, **second), EFFECT)
        if made is not None:
            found.append({"batch": int(first["batch"]), "name": name, **made})
    for name in EFFECT:
        _holm([entry[name] for entry in found])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# table and picture
# ---------------------------------------------------------------------------------------------------------------------
def said(estimate: Mapping[str, float], signed: bool = False) -> str:
    """``.701 (.695 to .707)``"""
    sign = "+" if signed else ""
    value, low, high = (f"{estimate[name]:{sign}.3f}".replace("0.", ".", 1) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def markdown(entries: Sequence[Mapping[str, Any]], effects: Sequence[Mapping[str, Any]]) -> str:
    """All settings, a table for each kind of batch; then the effect of alpha."""
    seeds = {row["seeds"] for row in entries}
    lines = [f"# CE, LA, CVaR and LA + CVaR on the thyroid table: mean and 95 % interval over {_span(seeds)} seeds"]
    frame = pd.DataFrame({name: [entry[name] for entry in entries] for name in ("batch", "sampler")})
    for batch, sampler in frame.drop_duplicates().itertuples(index=False):
        rows = [entry for entry in entries if (entry["batch"], entry["sampler"]) == (batch, sampler)]
        mixed = np.mean([row["mixed_batches"] for row in rows])
        lines += ["", f"## Batch {batch}, {sampler}: both sexes in {mixed:.1%} of the batches", ""]
        lines += ["| system | estimate | gradient | alpha | P | gap, men - women | worst cell | F1 men | F1 women |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in rows:
            cells = [row["system"], row["estimator"], row["gradient"], row["alpha"], said(row["score"])]
            cells += [said(row["gap"], signed=True), f"{said(row['worst_cell_f1'])}, {row['worst_cell']}"]
            cells += [f"{row[f'f1_{sex}']['value']:.3f}".lstrip("0") for sex in SEXES]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "## Effect of alpha: value at the smallest minus value at the largest alpha below 1", ""]
    alphas = sorted({entry["alpha"] for entry in entries if entry["alpha"] != NONE})
    heads = [f"P at {alpha:g}" for alpha in alphas] + ["any", "P", "gap", "worst cell", "worse sex's training loss"]
    lines += [
        f"| batch | sampler | estimate | system | gradient | {' | '.join(heads)} |",
        "|---" * (5 + len(heads)) + "|",
    ]
    for effect in effects:
        of = {name: effect[name] for name in ("batch", "sampler", "estimator", "system", "gradient")}
        cells = list(map(str, of.values()))
        for alpha in alphas:
            exact_at_1 = {**of, "alpha": alpha} | ({"gradient": "exact"} if alpha == 1 else {})
            found = [entry for entry in entries if exact_at_1.items() <= entry.items()]
            cells.append(f"{found[0]['score']['value']:.3f}".lstrip("0") if found else "")
        any_p = effect["score"]["friedman_p"]
        cells.append("" if any_p is None else f"{any_p:.2g}".replace("0.", "."))
        for name in ("score", "gap", "worst_cell_f1", "train_worst_loss"):
            cells.append(f"{said(effect[name], signed=True)}{_stars(effect[name]['p_holm'])}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "`any`: p of Friedman's test that P differs between any of the alphas below 1."]
    lines += ["`*`: p < .05 after Holm's adjustment over the rows of a column (paired t-test over seeds)."]
    return "\n".join(lines).strip() + "\n"


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _stars(p: float) -> str:
    return "*" if p < 0.05 else ""


def picture(entries: Sequence[Mapping[str, Any]]) -> Any:
    """P, gap and the worse sex's training loss against alpha, and P against gap: a column a batch size.

    Of the shuffled batches with the batch estimate, the paper's; other kinds of batches are in the table.
    """
    rows = [row for row in entries if _papers_batches(row)]
    batches = sorted({row["batch"] for row in rows}, reverse=True)
    panels = ("score", "gap", "train_worst_loss", None)
    figure = new_figure(3.0 * len(batches) + 0.6, 9.6)
    axes = figure.subplots(len(panels), len(batches), squeeze=False, sharey="row")
    kinds = [(system, gradient) for system in ("CVaR", "LA+CVaR") for gradient in ("exact", "published")]
    handles: dict[str, Any] = {}
    for column, batch in enumerate(batches):
        here = [row for row in rows if row["batch"] == batch]
        for line, name in enumerate(panels):
            ax = axes[line, column]
            for index, (system, gradient) in enumerate(kinds):
                curve = [r for r in here if r["system"] == system and _on_curve(r, gradient)]
                curve.sort(key=lambda row: row["alpha"])
                style = {"color": PALETTE[(0, 5)[index // 2]], "marker": MARKERS[index], "linestyle": LINES[index % 2]}
                label = f"{system}, {gradient} gradient"
                handles[label] = _curve(ax, curve, name, style, shift=0.006 * (index - 1.5))
            for index, system in enumerate(("CE", "LA")):
                for row in (r for r in here if r["system"] == system):
                    style = {"color": ("black", GREY)[index], "marker": ("*", "P")[index]}
                    handles[system] = _reference(ax, row, name, style, LINES[2 + index])
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8)
            if name is None or name == "gap":
                (ax.axvline if name is None else ax.axhline)(0, color=GREY, linewidth=0.8, linestyle=":")
            ax.set_xlabel("gap, men - women" if name is None else "alpha", fontsize=9)
            if column == 0:
                titles = {"score": "P", "gap": "gap, men - women", "train_worst_loss": "worse sex's training loss"}
                ax.set_ylabel(titles.get(name or "score", "P"), fontsize=9)
        axes[0, column].set_title(f"batch {batch}", fontsize=10)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _papers_batches(row: Mapping[str, Any]) -> bool:
    return row["sampler"] == "shuffled" and row["estimator"] in ("batch", NONE)


def _on_curve(row: Mapping[str, Any], gradient: str) -> bool:
    return row["gradient"] == gradient or row["alpha"] == 1  # at alpha = 1 both are the mean over groups


def _curve(ax: Any, rows: Sequence[Mapping[str, Any]], name: str | None, style: dict[str, Any], shift: float) -> Any:
    x = [row["gap"]["value"] if name is None else row["alpha"] + shift for row in rows]
    y = [row[name or "score"]["value"] for row in rows]
    bars = {"yerr": _ends([row[name or "score"] for row in rows])}
    if name is None:
        bars["xerr"] = _ends([row["gap"] for row in rows])
    return ax.errorbar(x, y, **bars, **style, markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2)


def _reference(ax: Any, row: Mapping[str, Any], name: str | None, style: dict[str, Any], line: str) -> Any:
    if name is None:
        ends = {"xerr": _ends([row["gap"]]), "yerr": _ends([row["score"]])}
        point, height = row["gap"]["value"], row["score"]["value"]
        return ax.errorbar(point, height, **ends, **style, linestyle="none", markersize=7, elinewidth=0.8, capsize=2)
    ax.axhspan(row[name]["low"], row[name]["high"], color=style["color"], alpha=0.12, linewidth=0)
    return ax.axhline(row[name]["value"], color=style["color"], linestyle=line, linewidth=1)


def _ends(estimates: Sequence[Mapping[str, float]]) -> np.ndarray:
    return np.array([[e["value"] - e["low"] for e in estimates], [e["high"] - e["value"] for e in estimates]])


def write(records: Sequence[Mapping[str, Any]], out: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """summary.json, tabular.md and, if there are runs on the paper's kind of batches, tabular.png out of the runs."""
    seeds = by_seed(records)
    entries, effects = estimates(seeds, class_names), alpha_effects(seeds)
    summary = {"estimates": entries, "alpha_effects": effects, "differences": differences(seeds)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1, default=float) + "\n")
    (out / "tabular.md").write_text(markdown(entries, effects))
    if any(_papers_batches(entry) for entry in entries):
        picture(entries).savefig(out / "tabular.png", dpi=100)
    return summary
