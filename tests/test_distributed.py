"""Several processes give the single process's gradient, metrics and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from workflows import SHRUNK, run_statuses

from fairlung.pipeline.aggregation import GroupDRO, GroupTreeCVaR, HierarchicalCVaR
from fairlung.pipeline.losses import CrossEntropy, FairLACVaRLoss, TwoLevelLoss

COUNTS = [250, 84, 200, 200]
BATCH = 6  # of the whole group, dealt out to 2 or 3 processes


def batch() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    image, weight = torch.randn(BATCH, 5, generator=generator), torch.randn(4, 5, generator=generator)
    # with 3 processes the first sees no group 1 at all
    return image, weight, {"label": torch.tensor([0, 1, 2, 3, 1, 0]), "group": torch.tensor([0, 0, 1, 0, -1, 1])}


def objectives() -> dict[str, TwoLevelLoss]:
    return {
        "exact": FairLACVaRLoss(COUNTS, alpha=0.8),
        "published": FairLACVaRLoss(COUNTS, alpha=0.8, gradient="published"),
        "running": FairLACVaRLoss(COUNTS, alpha=0.8, estimator="running", num_groups=2),
        "group DRO": TwoLevelLoss(CrossEntropy(), GroupDRO(num_groups=2, eta=0.5)),
        "hierarchical": TwoLevelLoss(CrossEntropy(), HierarchicalCVaR(alpha=0.8, alpha_inner=0.6)),
        "tree": TwoLevelLoss(CrossEntropy(), GroupTreeCVaR([0, 1], alpha=0.8)),
    }


def second_step(image: Tensor, weight: Tensor, target: dict[str, Tensor]) -> dict[str, tuple[Tensor, dict]]:
    """Gradient of each objective's second step, and what the objective then remembers."""
    found = {}
    for name, loss in objectives().items():
        parameters = weight.double().requires_grad_()
        loss(2 * image.double() @ parameters.T, target)  # something to remember
        loss(image.double() @ parameters.T, target).backward()
        assert parameters.grad is not None
        found[name] = (parameters.grad, loss.state_dict())
    return found


def worker(rank: int, world: int, folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    image, weight, target = batch()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    found = second_step(image[mine], weight, {name: value[mine] for name, value in target.items()})
    for gradient, _ in found.values():
        torch.distributed.all_reduce(gradient)
        gradient /= world  # DistributedDataParallel averages
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_gradient_and_memory_are_those_of_the_global_batch(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (world, str(tmp_path)), nprocs=world)
    expected = second_step(*batch())
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, (gradient, state) in expected.items():
            torch.testing.assert_close(found[name][0], gradient, atol=1e-9, rtol=0, msg=name)
            torch.testing.assert_close(found[name][1], state, atol=1e-9, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes_train_through_the_overlay(bundle_dir: Path, small_cohort: Path, tmp_path: Path) -> None:
    configs = bundle_dir / "configs"
    settings = SHRUNK | {"batch_size": 2, "bundle_root": bundle_dir, "cohort": small_cohort, "output_dir": "run"}
    settings |= {"pretrained": False, "model_file": "model.pt", "tracking_uri": f"sqlite:///{tmp_path}/m.db"}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            "-m", "monai.bundle", "run",
            "--config_file", str([str(configs / "train.yaml"), str(configs / "multi_gpu_train.yaml")]),
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    cohort = pd.read_csv(small_cohort)
    predictions = pd.read_csv(tmp_path / "run" / "val" / "predictions.csv")
    assert list(predictions["scan"]) == list(cohort[cohort["split"] == "val"]["scan"])  # once each, in order
    metrics = json.loads((tmp_path / "run" / "val" / "metrics.json").read_text())
    assert sum(sum(row) for matrix in metrics["confusion"] for row in matrix) == len(predictions)
    assert not list((tmp_path / "run" / "val").glob("*.part*"))
    state = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert not any(name.startswith("module.") for name in state)  # loads without DistributedDataParallel
    assert run_statuses(tmp_path / "m.db") == ["FINISHED"]
