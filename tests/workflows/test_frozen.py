"""Frozen features through the shipped config: computed once, as the network has them, every objective on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from workflows import EXPLAINED_NETWORK, SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.common.volumes import unit_range
from fairlung.pipeline.networks.checkpoint import CheckpointError
from fairlung.pipeline.networks.frozen import FrozenBody
from fairlung.pipeline.shortcuts.features import FeatureError

CONFIGS = Path(__file__).parents[2] / "bundles" / "fair_lung_ct" / "configs"
# what does not go with frozen features: see the last test
WITHOUT = {"cnn_rnn", "racnet", "individual_fairness"}
SYSTEMS = sorted({path.stem for path in (CONFIGS / "systems").glob("*.yaml")} - WITHOUT)
SHORT = {"network_def": SMALL_NETWORK, "views": 2, "epochs": 2}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each volume that a body has made features of."""
    volumes: list[int] = []
    compute = FrozenBody.__call__

    def counted(self: FrozenBody, image: torch.Tensor) -> torch.Tensor:
        volumes.append(len(image))
        return compute(self, image)

    monkeypatch.setattr(FrozenBody, "__call__", counted)
    return volumes


def entry(workflow: ConfigWorkflow, name: str) -> Any:
    return workflow.parser.get_parsed_content(name)


def test_the_head_learns_on_features_that_are_computed_once(
    start: Start, small_cohort: Path, tmp_path: Path, computed: list[int]
) -> None:
    settings = {"cohort": str(small_cohort), "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "run")}
    settings |= {"network_def": EXPLAINED_NETWORK, "views": 2}
    model = str(tmp_path / "model.pt")
    workflow = start("train", "frozen", **settings, epochs=12, learning_rate=5e-2, model_file=model)
    workflow.initialize()
    table = pd.read_csv(small_cohort)
    assert len(computed) == 3 * (table["split"] == "train").sum() + (table["split"] == "val").sum()

    # the oracle: what the whole network's last layer is given for the same crop
    scans, validated = entry(workflow, "train::dataset"), entry(workflow, "validate::dataset")
    head = entry(workflow, "classifier")
    whole, volumes = head.whole().eval(), torch.stack([validated.volume(i) for i in range(4)])
    met: list[torch.Tensor] = []
    whole.class_layers.out.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0]))
    with torch.no_grad():
        answers = whole(unit_range(volumes))
    features = torch.stack([validated[i]["image"] for i in range(4)])
    assert torch.equal(validated.with_data(validated.data[3:])[0]["image"], features[3])
    torch.testing.assert_close(features, met[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.eval()(features), answers, rtol=1e-4, atol=1e-5)
    rows = torch.cat([scans.cached[i]["image"] for i in range(len(scans))])
    assert len(rows.unique(dim=0)) == len(rows)  # every view is another one
    drawn = {tuple(item["image"].tolist()) for item in (scans[draw] for draw in entry(workflow, "train::sampler"))}
    assert drawn <= {tuple(row.tolist()) for row in rows} and len(drawn) > 1

    before = {name: value.clone() for name, value in head.state_dict().items()}
    workflow.run()
    workflow.finalize()
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    losses = history[history["metric"] == "train_loss"]["value"]
    assert losses.iloc[-1] < 0.98 * losses.iloc[0]
    best = torch.load(tmp_path / "run" / "models" / "best.pt", weights_only=True)
    assert best["model"].keys() == before.keys() and all("class_layers" not in name for name in best["model"])
    assert best["settings"]["network"].startswith("head of ExplainedDenseNet on frozen features, weights ")
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["train_layers"] == "frozen"

    # judged on features, and as a whole network on volumes: the same answers, and pictures of errors in both
    tables = []
    for overlays, checkpoint in ((("frozen",), "best.pt"), ((), "whole.pt")):
        given = {name: value for name, value in settings.items() if overlays or name != "views"}
        named = {"checkpoint": str(tmp_path / "run" / "models" / checkpoint), "split": "val", "error_images": 1}
        run(start("train", *overlays, "evaluate", **given, **named))
        folder = tmp_path / "run" / "val" / "evaluation"
        tables.append(pd.read_csv(folder / "predictions.csv").drop(columns="patient"))  # digests of a run's own key
        assert isinstance(json.loads((folder / "errors" / "errors.json").read_text()), list)
    pd.testing.assert_frame_equal(*tables, rtol=1e-3, atol=1e-5)

    # other seeds and objectives compute none anew; another augmentation does so for what is trained on
    computed.clear()
    other = settings | {"output_dir": str(tmp_path / "other")}
    run(start("train", "frozen", "systems/ce", **other, seed=7, epochs=1))
    assert not computed
    run(start("train", "frozen", "systems/ce", **other, epochs=1, flip_prob=0.1, overwrite=True))
    assert len(computed) == 3 * (table["split"] == "train").sum()
    computed.clear()
    error = cause(start("train", "frozen", "evaluate", **settings, body_seed=1))
    assert isinstance(error, CheckpointError) and "on frozen features, weights" in str(error) and computed


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_objective_trains_a_head(start: Start, small_cohort: Path, tmp_path: Path, name: str) -> None:
    settings = SHORT | {"epochs": 15, "val_interval": 15, "learning_rate": 2e-2, "views": 0, "body_seed": 3}
    names = ("train", "frozen", f"systems/{name}", "optimizers/sam")
    run(start(*names, cohort=str(small_cohort), output_dir=str(tmp_path), **settings))
    history = pd.read_csv(tmp_path / "history.csv")
    losses = history[history["metric"] == "train_loss"]["value"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert pd.read_csv(tmp_path / "val" / "predictions.csv").filter(like="prob_").notna().all(axis=None)


def test_what_does_not_go_with_frozen_features_is_refused(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path / "run")} | SHORT | {"views": 0, "epochs": 1}
    run(start("train", "frozen", **settings))

    def said(*names: str, **changes: Any) -> str:
        return str(cause(start(*names, **settings | changes)))

    assert "flip_tta mirrors volumes" in said("train", "frozen", "evaluate", flip_tta=True)
    error = cause(start("train", "frozen", "evaluate", **settings, save_features=True))
    assert isinstance(error, FeatureError) and "a head on frozen features" in str(error)
    together = "train_layers: frozen and the overlay frozen.yaml go together, got"
    assert f"{together} all with it" in said("train", "frozen", train_layers="all", overwrite=True)
    without = {name: value for name, value in settings.items() if name != "views"}
    assert f"{together} frozen without it" in str(
        cause(start("train", **without, train_layers="frozen", overwrite=True))
    )
    assert "cache_dir must name a folder" in said("train", "frozen", cache_dir="", overwrite=True)
    error = said("train", "frozen", "systems/individual_fairness", overwrite=True)
    assert "individual fairness compares volumes [N, 1, D, H, W], not frozen features; got (" in error
    del settings["network_def"]
    for system, network in (("cnn_rnn", "CNNRNNClassifier"), ("racnet", "RACNet")):
        error = said("train", "frozen", f"systems/{system}", overwrite=True)
        assert f"frozen features need a head of one module; {network} has gru" in error
    error = said("train", "frozen", body_seed=-1, overwrite=True)
    assert error == "body_seed must be a whole number of at least 0, got -1"
