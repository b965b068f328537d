"""The shipped configs as workflows, shrunk so that a training takes seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from monai.networks.nets import DenseNet

from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.losses.aggregation import GroupDRO, HierarchicalCVaR
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.two_level import FairLACVaRLoss, TwoLevelLoss

SHRUNK = {"num_slices": 8, "image_size": 32, "crop_size": 24, "epochs": 2, "batch_size": 4, "num_workers": 0}
# in place of 33 million parameters, where the network is not in question
SMALL_NETWORK = {"_target_": "DenseNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "$len(@class_names)"}
SMALL_NETWORK |= {"init_features": 8, "growth_rate": 8, "block_config": [2, 2]}
# the same where errors are explained too
EXPLAINED_NETWORK = SMALL_NETWORK | {"_target_": "workflows.ExplainedDenseNet"}
CLASSES = ["adenocarcinoma", "squamous_cell", "covid19", "normal"]

Start = Callable[..., ConfigWorkflow]


class ExplainedDenseNet(DenseNet):
    """A network that names the layer in which Grad-CAM looks."""

    explained_layer = "features.denseblock2"


def starter(bundle: Path, cache: Path) -> Start:
    """A function that makes a workflow from config names and overrides; nothing of it is run."""

    def start(*names: str, **overrides: Any) -> ConfigWorkflow:
        files = [str(bundle / "configs" / f"{name}.yaml") for name in names]
        settings: dict[str, Any] = {"bundle_root": str(bundle), "num_workers": 0}
        infers = names[0] == "inference"
        if not infers:
            settings |= {**SHRUNK, "pretrained": False, "model_file": "", "cache_dir": str(cache), "tracking_uri": ""}
        if "evaluate" in names:  # the checkpoint says how it was trained
            for name in ("num_slices", "image_size", "crop_size"):
                del settings[name]
        workflow_type = "infer" if infers else "train"
        return ConfigWorkflow(files, logging_file=False, workflow_type=workflow_type, **settings | overrides)

    return start


def run_statuses(store: Path) -> list[str]:
    """Statuses of the runs in MLflow's SQLite file, oldest first."""
    with closing(sqlite3.connect(store)) as connection:
        return [status for (status,) in connection.execute("select status from runs order by start_time")]


def run(workflow: ConfigWorkflow) -> ConfigWorkflow:
    """All of a workflow, as `python -m monai.bundle run` does it."""
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def cause(workflow: ConfigWorkflow) -> BaseException:
    """The user error that a run ends with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps every kind)
        run(workflow)
    found = user_error(caught.value)
    assert found is not None, caught.value
    return found


def group_objectives(counts: list[int], num_groups: int) -> dict[str, TwoLevelLoss]:
    """One objective of each kind of aggregation, with settings under which all groups matter."""
    return {
        "exact": FairLACVaRLoss(counts, alpha=0.8),
        "published": FairLACVaRLoss(counts, alpha=0.8, gradient="published"),
        "running": FairLACVaRLoss(counts, alpha=0.8, estimator="running", num_groups=num_groups),
        "group DRO": TwoLevelLoss(CrossEntropy(), GroupDRO(num_groups=num_groups, eta=0.5)),
        "hierarchical": TwoLevelLoss(CrossEntropy(), HierarchicalCVaR(alpha=0.8, alpha_inner=0.6)),
    }
