"""Several processes give the single process's gradient, metrics and files."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.multiprocessing
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from workflows import SHRUNK, SMALL_NETWORK, group_objectives, run_statuses

from fairlung.pipeline.common.distributed import RestartError, start_processes
from fairlung.pipeline.losses.aggregation import GroupTreeCVaR, KLGroupDRO, MeanAggregation
from fairlung.pipeline.losses.disentangled import DisentangledLoss
from fairlung.pipeline.losses.individual import IndividualFairnessLoss
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.two_level import FairLACVaRLoss, TwoLevelLoss
from fairlung.pipeline.training.accumulation import MicroBatchInferer, in_micro_batches
from fairlung.pipeline.training.bad_steps import SkipBadSteps
from fairlung.pipeline.training.group_loss import PrepareGroupBatch
from fairlung.pipeline.training.sharpness import SharpnessAware

# imported once, not by each process
PRELOADED = ("training.accumulation", "training.bad_steps", "losses.aggregation", "losses.two_level")
multiprocessing.set_forkserver_preload([f"fairlung.pipeline.{name}" for name in PRELOADED])
COUNTS = [250, 84, 200, 200]
BATCH = 6  # of the whole group, dealt out to 2 or 3 processes


def batch() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    image, weight = torch.randn(BATCH, 5, generator=generator), torch.randn(4, 5, generator=generator)
    # with 3 processes the first sees no group 1 at all
    return image, weight, {"label": torch.tensor([0, 1, 2, 3, 1, 0]), "group": torch.tensor([0, 0, 1, 0, -1, 1])}


def objectives() -> dict[str, TwoLevelLoss]:
    return group_objectives(COUNTS, num_groups=2) | {
        "tree": TwoLevelLoss(CrossEntropy(), GroupTreeCVaR([0, 1], alpha=0.8)),
        "disentangled": DisentangledLoss(CrossEntropy(), MeanAggregation(), 4, [3, 2], contrast=1.0),
        "individual": IndividualFairnessLoss(CrossEntropy(), MeanAggregation(), 4, gamma=1.0),
    }


def second_step(image: Tensor, weight: Tensor, target: dict[str, Tensor]) -> dict[str, tuple[Tensor, dict]]:
    """Gradient of each objective's second step, and what the objective then remembers."""
    found = {}
    for name, loss in objectives().items():
        parameters = weight.double().requires_grad_()
        for scale in (2, 1):  # the first is something to remember
            output = scale * image.double() @ parameters.T
            if loss.num_classes is not None:  # a loss that also compares scans, by further columns
                output = torch.cat([output, output.flip(1) ** 2], dim=1)
            value = loss(output, target)
        value.backward()
        assert parameters.grad is not None
        found[name] = (parameters.grad, loss.state_dict())
    return found


