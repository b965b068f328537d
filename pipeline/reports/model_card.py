"""The model card of an evaluated checkpoint, and its performance in a bundle: README's section, metadata's numbers."""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..common.errors import UserError
from ..common.names import OBJECTIVE_SETTINGS
from ..evaluation.audit_words import fair_gap_text, few_groups, p_text, stayed_text
from ..evaluation.records import Audit, to_plain
from ..evaluation.resampling import Estimate
from ..evaluation.wording import percent, span_text
from ..networks.catalogue import said_of_weights
from ..networks.checkpoint import CheckpointError, model_settings, said_of, same_checkpoint, training_record
from .checklist import NOT_STATED, checklist
from .document import LEVELS, Table, Verdicts, markdown_environment, squeezed, write_text
from .evaluation_report import calibration_table, cells_table, differences_table, evaluation_facts, headline_table
from .evidence import Evidence, read_evidence
from .parts import OPTIMISTIC, synthetic_badge

logger = logging.getLogger(__name__)

EVAL_METRICS = '"eval_metrics": '  # where a metadata.json of MONAI has them
START, END = "<!-- performance:start -->", "<!-- performance:end -->"
PREPROCESSING = {
    "window": "HU that become 0 and 1", "trim_fraction": "share of slices dropped at each end", "num_slices": "slices",
    "image_size": "size of a slice", "fast_decode": "JPEG slices shrunk while decoded", "crop_size": "size of the crop",
}  # fmt: skip


class MarksError(UserError, ValueError):
    """A README in which the place of the performance section is not marked, or not once."""


def write_model_card(evaluation_dir: str | Path, path: str | Path) -> Path:
    """Write the model card of an evaluated checkpoint: Markdown with a YAML head, as Hugging Face and MONAI have it."""
    path, text = Path(path), model_card(read_evidence(evaluation_dir))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def update_performance(readme: str | Path, evaluation_dir: str | Path) -> None:
    """Put the performance of an evaluation between the marks :data:`START` and :data:`END` of a README.

    Where the README is that of a bundle whose models/model.pt holds the judged checkpoint's weights, its metadata.json
    gets the numbers too (:func:`eval_metrics`). A README that does not hold each mark once, in this order, is left as
    it was: MarksError.
    """
    readme = Path(readme)
    try:
        text = readme.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MarksError(f"{readme} cannot be read: {error}") from error
    for mark in (START, END):
        if text.count(mark) != 1:
            raise MarksError(f"{readme} must hold the mark {mark} once, found {text.count(mark)}")
    before, rest = text.split(START)
    if END not in rest:
        raise MarksError(f"{readme}: the mark {END} stands before {START}")
    after = rest.split(END)[1]
    evidence = read_evidence(evaluation_dir)
    section = performance_markdown(evidence)
    readme.write_bytes(f"{before}{START}\n{section}{END}{after}".encode(errors="backslashreplace"))
    bundle, file = readme.parent.parent, evidence.checkpoint_file
    model, metadata = bundle / "models" / "model.pt", bundle / "configs" / "metadata.json"
    if not metadata.is_file():
        return
    if file is None or not _is(model, file):
        logger.warning("%s keeps its eval_metrics: %s is not the judged checkpoint", metadata, model)
        return
    record = training_record(file)
    write_eval_metrics(metadata, eval_metrics(evidence.audit, evidence.split, str(record.get("run") or "")))


def _is(model: Path, checkpoint: str | Path) -> bool:
    with suppress(CheckpointError):
        return model.is_file() and same_checkpoint(model, checkpoint)
    return False


def eval_metrics(audit: Audit, split: str, run: str) -> dict[str, Any]:
    """What an audit says of a model, for ``eval_metrics`` of a bundle's metadata.json: numbers by their keys in it.

    Of a group of too few scans for a statement, and then of P and the gap, there is no number. ``run`` is the
    training's, as the checkpoint says it; "" is left out.
    """
    few = few_groups(audit)
    enough = [group for group in audit.groups if group.n >= audit.settings.min_cell]
    numbers = {} if few else {key: estimate for key, estimate in audit.overall.numbers().items() if key != "f1_macro"}
    numbers |= {f"f1_{group.group}": Estimate(*group.f1[:3]) for group in enough}
    about = {
        "run": run, "split": split, "scans": audit.n, "patients": audit.n_patients, "postprocess": audit.postprocess,
    }  # fmt: skip
    found = {name: value for name, value in about.items() if value}
    found |= {"synthetic": audit.synthetic, "confidence": audit.settings.confidence}
    return found | to_plain(numbers) | {"verdict": audit.verdicts[0].text if audit.verdicts else NOT_STATED}


