"""What a report says of features: attributes that can be read from them, scans that look like one patient's."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.records import NearDuplicates
from ..evaluation.wording import number_name, percent, span_text, value_text
from ..shortcuts.probe import KIND_NAMES, LEAST, NOT_USED, Probe
from .document import Block, Paragraph, Table, Verdicts


def duplicate_blocks(found: NearDuplicates) -> tuple[Block, ...]:
    """Every pair that a search for the judged patients among other scans found, with its evidence; () without one."""
    if not found.pairs:
        return ()
    text = (
        "Each scan of a pair is the other's nearest on the other side within a class, by what the network, the same "
        "before its training and statistics of the image make of it, and at most "
        f"{found.ratio:g} times as far away as the nearest third scan of the class (next) is from one of them. A "
        "distance is 1 - cosine: 0 is the same scan."
    )
    words = {True: "two, by the cohort", False: "not known"}
    rows = tuple(
        (f"{pair.scan} and {pair.other}", pair.label, *map(value_text, (pair.distance, pair.next, pair.ratio)),
         words[pair.two_patients])
        for pair in found.pairs
    )  # fmt: skip
    columns = (f"judged scan, and scan of {found.split}", "class", "distance", "next", "distance / next", "patients")
    return Paragraph(text), Table("Pairs, the likeliest first", columns, rows)


def probe_table(probe: Probe) -> Table:
    """How well an attribute is read by the network, by the same before its training, and by simple statistics."""
    names = [one.class_name for one in probe.readings[0].classes]
    rows = []
    for one in probe.readings:
        within = {found.class_name: span_text(found.auc) for found in one.classes}
        chance = f"{value_text(one.chance.mean)}, up to {value_text(one.chance.p95)}"
        row = (KIND_NAMES[one.kind], str(one.features), span_text(one.auc), chance, f"{one.p_value:.3g}")
        rows.append((*row, *(within[name] for name in names)))
    columns = ("features of", "numbers", number_name("auc"), "if shuffled", "p", *(f"among {name}" for name in names))
    values = ", ".join(f"{name} {count}" for name, count in probe.values.items())
    caption = f"{probe.target} ({values} scans of {probe.patients} patients), {percent(probe.confidence)} intervals"
    return Table(caption, columns, tuple(rows))


def probe_blocks(probes: Sequence[Probe]) -> tuple[Block, ...]:
    """The verdict on each attribute that was probed, its table, and what was left out."""
    text = (
        "A linear probe (ridge regression, five folds that keep a patient's scans together) reads an attribute from "
        "the numbers that the network's last layer is given. The AUC is that of scans which did not fit the probe; "
        "the interval is over patients of the same mix of classes. Shuffled: the attribute is moved between the "
        "patients of a class, which gives p and shows what the mix of classes alone tells. What the untrained network "
        f"and the statistics tell as well, the training did not put there. {NOT_USED} Before its training the network "
        f"had {probes[0].untrained_is}."
    )
    blocks: list[Block] = [Verdicts(tuple(probe.verdict for probe in probes)), Paragraph(text)]
    for probe in probes:
        blocks.append(probe_table(probe))
        if probe.left_out:
            said = ", ".join(f"{name or 'no value'} {count}" for name, count in probe.left_out.items())
            blocks.append(Paragraph(f"Left out, with fewer than {LEAST} patients or without a value: scans of {said}."))
    return tuple(blocks)
