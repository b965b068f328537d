"""What an audit says in words: its verdicts."""

from dataclasses import replace

import numpy as np

from .fairness_criteria import is_apart
from .records import Audit, ByGroup, FairModel, NearDuplicate, NearDuplicates, TippingPoint
from .resampling import TIE
from .wording import (
    MOST_PLANNED,
    POWER,
    Verdict,
    few_scans,
    in_percent,
    number_name,
    one_time_in,
    percent,
    planned,
    span,
    span_text,
    value_text,
)

MOST_STAYED = 0.5  # share of the scans from which the test is said to say little
FEW_SITES = 10
DUPLICATE_LIMITS = (
    "Scans that were exported twice are found; of patients who were scanned twice only few are, so that no pair is no "
    "proof that there is none (docs/statistics.md)."
)
MIX_GAP = 0.02  # a fair model's gap from which a verdict says that the groups differ in their mix of classes


def verdicts(result: Audit) -> list[Verdict]:
    """What an audit says, in words, the most important first."""
    found = _gap_verdicts(result)
    if result.patients:
        text = f"The {result.n} scans are of {result.patients.n} patients: patients, not scans, were resampled"
        text += "" if result.permutation.p_value is None else " and moved between the groups"
        text += f". The answers to a patient's scans correlate by {result.patients.correlation:.2f}."
        if (stayed := result.permutation.stayed) and not stayed_text(result):
            text += f" {stayed} scans are of patients who stayed, as {PARTNERS} in another group."
        found.append(Verdict("note", text))
    found += _site_notes(result, found[0])
    if result.duplicates:
        found.insert(1, duplicates_verdict(result.duplicates))
    if result.postprocess:
        text = f"These are not the network's own answers: they were post-processed ({result.postprocess})."
        found.append(Verdict("note", text))
    return [*found, *_cell_verdicts(result), *_calibration_verdicts(result), *_clinical_notes(result)]


def duplicates_verdict(found: NearDuplicates) -> Verdict:
    """What a search for the judged patients among other scans found, without names: a verdict goes into model cards."""
    number, among = len(found.pairs), f"among {found.n} judged scans and {found.n_other} of {found.split}"
    if not number:
        return Verdict("note", f"No pair {among} looks like one patient's. {DUPLICATE_LIMITS}")
    looks, seen = ("pair looks", "that scan") if number == 1 else ("pairs look", "these scans")
    text = f"{number} {looks} like one patient's {among}: if so, {seen} cannot be judged as unseen. Somebody must look "
    text += "at each pair; the report and duplicates.csv list them."
    if two := sum(pair.two_patients for pair in found.pairs):
        whose = f"Of {two} the cohort says" if two < number else "The cohort says"
        text += f" {whose} that they are of two patients: either it is wrong there, or they are only alike."
    return Verdict("warning", f"{text} {DUPLICATE_LIMITS}")


def duplicate_text(pair: NearDuplicate) -> str:
    """A pair in words: ``a and b (normal): distance 0.010, to the next scan 0.400``."""
    text = f"{pair.scan} and {pair.other} ({pair.label}): distance {value_text(pair.distance)}, to the next scan "
    return f"{text}{value_text(pair.next)}{', of two patients by the cohort' * pair.two_patients}"


def _site_notes(result: Audit, gap: Verdict) -> list[Verdict]:
    """What is left of P and the gap where sites are what chance draws, as for hospitals that are not in the table."""
    sites = result.by_site
    if sites is None:
        return []
    if sites.score is None:
        text = (
            f"Without one of the {sites.n} sites some class and group has no scan, or all have the same P: no interval "
        )
        return [Verdict("note", f"{text}over sites.")]
    shown = [("score", sites.score)] + ([("gap", sites.gap)] if sites.gap else [])
    parts = [f"{number_name(key)} {span_text(number, signed=key == 'gap')}" for key, number in shown]
    text = f"With the {sites.n} sites, not scans or patients, as what chance draws: {', '.join(parts)}."
    if gap.level == "finding" and sites.gap and sites.gap.low <= 0 <= sites.gap.high:
        text += " So the gap is one of these sites, and is not shown to be one of others."
    if sites.n < FEW_SITES:
        text += f" {sites.n} sites are few: they say little of how sites differ."
    return [Verdict("note", text)]


