"""The load of CPU, memory and GPU, read by MLflow's own monitors."""

import logging
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

logger = logging.getLogger(__name__)

SAMPLING_SECONDS = 10.0  # of the machine's load, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise


class SystemMonitor:
    """Submits the machine's load as rows ``[workload/<name>, value, milliseconds, step]`` from a thread of its own.

    MLflow's page lists what is called ``system/...`` before all metrics of the model, so this is called otherwise.
    MLflow's ``SystemMetricsMonitor`` around its monitors is not used: it sends by itself, past the journal, and ends at
    the first request that fails.
    """

    def __init__(self, submit: Callable[[list[list[Any]]], None]) -> None:
        self._submit = submit
        self._sources = _load_sources()
        self._samples = 0
        self._stop = threading.Event()
        given = os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "")
        self._interval = float(given) if given.replace(".", "", 1).isdigit() and float(given) > 0 else SAMPLING_SECONDS
        self._thread = threading.Thread(target=self._watch, daemon=True, name="fairlung-system-metrics")
        if self._sources:
            self._sample()  # the load since the last reading: the first reading is none
            self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._log()

    def _sample(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for source in list(self._sources):
            try:
                source.collect_metrics()
                values |= source.aggregate_metrics()
                source.clear_metrics()
            except Exception as error:  # a counter that this machine does not have
                logger.debug("%s: %s", type(source).__name__, error)
                self._sources.remove(source)
        return values

    def _log(self) -> None:
        now = int(time.time() * 1000)
        values = [[f"workload/{name}", float(value), now, self._samples] for name, value in self._sample().items()]
        self._samples += 1
        if values:
            self._submit(values)

    def stop(self) -> None:
        """Log a last point, so that a short run has one too, and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(60)  # a request that hangs gives up sooner
            self._log()


def _load_sources() -> list[Any]:
    sources = []
    for kind in ("CPU", "Disk", "Network", "GPU"):
        try:
            module = import_module(f"mlflow.system_metrics.metrics.{kind.lower()}_monitor")
            sources.append(getattr(module, f"{kind}Monitor")())
        except Exception as error:  # no psutil, no NVIDIA driver, another MLflow
            logger.debug("no %s load: %s", kind, error)
    return sources
