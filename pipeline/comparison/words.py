"""What a comparison says in words: its verdicts."""

from ..evaluation.resampling import TIE, Estimate
from ..evaluation.wording import POWER, Verdict, few_scans, in_percent, number_name, planned, span
from .records import Comparison, PairComparison

WAYS = {"score": ("higher", "lower"), "abs_gap": ("larger", "smaller")}


NO_INTERVAL = (
    "the largest or lowest of several noisy numbers moves with the noise, so no interval of its difference holds"
)


def verdicts(result: Comparison) -> list[Verdict]:
    """What a comparison says, in words: for each other system, the differences in P and |gap|, and what is missing."""
    runs = {system.name: len(system.runs) for system in result.systems}
    family = sum(len(pair.tests) for pair in result.comparisons)
    few = few_groups(result)
    found = [Verdict("no-statement", f"{few[0].upper()}{few[1:]}: no statement on any difference.")] if few else []
    for pair in result.comparisons if not few else ():
        counts = runs[pair.reference], runs[pair.system]
        found += [_difference_verdict(pair, name, result, family) for name in pair.tests]
        found += _runs_verdicts(pair, counts, result) if pair.seeds else [_scans_verdict(pair, counts, result)]
    if not few and len(result.group_names) > 2:
        text = f"No statement on a difference in |gap| of {len(result.group_names)} groups: {NO_INTERVAL}."
        found.append(Verdict("no-statement", f"{text} The differences in F1 of each group have theirs."))
    if result.n_patients:
        text = (
            f"The {result.n} scans are of {result.n_patients} patients: patients, not scans, were resampled, and the "
        )
        found.append(Verdict("note", f"{text}predictions of all scans of a patient swapped together."))
    changed = [system for system in result.systems if system.postprocess]
    texts = [f"The answers of {system.name} were post-processed ({system.postprocess})." for system in changed]
    return found + [Verdict("note", text) for text in texts]


def few_groups(result: Comparison) -> str:
    """The groups with too few scans for a statement (:func:`~.few_scans`); empty when there is none."""
    return few_scans(dict(zip(result.group_names, result.group_scans, strict=False)), result.settings.min_cell)


def _difference_verdict(pair: PairComparison, name: str, result: Comparison, family: int) -> Verdict:
    level = 1 - result.settings.confidence
    estimate, test = pair.differences[name], pair.tests[name]
    over = " over scans and seeds" if pair.seeds else ""
    what = f"{_difference(pair, name, estimate)} ({in_percent(result.settings.confidence)} interval{over} "
    what += f"{span(estimate, signed=True)}; p = {test.p_holm:.3g} after Holm over {family} tests)"
    apart, small = not estimate.low <= 0 <= estimate.high, test.p_value < level
    if apart and test.p_holm < level:
        whom = "the ways of training differ" if pair.seeds else "these models differ on scans like these"
        return Verdict("finding", f"{what}: larger than chance explains, {whom}.")
    if apart and small:
        why = f"alone it would be larger than chance explains (p = {test.p_value:.3g}), among {family} tests it is not."
    elif apart or small:
        why = "on the border of what chance explains, the interval and the test do not agree."
    else:
        why = "a difference of this size cannot be told from none on these data; that does not show that there is none."
    return Verdict("inconclusive", f"{what}: {why}")


def _difference(pair: PairComparison, name: str, estimate: Estimate) -> str:
    number, (more, less) = number_name(name), WAYS[name]
    other, reference = pair.system, pair.reference
    if abs(estimate.value) <= TIE:
        return f"{number} of {other} equals that of {reference}"
    way = more if estimate.value > 0 else less
    return f"{number} of {other} is {abs(estimate.value):.3f} {way} than that of {reference}"


def _scans_verdict(pair: PairComparison, counts: tuple[int, int], result: Comparison) -> Verdict:
    scans, n = pair.power.scans, result.n
    single = [name for name, runs in zip((pair.reference, pair.system), counts, strict=True) if runs == 1]
    text = "One run each: says nothing about other seeds."
    if len(single) == 1:
        text = (
            f"{single[0]} has one run: how much its numbers change with the seed is not known, so this is about these "
        )
        text += "very runs and says nothing about other seeds."
    if scans is not None and scans > n:
        alike = "in the same proportions" + (" and as many a patient" if result.n_patients else "")
        text += (
            f" It takes about {planned(scans)} scans {alike} ({scans / n:.1f} times as many) to find this difference "
        )
        text += f"in P between these models in {in_percent(POWER)} of studies, after Holm."
    return Verdict("note", text)


def _runs_verdicts(pair: PairComparison, counts: tuple[int, int], result: Comparison) -> list[Verdict]:
    given, tests = pair.differences_of_these_runs or {}, pair.tests_of_these_runs or {}
    parts = []
    for name, test in tests.items():
        said = (
            "larger than chance explains"
            if test.p_holm < 1 - result.settings.confidence
            else "cannot be told from none"
        )
        parts.append(f"{number_name(name)} {span(given[name], signed=True)}, p = {test.p_holm:.3g} after Holm ({said})")
    text = "These very runs, with chance in the scans only: difference in " + "; in ".join(parts)
    found = [Verdict("note", f"{text}. Other seeds may give another.")]
    spread = {system.name: system.sd["score"] for system in result.systems if system.sd}
    text = f"Between seeds P has a standard deviation of {spread[pair.reference]:.3f} ({pair.reference}) and "
    text += f"{spread[pair.system]:.3f} ({pair.system})"
    needed, studies = pair.power.runs, f"this difference in P in {in_percent(POWER)} of studies, after Holm"
    if needed is not None and needed > min(counts):
        text += f"; it takes about {planned(needed)} runs each on these scans to find {studies}"
    elif needed is None and abs(pair.differences["score"].value) > TIE:
        text += f"; on so few scans no number of runs finds {studies}"
    return [*found, Verdict("note", f"{text}.")]
