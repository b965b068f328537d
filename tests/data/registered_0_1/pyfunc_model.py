"""The script inside a logged model: MLflow runs it at load (models from code), so no object of ours is pickled.

Nothing imports this module; :mod:`~.mlflow_model` hands its path to MLflow. Beside it, a model carries the checkpoint,
the bundle's configs, and the source of the fairlung that made it. Of fairlung it uses what inference.yaml names.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from copy import deepcopy
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)


class ScanClassifier(PythonModel):
    """Answers paths of scans as ``monai.bundle run inference.yaml`` does, with the same config."""

    def load_context(self, context: PythonModelContext) -> None:
        require_fairlung(context.model_config["fairlung_version"], context.artifacts["source"])
        bundle = context.artifacts["bundle"]
        self.config = ConfigParser.load_config_file(f"{bundle}/configs/inference.yaml")
        # scans are read by this process: forking loader processes out of a server's threads is not safe
        self.config |= {"bundle_root": bundle, "checkpoint": context.artifacts["checkpoint"], "num_workers": 0}
        parser = ConfigParser(deepcopy(self.config))
        network = parser.get_parsed_content("network")
        device = parser.get_parsed_content("device")
        content = torch.load(context.artifacts["checkpoint"], map_location=device, weights_only=True)
        network.load_state_dict(content["model"])
        self.network = network.eval()
        self.writer = parser.get_parsed_content("predictions")  # says how an answer is made; nothing is written

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row a scan.

        Args:
            context: not used.
            model_input: table with the column ``scan``, the path of a scan on the machine that predicts.
            params: ``batch_size`` in place of inference.yaml's, which MLflow's default of 0 leaves.

        Returns:
            The columns of inference's predictions.csv: scan, prediction, prob_<class>, status (ok|failed|skipped),
            reason, warnings. A scan that failed or was skipped has neither prediction nor probabilities (None).
        """
        paths = model_input["scan"].tolist()
        given = [isinstance(path, str) and bool(path) for path in paths]
        answers = _Answers(self.writer)
        # a path is no part of the config: MONAI would run one that begins with "$". A tuple it leaves alone.
        scans = tuple({"image": path, "scan": path} for path, is_given in zip(paths, given, strict=True) if is_given)
        if scans:
            config = deepcopy(self.config)  # MONAI writes into it, and a server predicts in several threads
            config |= {"network": self.network, "handlers": [answers], "dataset": config["dataset"] | {"data": scans}}
            if batch_size := int((params or {}).get("batch_size", 0)):
                config["batch_size"] = batch_size
            ConfigParser(config).get_parsed_content("evaluator").run()
        rows = iter(answers.rows)
        table = [next(rows) if is_given else answers.no_path() for is_given in given]
        # object: pandas would turn None into NaN, which is no JSON, and a server answers in JSON
        return pd.DataFrame(table, columns=self.writer.columns, dtype=object)


class _Answers:
    """Ignite handler that collects rows, as inference's writer makes them."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.rows: list[list[Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)

    def _append(self, engine: Engine) -> None:
        for answer in self.writer.answer(engine.state.batch, engine.state.output["pred"]):
            if answer.status == "failed":
                logger.warning("%s failed: %s", answer.scan, answer.reason)
            self.rows.append(self.writer.cells(answer))

    def no_path(self) -> list[Any]:
        row = dict.fromkeys(self.writer.columns) | {"scan": "", "warnings": ""}
        return list((row | {"status": "failed", "reason": "no path"}).values())


def require_fairlung(made_by: str, source: str) -> None:
    """See that there is a fairlung: the installed one or, where there is none, the source in the model.

    The installed one comes first: two versions in one process would mix.

    Args:
        made_by: version that made the model.
        source: folder with the package ``fairlung`` in the model.

    Raises:
        RuntimeError: the fairlung at hand is not of a compatible version, see :func:`compatible`.
    """
    try:
        installed = importlib.util.find_spec("fairlung.pipeline") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        sys.path.append(source)
    from fairlung.pipeline import __version__

    if not compatible(__version__, made_by):
        raise RuntimeError(
            f"this model was made by fairlung {made_by}, but fairlung {__version__} is installed. Install {made_by}, "
            "or load the model where no fairlung is installed (it carries the source of its own), or register its "
            "checkpoint again with the installed one: fairlung register"
        )


def compatible(version: str, other: str) -> bool:
    """Whether two versions read the same configs: the same major version, and below 1.0 the same minor version."""
    parts, others = version.split("."), other.split(".")
    return parts[0] == others[0] and (parts[0] != "0" or parts[1] == others[1])


set_model(ScanClassifier())
