"""Every network that is shipped as an overlay trains, is judged and explained, and answers, by the shipped configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from monai.networks.nets import DenseNet121
from torch import nn
from workflows import SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.common.volumes import unit_range
from fairlung.pipeline.networks.weights import PretrainedWeightsError

CONFIGS = Path(__file__).parents[2] / "bundles" / "fair_lung_ct" / "configs"
NETWORKS = sorted(path.stem for path in (CONFIGS / "networks").glob("*.yaml"))
SYSTEMS = sorted(path.stem for path in (CONFIGS / "systems").glob("*.yaml"))
OURS = ("i3d", "ct_resnet152", "resnest50")
# the same volumes in every epoch, so that a few steps show
MEMORISE = {"epochs": 4, "val_interval": 4, "learning_rate": 1e-3, "dropout": 0.0, "batch_size": 8}
MEMORISE |= {"flip_prob": 0, "rotation_prob": 0, "brightness": 0, "image_size": 24, "window": [-1350, 150]}


def loss_of(workflow: Any, objective: nn.Module) -> float:
    """The objective on the whole training set in one batch; with batch statistics, as so few steps settle none."""
    scans = workflow.parser.get_parsed_content("train::dataset")
    batch = torch.utils.data.default_collate([scans[i] for i in range(len(scans))])
    network = workflow.parser.get_parsed_content("network").train()
    with torch.no_grad():
        return float(objective(network(unit_range(batch["image"])), batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_a_network_of_ours_trains_is_judged_explained_and_answers(
    start: Start, small_cohort: Path, tmp_path: Path, name: str
) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path / "run")}
    if name == "ct_resnet152":  # its own size is in test_ct_resnet.py
        settings["network_def::_target_"] = "published_networks.ShallowCTResNet"
    workflow = start("train", f"networks/{name}", **settings, **MEMORISE)
    workflow.initialize()
    objective = workflow.parser.get_parsed_content("loss")
    before = loss_of(workflow, objective)
    workflow.run()
    workflow.finalize()
    assert loss_of(workflow, objective) < 0.9 * before
    trained = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (trained["train_layers"], trained["pretrained"], trained["weights"]) == ("all", False, None)

    run(start("train", f"networks/{name}", "evaluate", **settings))
    folder = tmp_path / "run" / "val" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == json.loads((tmp_path / "run" / "val" / "metrics.json").read_text())["metrics"]
    errors = json.loads((folder / "errors" / "errors.json").read_text())
    predictions = pd.read_csv(folder / "predictions.csv")
    assert isinstance(errors, list) and bool(errors) == any(predictions["label"] != predictions["prediction"])

    checkpoint = str(tmp_path / "run" / "models" / "best.pt")
    answers = {"scans": str(small_cohort), "checkpoint": checkpoint, "output_dir": str(tmp_path / "answers")}
    if name == "ct_resnet152":
        answers |= {key: settings[key] for key in ("network_def::_target_",)} | {"window": [-1350, 150]}
    run(start("inference", f"networks/{name}", **answers, overlay=True))
    answered = pd.read_csv(tmp_path / "answers" / "predictions.csv").set_index("scan")["prediction"]
    assert len(answered) >= len(predictions)
    assert list((tmp_path / "answers" / "overlay").iterdir())
    answers["network_def::_target_"] = "fairlung.pipeline.networks.R3D18Classifier"
    error = cause(start("inference", **(answers | {"output_dir": str(tmp_path / "other")})))
    assert "run 'R3D18Classifier'" in str(error) and "['inference.yaml','networks/i3d.yaml']" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("system", ["recommended", "group_dro"])  # all of them, with a small one: test_systems.py
def test_an_objective_with_a_memory_trains_a_network_of_ours(
    start: Start, small_cohort: Path, tmp_path: Path, system: str, name: str
) -> None:
    settings: dict[str, Any] = {"cohort": str(small_cohort), "output_dir": str(tmp_path), **MEMORISE}
    if name == "ct_resnet152":
        settings["network_def::_target_"] = "published_networks.ShallowCTResNet"
    workflow = start("train", f"networks/{name}", f"systems/{system}", **settings)
    workflow.initialize()
    objective = workflow.parser.get_parsed_content("loss")
    network = workflow.parser.get_parsed_content("network")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    workflow.run()
    objective.eval()  # what it remembers stays: one objective for both
    after = loss_of(workflow, objective)
    network.load_state_dict(before)
    assert after < 0.97 * loss_of(workflow, objective)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_objective_goes_with_every_network(start: Start, system: str) -> None:
    """An overlay of networks/ touches no entry that an objective's has, but for those that are a network themselves."""
    objective = yaml.safe_load((CONFIGS / "systems" / f"{system}.yaml").read_text())
    for name in NETWORKS:
        network = yaml.safe_load((CONFIGS / "networks" / f"{name}.yaml").read_text())
        shared = {key.partition("::")[0] for key in objective} & set(network)
        assert shared == ({"network_def"} if system in ("cnn_rnn", "racnet") else set())


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["all", "head"])
def test_train_layers(start: Start, small_cohort: Path, tmp_path: Path, layers: str) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "network_def": SMALL_NETWORK, "epochs": 1}
    workflow = start("train", train_layers=layers, **settings)
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    workflow.run()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    head = {"class_layers.out.weight", "class_layers.out.bias"}
    assert (changed == head) if layers == "head" else (changed > head and len(changed) > 0.9 * len(before))
    held = sum(len(group["params"]) for group in workflow.parser.get_parsed_content("optimizer").param_groups)
    assert held == (2 if layers == "head" else len(list(network.parameters())))
    assert json.loads((tmp_path / "settings.json").read_text())["train_layers"] == layers


