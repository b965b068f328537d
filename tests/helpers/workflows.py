"""The shipped configs as workflows, shrunk so that a training takes seconds."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow
from monai.networks.nets import DenseNet

from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.losses.aggregation import GroupDRO, HierarchicalCVaR, KLGroupDRO
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.two_level import FairLACVaRLoss, TwoLevelLoss

SHRUNK = {"num_slices": 8, "image_size": 32, "crop_size": 24, "epochs": 2, "batch_size": 4, "num_workers": 0}
# in place of 33 million parameters, where the network is not in question
SMALL_NETWORK = {"_target_": "DenseNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "$len(@class_names)"}
SMALL_NETWORK |= {"init_features": 8, "growth_rate": 8, "block_config": [2, 2]}
# the same where errors are explained too
EXPLAINED_NETWORK = SMALL_NETWORK | {"_target_": "workflows.ExplainedDenseNet"}
CLASSES = ["adenocarcinoma", "squamous_cell", "covid19", "normal"]
# what a checkpoint of a shrunk training says beside its network
SMALL_SETTINGS = {"class_names": CLASSES, "group_by": "sex", "group_names": ["male", "female"], "age_bands": None}
SMALL_SETTINGS |= {"window": [-1350, 150], "trim_fraction": 0.1, "fast_decode": False}
SMALL_SETTINGS |= {name: SHRUNK[name] for name in ("num_slices", "image_size", "crop_size")}

Start = Callable[..., ConfigWorkflow]


class ExplainedDenseNet(DenseNet):
    """A network that names the layer in which Grad-CAM looks."""

    explained_layer = "features.denseblock2"


def starter(bundle: Path, cache: Path) -> Start:
    """A function that makes a workflow from config names and overrides; nothing of it is run."""

    def start(*names: str, **overrides: Any) -> ConfigWorkflow:
        files = [str(bundle / "configs" / f"{name}.yaml") for name in names]
        settings: dict[str, Any] = {"bundle_root": str(bundle), "num_workers": 0, "output_dir": str(cache / "out")}
        infers = names[0] == "inference"
        if not infers:
            settings |= {**SHRUNK, "pretrained": False, "model_file": "", "cache_dir": str(cache), "tracking_uri": ""}
        if "evaluate" in names:  # the checkpoint says how it was trained
            for name in ("num_slices", "image_size", "crop_size"):
                del settings[name]
            settings["resamples"] = 500
        workflow_type = "infer" if infers else "train"
        return ConfigWorkflow(files, logging_file=False, workflow_type=workflow_type, **settings | overrides)

    return start


# ---- the training that is done once a session ------------------------------------------------------------------------
SECRET = "DOE^JANE-19470211"  # a patient's name that no output may hold


@dataclass(frozen=True)
class Trained:
    """Files and numbers of the shipped training and evaluation. Read-only: who changes a file takes a copy."""

    folder: Path  # run/, published/model.pt, cohort.csv, cache/, mlflow.db, mlruns/
    trained_with: dict[str, float]  # the trainer's metrics at the end
    judged: dict[str, float]  # those of its evaluator
    best_metric: float
    best_epoch: int
    missing_properties: list[str]  # that MONAI asks of a training bundle
    cohort_digest: str
    history: bytes  # history.csv between training and evaluation

    @property
    def output(self) -> Path:
        return self.folder / "run"

    @property
    def model(self) -> Path:
        """The published checkpoint."""
        return self.folder / "published" / "model.pt"

    @property
    def settings(self) -> dict[str, Any]:
        """Of another workflow on the same cohort and output, untracked."""
        return {"cohort": str(self.folder / "cohort.csv"), "output_dir": str(self.output)}

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def copy(self, folder: Path) -> Path:
        """All of it under another folder, MLflow's store and the paths in it too; checkpoints are links."""

        def copy(source: str, target: str) -> None:
            os.link(source, target) if source.endswith(".pt") else shutil.copy2(source, target)

        shutil.copytree(self.folder, folder, copy_function=copy, ignore=shutil.ignore_patterns("cache", "published"))
        for path in (folder / "run").rglob("*.json"):
            path.write_text(path.read_text().replace(str(self.folder), str(folder)))
        with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                store.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(self.folder), str(folder)))
        return folder


def train_once(start: Start, small_cohort: Path, folder: Path) -> Trained:
    """The shipped training, shrunk, of the shipped network, and the evaluation of its best checkpoint, both tracked."""
    table = pd.read_csv(small_cohort, dtype=str)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table["patient"] = [f"{SECRET}-{i}" for i in range(len(table))]
    table["name"] = SECRET
    table.to_csv(folder / "cohort.csv", index=False)
    settings = {"cohort": str(folder / "cohort.csv"), "output_dir": str(folder / "run")}
    settings |= {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "cache_dir": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow keeps artifacts in the working directory
        model = str(folder / "published" / "model.pt")
        training = run(start("train", **settings, model_file=model, run_name="first"))
        trainer, evaluator = training.trainer.state, training.evaluator.state
        trained = Trained(
            folder,
            dict(trainer.metrics),
            dict(evaluator.metrics),
            evaluator.best_metric,
            evaluator.best_metric_epoch,
            training.check_properties(),
            training.parser.get_parsed_content("cohort_data").digest,
            (folder / "run" / "history.csv").read_bytes(),
        )
        del training, trainer, evaluator
        gc.collect()  # network and optimiser, 700 MB
        run(start("train", "evaluate", **settings))
    return trained


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
        "KL group DRO": TwoLevelLoss(CrossEntropy(), KLGroupDRO(num_groups, eta=0.5, num_classes=len(counts))),
        "DAW-FDD published": TwoLevelLoss(CrossEntropy(), HierarchicalCVaR(0.8, 0.6, gradient="published")),
        "hierarchical": TwoLevelLoss(CrossEntropy(), HierarchicalCVaR(alpha=0.8, alpha_inner=0.6)),
    }
