"""A checkpoint logged as an MLflow model: plain files, a script, the bundle."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import __version__
from ..networks.checkpoint import INFERENCE_NETWORK, NETWORK, model_settings, require_checkpoint
from ..reports.model_card import write_eval_metrics
from .champion import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

SCRIPT = Path(__file__).with_name("pyfunc_model.py")
CONFIGS = ("inference.yaml", "train.yaml", "metadata.json")
EXAMPLE = {"scan": ["scans/new-0001"]}  # a folder of slices or DICOM files, or a file; nothing is there
# what inference imports; a model asks for the versions that it was made with
REQUIREMENTS = ("filelock", "mlflow", "monai", "nibabel", "numpy", "pandas", "pillow", "pytorch-ignite", "pyyaml",
                "scikit-learn", "scipy", "SimpleITK", "torch", "torchvision", "tqdm")  # fmt: skip


def signature(class_names: Iterable[str]) -> ModelSignature:
    """Paths of scans in; prediction, probabilities and status out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    outputs = [ColSpec("string", "scan"), ColSpec("string", "prediction", required=False)]
    outputs += [ColSpec("double", f"prob_{name}", required=False) for name in class_names]
    outputs += [ColSpec("string", name) for name in ("status", "reason", "warnings")]
    params = ParamSchema([ParamSpec("batch_size", "integer", 0)])
    return ModelSignature(inputs=Schema([ColSpec("string", "scan")]), outputs=Schema(outputs), params=params)


def pip_requirements() -> list[str]:
    """The installed versions of what inference needs; no package index has fairlung: the model carries its source."""
    # a local build (2.15.0+cpu) is named by its public version
    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def log_bundle_model(
    client: MlflowClient, run_id: str, checkpoint: str | Path, bundle_root: str | Path, name: str = "classifier",
    metrics: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Log a checkpoint of train.yaml as a model of an MLflow run; returns its id, which ``models:/<id>`` loads.

    Nothing in the model names this machine. The run may be finished. The model takes the bundle's configs along, with
    ``metrics`` (:func:`~.eval_metrics`) in its metadata.json; the bundle's own stays as it is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Any type hint", UserWarning)  # MLflow, at import, about its own classes
        import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    require_checkpoint(checkpoint)
    settings = model_settings(checkpoint, Path(bundle_root, "configs", "train.yaml"))
    class_names, network = settings["class_names"], settings[NETWORK]
    if network != INFERENCE_NETWORK:
        what = f"holds a {network}; a model runs inference.yaml, which has {INFERENCE_NETWORK}"
        raise RegistryError(f"{checkpoint} {what}")
    # MLflow's log_model would write local paths into the model, and set the process's store: this does it in steps
    experiment_id = client.get_run(run_id).info.experiment_id
    tags = {"fairlung.version": __version__}
    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags=tags)
    status = "FAILED"
    try:
        with TemporaryDirectory() as folder:
            artifacts = _stage(Path(folder, "stage"), Path(checkpoint), Path(bundle_root))
            if metrics:
                write_eval_metrics(artifacts["bundle"] / "configs" / "metadata.json", metrics)
            ids = {"model_uuid": logged.model_id, "model_id": logged.model_id}
            model = Model(artifact_path=f"models:/{logged.model_id}", run_id=run_id, **ids)
            path = Path(folder, "model")
            # MLflow compares the names in a way that pandas deprecates for its own kind of strings
            example = pd.DataFrame(EXAMPLE, dtype=object, columns=pd.Index([*EXAMPLE], dtype=object))
            mlflow.pyfunc.save_model(
                str(path), python_model=str(SCRIPT), signature=signature(class_names), input_example=example,
                artifacts={key: str(value) for key, value in artifacts.items()}, mlflow_model=model,
                pip_requirements=pip_requirements(), model_config={"fairlung_version": __version__},
            )  # fmt: skip
            flavor = model.flavors["python_function"]
            flavor["model_code_path"] = SCRIPT.name
            for saved in flavor["artifacts"].values():
                saved["uri"] = saved["path"]
            model.save(str(path / "MLmodel"))
            client.log_model_artifacts(logged.model_id, str(path))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)
    return logged.model_id


def _stage(folder: Path, checkpoint: Path, bundle_root: Path) -> dict[str, Path]:
    """What the model is made of, copied into one folder (the checkpoint stays where it is)."""
    configs, source = folder / "bundle" / "configs", folder / "source"
    configs.mkdir(parents=True)
    for name in CONFIGS:
        if not (bundle_root / "configs" / name).is_file():
            raise RegistryError(f"{bundle_root} is no bundle: it has no configs/{name}")
        shutil.copyfile(bundle_root / "configs" / name, configs / name)
    for package in ("pipeline", "transforms"):
        spec = importlib.util.find_spec(f"fairlung.{package}")
        if spec is None or not spec.submodule_search_locations:
            raise RegistryError(f"the installation is incomplete: no package fairlung.{package}")
        here = Path(next(iter(spec.submodule_search_locations)))
        shutil.copytree(here, source / "fairlung" / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return {"checkpoint": checkpoint, "bundle": folder / "bundle", "source": source}
