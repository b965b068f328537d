"""What a comparison says in words: its verdicts."""

from .paired import TESTED, TIE, smallest_p
from .records import Comparison, PairComparison
from .resampling import Estimate
from .wording import POWER, Verdict, few_scans, in_percent, number_name, planned, span

WAYS = {"score": ("higher", "lower"), "abs_gap": ("larger", "smaller")}


def verdicts(result: Comparison) -> list[Verdict]:
    """What a comparison says, in words: for each other system, the differences in P and |gap|, and what is missing."""
    runs = {system.name: len(system.runs) for system in result.systems}
    family = len(TESTED) * len(result.comparisons)
    few = few_groups(result)
    found = [Verdict("no-statement", f"{few[0].upper()}{few[1:]}: no statement on any difference.")] if few else []
    for pair in result.comparisons if not few else ():
        counts = runs[pair.reference], runs[pair.system]
        found += [_difference_verdict(pair, name, result, family) for name in TESTED]
        one_each = max(counts) == 1
        found += [_scans_verdict(pair, result)] if one_each else _runs_verdicts(pair, counts, result, family)
    changed = [system for system in result.systems if system.postprocess]
    texts = [f"The answers of {system.name} were post-processed ({system.postprocess})." for system in changed]
    return found + [Verdict("note", text) for text in texts]


def few_groups(result: Comparison) -> str:
    """The groups with too few scans for a statement (:func:`~.few_scans`); empty when there is none."""
    return few_scans(dict(zip(result.group_names, result.group_scans, strict=False)), result.settings.min_cell)


def _difference_verdict(pair: PairComparison, name: str, result: Comparison, family: int) -> Verdict:
    confidence = result.settings.confidence
    estimate, test = pair.differences[name], pair.tests[name]
    several = test.unit == "runs"
    over = " over scans and seeds" if several else ""
    what = f"{_difference(pair, name, estimate)} ({in_percent(confidence)} interval{over} "
    what += f"{span(estimate, signed=True)}; p = {test.p_holm:.3g} after Holm over {family} tests)"
    if several and _too_few(pair, result, family):
        return Verdict("inconclusive", f"{what}: so few runs cannot tell a difference of any size from none.")
    apart, small = not estimate.low <= 0 <= estimate.high, test.p_holm < 1 - confidence
    if apart and small:
        whom = "the ways of training differ" if several else "these models differ on scans like these"
        return Verdict("finding", f"{what}: larger than chance explains, {whom}.")
    border = "on the border of what chance explains, the interval and the test do not agree."
    none = "a difference of this size cannot be told from none on these data; that does not show that there is none."
    return Verdict("inconclusive", f"{what}: {border if apart or small else none}")


def _too_few(pair: PairComparison, result: Comparison, family: int) -> bool:
    """Whether no p after Holm can be below the level."""
    return family * pair.tests["score"].smallest_p >= 1 - result.settings.confidence


def _difference(pair: PairComparison, name: str, estimate: Estimate) -> str:
    number, (more, less) = number_name(name), WAYS[name]
    other, reference = pair.system, pair.reference
    if abs(estimate.value) <= TIE:
        return f"{number} of {other} equals that of {reference}"
    way = more if estimate.value > 0 else less
    return f"{number} of {other} is {abs(estimate.value):.3f} {way} than that of {reference}"


def _scans_verdict(pair: PairComparison, result: Comparison) -> Verdict:
    scans, n = pair.power.scans, result.n
    text = "One run each: says nothing about other seeds."
    if scans is not None and scans > n:
        text += f" To see this difference in P between these models in {in_percent(POWER)} of studies takes about "
        text += f"{planned(scans)} scans in the same proportions ({scans / n:.1f} times as many)."
    return Verdict("note", text)


def _runs_verdicts(pair: PairComparison, counts: tuple[int, int], result: Comparison, family: int) -> list[Verdict]:
    level = 1 - result.settings.confidence
    reference, other = pair.reference, pair.system
    found = []
    if _too_few(pair, result, family):
        few = ["1 run" if runs == 1 else f"{runs} runs" for runs in counts]
        least = family * pair.tests["score"].smallest_p
        enough = (r for r in range(2, 50) if family * smallest_p(r, r, result.settings.permutations) < level)
        text = f"{few[0]} of {reference} and {few[1]} of {other} are too few for a statement about other seeds: the "
        text += f"smallest p that they can give is {min(least, 1):.2g} after Holm; it takes "
        text += f"{next(enough, 'more permutations and 50')} runs each."
        found.append(Verdict("no-statement", text))
    given, tests = pair.differences_of_these_runs, pair.tests_of_these_runs
    if given is not None and tests is not None:
        parts = []
        for name in TESTED:
            estimate, p = given[name], tests[name].p_holm
            apart = not estimate.low <= 0 <= estimate.high and p < level
            said = "larger than chance explains" if apart else "cannot be told from none"
            parts.append(f"{number_name(name)} {span(estimate, signed=True)}, p = {p:.3g} after Holm ({said})")
        text = "These very runs, with chance in the scans only: difference in " + "; in ".join(parts)
        found.append(Verdict("note", f"{text}. Other seeds may give another."))
    single = next((name for name, runs in zip((reference, other), counts, strict=True) if runs == 1), None)
    if single is not None:
        text = f"{single} has one run: how much its numbers change with the seed is not known."
        return [*found, Verdict("note", text)]
    spread = {system.name: system.sd["score"] for system in result.systems if system.sd}
    text = f"Between seeds P has a standard deviation of {spread[reference]:.3f} ({reference}) and "
    text += f"{spread[other]:.3f} ({other})"
    needed = pair.power.runs
    if needed is not None and needed > min(counts):
        text += f"; to see this difference in P in {in_percent(POWER)} of studies takes about "
        text += f"{planned(needed)} runs each"
    return [*found, Verdict("note", f"{text}.")]
