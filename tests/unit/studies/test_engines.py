"""A run whose process dies is a failed run, and the others go on."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_slurm import write_programs

from fairlung.pipeline.studies import engines


@pytest.mark.slow
def test_a_run_that_is_killed_holds_up_no_other(tmp_path: Path) -> None:
    runs = [tmp_path / name / "run.json" for name in ("killed", "broken")]
    for path in runs:
        path.parent.mkdir()
        path.write_text("{}")  # a run that fails by itself

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if str(runs[0].with_name("log.txt")) in {file.path for file in child.open_files()}:
                        child.kill()
                        return

    killer = threading.Thread(target=kill)
    killer.start()
    codes: dict[str, int] = {}
    ended = lambda path, code, reason: codes.update({path.parent.name: code})  # noqa: E731
    engines.run_locally(runs, lambda path: None, ended, workers=1)
    killer.join()
    assert codes == {"killed": -9, "broken": 1}


# ---- SLURM -----------------------------------------------------------------------------------------------------------
KNOWN = {"partition", "time", "mem", "gres", "job_name", "gpus_per_node", "setup", "array_parallelism"}


def broken_runs(folder: Path, *names: str) -> list[Path]:
    """Runs that fail by themselves."""
    runs = [folder / "runs" / name / "run.json" for name in names]
    for path in runs:
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    return runs


def by_slurm(runs: list[Path], *settings: str, **more: Any) -> dict[str, tuple[int, str]]:
    """Exit code and reason of each run; ``begun`` is the order in which they came into the queue."""
    ended: dict[str, tuple[int, str]] = {}
    begun: list[Path] = []
    ends = lambda path, code, reason: ended.update({path.parent.name: (code, reason)})  # noqa: E731
    engines.run_by_slurm(runs, begun.append, ends, ["time=5", *settings], pause=0.1, **more)
    assert begun == runs
    return ended


def test_what_slurm_is_told() -> None:
    given = ["time=90", "partition=gpu", "mem=32G", "array_parallelism=4", "gres=gpu:a100=1"]
    told = engines.slurm_parameters(given, KNOWN, cpus=8, gpus=1)
    assert told == {
        "timeout_min": 90, "cpus_per_task": 8, "gpus_per_node": 1, "slurm_partition": "gpu", "slurm_mem": "32G",
        "slurm_array_parallelism": 4, "slurm_gres": "gpu:a100=1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ([], {}, "time=MINUTES, the time that a run may take, is missing"),
        (["time=1:00:00"], {}, "must be a whole number, got '1:00:00'"),
        (["time=0"], {}, "must be a whole number, got 0"),
        (["time=5", "partition"], {}, "takes KEY=VALUE, such as partition=gpu, got 'partition'"),
        (["time=5", "partition="], {}, "got 'partition='"),
        (["time=5", "partion=gpu"], {}, "(did you mean 'partition'?)"),
        (["time=5", "gpus_per_node=2"], {}, "is said by --cpus, --gpus or the study"),
        (["time=5", "setup=module load"], {}, "'setup' is none of"),
        (["time=5"], {"cpus": 0.5}, "cpus must be a whole number of at least 1 for SLURM, got 0.5"),
        (["time=5"], {"gpus": -1}, "gpus must be a whole number of at least 0 for SLURM, got -1"),
    ],
)
def test_what_slurm_cannot_be_told_is_refused(settings: list[str], more: dict[str, float], said: str) -> None:
    with pytest.raises(engines.EngineError) as caught:
        engines.slurm_parameters(settings, KNOWN, **more)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_submitit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(engines.EngineError, match=re.escape("pip install 'fairlung[slurm]'")):
        by_slurm(broken_runs(tmp_path, "a"))


def test_a_machine_without_slurm_and_jobs_that_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = broken_runs(tmp_path, "a", "b")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(engines.EngineError, match="there is no srun"):
        by_slurm(runs)
    monkeypatch.setenv("PATH", str(write_programs(tmp_path / "bin")))
    with pytest.raises(engines.EngineError, match="invalid partition specified: closed") as caught:
        by_slurm(runs, "partition=closed")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_runs_are_an_array_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What submitit writes for SLURM, carried out here."""
    programs = write_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    ended = by_slurm(broken_runs(tmp_path / "study", "a", "b"), "partition=gpu", "array_parallelism=1", cpus=2, gpus=1)
    assert ended == {"a": (1, ""), "b": (1, "")}
    script = (programs / "sbatch.txt").read_text()
    for flag in (
        "array=0-1%1",
        "time=5",
        "partition=gpu",
        "cpus-per-task=2",
        "gpus-per-node=1",
        "job-name=fairlung-study",
    ):
        assert f"#SBATCH --{flag}\n" in script
    assert (tmp_path / "study" / "runs" / "a" / "failed.json").exists()
    assert not (programs / "cancelled.txt").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of submitit
def test_a_job_in_this_process(tmp_path: Path) -> None:
    assert by_slurm(broken_runs(tmp_path, "a"), cluster="debug") == {"a": (1, "")}
    assert by_slurm([], cluster="debug") == {}


def runs_of(path: Path) -> list[psutil.Process]:
    """Processes that carry out a run: they write its log."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(path.with_name("log.txt")) in {file.path for file in process.open_files()}:
                found.append(process)
    return found


def wait_for(said: Any) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := said():
            return found
        time.sleep(0.1)
    pytest.fail("it did not happen")


@pytest.mark.slow
def test_a_run_whose_time_is_up_is_begun_again(tmp_path: Path) -> None:
    """The run waits for its run.json, a pipe, so that it runs when its job is told that another takes its place."""
    run_file = tmp_path / "runs" / "a" / "run.json"
    run_file.parent.mkdir(parents=True)
    os.mkfifo(run_file)
    first: list[int] = []

    def interrupt() -> None:
        (run,) = wait_for(lambda: runs_of(run_file))
        first.append(run.pid)
        job = next(each for each in run.parents() if "submitit.core._submit" in " ".join(each.cmdline()))
        job.send_signal(signal.SIGUSR2)
        wait_for(lambda: [each for each in runs_of(run_file) if each.pid not in first])
        run_file.write_text("{}")

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert by_slurm([run_file], cluster="local") == {"a": (1, "")}
    thread.join()
    assert not psutil.pid_exists(first[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of submitit
def test_what_is_left_is_cancelled_when_the_study_ends_early(tmp_path: Path) -> None:
    runs = broken_runs(tmp_path, "a", "b")
    runs[1].unlink()
    os.mkfifo(runs[1])

    def interrupted(path: Path, code: int, reason: str) -> None:
        wait_for(lambda: runs_of(runs[1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engines.run_by_slurm(runs, lambda path: None, interrupted, ["time=5"], cluster="local", pause=0.1)
    wait_for(lambda: not runs_of(runs[1]))


@pytest.mark.slow
def test_a_job_that_dies_is_a_failed_run(tmp_path: Path) -> None:
    run_file = tmp_path / "runs" / "a" / "run.json"
    run_file.parent.mkdir(parents=True)
    os.mkfifo(run_file)

    def kill() -> None:
        (run,) = wait_for(lambda: runs_of(run_file))
        next(each for each in run.parents() if "submitit.core._submit" in " ".join(each.cmdline())).kill()

    thread = threading.Thread(target=kill)
    thread.start()
    code, reason = by_slurm([run_file], cluster="local")["a"]
    thread.join()
    assert code == -1 and reason.startswith("SLURM ended it (") and "slurm" in reason and "\n" not in reason
