"""The site head through the shipped config: gamma 0 is the plain system, checkpoints are the plain network's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from workflows import SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.common.config import SettingError
from fairlung.pipeline.data.cohort_checks import CohortError

SHORT = {"network_def": SMALL_NETWORK, "epochs": 1}


def weights(workflow: ConfigWorkflow) -> dict[str, torch.Tensor]:
    return workflow.parser.get_parsed_content("network_def").state_dict()


@pytest.mark.slow
def test_gamma_0_is_the_plain_system_to_the_bit_and_any_other_is_not(
    start: Start, small_cohort: Path, tmp_path: Path
) -> None:
    def trained(name: str, **settings: Any) -> ConfigWorkflow:
        place = str(tmp_path / "_".join([name, *settings]))
        return run(start("train", f"systems/{name}", cohort=str(small_cohort), output_dir=place, **SHORT, **settings))

    plain, without = trained("ce"), trained("site_adversarial", gamma=0)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(without).values(), strict=True))
    headed = trained("site_adversarial", accumulate=2)
    assert weights(headed).keys() == weights(plain).keys()
    assert not torch.equal(weights(headed)["class_layers.out.weight"], weights(plain)["class_layers.out.weight"])
    place = tmp_path / "site_adversarial_accumulate"
    saved = torch.load(place / "models" / "best.pt", weights_only=True)
    assert saved["model"].keys() == weights(plain).keys() and saved["settings"]["network"] == "DenseNet"
    assert sum(saved["training"]["class_frequencies"].values()) == pytest.approx(1)  # of the classes alone
    # evaluated with its overlay and without it: the checkpoint is the plain network's
    for names in (("train", "systems/site_adversarial", "evaluate"), ("train", "evaluate")):
        evaluated = run(start(*names, cohort=str(small_cohort), output_dir=str(place), network_def=SMALL_NETWORK))
        assert evaluated.evaluator.state.metrics["val_score"] == headed.evaluator.state.metrics["val_score"]


def test_gamma_and_sites_that_cannot_be_are_one_line(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    def error(change: Any = None, **settings: Any) -> BaseException:
        table = pd.read_csv(small_cohort)
        table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
        (table if change is None else change(table)).to_csv(tmp_path / "cohort.csv", index=False)
        names = ("train", "systems/site_head")
        cohort, place = str(tmp_path / "cohort.csv"), str(tmp_path / "run")
        return cause(start(*names, cohort=cohort, output_dir=place, **SHORT, **settings))

    found = error(gamma=-0.5)
    assert isinstance(found, SettingError) and str(found) == "gamma must be at least 0, got -0.5"
    found = error(lambda table: table.drop(columns="site"))
    assert isinstance(found, CohortError) and str(found).startswith("a site head needs the column 'site'")
    found = error(lambda table: table.assign(site=table["split"].map({"train": "alder", "val": "birch"})))
    assert "needs training scans of two sites at least; there is alder" in str(found)
    found = error(lambda table: table.assign(site=table["site"].replace("alder", "Birch")))
    assert "site 'birch' is written 'Birch'" in str(found)
