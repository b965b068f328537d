"""audit.json and compare.json: what is written holds the schema and is read again, and 0.1's is read too."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from reconstruction import predictions_of

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.records import Comparison
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.audit_words import verdicts
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import (
    SCHEMA_VERSION,
    Audit,
    NearDuplicate,
    NearDuplicates,
    NoRecordError,
    json_text,
    read_record,
    to_plain,
)
from fairlung.pipeline.reports.evaluation_report import evaluation_report
from fairlung.pipeline.reports.evidence import Evidence

SCHEMA = json.loads(files("fairlung.pipeline.evaluation").joinpath("audit.schema.json").read_text())
GROUPS = ("alder", "birch", "cedar")
FAST = {"resamples": 100, "permutations": 100}
PAIR = NearDuplicate("a", "b", "flu", 0.1, 0.4, 0.25, False)
FOUND = {"no gap": NearDuplicates("train", 24, 9, 0.7, ()), "patients": NearDuplicates("train", 24, 9, 0.7, (PAIR,))}


def table(groups: int, probabilities: bool, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    found = predictions_of(rng.integers(1, 9, (groups, 3, 3)), group_names=GROUPS[:groups])
    return found.with_probabilities(rng.dirichlet(np.ones(3), len(found.label))) if probabilities else found


def without_a_class(found: Predictions) -> Predictions:
    """The last group has no AUC then."""
    return found.take((found.group < len(found.group_names) - 1) | (found.label > 0))


AUDITED = {
    "two groups": table(2, True),
    "three groups": table(3, True),
    "no probabilities": table(2, False),
    "a normal class": replace(table(3, True), class_names=("flu", "Healthy", "tb")),
    "a group without a class": without_a_class(table(2, True)),
    "patients": replace(
        table(2, True),
        class_names=("normal", "flu", "tb"),
        patient=np.arange(len(table(2, True).label)) // 2 + 1000 * table(2, True).group,
    ),
    "a class that one group lacks": predictions_of([np.full((3, 3), 9), np.diag([12, 12, 0])]),
    "no gap": predictions_of([np.diag([12, 12]), np.diag([12, 12])]),
}


@pytest.mark.parametrize("name", AUDITED)
def test_an_audit_holds_its_schema_and_is_read_again(name: str, tmp_path: Path) -> None:
    asked = {"margin": 0.3 if name == "two groups" else None, "duplicates": FOUND.get(name)}
    result = audit(AUDITED[name], **asked, **FAST)
    path = tmp_path / "audit.json"
    path.write_text(json_text(result))
    Draft202012Validator(SCHEMA).validate(json.loads(path.read_text()))
    assert (json.loads(path.read_text()).get("patients") is not None) == (name == "patients")
    assert read_record(Audit, path) == result


def test_the_schema_is_strict() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    good = to_plain(audit(AUDITED["patients"], duplicates=FOUND["patients"], **FAST))
    validator = Draft202012Validator(SCHEMA)

    def parts(content: Any) -> list[dict[str, Any]]:
        inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        return [content] * isinstance(content, dict) + [found for part in inner for found in parts(part)]

    of_classes = (*good["differences"].values(), good["standardised"]["mix"])
    for part in parts(good):
        if any(part is classes for classes in of_classes):
            continue
        part["unheard_of"] = 1
        assert not validator.is_valid(good)
        del part["unheard_of"]
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "schema_version": SCHEMA_VERSION + 1})


def test_an_audit_of_fairlung_0_1_is_read(tmp_path: Path) -> None:
    result = audit(AUDITED["two groups"], **FAST)
    content = to_plain(result)
    del content["schema_version"], content["settings"]["min_cell"], content["n_not_most_probable"]
    new = ("recall", "n_tied", "fair_f1", "fair_p_value")
    for key in new:
        del content["worst_cell"][key]
    later = ("lowest", "standardised", "equivalence", "tipping_point")
    for key in later:
        del content[key]
    for key in ("equalized_odds", "demographic_parity"):
        del content["differences"][f"{key}_intervals"]
    for cell in content["cells"]:
        del cell["recall_pooled"]
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(content))
    expected = replace(
        result, worst_cell=replace(result.worst_cell, **dict.fromkeys(new)), **dict.fromkeys(later),
        cells=tuple(replace(cell, recall_pooled=None) for cell in result.cells),
        differences=replace(result.differences, equalized_odds_intervals={}, demographic_parity_intervals={}),
    )  # fmt: skip
    read = read_record(Audit, path)
    assert read == expected
    assert verdicts(read)[0] == result.verdicts[0]  # words are made without the later numbers
    assert evaluation_report(Evidence(read)).sections


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema_version {SCHEMA_VERSION + 1}, and this fairlung reads"),
        ({"overall": {}}, "no audit: .*score"),
        ({"overall": None}, "no audit"),
        ({"cells": [1]}, "no audit"),
    ],
)
def test_what_is_no_audit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(to_plain(audit(AUDITED["no gap"], **FAST)) | change))
    with pytest.raises(NoRecordError, match=message):
        read_record(Audit, path)
    path.write_text("[]")
    with pytest.raises(NoRecordError):
        read_record(Audit, path)


@pytest.mark.parametrize("runs", [(1, 1), (2, 3), (2, 2, 1)])
def test_a_comparison_is_read_again(runs: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = table(2, True)
    systems = {
        f"system {i}": [first.with_probabilities(rng.dirichlet(np.ones(3), len(first.label))) for _ in range(number)]
        for i, number in enumerate(runs)
    }
    result = compare(systems, **FAST)
    path = tmp_path / "compare.json"
    path.write_text(json_text(result))
    assert read_record(Comparison, path) == result
    with pytest.raises(NoRecordError, match="no audit"):
        read_record(Audit, path)
    of_0_1 = to_plain(result)
    del of_0_1["comparisons"][0]["seeds"]
    path.write_text(json.dumps(of_0_1))
    with pytest.raises(NoRecordError, match=r"^no comparison: .*'seeds'$"):
        read_record(Comparison, path)
