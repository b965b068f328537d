"""Two sites train one network through MONAI's federated client; counts and weights leave them, and no image."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor
from workflows import CLASSES, Start

from fairlung.pipeline.data.cohort import load_cohort

pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle config under")

SEXES = ["male", "female"]
EPOCHS = 6  # of a round
Counts = Counter[tuple[str, str]]
Weights = dict[str, Tensor]


def split_into_sites(cohort: Path, folder: Path) -> dict[str, Path]:
    """cohort.csv of two sites. The first one has no woman with squamous cell carcinoma, the second few covid19."""
    table = pd.read_csv(cohort)
    table["scan"] = [str(cohort.parent / scan) for scan in table["scan"]]
    rare = (table["label"] == "squamous_cell") & (table["sex"] == "female")
    number = table.groupby(["label", "sex", "split"]).cumcount()
    women_with_covid19 = (table["label"] == "covid19") & (table["sex"] == "female")
    first = (number == 0) & ~rare | women_with_covid19
    paths = {}
    for name, rows in (("first", first), ("second", ~first)):
        rows = rows | (table["split"] == "val")  # enough to validate on
        (folder / name).mkdir()
        paths[name] = folder / name / "cohort.csv"
        table[rows].to_csv(paths[name], index=False)
    return paths


def group_counts(cohort: Path) -> Counts:
    """Training scans of each class and sex: what a site tells before the training."""
    loaded = load_cohort(cohort, class_names=CLASSES, group_names=SEXES, allow_empty_cells=True)
    return Counter((CLASSES[item["label"]], SEXES[item["group"]]) for item in loaded.items("train"))


def federated_average(sites: Sequence[Weights], scans: Sequence[int]) -> Weights:
    """FedAvg (McMahan et al. 2017): the mean of the sites' weights, each at its share of the scans."""
    return {
        name: sum((n / sum(scans) * site[name].double() for site, n in zip(sites, scans, strict=True))).to(value.dtype)
        for name, value in sites[0].items()
    }


def loss_of(algo: MonaiAlgo, weights: Weights) -> float:
    """The objective of the global network on all training scans of a site, as one batch."""
    parser = algo.train_workflow.parser
    network, loss = (parser.get_parsed_content(name) for name in ("network", "loss"))
    network.load_state_dict(weights)
    dataset = parser.get_parsed_content("train::dataset")
    items = [dataset.data[n] | {"image": dataset.volumes[n]["image"] / 255} for n in range(len(dataset))]
    target = {name: torch.tensor([item[name] for item in items]) for name in ("label", "group")}
    with torch.no_grad():
        return loss(network.eval()(torch.stack([item["image"] for item in items])), target).item()


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def check_what_leaves(sent: ExchangeObject, weights: Weights, scans: Sequence[str]) -> None:
    """Weights of the network's own names and shapes, and single numbers; nothing that names or shows a scan."""
    assert dict(sent) == {} and sent.optim is None and sent.metrics is None
    assert sent.weight_type == WeightType.WEIGHTS
    assert {name: value.shape for name, value in sent.weights.items()} == {n: v.shape for n, v in weights.items()}
    assert plain(sent.statistics), sent.statistics
    packed = pickle.dumps((sent.weights, sent.statistics))
    assert not [scan for scan in scans if Path(scan).name.encode() in packed]


@pytest.mark.slow
def test_two_sites_train_one_network(start: Start, bundle_dir: Path, small_cohort: Path, tmp_path: Path) -> None:
    cohorts = split_into_sites(small_cohort, tmp_path)
    counts = {name: group_counts(path) for name, path in cohorts.items()}
    assert counts["first"]["squamous_cell", "female"] == 0 and counts["second"]["covid19", "female"] == 0
    everywhere = sum(counts.values(), Counter())
    assert everywhere == group_counts(small_cohort)
    prior = {label: sum(everywhere[label, sex] for sex in SEXES) for label in CLASSES}
    own = {label: counts["first"][label, "male"] + counts["first"][label, "female"] for label in CLASSES}
    assert own["covid19"] / sum(own.values()) > 1.3 * prior["covid19"] / sum(prior.values())  # not the site's prior

    network = {"_target_": "Classifier", "in_shape": [1, 8, 32, 32], "classes": "$len(@class_names)"}
    network |= {"channels": [8, 8], "strides": [2, 2]}  # of instance normalisation: nothing of a batch is averaged
    algos = {}
    for name, path in cohorts.items():
        workflow = start(
            "train", cohort=str(path), output_dir=str(tmp_path / name / "run"), network_def=network, epochs=1,
            class_counts=prior, group_names=SEXES, allow_empty_cells=True, learning_rate=3e-3,
            cosine_epochs=2 * EPOCHS,  # of all rounds
            crop_size=32, flip_prob=0.0, rotation_prob=0.0, brightness=0.0,  # few steps: what is learnt must show
        )  # fmt: skip
        algos[name] = MonaiAlgo(
            str(bundle_dir), local_epochs=EPOCHS, send_weight_diff=False, config_evaluate_filename=None,
            train_workflow=workflow, eval_workflow=workflow,
        )  # fmt: skip
        algos[name].initialize({ExtraItems.CLIENT_NAME: name})
        loss = workflow.parser.get_parsed_content("loss")
        shared = torch.tensor([prior[label] for label in CLASSES]).double()
        torch.testing.assert_close(loss.sample_loss.log_prior, torch.log(shared / shared.sum()))

    scans = {name: sum(each.values()) for name, each in counts.items()}
    weights = {name: value.clone() for name, value in algos["first"].trainer.network.state_dict().items()}
    losses = [{name: loss_of(algo, weights) for name, algo in algos.items()}]
    for round_ in range(2):
        sent = []
        for algo in algos.values():
            algo.train(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS))
            assert algo.trainer.state.epoch == EPOCHS * (round_ + 1)
            sent.append(algo.get_weights())
            check_what_leaves(sent[-1], weights, list(pd.read_csv(small_cohort)["scan"]))
        weights = federated_average([each.weights for each in sent], list(scans.values()))
        losses.append({name: loss_of(algo, weights) for name, algo in algos.items()})
    before, _, after = (sum(each.values()) for each in losses)
    assert after < 0.9 * before, losses

    metrics = algos["second"].evaluate(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)).metrics
    assert metrics is not None and 0 <= metrics["val_score"] <= 1
    for algo in algos.values():
        torch.testing.assert_close(loss_of(algo, weights), losses[2][algo.client_name])
