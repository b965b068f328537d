"""Every system that is shipped as an overlay trains through the shipped config, and is recorded as what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from workflows import SMALL_NETWORK, Start, run

from fairlung.pipeline.common.config import UnknownSettingError
from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.common.names import OBJECTIVE_SETTINGS
from fairlung.pipeline.common.volumes import unit_range
from fairlung.pipeline.losses.aggregation import GroupCVaR

FOLDER = Path(__file__).parents[2] / "bundles" / "fair_lung_ct" / "configs" / "systems"
SYSTEMS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NAMED = {
    "ce": "CE R3D18 seed 42",
    "la": "LA R3D18 tau 1.0 seed 42",
    "cvar": "CVaR R3D18 alpha 0.7 exact seed 42",
    "la_cvar": "LA+CVaR R3D18 alpha 0.8 tau 1.0 exact seed 42",
    "inverse_frequency": "inverse frequency R3D18 seed 42",
    "balanced_softmax": "balanced softmax R3D18 seed 42",
    "focal": "focal R3D18 seed 42",
    "ldam": "LDAM R3D18 seed 42",
    "worst_group": "worst group R3D18 seed 42",
    "group_dro": "group DRO R3D18 seed 42",
    "daw_fdd": "DAW-FDD R3D18 alpha 0.5 exact seed 42",
    "eql": "EQL R3D18 seed 42",
    "kl_dro": "KL group DRO R3D18 seed 42",
    "cnn_rnn": "CNN-RNN CNNRNN seed 42",
    "racnet": "RACNet RACNet seed 42",
    "site_head": "site head R3D18 seed 42",
    "site_adversarial": "site adversarial R3D18 seed 42",
    "disentangled": "disentangled R3D18 alpha 0.5 exact rho 0.05 seed 42",
    "individual_fairness": "individual fairness R3D18 seed 42",
    "recommended": "LA+CVaR recommended R3D18 alpha 0.8 tau 1.0 exact seed 42",
}
# what its loss reads of alpha, tau and gradient, and a run of it records
READ: dict[str, list[str]] = {name: [] for name in NAMED} | {"la": ["tau"], "cvar": ["alpha", "gradient"]}
READ |= {name: ["alpha", "gradient"] for name in ("daw_fdd", "disentangled")}
READ |= {"la_cvar": list(OBJECTIVE_SETTINGS), "recommended": list(OBJECTIVE_SETTINGS)}
# the same volumes in every epoch, so that a few steps show
MEMORISE = {"epochs": 10, "val_interval": 10, "learning_rate": 2e-2, "image_size": 24}
MEMORISE |= {"flip_prob": 0, "rotation_prob": 0, "brightness": 0}
# the others' networks are trained in test_cnn_rnn.py and test_racnet.py
VARIANTS = [(name, {}) for name in SYSTEMS if name not in ("cnn_rnn", "racnet")]
VARIANTS += [(name, {"gradient": "published"}) for name in ("cvar", "la_cvar", "recommended", "daw_fdd")]
VARIANTS += [("recommended", {"estimator": "batch"}), ("kl_dro", {"every_cell": True, "accumulate": 2})]
VARIANTS += [(name, {"overlay": "optimizers/sam"}) for name in ("recommended", "eql", "individual_fairness")]


@pytest.fixture(scope="module")
def unequal_cohort(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cohort with half as many squamous carcinomas to train on: a rare class."""
    table = pd.read_csv(small_cohort)
    rare = table[(table["split"] == "train") & (table["label"] == "squamous_cell")]
    table = table.drop(rare.groupby("sex").head(1).index)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    path = tmp_path_factory.mktemp("unequal") / "cohort.csv"
    table.to_csv(path, index=False)
    return path


def on_fixed_batch(workflow: ConfigWorkflow, batch: dict[str, Any]) -> torch.Tensor:
    """The network's answers to the whole training set in one batch."""
    network = workflow.parser.get_parsed_content("network")
    network.train()  # batch statistics: so few steps do not settle the running ones
    with torch.no_grad():
        return network(unit_range(batch["image"]))