def write_eval_metrics(metadata: Path, metrics: Mapping[str, Any]) -> None:
    """Put ``eval_metrics`` into a metadata.json, whose other text stays as it is; ValueError where it has no place."""
    text = metadata.read_text(encoding="utf-8")
    before, key, after = text.partition(EVAL_METRICS)
    if not key:
        raise ValueError(f"{metadata} has no {EVAL_METRICS.strip(': ')}")
    _, end = json.JSONDecoder().raw_decode(after)
    indent = before[before.rfind("\n") + 1 :]
    made = json.dumps(metrics, indent=indent or 4, ensure_ascii=False).replace("\n", f"\n{indent}")
    write_text(metadata, f"{before}{key}{made}{after[end:]}")


def performance_markdown(evidence: Evidence) -> str:
    """What was judged, the verdicts, and the tables of headline numbers and cells, as Markdown without headings."""
    badge, badge_text = synthetic_badge(evidence.synthetic)
    return _performance(evidence, badge=badge, badge_text=badge_text, facts=evaluation_facts(evidence))


def _performance(evidence: Evidence, **above: Any) -> str:
    audit = evidence.audit
    tables = {"headline": headline_table(audit), "cells": cells_table(audit)}
    return _rendered("performance", verdicts=Verdicts(audit.verdicts), levels=LEVELS, **tables, **above)


def _rendered(template: str, **values: Any) -> str:
    return squeezed(markdown_environment().get_template(f"{template}.md.jinja").render(**values))


def model_card(evidence: Evidence) -> str:
    """The card as Markdown. What the evaluation does not say is "not stated"."""
    audit = evidence.audit
    calibration = calibration_table(audit)
    head: dict[str, Any] = {"license": "apache-2.0", "library_name": "monai", "pipeline_tag": "image-classification"}
    head["tags"] = ["monai", "medical", "ct", "lung", "fairness", *(["synthetic"] if evidence.synthetic else [])]
    head["metrics"] = ["f1", "precision", "recall", "accuracy", *(["roc_auc", "brier_score"] if calibration else [])]
    description = f"Classifies a chest CT as one of: {', '.join(audit.class_names)}. The network is that of the "
    description += "fairlung bundle, a 3-D ResNet-18 (R3D-18) for one channel."
    file = evidence.checkpoint_file
    settings: dict[str, Any] = {} if file is None else model_settings(file, "")
    return _rendered(
        "model_card", version=__version__, front_matter=f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        title="Fair lung CT classification", synthetic=evidence.synthetic, description=description,
        intended_use="Research on the fair classification of chest CT. Not a medical device.",
        model=_model_facts(evidence, settings), training_data=_training_data(evidence),
        training=_training_facts(evidence),
        facts=evaluation_facts(evidence), group_by=", ".join(audit.group_by),
        performance=_performance(evidence, badge="", facts=()),  # badge and facts stand above it
        tables=[calibration] if calibration else [], limitations=_limitations(evidence),
        fairness=_fairness(evidence), differences=differences_table(audit),
        checklist=checklist(evidence, settings),
    )  # fmt: skip


