"""The script inside a logged model: MLflow runs it at load (models from code), so no object of ours is pickled.

Nothing imports it; :mod:`~.tracking.bundle_model` hands its path to MLflow. Beside it, a model carries the checkpoint,
the bundle's configs, and the source of the fairlung that made it, of which it uses :class:`~.Classifier`.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class ScanClassifier(PythonModel):
    """Answers paths of scans as ``monai.bundle run inference.yaml`` does, with the same config."""

    def load_context(self, context: PythonModelContext) -> None:
        require_fairlung(context.model_config["fairlung_version"], context.artifacts["source"])
        from fairlung.pipeline import Classifier

        self.classifier = Classifier(context.artifacts["checkpoint"], context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row a scan, as :class:`~.Classifier` has it; ``model_input`` has the column ``scan``, a path on this
        machine.

        ``batch_size`` among ``params`` replaces inference.yaml's, which MLflow's default of 0 leaves.
        """
        batch_size = int((params or {}).get("batch_size", 0))
        table = self.classifier.predict(model_input["scan"].tolist(), batch_size).astype(object)
        return table.where(table.notna(), None)  # NaN is no JSON, and a server answers in JSON


def require_fairlung(made_by: str, source: str) -> None:
    """See that there is a fairlung: the installed one (two versions in one process would mix), else the model's source.

    Raises:
        RuntimeError: the fairlung at hand is not :func:`compatible` with the one that made the model.
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