@pytest.mark.parametrize(
    ("name", "settings"),
    VARIANTS,
    ids=lambda part: part if isinstance(part, str) else "-".join(map(str, part.values())),
)
@pytest.mark.slow
def test_every_system_trains_and_lowers_its_loss(
    start: Start, unequal_cohort: Path, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    overlays = [value for key, value in settings.items() if key == "overlay"]
    settings = {key: value for key, value in settings.items() if key != "overlay"}
    workflow = start(
        "train",
        f"systems/{name}",
        *overlays,
        cohort=str(unequal_cohort),
        output_dir=str(tmp_path / "run"),
        network_def=SMALL_NETWORK,
        **MEMORISE,
        **settings,
    )
    workflow.initialize()
    scans = workflow.parser.get_parsed_content("train::dataset")
    batch = torch.utils.data.default_collate([scans[i] for i in range(len(scans))])
    before = on_fixed_batch(workflow, batch)
    workflow.run()
    workflow.finalize()
    after = on_fixed_batch(workflow, batch)
    loss = workflow.parser.get_parsed_content("loss").eval()  # what it remembers stays: one objective for both
    assert loss(after, batch) < 0.97 * loss(before, batch)
    trained = json.loads((tmp_path / "run" / "settings.json").read_text())
    overlay = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    recorded = {key: overlay[key] for key in ("system", *OBJECTIVE_SETTINGS) if key in overlay} | settings
    assert {key: trained[key] for key in recorded} == recorded
    assert [key for key in OBJECTIVE_SETTINGS if key in trained] == READ[name]
    assert (tmp_path / "run" / "models" / "best.pt").exists()


def test_every_system_has_a_name_and_a_header(start: Start) -> None:
    assert set(NAMED) == set(SYSTEMS)
    for name in SYSTEMS:
        workflow = start("train", f"systems/{name}")
        workflow.parser.parse(reset=True)
        assert workflow.parser.get_parsed_content("run_name") == NAMED[name]
        assert (FOLDER / f"{name}.yaml").read_text().startswith("# Overlay on train.yaml: ")


@pytest.mark.parametrize(
    "name", [name if name in ("ce", "cvar") else pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS]
)
def test_a_setting_that_the_system_does_not_have_is_refused(start: Start, name: str, tmp_path: Path) -> None:
    """A run of plain cross-entropy is never recorded with an alpha."""
    overlay = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for setting, value in {"alpha": 0.65, "tau": 0.5, "gradient": "published"}.items():
        # a cohort that is not there: what is accepted goes on to it
        workflow = start("train", f"systems/{name}", output_dir=str(tmp_path), cohort="none.csv", **{setting: value})
        with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps every kind)
            workflow.initialize()
        error = user_error(caught.value)
        refused = isinstance(error, UnknownSettingError)
        assert refused == (setting not in READ[name]), error
        if refused:
            assert f"({overlay['system']}) reads no such setting" in str(error)
            assert f"{setting} is {value}" in str(error)


OWN_LOSS = {  # as 0.1's overlays gave a whole loss_function, by 0.1's names
    "_target_": "fairlung.pipeline.losses.TwoLevelLoss",
    "sample_loss": {"_target_": "fairlung.pipeline.losses.CrossEntropy"},
    "aggregation": {"_target_": "fairlung.pipeline.aggregation.GroupCVaR", "alpha": 0.6, "gradient": "@gradient"},
}


def test_an_objective_of_ones_own_is_held_to_it_too(start: Start, tmp_path: Path) -> None:
    workflow = start("train", output_dir=str(tmp_path), loss_function=OWN_LOSS, alpha=0.7, tau=0.5)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        workflow.initialize()
    assert "alpha is 0.7, tau is 0.5; leave it out, or make it null" in str(user_error(caught.value))


def test_an_overlay_of_0_1_trains_and_its_nulls_are_not_recorded(
    start: Start, small_cohort: Path, tmp_path: Path
) -> None:
    overlay = {"system": "mine", "alpha": None, "tau": None, "loss_function": OWN_LOSS}
    workflow = run(
        start(
            "train", cohort=str(small_cohort), output_dir=str(tmp_path), network_def=SMALL_NETWORK, epochs=1, **overlay
        )
    )
    aggregation = workflow.parser.get_parsed_content("loss").aggregation
    assert (type(aggregation), aggregation.alpha) == (GroupCVaR, 0.6)
    trained = json.loads((tmp_path / "settings.json").read_text())
    assert {key: trained[key] for key in OBJECTIVE_SETTINGS if key in trained} == {"gradient": "exact"}
    assert trained["run_name"] == "mine DenseNet exact seed 42"
