"""What an audit says in words: its verdicts."""

from .records import Audit, FairModel
from .wording import POWER, Verdict, few_scans, in_percent, planned, span, span_text

MIX_GAP = 0.02  # a fair model's gap from which a verdict says that the groups differ in their mix of classes


def verdicts(result: Audit) -> list[Verdict]:
    """What an audit says, in words, the most important first."""
    few = few_groups(result)
    found = [Verdict("no-statement", f"{few[0].upper()}{few[1:]}: no statement on the gap.")] if few else []
    found = found or [_gap_verdict(result), *_power_verdicts(result)]
    if result.patients:
        text = (
            f"The {result.n} scans are of {result.patients.n} patients: patients, not scans, were resampled and moved "
        )
        text += f"between the groups. The answers to a patient's scans correlate by {result.patients.correlation:.2f}."
        found.append(Verdict("note", text))
    if result.postprocess:
        text = f"These are not the network's own answers: they were post-processed ({result.postprocess})."
        found.append(Verdict("note", text))
    share = result.fair_model.gap_mean or 0.0
    if abs(share) >= MIX_GAP and not few:  # a gap that comes of who was scanned, large enough to mislead
        first, second = result.group_names
        text = f"{first} and {second} scans do not have the classes in the same proportions, which gives a perfectly "
        text += f"fair model a gap of {share:+.3f} here on average. The test allows for that; the interval does not."
        found.append(Verdict("note", text))
    return [*found, *_cell_verdicts(result), *_calibration_verdicts(result)]


def few_groups(result: Audit) -> str:
    """The groups with too few scans for a statement (:func:`~.few_scans`); empty when there is none."""
    return few_scans({group.group: group.n for group in result.groups}, result.settings.min_cell)


def fair_gap_text(fair: FairModel) -> str:
    """What |gap| a perfectly fair model shows, in words."""
    return (
        f"a perfectly fair model of this score shows |gap| {fair.abs_gap_mean:.3f} on average on scans like these, and "
        f"above {fair.abs_gap_p95:.3f} one time in twenty"
    )


def _gap_verdict(result: Audit) -> Verdict:
    overall, beside = result.overall, fair_gap_text(result.fair_model)
    confidence, p = result.settings.confidence, result.permutation.p_value
    if overall.gap is not None:
        gap, expected = overall.gap, result.fair_model.gap_mean or 0.0
        first, second = result.group_names
        better, worse = (first, second) if gap.value > expected else (second, first)
        what = f"The gap of {gap.value:+.3f} ({first} minus {second}, "
        # A finding needs both: the gap is not 0, and it is not what the mix of classes alone gives.
        apart = gap.low > max(0, expected) or gap.high < min(0, expected)
        sentence = f"the model serves {better} scans better than {worse} ones"
    else:
        gap = overall.abs_gap
        what = f"The largest gap between two groups, {gap.value:.3f} ("
        apart = True  # a largest difference is never below 0, so only the test can tell
        sentence = "the model does not serve all groups alike"
    what += f"{in_percent(confidence)} interval {span(gap, signed=overall.gap is not None)}; p = {p:.3g})"
    if apart and p <= 1 - confidence:
        return Verdict("finding", f"{what} is larger than chance explains: {sentence}; {beside}.")
    if overall.gap is not None and (p <= 1 - confidence or not gap.low <= 0 <= gap.high):
        what += " is on the border of what chance explains: the interval and the test do not agree"
        return Verdict("inconclusive", f"{what}; {beside}.")
    what += f": a difference of this size cannot be told from none on these data; {beside}. It does not show that the"
    what += f" model is fair either: a gap as large as {overall.abs_gap.high:.3f} is not ruled out."
    return Verdict("inconclusive", what)


def _power_verdicts(result: Audit) -> list[Verdict]:
    power, n = result.power, result.n
    if power is None:
        return []
    scans = f"{n} scans"
    if result.patients:
        worth = f"{result.patients.effective_scans:.0f} scans of as many patients"
        scans += f" of {result.patients.n} patients, worth {worth},"
    text = f"{scans} show a gap of {power.detectable_gap:.3f} or more in {in_percent(POWER)} of studies"
    if power.detectable_gap > 1:  # no gap is larger
        text = f"On {scans} no gap, however large, is seen in {in_percent(POWER)} of studies"
    if power.scans is None:
        return [Verdict("note", f"{text}.")]
    if power.scans <= n:
        return [Verdict("note", f"{text}; the observed one is of that size.")]
    text += f"; one of the observed size would need about {planned(power.scans)} scans in the same proportions "
    text += "and as many a patient " if result.patients else ""
    return [Verdict("note", f"{text}({power.scans / n:.1f} times as many).")]


def _cell_verdicts(result: Audit) -> list[Verdict]:
    found: list[Verdict] = []
    worst = result.worst_cell
    if not worst.small:
        text = f"The lowest F1 is that of {worst.group} {worst.class_name}: {worst.f1.value:.3f} ({span(worst.f1)}, "
        text += f"{worst.n} scans); it is the lowest in {in_percent(worst.share_of_resamples)} of resamples."
        found.append(Verdict("finding" if worst.share_of_resamples >= 0.95 else "note", text))
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
    found = []
    for group in result.groups:
        if (calibration := group.calibration) is None:
            continue
        if few := few_scans({group.group: group.n}, result.settings.min_cell):
            found.append(Verdict("no-statement", f"{few[0].upper()}{few[1:]}: no statement on its calibration."))
            continue
        threshold = calibration.ece_if_calibrated.p95
        said = f"expected calibration error {span_text(calibration.ece)}; it is above {threshold:.3f} one time in "
        said += f"twenty for a calibrated model on {group.n} scans."
        if calibration.ece.value <= threshold:
            found.append(Verdict("note", f"No miscalibration can be seen for {group.group} scans: {said}"))
            continue
        sure, right = calibration.mean_confidence, group.accuracy
        # miscalibrated: over-confident in some bins and under-confident in others
        direction = "under-confident" if sure < right.low else "miscalibrated"
        direction = "over-confident" if sure > right.high else direction
        found.append(Verdict("finding", f"Probabilities of {group.group} scans are {direction}: {said}"))
    return found