def _gap_verdicts(result: Audit) -> list[Verdict]:
    """On the gap, or where a group lacks a class of another on the gap over the classes that all have."""
    if few := few_groups(result):
        return [Verdict("no-statement", f"{few[0].upper()}{few[1:]}: no statement on the gap.")]
    empty = {name: [c.group for c in result.cells if c.class_name == name and not c.n] for name in result.class_names}
    lacking = {name: groups for name, groups in empty.items() if 0 < len(groups) < len(result.group_names)}
    if not lacking:
        gap = _gap_verdict(result)
        notes = [*_equivalence_notes(result), *_mix_verdicts(result, gap), *_tipping_notes(result, gap)]
        return [_with_margin(result, gap), *_power_verdicts(result), *notes]
    missed = ", nor ".join(f"of {name} in {', '.join(groups)}" for name, groups in lacking.items())
    text = f"There is no scan {missed}, where F1 is 0 whatever the model does: no statement on the gap over all "
    found = [Verdict("no-statement", f"{text}classes.")]
    if shared := result.shared_classes:
        numbers = {group.group: replace(group, n=n) for group, n in zip(result.groups, shared.group_scans, strict=True)}
        view = replace(
            result, n=sum(shared.group_scans), class_names=shared.class_names, groups=tuple(numbers.values()),
            cells=tuple(cell for cell in result.cells if cell.class_name in shared.class_names),
            overall=replace(result.overall, gap=shared.gap, abs_gap=shared.abs_gap),
            fair_model=shared.fair_model, permutation=shared.permutation, power=shared.power,
            standardised=None, equivalence=None, tipping_point=None,
        )  # fmt: skip
        alone = f"Of the classes that every group has ({', '.join(shared.class_names)}): "
        found += [Verdict(verdict.level, alone + verdict.text) for verdict in _gap_verdicts(view)]
    return found


def _mix_verdicts(result: Audit, raw: Verdict) -> list[Verdict]:
    """A gap that comes of who was scanned, where it is large enough to mislead, or hides or makes a finding."""
    share, found, texts = result.fair_model.gap_mean or 0.0, result.standardised, []
    if abs(share) >= MIX_GAP and not stayed_text(result):
        first, second = result.group_names
        mix = "the classes, or scans a patient," if result.patients else "the classes"
        text = f"{first} and {second} scans do not have {mix} in the same proportions, which gives a perfectly "
        text += f"fair model a gap of {share:+.3f} here on average. The test allows for that; the interval does not. "
        texts.append(f"{text}The F1 of a class, and so the lowest one, depends on it too; recall does not.")
    if found is None:
        return [Verdict("note", text) for text in texts]
    gap = found.gap or found.abs_gap
    told = found.p_value is not None and found.p_value <= 1 - result.settings.confidence
    told = told and not gap.low <= 0 <= gap.high
    differs = told != (raw.level == "finding")
    if differs or texts:
        shown = span_text(gap, signed=found.gap is not None)
        text = f"With the classes of every group in the mix of all scans the gap is {shown}; {p_text(found.p_value)}"
        if differs:
            hides = ", a finding then: the mix of classes hides it"
            text += hides if told else ", no finding any more: the mix of classes may have made it one"
        texts.append(f"{text}.")
    return [Verdict("note", " ".join(texts))] if texts else []


def _with_margin(result: Audit, verdict: Verdict) -> Verdict:
    """The verdict on the gap beside a stated margin: different, equivalent within it, or not settled."""
    found = result.equivalence
    if found is None or found.margin is None:
        return verdict
    different = verdict.level == "finding"
    if not found.equivalent:
        return replace(verdict, text=f"{'Different' if different else 'Not settled'}: {verdict.text}")
    margin = f"{found.margin:g}"
    start = f"Different, but within {margin}" if different else f"Equivalent within {margin}"
    inner = f"{percent(found.confidence)} interval"
    whose = f"The {inner}s of the gaps of every two groups lie"
    if found.gap:
        whose = f"Its {inner} ({span(found.gap, signed=True)}) lies"
    return Verdict("finding", f"{start}: {verdict.text} {whose} between -{margin} and +{margin}.")


