"""The engines that carry out the runs of a study: this machine, or a Ray cluster.

Each run is a process of its own: one that crashes, even in native code, is a failed run, and the others go on. It is
forked from a process that has done the imports, which take longer than many a run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from ..common.errors import UserError

Ends = Callable[[Path, int, str], None]  # run.json, exit code, why it was not even started


class EngineError(UserError):
    """An engine that is not installed or not reached."""


class Starter:
    """A process that forks for one run after the other; it ends, and its run with it, when this process does.

    ``threads`` is how many a run computes with, unless OMP_NUM_THREADS says it; None is torch's own choice.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.process: subprocess.Popen[str] | None = None

    def run(self, run_file: str, folder: str | None = None) -> int:
        """Carry out a run in ``folder``, or in this process's; its exit code, of a signal that ended it below 0."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps([run_file, folder or os.getcwd()]), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except (OSError, ValueError):  # it was stopped meanwhile
            answer = ""
        return int(answer) if answer else self.close() or -1

    def stop(self) -> None:
        """Tell it to end; an interrupted run closes its tracking before it ends."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def close(self) -> int:
        """End it, and wait for that; its exit code."""
        self.stop()
        if self.process is None:
            return 0
        with self.process:
            return self.process.wait()

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            own = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "fairlung.pipeline.studies.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own | os.environ,
            )  # fmt: skip
        return self.process


@cache
def _own_starter() -> Starter:
    """Of a process of Ray's, which carries out many runs."""
    return Starter()


def run_locally(run_files: Sequence[Path], begins: Callable[[Path], None], ends: Ends, workers: int = 1) -> None:
    """Carry out runs here, ``workers`` at a time; ``begins`` is called before a run, ``ends`` after it."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    starters = [Starter(threads) for _ in range(workers)]
    free: SimpleQueue[Starter] = SimpleQueue()
    for starter in starters:
        free.put(starter)

    def one(run_file: Path) -> None:
        begins(run_file)
        starter = free.get()
        try:
            ends(run_file, starter.run(str(run_file)), "")
        finally:
            free.put(starter)

    with ExitStack() as stack:
        for starter in starters:
            stack.callback(starter.close)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        try:
            for done in as_completed([pool.submit(one, run_file) for run_file in run_files]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for starter in starters:
                starter.stop()
            raise


def execute(run_file: str, folder: str) -> int:
    """Carry out a run in a process of Ray's."""
    return _own_starter().run(run_file, folder)


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
            waiting[task.remote(str(run_file.resolve()), str(Path.cwd()))] = run_file
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
