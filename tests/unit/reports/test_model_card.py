"""A model card and a README's performance say what the evaluation says, and no more."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from evaluations import (
    judged_by,
    make_run,
    markdown_tables,
    page_of,
)
from reconstruction import predictions_of

from fairlung.pipeline.evaluation.audit import audit as audit_of
from fairlung.pipeline.evaluation.records import to_plain
from fairlung.pipeline.networks.checkpoint import MODEL_SETTINGS
from fairlung.pipeline.reports.evidence import Evidence
from fairlung.pipeline.reports.model_card import (
    END,
    START,
    MarksError,
    eval_metrics,
    model_card,
    update_performance,
    write_model_card,
)

SHIPPED = Path(__file__).parents[3] / "bundles" / "fair_lung_ct" / "configs" / "metadata.json"


def test_a_model_card_is_filled_from_the_evaluation(tmp_path):
    folder = make_run(tmp_path, split="val", synthetic=True)
    (tmp_path / "models").mkdir()
    settings = dict.fromkeys(MODEL_SETTINGS, 1) | {"window": [-1350, 150], "num_slices": 48}
    torch.save({"model": {}, "settings": settings}, tmp_path / "models" / "best.pt")
    (tmp_path / "settings.json").write_text(json.dumps({"alpha": 0.8, "system": "LA+CVaR"}))
    text = write_model_card(folder, tmp_path / "MODEL_CARD.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["library_name"] == "monai" and "synthetic" in front["tags"] and front["license"] == "apache-2.0"
    headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert headings == [
        "Model description", "Intended use", "Out of scope", "Training data", "Training procedure", "Evaluation data",
        "Results by sex", "Limitations", "Fairness", "How to use", "Citation", "Appendix: reporting checklists",
    ]  # fmt: skip
    for said in (
        "- num_slices (slices): 48", "- window (HU that become 0 and 1): -1350, 150", "- alpha (CVaR over groups): 0.8",
        "- Objective: LA+CVaR", "- Seed: not stated", "- Epochs: 5",
        "- Epoch of the checkpoint: 3 (the one of the highest P)",
        "- Learning rate at first: 0.3", "optimistic", "Too few scans for a statement: female normal (3).", "SYNTHETIC",
    ):  # fmt: skip
        assert said in body
    score = judged_by(folder)["overall"]["score"]
    tables = markdown_tables(body)
    assert ["adenocarcinoma", "40", "40"] in tables[0]
    assert tables[1][1] == [
        "P (mean over groups of the macro F1)", f"{score['value']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}"
    ]  # fmt: skip
    for verdict in judged_by(folder)["verdicts"]:
        assert verdict["text"].replace("|", "\\|") in body


def test_a_model_card_says_what_is_not_stated(tmp_path):
    folder = make_run(tmp_path, extras=False)
    body = write_model_card(folder, tmp_path / "sub" / "MODEL_CARD.md").read_text()
    for said in (
        "each class and group: not stated",
        "Objective: not stated",
        "Epochs: not stated",
        "num_slices (slices): not",
    ):
        assert said in body
    assert "SYNTHETIC" not in body and "synthetic" not in body


def test_the_checklist_says_what_the_audit_says_and_nothing_else(tmp_path):
    folder = make_run(tmp_path, split="val")
    settings = {"pretrained": True, "batch_size": 2, "alpha": 0.8, "train_layers": "head"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    audit = judged_by(folder)
    body = write_model_card(folder, tmp_path / "MODEL_CARD.md").read_text()
    assert "the head alone" in body
    header, *rows = markdown_tables(body)[-1]
    assert header == ["CLAIM 2024", "TRIPOD+AI", "item", "answer", "from"]
    answers = {row[2]: row[3] for row in rows}
    assert len(answers) == len(rows) and all(claim or tripod for claim, tripod, *_ in rows)
    assert all((answer == "not stated") == (source == "") for *_, answer, source in rows)
    for name in ("Sources of the scans", "Preprocessing", "Reference standard", "External test data", "Funding"):
        assert answers[name] == "not stated"  # there is no checkpoint at hand
    assert answers["Initial weights"] == "Kinetics-400 weights (kinetics400)" and answers["Training"] == "batch_size 2"
    score, settings = audit["overall"]["score"], audit["settings"]
    said = answers["Performance, with intervals, by group"]
    assert said.startswith(f"P {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f}); F1 male ")
    assert f"{settings['resamples']:,} {settings['method']}" in answers["Uncertainty and significance"]
    assert answers["Who was judged"] == ", ".join(f"{group['group']} {group['n']} scans" for group in audit["groups"])
    worst = audit["worst_cell"]
    assert answers["Failures"].startswith(f"lowest F1: {worst['group']} {worst['class']}, {worst['f1']['value']:.3f}")
    assert answers["Missing data"].startswith(f"{audit['n_unknown']} scans of unknown sex")


def numbers_in(content):
    """Every number of audit.json but those of its settings and words."""
    if isinstance(content, dict):
        return [n for key, part in content.items() if key not in ("settings", "verdicts") for n in numbers_in(part)]
    if isinstance(content, list):
        return [number for part in content for number in numbers_in(part)]
    return [content] if isinstance(content, (int, float)) and not isinstance(content, bool) else []


@pytest.mark.parametrize("seed", range(3))
def test_no_number_of_a_card_contradicts_its_audit(seed):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([6, 1, 1], (2, 3)).take([[0, 1, 2], [1, 0, 2], [1, 2, 0]][seed], axis=-1)
    support = rng.integers(3 if seed == 1 else 12, 60, (2, 3))
    found = audit_of(predictions_of(rng.multinomial(support, shares)), 100, 100)
    card = model_card(Evidence(found)).replace("\\", "")
    verdicts = [verdict.text for verdict in found.verdicts]
    assert all(text in card for text in verdicts)
    for text in verdicts:
        card = card.replace(text, "")
    told = {f"{abs(number):.3f}" for number in numbers_in(to_plain(found))}
    said = re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", card)
    assert len(said) > 40 and set(said) <= told, set(said) - told
    tested = {f"{found.permutation.p_value:.3g}"}
    assert set(re.findall(r"p = ([\d.e-]+?)[.,;]?(?:\s|$)", card)) == tested
    scans = {int(n) for n in re.findall(r"(\d+) scans", card)}
    assert scans <= {int(number) for number in numbers_in(to_plain(found))} | {found.settings.min_cell}


def test_performance_is_put_between_the_marks_and_nowhere_else(run, tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# Bundle\r\n\r\nText <!-- other -->\r\n", "\r\n## Next\r\n"
    readme.write_bytes(f"{before}{START}\nold numbers\n{END}{after}".encode())
    update_performance(readme, run)
    once = readme.read_bytes()
    update_performance(readme, run)
    assert readme.read_bytes() == once
    text = once.decode()
    assert text.startswith(before + START) and text.endswith(END + after) and "old numbers" not in text
    assert "SYNTHETIC" in text
    (headline, cells) = markdown_tables(text)
    assert headline == page_of(run).tables[0] and cells == page_of(run).tables[1]


def a_bundle(folder: Path, model: bytes) -> Path:
    """A bundle's README, beside the shipped metadata and a model."""
    for name in ("docs", "configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "docs" / "README.md").write_text(f"{START}{END}")
    (folder / "models" / "model.pt").write_bytes(model)
    shutil.copyfile(SHIPPED, folder / "configs" / "metadata.json")
    return folder / "docs" / "README.md"


def test_the_metadata_of_a_bundle_gets_the_numbers_of_its_very_model(tmp_path, caplog):
    folder = make_run(tmp_path / "run", split="val", synthetic=True)
    (tmp_path / "run" / "models").mkdir()
    judged = tmp_path / "run" / "models" / "best.pt"
    torch.save({"model": {}, "settings": dict.fromkeys(MODEL_SETTINGS, 1), "training": {"run": "r7"}}, judged)
    other, ours = (a_bundle(tmp_path / name, data) for name, data in (("a", b"other"), ("b", judged.read_bytes())))
    update_performance(other, folder)
    assert other.parent.with_name("configs").joinpath("metadata.json").read_bytes() == SHIPPED.read_bytes()
    assert "is not the judged checkpoint" in caplog.text
    for _ in range(2):  # the second time over the first
        update_performance(ours, folder)
        text = ours.parent.with_name("configs").joinpath("metadata.json").read_text()
        before, after = SHIPPED.read_text().split('"eval_metrics": {}')
        assert text.startswith(before) and text.endswith(after)
    found, audit = json.loads(text)["eval_metrics"], judged_by(folder)
    assert (found["run"], found["split"], found["synthetic"]) == ("r7", "val", True)
    assert {name: found[name] for name in ("score", "gap", "abs_gap")} == {
        name: number for name, number in audit["overall"].items() if name != "f1_macro"
    }
    for group in audit["groups"]:
        assert found[f"f1_{group['group']}"] == {name: group["f1"][name] for name in ("value", "low", "high")}
    assert found["verdict"] == audit["verdicts"][0]["text"] and found["confidence"] == 0.95


def test_a_group_of_few_scans_has_no_number_in_the_metadata():
    counts = [np.diag([20, 20]), np.diag([4, 5])]
    found = eval_metrics(audit_of(predictions_of(counts), 100, 100), "test", "")
    assert set(found) == {"split", "scans", "synthetic", "confidence", "f1_male", "verdict"}
    assert found["verdict"].startswith("Fewer than 10 scans of female (9)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "performance:start.* once, found 0"),
        (f"{START}{START}{END}", "performance:start.* once, found 2"),
        (f"{START}", "performance:end.* once, found 0"),
        (f"{END}{START}", "stands before"),
    ],
)
def test_a_readme_without_its_marks_is_left_alone(run, tmp_path, content, message):
    readme = tmp_path / "README.md"
    readme.write_text(content)
    with pytest.raises(MarksError, match=message):
        update_performance(readme, run)
    assert readme.read_text() == content
    with pytest.raises(MarksError, match="cannot be read"):
        update_performance(tmp_path / "none.md", run)