def _equivalence_notes(result: Audit) -> list[Verdict]:
    """The smallest margin within which the groups are shown to be alike."""
    found = result.equivalence
    if found is None or found.equivalent:
        return []
    least = np.floor(1000 * found.smallest_margin + 1) / 1000  # such that this very margin is enough
    if least >= 1:
        return [Verdict("note", "These scans show equivalence within no margin below 1.")]
    text = f"Two one-sided tests at {1 - result.settings.confidence:.2g} show that the gap lies within a margin of "
    text += f"{least:.3f}, and of no smaller one"
    interval = f" ({percent(found.confidence)} interval {span(found.gap, signed=True)})" if found.gap else ""
    return [Verdict("note", f"{text}{interval}.")]


def _tipping_notes(result: Audit, raw: Verdict) -> list[Verdict]:
    """How many wrong records would turn the verdict on the gap."""
    found, finding = result.tipping_point, raw.level == "finding"
    if found is None:
        return []
    stays: dict[str, float] = {}
    parts = []
    for what in dict.fromkeys(row.what for row in found.rows):
        rows = [row for row in found.rows if row.what == what]
        turned = [row.share for row in rows if row.finding != finding]
        if turned:
            now = "no finding" if finding else "a finding"
            parts.append(f"with {percent(min(turned))} of the {what}s changed at random there is {now}")
        else:
            stays[f"of the {what}s"] = rows[-1].share
    if stays:
        most = percent(min(stays.values()))
        parts.insert(0, f"the verdict stays with up to {most} {' or '.join(stays)} changed at random")
    chosen = tipping_records(found, bool(result.patients))
    text = f"If records are wrong: {'; '.join(parts)}."
    return [Verdict("note", f"{text} Chosen for it, {chosen} would turn it." if chosen else text)]


def tipping_records(found: TippingPoint, patients: bool) -> str:
    """The fewest records that turn the verdict, in words: ``another group of 1 scan or another label of 3 scans``."""
    few = [("group", found.fewest_groups, "patient" if patients else "scan"), ("label", found.fewest_labels, "scan")]
    return " or ".join(f"another {what} of {n} {unit}{'s' * (n > 1)}" for what, n, unit in few if n is not None)


PARTNERS = "no patient has the same classes and about as many scans (1, 2, 3-4, 5-8, ...)"


def stayed_text(result: Audit) -> str:
    """Why test and fair model say little, where most scans are of patients who could not change the group; else ""."""
    stayed = result.permutation.stayed or 0
    if stayed <= MOST_STAYED * result.n:
        return ""
    text = (
        f"{stayed} of the {result.n} scans are of patients who cannot change the group, as {PARTNERS} in another group"
    )
    if result.permutation.p_value is None:
        return f"{text}. So there is no test, and nothing is said of a fair model"
    return f"{text}. So p is large whatever the model does, and a fair model of these scans shows much of the same gap"


def p_text(p_value: float | None) -> str:
    """``p = 0.12``, or ``no p`` where there is no test."""
    return "no p" if p_value is None else f"p = {p_value:.3g}"


def few_groups(result: Audit) -> str:
    """The groups with too few scans for a statement (:func:`~.few_scans`); empty when there is none."""
    return few_scans({group.group: group.n for group in result.groups}, result.settings.min_cell)


def fair_gap_text(fair: FairModel, confidence: float = 0.95) -> str:
    """What |gap| a perfectly fair model shows, in words."""
    if fair.abs_gap_p95 <= TIE:
        return "a perfectly fair model of this score, whose answers to a class are all alike, shows no gap here"
    return (
        f"a perfectly fair model of this score shows |gap| {fair.abs_gap_mean:.3f} on average on scans like these, and "
        f"above {fair.abs_gap_p95:.3f} {one_time_in(confidence)}"
    )


