"""The engines that carry out the runs of a study: this machine, a Ray cluster, or SLURM.

Each run is a process of its own: one that crashes, even in native code, is a failed run, and the others go on. It is
forked from a process that has done the imports, which take longer than many a run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..common.ray_cluster import EngineError, ray_cluster
from ..common.text import did_you_mean

# of SLURM's parameters, what the study says itself, and what is no number or text
OURS = ("job_name", "nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "num_gpus", "map_count")
NO_TEXT = ("setup", "teardown", "additional_parameters", "srun_args", "use_srun")
Ends = Callable[[Path, int, str], None]  # run.json, exit code, why it was not even started


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
    """Of a process of Ray's, which carries out many runs, or of SLURM's."""
    return Starter()


def run_locally(run_files: Sequence[Path], begins: Callable[[Path], None], ends: Ends, workers: int = 1) -> None:
    """Carry out runs here, ``workers`` at a time; ``begins`` is called before a run, ``ends`` after it."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    from ..common.distributed import usable_cores

    threads = None if workers == 1 else max(1, usable_cores() // workers)
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
    """Carry out a run in a process of Ray's or SLURM's."""
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
    with ray_cluster(address) as ray:
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


class ResumableRun:
    """A run as a job of SLURM, which begins it again where its time was up or another job took its place."""

    def __call__(self, run_file: str, folder: str) -> int:
        try:
            return execute(run_file, folder)
        finally:
            _own_starter().close()  # SLURM removes what outlives the job; an interrupted run saves itself first

    def checkpoint(self, run_file: str, folder: str) -> Any:
        """What submitit puts into the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run_file, folder)


def run_by_slurm(
    run_files: Sequence[Path], begins: Callable[[Path], None], ends: Ends, settings: Sequence[str] = (),
    cpus: float = 1, gpus: float = 0, cluster: str = "slurm", pause: float = 10.0,
) -> None:  # fmt: skip
    """Carry out runs as one array of SLURM's jobs, through submitit, whose files lie in the study's folder ``slurm``.

    The jobs need this fairlung, and the study's folder, cohort and bundle at the same paths. ``begins`` is called when
    a run stands in the queue. Whatever ends this function early cancels the jobs that are left.

    Args:
        settings: ``KEY=VALUE`` each (:func:`slurm_parameters`).
        cluster: ``slurm``, or what else submitit knows: ``local`` and ``debug`` carry the jobs out here.
        pause: seconds between two looks at the jobs.
    EngineError: submitit or SLURM is not here, SLURM refuses the jobs, or a setting is wrong.
    """
    try:
        import submitit
    except ImportError as error:
        raise EngineError("the engine slurm needs submitit: pip install 'fairlung[slurm]'") from error
    parameters = slurm_parameters(settings, submitit.SlurmExecutor._valid_parameters(), cpus, gpus)
    if not run_files:
        return
    files = [path.resolve() for path in run_files]
    try:
        executor = submitit.AutoExecutor(files[0].parents[2] / "slurm", cluster=cluster)
        executor.update_parameters(name=f"fairlung-{files[0].parents[2].name}", **parameters)
        jobs = executor.map_array(ResumableRun(), map(str, files), [str(Path.cwd())] * len(files))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise EngineError(f"SLURM does not take the jobs: {' '.join(str(error).split())}") from error
    except RuntimeError as error:  # submitit finds no srun
        raise EngineError("SLURM is not found here: there is no srun; begin the study on a login node") from error
    waiting = dict(zip(jobs, run_files, strict=True))
    try:
        for run_file in run_files:
            begins(run_file)
        for job in submitit.helpers.as_completed(jobs, poll_frequency=pause):
            code, reason = -1, ""
            try:
                code = job.result()
            except submitit.core.utils.FailedJobError as error:  # fairlung is not there, or time was up too often
                reason = f"SLURM's job failed: {_cause(str(error))}; see {job.paths.stderr}"
            except submitit.core.utils.UncompletedJobError:  # its machine is lost, or it was cancelled
                reason = f"SLURM ended it ({job.state}); see {job.paths.stderr}"
            ends(waiting.pop(job), code, reason)
    finally:
        for job in waiting:
            job.cancel(check=False)


def slurm_parameters(settings: Sequence[str], known: set[str], cpus: float = 1, gpus: float = 0) -> Mapping[str, Any]:
    """What submitit's AutoExecutor is told: ``KEY=VALUE``, by the names that ``sbatch`` has, with ``_`` for ``-``.

    ``time``, in minutes, is needed: submitit's own would end a training after five. EngineError says what is wrong.
    """
    given: dict[str, Any] = {}
    allowed = sorted(known - {*OURS, *NO_TEXT})
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not value:
            raise EngineError(f"--slurm takes KEY=VALUE, such as partition=gpu, got {setting!r}")
        if name not in allowed:
            why = "is said by --cpus, --gpus or the study" if name in OURS else f"is none of {', '.join(allowed)}"
            raise EngineError(f"--slurm: {name!r} {why}{did_you_mean(name, allowed)}")
        given[name] = int(value) if value.isdecimal() else value
    minutes = given.pop("time", None)
    if not isinstance(minutes, int) or minutes < 1:
        said = "is missing" if minutes is None else f"must be a whole number, got {minutes!r}"
        raise EngineError(f"--slurm time=MINUTES, the time that a run may take, {said}")
    for what, number, least in (("cpus", cpus, 1), ("gpus", gpus, 0)):
        if number != int(number) or number < least:
            raise EngineError(f"{what} must be a whole number of at least {least} for SLURM, got {number:g}")
    own = {"timeout_min": minutes, "cpus_per_task": int(cpus)} | ({"gpus_per_node": int(gpus)} if gpus else {})
    return own | {f"slurm_{name}": value for name, value in given.items()}


def _cause(text: str) -> str:
    """The last line of the trace that submitit's error holds."""
    _, _, trace = text.partition("-" * 22)
    lines = trace.partition("-" * 22)[0].strip().splitlines()
    return lines[-1] if lines else " ".join(text.split())