def _model_facts(evidence: Evidence, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    file = evidence.checkpoint_file
    record: dict[str, Any] = {} if file is None else training_record(file)
    shares = ", ".join(f"{name} {share:.3g}" for name, share in (record.get("class_frequencies") or {}).items())
    facts = [("Checkpoint", evidence.checkpoint or NOT_STATED), ("Run", said_of(record) if record else NOT_STATED)]
    facts += [("Class frequencies under which it answers", shares or NOT_STATED)]
    facts += [(f"{name} ({meaning})", _text(settings.get(name))) for name, meaning in PREPROCESSING.items()]
    return [*facts, ("Terms of the weights", NOT_STATED), ("Software", f"fairlung {__version__}, Apache-2.0")]


def _training_data(evidence: Evidence) -> list[str | Table]:
    found: list[str | Table] = [f"Source, consent and terms of the scans: {NOT_STATED}."]
    cells = evidence.cells
    train = None if cells is None else cells[cells["split"] == "train"]
    if train is None or train.empty:
        return [f"Scans of each class and group: {NOT_STATED}.", *found]
    groups = list(dict.fromkeys(train["group"]))
    count = train.groupby(["label", "group"])["n"].sum()
    labels = dict.fromkeys(train["label"])
    rows = [(label, *(str(count.get((label, group), 0)) for group in groups)) for label in labels]
    title = f"Train split of the cohort given to the evaluation, {train['n'].sum():,} scans"
    return [Table(title, ("class", *groups), tuple(rows)), *found]


def _training_facts(evidence: Evidence) -> list[tuple[str, str]]:
    settings, history = evidence.settings, evidence.history
    named = {
        "system": "Objective", "alpha": "alpha (CVaR over groups)", "tau": "tau (logit adjustment)",
        "gradient": "Gradient of the CVaR", "seed": "Seed",
        "batch_size": "Batch size", "weight_decay": "Weight decay",
    }  # fmt: skip
    absent = [name for name in OBJECTIVE_SETTINGS if {"system", name} & settings.keys() and settings.get(name) is None]
    facts = [(heading, "none" if name in absent else _text(settings.get(name))) for name, heading in named.items()]
    facts.append(("At first", said_of_weights(settings) or NOT_STATED))
    if settings.get("train_layers") in ("head", "frozen"):
        facts.append(("Trained layers", "the head alone"))
    facts.append(("Epochs", NOT_STATED if history is None else str(int(history["epoch"].max()))))
    marked = NOT_STATED if evidence.marked_epoch is None else f"{evidence.marked_epoch} ({evidence.marked_by})"
    facts.append(("Epoch of the checkpoint", marked))
    rates = None if history is None else history[history["metric"] == "lr"].sort_values("epoch")["value"]
    facts.append(("Learning rate at first", NOT_STATED if rates is None or rates.empty else f"{rates.iloc[0]:g}"))
    return [*facts, ("Augmentation, hardware", NOT_STATED)]


def _limitations(evidence: Evidence) -> list[str]:
    audit = evidence.audit
    small = [f"{cell.group} {cell.class_name} ({cell.n})" for cell in audit.cells if cell.small]
    found = ["One trained model was judged: its numbers say nothing about other seeds."]
    found += ["It was judged on phantoms: its numbers say nothing about patients."] if evidence.synthetic else []
    found += [OPTIMISTIC] if evidence.split == "val" else []
    found += [f"Too few scans for a statement: {', '.join(small)}."] if small else []
    found += [f"Group not known, left out of every number here: {audit.n_unknown} scans."] if audit.n_unknown else []
    return [*found, f"Fairness was judged by {', '.join(audit.group_by)} only. Other sites and scanners: {NOT_STATED}."]


def _fairness(evidence: Evidence) -> list[str]:
    audit = evidence.audit
    overall, worst = audit.overall, audit.worst_cell
    if overall.gap is not None:
        gap = f"The gap in macro F1, {' minus '.join(audit.group_names)}, is {span_text(overall.gap, signed=True)}"
    else:
        gap = f"The largest gap in macro F1 between two groups is {span_text(overall.abs_gap)}"
    fair = fair_gap_text(audit.fair_model, audit.settings.confidence)
    few = ", too few for a statement" if worst.small else ""
    said = f"{fair[0].upper()}{fair[1:]}. Permutation test of the gap: {p_text(audit.permutation.p_value)}."
    if stayed := stayed_text(audit):
        said = f"{stayed}. Permutation test of the gap: {p_text(audit.permutation.p_value)}."
    if shared := audit.shared_classes:
        alone = span_text(shared.gap, signed=True) if shared.gap is not None else span_text(shared.abs_gap)
        said = "A group has no scan of a class, which counts there whatever the model does. Of the classes that every "
        said += f"group has ({', '.join(shared.class_names)}) it is {alone}, {p_text(shared.permutation.p_value)}."
    if small := few_groups(audit):
        said = f"{small[0].upper()}{small[1:]}: no statement on the gap."
    return [
        f"{gap}, in brackets its {percent(audit.settings.confidence)} interval. {said}",
        f"The lowest F1 is that of {worst.group} {worst.class_name}: {span_text(worst.f1)}, {worst.n} scans{few}.",
    ]


def _text(value: Any) -> str:
    if value is None:
        return NOT_STATED
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
