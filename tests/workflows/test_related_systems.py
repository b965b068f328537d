"""Systems that add a term to the objective, through the shipped config: without its weight they are the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from workflows import SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.common.config import SettingError
from fairlung.pipeline.data.cohort_checks import CohortError

SHORT = {"network_def": SMALL_NETWORK, "epochs": 1}
# what makes each the system beside it
WITHOUT: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "disentangled": ({"gamma": 0, "contrast": 0, "rho": 0}, "daw_fdd", {}),
    "individual_fairness": ({"gamma": 0}, "ce", {"accumulate": 8}),
}


def weights(workflow: ConfigWorkflow) -> dict[str, torch.Tensor]:
    return workflow.parser.get_parsed_content("network_def").state_dict()


@pytest.mark.parametrize("system", WITHOUT)
@pytest.mark.slow
def test_without_its_weights_it_is_the_plain_system_to_the_bit_and_with_them_it_is_not(
    start: Start, small_cohort: Path, tmp_path: Path, system: str
) -> None:
    def trained(name: str, place: str, **settings: Any) -> ConfigWorkflow:
        output = str(tmp_path / place)
        return run(start("train", f"systems/{name}", cohort=str(small_cohort), output_dir=output, **SHORT, **settings))

    none, plain_name, same = WITHOUT[system]
    plain, without = trained(plain_name, "plain", **same), trained(system, "without", **none)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(without).values(), strict=True))
    whole = trained(system, "whole")
    assert weights(whole).keys() == weights(plain).keys()
    assert not torch.equal(weights(whole)["features.conv0.weight"], weights(plain)["features.conv0.weight"])
    saved = torch.load(tmp_path / "whole" / "models" / "best.pt", weights_only=True)
    assert saved["model"].keys() == weights(plain).keys() and saved["settings"]["network"] == "DenseNet"
    assert sum(saved["training"]["class_frequencies"].values()) == pytest.approx(1)  # of the classes alone
    if system == "disentangled":
        of_groups = saved["model"]["class_layers.out.weight"].chunk(2, dim=1)[1]
        assert torch.count_nonzero(of_groups) == 0
    # evaluated with its overlay and without it: the checkpoint is the plain network's
    for names in (("train", f"systems/{system}", "evaluate"), ("train", "evaluate")):
        output = str(tmp_path / "whole")
        evaluated = run(start(*names, cohort=str(small_cohort), output_dir=output, network_def=SMALL_NETWORK))
        assert evaluated.evaluator.state.metrics["val_score"] == whole.evaluator.state.metrics["val_score"]


@pytest.mark.parametrize("system", WITHOUT)
@pytest.mark.slow
def test_it_goes_on_where_it_was_interrupted_to_the_bit(
    start: Start, small_cohort: Path, tmp_path: Path, system: str
) -> None:
    def started(place: str, **settings: Any) -> ConfigWorkflow:
        further = {"network_def": SMALL_NETWORK, "epochs": 2, "batch_size": 2, "accumulate": 4, **settings}
        output = str(tmp_path / place)
        return start("train", f"systems/{system}", cohort=str(small_cohort), output_dir=output, **further)

    def stop(*_: object) -> None:
        raise InterruptedError

    whole, broken = run(started("whole")), started("parts")
    broken.initialize()
    broken.parser.get_parsed_content("train::trainer").add_event_handler(Events.EPOCH_STARTED(once=2), stop)
    with pytest.raises(RuntimeError):  # MONAI wraps it
        broken.run()
    resumed = run(started("parts", resume=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_what_cannot_be_is_one_line(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    def error(system: str, change: Any = None, **settings: Any) -> BaseException:
        table = pd.read_csv(small_cohort)
        table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
        (table if change is None else change(table)).to_csv(tmp_path / "cohort.csv", index=False)
        cohort, place = str(tmp_path / "cohort.csv"), str(tmp_path / "run")
        return cause(start("train", f"systems/{system}", cohort=cohort, output_dir=place, **SHORT, **settings))

    for system, name in (
        ("disentangled", "gamma"), ("disentangled", "contrast"), ("disentangled", "contrast_margin"),
        ("individual_fairness", "gamma"), ("individual_fairness", "lipschitz"),
    ):  # fmt: skip
        found = error(system, **{name: -0.5})
        assert isinstance(found, SettingError) and str(found) == f"{name} must be at least 0, got -0.5"
    found = error("disentangled", alpha_inner=1.5)
    assert isinstance(found, SettingError) and str(found) == "alpha_inner must be in (0, 1], got 1.5"
    found = error("disentangled", lambda table: table.assign(sex="male"), allow_empty_cells=True)
    assert isinstance(found, CohortError)
    assert str(found) == "a group head needs training scans of two groups at least; there is male"
