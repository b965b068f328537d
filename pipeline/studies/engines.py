"""The engines that carry out the runs of a study: this machine, or a Ray cluster.

Each run is a process of its own: one that crashes, even in native code, is a failed run, and the others go on.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ..common.errors import UserError
from .worker import LOG

Ends = Callable[[Path, int, str], None]  # run.json, exit code, why it was not even started


class EngineError(UserError):
    """An engine that is not installed or not reached."""


def execute(run_file: str, started: list[subprocess.Popen] | None = None, folder: str | None = None) -> int:
    """Carry out a run in a process of its own, which writes to log.txt beside the run.json; returns its exit code.

    The process ends when this one does, or when its standard input is closed. It is appended to ``started``, so that
    another thread can stop it, and runs in ``folder``, or in this process's.
    """
    command = [sys.executable, "-W", "ignore", "-m", "fairlung.pipeline.studies.worker", run_file]
    with Path(run_file).with_name(LOG).open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder)
    if started is not None:
        started.append(process)
    code = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return code


def run_locally(run_files: Sequence[Path], begins: Callable[[Path], None], ends: Ends, workers: int = 1) -> None:
    """Carry out runs here, ``workers`` at a time; ``begins`` is called before a run, ``ends`` after it."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    started: list[subprocess.Popen] = []

    def one(run_file: Path) -> None:
        begins(run_file)
        ends(run_file, execute(str(run_file), started), "")

    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in as_completed([pool.submit(one, run_file) for run_file in run_files]):
                done.result()
        except BaseException:  # an interrupted run closes its tracking before it ends
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                assert process.stdin is not None
                process.stdin.close()
            raise


def run_by_ray(
    run_files: Sequence[Path], begins: Callable[[Path], None], ends: Ends, address: str | None = None, cpus: float = 1,
    gpus: float = 0,
) -> None:  # fmt: skip
    """Carry out runs on a Ray cluster, as many at a time as its CPUs and GPUs allow.

    All machines need this fairlung, and the study's folder, cohort and bundle at the same paths. ``begins`` is called
    when a run is handed over to Ray, which starts it when there is room for its ``cpus`` and ``gpus``. Without an
    ``address`` a cluster on this machine is started. EngineError: Ray is not installed, or the cluster is not reached.
    """
    try:
        import ray
    except ImportError as error:
        raise EngineError("the engine ray needs Ray: pip install 'fairlung[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(f"Ray at {address or 'this machine'} does not answer: {error}") from error
    try:
        # Ray must not try a crashed process again: it is a failed run
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(execute)
        waiting = {}
        for run_file in run_files:
            waiting[task.remote(str(run_file.resolve()), None, str(Path.cwd()))] = run_file
            begins(run_file)
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            run_file = waiting.pop(done)
            code, reason = -1, ""
            try:
                code = ray.get(done)
            except ray.exceptions.RayTaskError as error:  # fairlung is not installed there, or a folder is not shared
                reason = f"Ray could not start it: {str(error.cause).strip()}"
            except ray.exceptions.RayError as error:  # its machine is lost
                reason = f"Ray lost it: {type(error).__name__}"
            ends(run_file, code, reason)
    finally:
        ray.shutdown()