def test_weights_and_layers_that_do_not_fit(start: Start, tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), "cohort": "none.csv"}
    error = cause(start("train", train_layers="none", **settings))
    assert str(error) == "train_layers must be one of all, head, frozen, got 'none'"
    error = cause(start("train", "networks/densenet121", weights="kinetics400", **settings))
    assert str(error) == "DenseNet121 reads no weights: weights is kinetics400; leave it out"
    workflow = start("train", "networks/i3d", pretrained=True, weights="ct-i3resnet152")
    with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps every kind)
        workflow.parser.get_parsed_content("network")
    error = user_error(caught.value)
    assert isinstance(error, PretrainedWeightsError) and "are weights of CTResNet152, not of I3D" in str(error)


@pytest.mark.slow
def test_another_network_of_monai_is_three_lines(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    names = ("train", "networks/densenet121")
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path)}
    sizes = {"num_slices": 32, "image_size": 40, "crop_size": 32, "epochs": 1, "batch_size": 8}
    workflow = run(start(*names, **settings, **sizes, train_layers="head"))
    assert isinstance(workflow.network_def, DenseNet121)
    assert len(workflow.parser.get_parsed_content("optimizer").param_groups[0]["params"]) == 2
    content = torch.load(tmp_path / "models" / "best.pt", weights_only=True)
    assert content["settings"]["network"] == "DenseNet121"
    run(start(*names, "evaluate", **settings))
    evaluated = json.loads((tmp_path / "val" / "evaluation" / "metrics.json").read_text())
    assert evaluated["metrics"] == json.loads((tmp_path / "val" / "metrics.json").read_text())["metrics"]
    answers = {"scans": str(small_cohort), "checkpoint": str(tmp_path / "models" / "best.pt")}
    run(start("inference", names[1], **answers, output_dir=str(tmp_path / "answers")))
    assert not pd.read_csv(tmp_path / "answers" / "predictions.csv")["prediction"].isna().any()
    error = cause(start("inference", **answers))
    assert "network: checkpoint 'DenseNet121', run 'R3D18Classifier'" in str(error)
