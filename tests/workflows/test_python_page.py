"""docs/python.md: what it shows runs, and the loss and the metric do the same in every loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from workflows import CLASSES, SMALL_SETTINGS

from fairlung.pipeline.networks import I3D

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
LOOPS = ("Plain PyTorch", "MONAI's engines", "Lightning")


def code(heading: str) -> str:
    """The Python of a section, up to the next heading."""
    section = re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)
    (found,) = [part for part in section if part.startswith(f"{heading}\n")]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", found, re.MULTILINE | re.DOTALL))


def test_every_block_of_the_page_is_run_here() -> None:
    sections = ("Tables in, tables out", "The network alone", "Loss and metric in your own loop", *LOOPS)
    assert PAGE.read_text().count("```python") == len(sections) and all(map(code, sections))


def test_tables_in_and_out(small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = I3D(len(CLASSES)).eval()
    torch.save({"model": network.state_dict(), "settings": SMALL_SETTINGS | {"network": "I3D"}}, tmp_path / "model.pt")
    table = pd.read_csv(small_cohort)[["scan", "label", "sex", "split"]].replace({"split": {"val": "test"}})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "scans").symlink_to(small_cohort.parent / "scans")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code("Tables in, tables out"), names)
    answers, table = names["answers"], names["table"].set_index(["number", "group", "class"])
    women = answers[answers["sex"] == "female"]
    expected = f1_score(women["label"], women["prediction"], average="macro", labels=CLASSES, zero_division=0)
    assert table.loc[("f1", "female", ""), "value"] == pytest.approx(expected)
    assert set(names["differences"]["system"]) == {"mirrored"}
    exec(code("The network alone"), names)
    assert names["probabilities"].sum().item() == pytest.approx(1)


@pytest.fixture(scope="module")
def by_hand() -> dict[str, Any]:
    """What the plain loop leaves."""
    names: dict[str, Any] = {}
    exec(code("Loss and metric in your own loop") + code("Plain PyTorch"), names)
    return names


def test_the_plain_loop_learns_and_its_metric_is_scikit_learns(by_hand: dict[str, Any]) -> None:
    scans, network, numbers = (by_hand[name] for name in ("scans", "network", "numbers"))
    with torch.no_grad():
        said = network(torch.stack([scan["image"] for scan in scans])).argmax(1).tolist()
    for group, name in enumerate(by_hand["groups"]):
        rows = [i for i, scan in enumerate(scans) if scan["group"] == group]
        true = [scans[i]["label"] for i in rows]
        assert numbers[f"f1_{name}"] == pytest.approx(f1_score(true, [said[i] for i in rows], average="macro"))
    untrained: dict[str, Any] = {}
    exec(code("Loss and metric in your own loop"), untrained)
    batch = next(iter(by_hand["loader"]))
    losses = [names["loss"](names["network"](batch["image"]), batch).item() for names in (by_hand, untrained)]
    assert losses[0] < 0.9 * losses[1]


@pytest.mark.filterwarnings("default")  # of Lightning: few workers, few batches
@pytest.mark.parametrize("loop", LOOPS[1:])
def test_another_loop_ends_where_the_plain_one_does(
    by_hand: dict[str, Any], loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "Lightning":
        pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(code("Loss and metric in your own loop") + code(loop), names)
    for name, value in by_hand["network"].state_dict().items():
        torch.testing.assert_close(names["network"].state_dict()[name], value)
    for name, value in by_hand["numbers"].items():
        assert float(names["numbers"][f"val_{name}"]) == pytest.approx(value)