def _gap_verdict(result: Audit) -> Verdict:
    overall, confidence, p = result.overall, result.settings.confidence, result.permutation.p_value
    stayed = stayed_text(result)
    beside = fair_gap_text(result.fair_model, confidence)
    if overall.gap is not None:
        gap, expected = overall.gap, result.fair_model.gap_mean or 0.0
        first, second = result.group_names
        better, worse = (first, second) if gap.value > expected else (second, first)
        what = f"The gap of {value_text(gap.value, signed=True)} ({first} minus {second}, "
        # A finding needs both: the gap is not 0, and it is not what the mix of classes alone gives.
        apart = is_apart(gap, expected)
        sentence = f"the model serves {better} scans better than {worse} ones"
        not_none = not gap.low <= 0 <= gap.high
    else:
        gap = overall.abs_gap
        what = f"The largest gap between two groups, {gap.value:.3f} ("
        apart = not_none = gap.low > 0
        sentence = "the model does not serve all groups alike"
    what += f"{in_percent(confidence)} interval {span(gap, signed=overall.gap is not None)}; "
    what += f"{p_text(result.permutation.p_value)})"
    told = p is not None and p <= 1 - confidence
    if apart and told:
        return Verdict("finding", f"{what} is larger than chance explains: {sentence}; {stayed or beside}.")
    if stayed:
        why = "is not 0, but nothing says whether chance explains it" if not_none else "may be 0 by its interval"
        return Verdict("inconclusive", f"{what} {why}: {stayed}.")
    if not_none and not told and (overall.gap is None or not apart):
        what += " is not 0, but cannot be told from what a perfectly fair model shows on scans like these"
        return Verdict("inconclusive", f"{what}; {beside}.")
    if told or not_none:
        what += " is on the border of what chance explains: the interval and the test do not agree"
        return Verdict("inconclusive", f"{what}; {beside}.")
    same = f": the groups have the same F1; {beside}" if overall.abs_gap.value <= TIE else ""
    what += same or f": a difference of this size cannot be told from none on these data; {beside}"
    if result.equivalence and result.equivalence.equivalent:
        return Verdict("inconclusive", f"{what}.")
    what += f". It does not show that the model is fair either: a gap as large as {overall.abs_gap.high:.3f} is not "
    return Verdict("inconclusive", f"{what}ruled out.")


def _power_verdicts(result: Audit) -> list[Verdict]:
    power, n, expected = result.power, result.n, result.fair_model.gap_mean or 0.0
    if power is None or stayed_text(result):
        return []
    scans = f"{n} scans"
    if result.patients:
        worth = f"{result.patients.effective_scans:.0f} scans of as many patients"
        scans += f" of {result.patients.n} patients, worth {worth},"
    beyond = " beyond that of a fair model" if abs(expected) >= MIX_GAP else ""
    text = f"{scans} show a gap of {power.detectable_gap:.3f} or more{beyond} in {in_percent(POWER)} of studies"
    if power.detectable_gap > 1:  # no gap is larger
        text = f"On {scans} no gap, however large, is seen in {in_percent(POWER)} of studies"
    if power.scans is None:
        none = "is 0" if result.overall.abs_gap.value <= TIE else "is no further from 0 than a fair model's"
        return [Verdict("note", f"{text}; the observed one {none}, so that no number of scans would show it.")]
    if power.scans <= n:
        return [Verdict("note", f"{text}; the observed one is of that size.")]
    text += f"; one of the observed size would need about {planned(power.scans)} scans in the same proportions"
    text += " and as many a patient" if result.patients else ""
    times = f" ({power.scans / n:.1f} times as many)" if power.scans <= MOST_PLANNED else ""
    return [Verdict("note", f"{text}{times}.")]


def _worst_verdicts(result: Audit) -> list[Verdict]:
    worst, confidence = result.worst_cell, result.settings.confidence
    if worst.small or worst.recall is None or worst.n_tied is None:
        return []
    filled, name = sum(cell.n > 0 for cell in result.cells), f"{worst.group} {worst.class_name}"
    f1 = f"{worst.f1.value:.3f} ({span(worst.f1)}, {worst.n} scans)"
    if worst.n_tied == filled:
        return [Verdict("note", f"Every class and group with scans has the same F1: {f1} in {name}.")]
    if worst.n_tied > 1:
        return [Verdict("note", f"{worst.n_tied} cells have the lowest F1, {name} among them: {f1}.")]
    often, p = worst.share_of_resamples, worst.fair_p_value or 1.0
    text = f"The lowest F1 is that of {name}: {f1}; its recall is {span_text(worst.recall)}. It is the lowest in "
    text += f"{in_percent(often)} of resamples"
    if stayed_text(result):
        return [Verdict("note", f"{text}.")]
    text += f"; a perfectly fair model has {worst.fair_f1:.3f} there on average"
    if often >= confidence and p > 1 - confidence:
        text += ", so that the classes' proportions and not the model's answers make it the lowest"
    if result.lowest:
        text += f". The true lowest F1, of whichever cell, lies in {span(result.lowest.cell_f1)}"
    return [Verdict("finding" if often >= confidence and p <= 1 - confidence else "note", f"{text}.")]