def accumulated(image: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Gradient of a network in DistributedDataParallel, if there are processes, that is fed one scan at a time."""
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    wrapped = nn.parallel.DistributedDataParallel(network) if torch.distributed.is_initialized() else network
    for _ in range(2):  # the second step meets what the first one made of the buckets
        network.zero_grad()
        FairLACVaRLoss(COUNTS, alpha=0.8)(in_micro_batches(wrapped, image.double(), 1), target).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


def trained_with_a_bad_step(image: Tensor, target: dict[str, Tensor], bad: bool) -> Tensor:
    """Weights after two steps, between which one in which this process, if it is the bad one, has a NaN."""
    torch.manual_seed(0)
    network: nn.Module = nn.Linear(5, 4).double()
    wrapped = nn.parallel.DistributedDataParallel(network) if torch.distributed.is_initialized() else network
    spoilt = torch.full_like(image, math.nan) if bad else image
    batches = [{"image": 0.1 * part.double(), **target} for part in (image.abs(), spoilt, 2 * image.abs())]
    middle = [] if not torch.distributed.is_initialized() else batches[1:2]
    loss = FairLACVaRLoss(COUNTS, alpha=0.8, estimator="running", num_groups=2)
    SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[batches[0], *middle, batches[2]], network=wrapped,
        optimizer=torch.optim.Adam(network.parameters(), 0.01), loss_function=loss, prepare_batch=PrepareGroupBatch(),
        train_handlers=[SkipBadSteps(loss)], decollate=False,
    ).run()  # fmt: skip
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def sharpness_aware(image: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Weights after two steps with SAM, in micro-batches of one scan."""
    torch.manual_seed(0)
    network: nn.Module = nn.Linear(5, 4).double()
    wrapped = nn.parallel.DistributedDataParallel(network) if torch.distributed.is_initialized() else network
    loss = TwoLevelLoss(CrossEntropy(), KLGroupDRO(2, num_classes=4))
    SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, network=wrapped, inferer=MicroBatchInferer(1), loss_function=loss,
        train_data_loader=[{"image": scale * image.double(), **target} for scale in (1, 2)],
        optimizer=torch.optim.SGD(network.parameters(), 0.1), prepare_batch=PrepareGroupBatch(),
        train_handlers=[SharpnessAware(loss, rho=0.5)], decollate=False,
    ).run()  # fmt: skip
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def worker(rank: int, world: int, folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    image, weight, target = batch()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    found = second_step(image[mine], weight, {name: value[mine] for name, value in target.items()})
    for gradient, _ in found.values():
        torch.distributed.all_reduce(gradient)
        gradient /= world  # DistributedDataParallel averages
    own = image[mine], {name: value[mine] for name, value in target.items()}
    found["accumulated"] = (accumulated(*own), {})
    found["SAM"] = (sharpness_aware(*own), {})
    found["after a bad step"] = (trained_with_a_bad_step(*own, bad=rank == 0), {})
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_gradient_and_memory_are_those_of_the_global_batch(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(worker, (world, str(tmp_path)), nprocs=world, start_method="forkserver")
    image, weight, target = batch()
    expected = second_step(image, weight, target) | {"accumulated": (accumulated(image, target), {})}
    expected["SAM"] = (sharpness_aware(image, target), {})
    expected["after a bad step"] = (trained_with_a_bad_step(image, target, bad=False), {})  # as if it had not been
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, (gradient, state) in expected.items():
            torch.testing.assert_close(found[name][0], gradient, atol=1e-9, rtol=0, msg=name)
            torch.testing.assert_close(found[name][1], state, atol=1e-9, rtol=0, msg=name)


def launch(bundle_dir: Path, cohort: Path, folder: Path, *overlays: Path, restarts: int = 0) -> str:
    """Train with two processes by the documented command, in ``folder``; what was printed."""
    configs = [bundle_dir / "configs" / name for name in ("train.yaml", "multi_gpu_train.yaml")]
    settings = SHRUNK | {"batch_size": 2, "bundle_root": bundle_dir, "cohort": cohort, "output_dir": "run"}
    settings |= {"pretrained": False, "model_file": "model.pt", "tracking_uri": f"sqlite:///{folder}/m.db"}
    settings |= {"network_def": SMALL_NETWORK}
    settings |= {"cache_dir": folder.parent / "volumes", "resume": restarts > 0}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            f"--max_restarts={restarts}", "-m", "monai.bundle", "run",
            "--config_file", str([str(path) for path in (*configs, *overlays)]),
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(bundle_dir: Path, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training by two processes. Read-only."""
    folder = tmp_path_factory.mktemp("distributed") / "whole"
    folder.mkdir()
    launch(bundle_dir, small_cohort, folder)
    return folder


@pytest.mark.slow
def test_two_processes_train_through_the_overlay(trained: Path, small_cohort: Path) -> None:
    cohort = pd.read_csv(small_cohort)
    predictions = pd.read_csv(trained / "run" / "val" / "predictions.csv")
    assert list(predictions["scan"]) == list(cohort[cohort["split"] == "val"]["scan"])  # once each, in order
    metrics = json.loads((trained / "run" / "val" / "metrics.json").read_text())
    assert sum(sum(row) for matrix in metrics["confusion"] for row in matrix) == len(predictions)
    assert not list((trained / "run" / "val").glob("*.part*"))
    state = torch.load(trained / "run" / "models" / "best.pt", weights_only=True)["model"]
    assert not any(name.startswith("module.") for name in state)  # loads without DistributedDataParallel
    assert not (trained / "model.pt").exists()  # not the network that inference runs
    assert run_statuses(trained / "m.db") == ["FINISHED"]


@pytest.mark.parametrize("system", ["site_adversarial", "disentangled", "individual_fairness"])
@pytest.mark.slow
def test_two_processes_train_with_more_than_the_network_and_save_the_network_alone(
    trained: Path, bundle_dir: Path, small_cohort: Path, system: str
) -> None:
    folder = trained.parent / system
    folder.mkdir()
    launch(bundle_dir, small_cohort, folder, bundle_dir / "configs" / "systems" / f"{system}.yaml")
    plain, headed = (
        torch.load(p / "run" / "models" / "best.pt", weights_only=True)["model"] for p in (trained, folder)
    )
    assert plain.keys() == headed.keys() and not all(torch.equal(plain[name], headed[name]) for name in plain)
    assert run_statuses(folder / "m.db") == ["FINISHED"]


KILLER = """
import os, signal
from ignite.engine import Events

class EndTwice:
    \"\"\"The second process is killed at step 2 of epoch 2, and after the restart ended by SIGTERM at step 3.\"\"\"

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine):
        restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        step = engine.state.iteration - engine.state.epoch_length
        if os.environ["RANK"] == "1" and engine.state.epoch == 2 and step == restarts + 2 and restarts < 2:
            open(f"ended{restarts}", "w").close()
            os.kill(os.getpid(), (signal.SIGKILL, signal.SIGTERM)[restarts])
"""


@pytest.mark.slow
def test_a_process_that_ends_costs_an_epoch_at_most(trained: Path, bundle_dir: Path, small_cohort: Path) -> None:
    """One of two: torchrun starts all processes again, they go on, and the numbers are the same to the bit.

    After SIGTERM all of them have saved the same step.
    """
    folder = trained.parent / "ended"
    folder.mkdir()
    (folder / "killer.py").write_text(KILLER)
    (folder / "kill.yaml").write_text("+train::handlers:\n- _target_: killer.EndTwice\n")
    printed = launch(bundle_dir, small_cohort, folder, folder / "kill.yaml", restarts=2)
    assert (folder / "ended0").exists() and "resumed after epoch 1\n" in printed
    assert (folder / "ended1").exists() and "resumed after epoch 1 and 3 steps\n" in printed
    histories = [pd.read_csv(path / "run" / "history.csv") for path in (trained, folder)]
    assert sorted(set(histories[1]["epoch"])) == [1, 2]
    pd.testing.assert_frame_equal(histories[0], histories[1])
    for name in ("best.pt", "checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"):
        whole, resumed = (
            torch.load(p / "run" / "models" / name, weights_only=True)["model"] for p in (trained, folder)
        )
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items()), name
    assert run_statuses(folder / "m.db") == ["FINISHED"]  # one run, gone on with


def test_restarts_that_would_hang_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts of two processes each, as torchrun describes them."""
    described = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in (described | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RestartError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every host"):
        start_processes("gloo")
