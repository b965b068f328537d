"""Runs of a study, each in a process of its own: it trains, or resumes training, then evaluates.

    python -m fairlung.pipeline.studies.worker

does the imports, reads a line a run, forks for it, and writes its exit code. A run does what ``python -m monai.bundle
run`` does, and ends when the process that asked for it does.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..common.errors import in_a_line
from ..common.files import write_json
from ..common.run_folder import is_complete
from ..common.settings import is_expression, verbatim
from ..common.text import without_login
from .record import PlannedRun, read_record

DONE, FAILED, LOG = "done.json", "failed.json", "log.txt"
# what runs import in any case, or mostly
IMPORTED = (
    "monai.bundle", "monai.engines", "ignite.handlers", "torchvision.models.video", "matplotlib.pyplot", "scipy.stats",
    "sklearn.metrics", "fairlearn.metrics", "statsmodels.stats.multitest", "mlflow", "..training.resume",
    "..networks.r3d18", "..evaluation.audit", "..reports.evaluation_report", "..explain.error_gallery",
    "..shortcuts.features", "..tracking.run", "..cli.evaluation_commands",
)  # fmt: skip


def main(path: str) -> int:
    """Do what a run.json says, unless it is done; 0 when all of it is."""
    folder = Path(path).parent
    with FileLock(folder / "run.lock"):  # an earlier process may not have ended yet
        if (folder / DONE).is_file():
            return 0
        (folder / FAILED).unlink(missing_ok=True)
        begin = time.monotonic()
        try:
            device = run(read_record(PlannedRun, Path(path)), folder)
        except (Exception, SystemExit) as error:
            print(without_login(traceback.format_exc()), file=sys.stderr)
            write_json(folder / FAILED, {"reason": without_login(in_a_line(error))})
            return 1
        write_json(folder / DONE, {"device": device, "seconds": round(time.monotonic() - begin, 1)})
    return 0


def run(planned: PlannedRun, folder: Path) -> str:
    """Train and evaluate; the name of the device."""
    import torch
    from monai.bundle import run as run_bundle

    from ..common.text import device_name

    configs = Path(planned.bundle_root, "configs")
    files = [str(configs / f"{name}.yaml") for name in planned.configs]
    settings: dict[str, Any] = {"bundle_root": planned.bundle_root, "cohort": planned.cohort}
    settings |= {"output_dir": str(folder), **planned.settings, "parent_run": planned.parent_run}
    settings |= {"tracking_uri": planned.tracking_uri} if planned.tracking_uri else {}
    device = torch.device(settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = {k: v if is_expression(v) else verbatim(v) for k, v in settings.items()} | {"device": str(device)}
    if not is_complete(folder):
        run_bundle(config_file=files, resume=True, **settings)
    files.append(str(configs / "evaluate.yaml"))
    for split in planned.evaluate:
        gc.collect()  # frees what the training has left
        run_bundle(config_file=files, split=split, **settings | dict(planned.evaluation))
    return device_name(device)


def _end_with_parent() -> None:
    """The other end of standard input closes when the process that started this one ends, however it ends."""

    def watch() -> None:
        while os.read(0, 1):  # sys.stdin would hold its lock while it waits, which forked loader processes need
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _carry_out(run_file: str, folder: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    with Path(run_file).with_name(LOG).open("ab") as log:
        for output in (1, 2):
            os.dup2(log.fileno(), output)
    _end_with_parent()
    try:
        return main(run_file)
    finally:
        gc.unfreeze()  # or libraries report at the end, in the log, what they take for lost


def serve() -> None:
    """Fork for each run that is asked for, a line each, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends by it, and this process when nobody asks
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM tells all of a job that its time is up; who asked decides
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that has asked CUDA itself cannot fork
    for name in IMPORTED:
        with suppress(ImportError):
            import_module(name, __package__)
    gc.freeze()  # the collector of a run need not look at all of it
    for line in iter(sys.stdin.readline, ""):
        if (pid := os.fork()) == 0:
            sys.exit(_carry_out(*json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)  # nothing of it is to be closed; libraries would report here, on the user's screen, what they leak


if __name__ == "__main__":
    serve()