def _cell_verdicts(result: Audit) -> list[Verdict]:
    found = _worst_verdicts(result)
    texts = [f"There is no scan of group {name}: no statement." for name in result.absent_groups]
    empty = [f"{cell.group} {cell.class_name}" for cell in result.cells if cell.n == 0]
    if empty:
        have = "has no scan: no statement; its" if len(empty) == 1 else "have no scan: no statement; their"
        texts.append(f"{', '.join(empty)} {have} F1 counts as 0 in P and in the gap, as in the metrics.")
    small = [cell for cell in result.cells if cell.small and cell.n]
    scans = ["1 scan" if cell.n == 1 else f"{cell.n} scans" for cell in small]
    if len(small) == 1:
        texts.append(f"{small[0].group} {small[0].class_name}: this cell has {scans[0]}: no statement.")
    elif small:
        listed = zip(small, scans, strict=True)
        cells = ", ".join(f"{cell.group} {cell.class_name} ({n})" for cell, n in listed)
        texts.append(f"No statement on cells of fewer than {result.settings.min_cell} scans: {cells}.")
    return found + [Verdict("no-statement", text) for text in texts]


def _calibration_verdicts(result: Audit) -> list[Verdict]:
    """Of each group with probabilities, at a level of 1 - confidence for all of them together (Holm)."""
    from statsmodels.stats.multitest import multipletests

    found, confidence, least = [], result.settings.confidence, result.settings.min_cell
    given = [(group, group.calibration) for group in result.groups if group.calibration is not None]
    if given and (other := result.n_not_most_probable):
        text = f"{other} of the {result.n} predictions are not the most probable class: another rule made them, or a "
        return [Verdict("no-statement", f"{text}column is not what it says. No statement on calibration.")]
    for group, _ in given:
        if few := few_scans({group.group: group.n}, least):
            found.append(Verdict("no-statement", f"{few[0].upper()}{few[1:]}: no statement on its calibration."))
    judged = [(group, calibration) for group, calibration in given if group.n >= least]
    if not judged:
        return found
    p_values = [1.0 if calibration.ece_p_value is None else calibration.ece_p_value for _, calibration in judged]
    adjusted = multipletests(p_values, method="holm")[1].tolist()
    for (group, calibration), p in zip(judged, adjusted, strict=True):
        said = f"expected calibration error {span_text(calibration.ece)}; it is above "
        said += f"{calibration.ece_if_calibrated.p95:.3f} {one_time_in(confidence)} for a calibrated model on "
        said += f"{group.n} scans (p = {p:.3g}{f' by Holm for {len(judged)} groups' if len(judged) > 1 else ''})."
        if p > 1 - confidence:
            found.append(Verdict("note", f"No miscalibration can be seen for {group.group} scans: {said}"))
            continue
        sure, right = calibration.mean_confidence, group.accuracy
        # miscalibrated: over-confident in some bins and under-confident in others
        direction = "under-confident" if sure < right.low else "miscalibrated"
        direction = "over-confident" if sure > right.high else direction
        found.append(Verdict("finding", f"Probabilities of {group.group} scans are {direction}: {said}"))
    return found


def by_group_text(number: ByGroup) -> str:
    """A number of each group that is not small, and its difference, in words; empty when there is none."""
    said = [
        f"{one.group} {span_text(one.value)}, {one.n} scans" for one in number.groups if one.value and not one.small
    ]
    if found := number.difference:
        said.append(f"{found.first} minus {found.second} {span_text(found.difference, signed=True)}")
    return "; ".join(said)


def _clinical_notes(result: Audit) -> list[Verdict]:
    """Missed and false diagnoses, and the sensitivity for any disease: numbers, of which no verdict is drawn."""
    if result.clinical is None or (found := result.clinical.diagnosis) is None:
        return []
    numbers = [
        (f"Underdiagnosis (not {found.normal}, called {found.normal})", found.underdiagnosis),
        (f"Overdiagnosis ({found.normal}, called otherwise)", found.overdiagnosis),
    ]
    for point in result.clinical.operating_points:
        text = (
            f"Sensitivity for not {found.normal}, at the one threshold where all scans together have a specificity of "
        )
        numbers.append((text + value_text(point.reached), point.sensitivities))
    said = [(name, by_group_text(number)) for name, number in numbers]
    return [Verdict("note", f"{name}: {text}.") for name, text in said if text]
