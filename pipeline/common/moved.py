"""Modules of version 0.1 under the names they had then: its registered models and its users' overlays name them."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "fairlung.pipeline"
# module of 0.1 -> the modules that hold today what a config could name of it
HOMES = {
    "accumulation": ("training.accumulation",), "aggregation": ("losses.aggregation",), "audit": ("evaluation.audit",),
    "bootstrap": ("evaluation.resampling",), "bundle": ("common.config", "common.moved", "training.output_dir"),
    "checkpoint": ("networks.checkpoint", "common.run_folder", "training.output_dir"),
    "cnn_rnn": ("networks.cnn_rnn", "common.volumes"), "cohort": ("data.cohort",),
    "dicom_out": ("inference.dicom_report",), "distributed": ("common.distributed",),
    "engine": ("training.group_loss", "training.history", "common.volumes"),
    "ensemble": ("inference.members", "inference.runtimes", "networks.ensemble"),
    "error_gallery": ("explain.error_gallery",), "intake_report": ("reports.intake_page", "cli.data_commands"),
    "memory": ("inference.runtimes",), "metrics": ("evaluation.metrics",), "mlflow_model": ("tracking.registry",),
    "network": ("networks.r3d18", "networks.weights"), "overlay": ("explain.overlays",),
    "predictions": ("inference.prediction_writer",),
    "prevalence": ("postprocessing.prevalence",), "report": ("reports.evaluation_report",),
    "resume": ("training.resume",), "runtimes": ("inference.runtimes",), "sampling": ("data.sampling",),
    "scan_loader": ("inference.scan_readers",), "scan_roots": ("data.archives",), "watch": ("inference.watch",),
}  # fmt: skip
RENAMED = {
    "distributed.start": "start_processes", "intake_report.report": "report_intake",
    "predictions.PredictionWriter": "prediction_writer_of", "watch.run": "watch_scans",
}  # fmt: skip


def defined_above(entry: Any) -> Any:
    """The entry itself: 0.1's configs list handlers in this way."""
    return entry


class _MovedModules(MetaPathFinder, Loader):
    """Finds a module of 0.1 and gives it the names of its homes, each when it is asked for."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        return ModuleSpec(name, self) if package == PACKAGE and module in HOMES else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.rpartition(".")[2]

        def found(name: str) -> Any:
            new = RENAMED.get(f"{old}.{name}", name)
            for home in map(import_module, (f"{PACKAGE}.{home}" for home in HOMES[old])):
                if hasattr(home, new):
                    return getattr(home, new)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = found


def find_moved_modules() -> None:
    """Let imports of 0.1's modules succeed; the modules that exist are found first."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
