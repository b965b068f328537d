"""Publishing a checkpoint as an MLflow model: logged, registered, and made champion by a stated rule.

The model is plain files: :mod:`~.pyfunc_model` as its script, the checkpoint (weights and settings), the bundle's
configs, and the source of this fairlung for machines that have none. mlflow is imported only when something is
published.
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from . import __version__
from .checkpoint import INFERENCE_NETWORK, NETWORK, model_settings, require_checkpoint, training_dir
from .distributed import is_primary
from .errors import UserError
from .tracking_journal import RECORD, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

    from .tracking import RunTracker

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("pyfunc_model.py")
CONFIGS = ("inference.yaml", "train.yaml", "metadata.json")
MODEL_NAME = "classifier"  # of the logged model; the registered model's name is the user's
CHAMPION = "champion"
EXAMPLE = {"scan": ["scans/new-0001"]}  # a folder of slices or DICOM files, or a file; nothing is there
# what inference imports; a model asks for the versions that it was made with
REQUIREMENTS = (
    "filelock", "mlflow", "monai", "nibabel", "numpy", "pandas", "pillow", "pytorch-ignite", "pyyaml", "scikit-learn",
    "scipy", "SimpleITK", "torch", "torchvision", "tqdm",
)  # fmt: skip
RULE = (
    "Champion rule. Versions are compared only when they were judged on the same scans, on the same split, with "
    "intervals of the same confidence. Let B be the larger of |low| and |high| of the interval of the gap (of |gap| "
    "with more than two groups). A version takes the alias `champion` from the one that holds it when its P is higher "
    "and its B is not larger. A version with an interval also takes it from one without, and one without never takes "
    "it. The first version gets it."
)


class RegistryError(UserError, ValueError):
    """Something is missing that a registered model needs: a tracked run, an evaluation, or its checkpoint."""


# ---------------------------------------------------------------------------------------------------------------------
# what a version was judged by
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Judgement:
    """How well and how fairly a version did, and on what.

    Args:
        score: P.
        gap: signed with two groups, else |gap|.
        split: of the cohort.
        scans_digest: digest of the judged scans with their labels and groups.
        gap_low: lower end of the gap's interval; None without interval, as are ``gap_high`` and ``confidence``.
        gap_high: upper end.
        confidence: of the interval.
        synthetic: whether the scans are phantoms.
    """

    score: float
    gap: float
    split: str
    scans_digest: str
    gap_low: float | None = None
    gap_high: float | None = None
    confidence: float | None = None
    synthetic: bool = False

    @property
    def bound(self) -> float:
        """The largest |gap| in the interval; infinite without one."""
        if self.gap_low is None or self.gap_high is None or not math.isfinite(self.gap_low + self.gap_high):
            return math.inf
        return max(abs(self.gap_low), abs(self.gap_high))

    def tags(self) -> dict[str, str]:
        """As tags of a model version; what is unknown has none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
        return {f"fairlung.{name}": plain[name] for name, value in values.items() if value is not None}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Judgement | None:
        """The judgement that :meth:`tags` wrote; None when the version was registered by other means."""
        found = {field.name: tags.get(f"fairlung.{field.name}") for field in fields(cls)}
        text = ("split", "scans_digest")
        try:
            values: dict[str, Any] = {n: v if n in text else json.loads(v) for n, v in found.items() if v is not None}
            return cls(**values)
        except (TypeError, ValueError):
            return None


def read_judgement(evaluation_dir: str | Path) -> Judgement:
    """The judgement in an evaluation's folder: metrics.json, predictions.csv, and audit.json for the interval.

    Raises:
        RegistryError: there is no evaluation.
    """
    folder = Path(evaluation_dir)
    try:
        result = json.loads((folder / "metrics.json").read_text())
        table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise RegistryError(f"{folder} holds no evaluation ({error.filename} is missing): evaluate first") from error
    metrics = result["metrics"]
    interval: dict[str, float] = {}
    if (folder / "audit.json").is_file():
        audit = json.loads((folder / "audit.json").read_text())
        estimate = audit["overall"].get("gap") or audit["overall"].get("abs_gap") or {}
        interval = {f"gap_{end}": estimate[end] for end in ("low", "high") if estimate.get(end) is not None}
        if len(interval) == 2:
            interval["confidence"] = audit.get("settings", {}).get("confidence")
    # the columns that say which scans were judged, in the order of PredictionWriter: scan, label, group
    judged = sorted(table.iloc[:, : table.columns.get_loc("prediction")].values.tolist())
    return Judgement(
        score=metrics["score"],
        gap=metrics["gap"] if "gap" in metrics else metrics["abs_gap"],
        split=result["split"],
        scans_digest=hashlib.sha256(json.dumps(judged).encode()).hexdigest(),
        synthetic=bool(result["synthetic"]),
        **interval,
    )


# ---------------------------------------------------------------------------------------------------------------------
# the champion
# ---------------------------------------------------------------------------------------------------------------------
class Candidate(NamedTuple):
    """A version of a registered model and its judgement."""

    version: int
    judgement: Judgement


class Decision(NamedTuple):
    """Whether a version becomes the champion, and why."""

    champion: bool
    reason: str


def challenge(holder: Judgement, challenger: Judgement) -> Decision:
    """Whether a challenger takes the alias from the one that holds it, by :data:`RULE`."""
    if not math.isfinite(challenger.score):
        return Decision(False, "its P is not a number")
    if challenger.split != holder.split:
        return Decision(False, f"judged on split {challenger.split}, the champion on {holder.split}: not compared")
    if challenger.scans_digest != holder.scans_digest:
        return Decision(False, "judged on other scans than the champion: not compared")
    if math.isinf(challenger.bound):
        return Decision(False, "the gap has no interval")
    if math.isinf(holder.bound):
        return Decision(True, "its gap has an interval, the champion's has none")
    if challenger.confidence != holder.confidence:
        confidences = f"{challenger.confidence}, the champion's of {holder.confidence}"
        return Decision(False, f"the gap's interval is of confidence {confidences}: not compared")
    score = f"P {challenger.score:.4f}, the champion's {holder.score:.4f}"
    bound = f"|gap| up to {challenger.bound:.4f}, the champion's up to {holder.bound:.4f}"
    if not challenger.score > holder.score:
        return Decision(False, f"P is not higher ({score})")
    if challenger.bound > holder.bound:
        return Decision(False, f"the gap's interval is worse ({bound})")
    return Decision(True, f"P is higher ({score}) and the gap's interval is not worse ({bound})")


def champion(candidates: Iterable[Candidate]) -> int | None:
    """The version that holds the alias after all candidates came in order of their versions; None of none.

    :data:`RULE` in one sentence: best P whose gap interval is not worse. The first with a number for P is the first
    champion; each later one may :func:`challenge` it.
    """
    holder: Candidate | None = None
    for candidate in sorted(candidates, key=lambda candidate: candidate.version):
        if holder is None:
            holder = candidate if math.isfinite(candidate.judgement.score) else None
        elif challenge(holder.judgement, candidate.judgement).champion:
            holder = candidate
    return None if holder is None else holder.version


# ---------------------------------------------------------------------------------------------------------------------
# the logged model
# ---------------------------------------------------------------------------------------------------------------------
def signature(class_names: Iterable[str]) -> ModelSignature:
    """Paths of scans in; prediction, probabilities and status out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    outputs = [ColSpec("string", "scan"), ColSpec("string", "prediction", required=False)]
    outputs += [ColSpec("double", f"prob_{name}", required=False) for name in class_names]
    outputs += [ColSpec("string", name) for name in ("status", "reason", "warnings")]
    return ModelSignature(
        inputs=Schema([ColSpec("string", "scan")]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("batch_size", "integer", 0)]),
    )


def pip_requirements() -> list[str]:
    """The installed versions of what inference needs; of local builds (2.15.0+cpu) the public version.

    fairlung is not among them: no package index has it, and an installer would take whatever goes by that name. The
    model carries its source.
    """
    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def log_bundle_model(
    client: MlflowClient, run_id: str, checkpoint: str | Path, bundle_root: str | Path, name: str = MODEL_NAME
) -> str:
    """Log a checkpoint as a model of an MLflow run; nothing in it names this machine.

    Args:
        client: of the store that has the run.
        run_id: run that the model belongs to; it may be finished.
        checkpoint: file written by train.yaml.
        bundle_root: folder of the bundle whose configs the model takes along.
        name: of the logged model.

    Returns:
        The model's id; ``models:/<id>`` loads it.
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
        raise RegistryError(
            f"{checkpoint} holds a {network}; a model runs inference.yaml, which has {INFERENCE_NETWORK}"
        )
    # MLflow's log_model would write local paths into the model, and set the process's store: this does it in steps
    experiment_id = client.get_run(run_id).info.experiment_id
    tags = {"fairlung.version": __version__}
    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags=tags)
    status = "FAILED"
    try:
        with TemporaryDirectory() as folder:
            artifacts = _stage(Path(folder, "stage"), Path(checkpoint), Path(bundle_root))
            uri = f"models:/{logged.model_id}"
            model = Model(artifact_path=uri, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id)
            path = Path(folder, "model")
            mlflow.pyfunc.save_model(
                str(path),
                python_model=str(SCRIPT),
                artifacts={key: str(value) for key, value in artifacts.items()},
                signature=signature(class_names),
                input_example=_example(),
                pip_requirements=pip_requirements(),
                model_config={"fairlung_version": __version__},
                mlflow_model=model,
            )
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


def _example() -> Any:
    import pandas as pd

    # MLflow compares the names in a way that pandas deprecates for its own kind of strings
    return pd.DataFrame(EXAMPLE, dtype=object).set_axis(pd.Index(list(EXAMPLE), dtype=object), axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# the registry
# ---------------------------------------------------------------------------------------------------------------------
class Registered(NamedTuple):
    """A new version of a registered model and what came of it."""

    name: str
    version: int
    decision: Decision


def register_model(client: MlflowClient, name: str, model_id: str, run_id: str, judgement: Judgement) -> Registered:
    """Register a logged model as a new version, and let it challenge the champion.

    The alias moves by :data:`RULE`, which is also the registered model's description. One that a person moved by hand
    is respected: the new version challenges whichever version holds it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(name, description=f"Chest-CT classifier, made by fairlung.\n\n{RULE}")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    tags = judgement.tags()
    run_tags = client.get_run(run_id).data.tags
    if run_tags.get("fairlung.kind") == "evaluate":  # of a training's run the cohort may be another
        tags["fairlung.cohort_digest"] = run_tags["fairlung.cohort_digest"]
    # without a server, MLflow would look for models:/ in the process's default store, which may be another
    server = client.tracking_uri.startswith("http")
    source = f"models:/{model_id}" if server else client.get_logged_model(model_id).artifact_location
    created = client.create_model_version(
        name, source, run_id=run_id, tags=tags, description=_description(judgement), model_id=model_id
    )
    new = Candidate(int(created.version), judgement)
    decision = _decide(client, name, new)
    if decision.champion:
        client.set_registered_model_alias(name, CHAMPION, str(new.version))
    logger.info("%s version %d, champion: %s (%s)", name, new.version, decision.champion, decision.reason)
    return Registered(name, new.version, decision)


def _decide(client: MlflowClient, name: str, new: Candidate) -> Decision:
    alias = client.get_registered_model(name).aliases.get(CHAMPION)
    if alias is not None:
        holder = Judgement.from_tags(client.get_model_version(name, str(alias)).tags)
        if holder is None:
            return Decision(False, f"version {alias} holds the alias and has no judgement to compare with")
        decision = challenge(holder, new.judgement)
        return Decision(decision.champion, f"{decision.reason}; the champion was version {alias}")
    others = [candidate for candidate in _candidates(client, name) if candidate.version != new.version]
    if champion([*others, new]) != new.version:
        return Decision(False, "no version holds the alias, and this one would not win it from an earlier one")
    return Decision(True, "no version holds the alias")


def _candidates(client: MlflowClient, name: str) -> list[Candidate]:
    quoted = name.replace("'", "''")
    found: list[ModelVersion] = list(client.search_model_versions(f"name='{quoted}'"))
    judged = [(int(version.version), Judgement.from_tags(version.tags)) for version in found]
    return [Candidate(number, judgement) for number, judgement in judged if judgement is not None]


def _description(judgement: Judgement) -> str:
    kind = " SYNTHETIC scans (phantoms)." if judgement.synthetic else ""
    interval = "no interval"
    if judgement.gap_low is not None and judgement.gap_high is not None:
        interval = f"interval {judgement.gap_low:+.4f} to {judgement.gap_high:+.4f}"
    score = f"P {judgement.score:.4f}, gap {judgement.gap:+.4f} ({interval})"
    return f"{score} on split {judgement.split}.{kind}"


# ---------------------------------------------------------------------------------------------------------------------
# called by evaluate.yaml and by the command line
# ---------------------------------------------------------------------------------------------------------------------
def require_tracking(name: str, tracking_uri: str | None) -> None:
    """RegistryError, before any work is done, when a model is to be registered by an untracked run."""
    if name and tracking_uri == "":
        raise RegistryError("--register needs MLflow: leave --tracking_uri away, or give a store's address")


def register_evaluation(
    name: str, tracker: RunTracker, checkpoint: str | Path, bundle_root: str | Path, evaluation_dir: str | Path
) -> Registered | None:
    """Log and register the evaluated checkpoint in the evaluation's open run; an empty name registers nothing."""
    if not name or not is_primary():
        return None
    from mlflow import MlflowClient, get_tracking_uri

    try:
        if tracker.run_id is None:
            raise RegistryError("MLflow does not have the evaluation's run")
        client = MlflowClient(tracking_uri=tracker.tracking_uri or get_tracking_uri())
        judgement = read_judgement(evaluation_dir)
        model_id = log_bundle_model(client, tracker.run_id, checkpoint, bundle_root)
        return register_model(client, name, model_id, tracker.run_id, judgement)
    except Exception as error:
        tracker.finish()  # the evaluation is done and did not fail
        raise RegistryError(
            f"the evaluation is done, its model is not registered: {error}. Later, once MLflow has its runs (fairlung "
            f"mlflow-sync OUTPUT_DIR): fairlung register OUTPUT_DIR --name {name} --split SPLIT"
        ) from error


def register_output(
    output_dir: str | Path,
    name: str,
    bundle_root: str | Path,
    split: str = "test",
    checkpoint: str | Path | None = None,
    tracking_uri: str | None = None,
) -> Registered:
    """Log and register a checkpoint after its evaluation, in the run of its training.

    Args:
        output_dir: of the evaluation; the training may have another.
        name: of the registered model.
        bundle_root: folder of the bundle.
        split: whose evaluation judges the version.
        checkpoint: None takes the one that was evaluated.
        tracking_uri: None takes the one that the training noted.

    Raises:
        RegistryError: the evaluation, its checkpoint or the run is missing, or the checkpoint is not the judged one.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    evaluation_dir = Path(output_dir, split, "evaluation")
    judgement = read_judgement(evaluation_dir)
    judged = _judged_checkpoint(evaluation_dir, Path(output_dir))
    if checkpoint is None and judged is None:
        raise RegistryError(f"the checkpoint that {evaluation_dir} judged is gone; pass --checkpoint FILE")
    chosen = Path(checkpoint or judged or "")
    require_checkpoint(chosen)
    if judged is not None and not filecmp.cmp(chosen, judged, shallow=False):
        raise RegistryError(f"{evaluation_dir} judged {judged}, whose content differs from {chosen}: evaluate that one")
    trainings = [training_dir(judged or chosen, Path(output_dir)), Path(output_dir)]
    training = next((folder for folder in trainings if folder is not None and (folder / RECORD).is_file()), None)
    if training is None:
        raise RegistryError(
            f"{trainings[0] or output_dir} names no MLflow run ({RECORD}): it was trained without tracking"
        )
    record = json.loads((training / RECORD).read_text())
    if record["run_id"] is None:
        raise RegistryError(f"MLflow does not have the run yet; first: fairlung mlflow-sync {training}")
    uri = tracking_uri or _store(record["tracking_uri"])
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise RegistryError(f"no MLflow store at {file} (from here); pass --tracking-uri")
    client = MlflowClient(tracking_uri=uri)
    try:
        client.get_run(record["run_id"])
    except MlflowException as error:
        raise RegistryError(f"the store has no run {record['run_id']} ({error}); pass --tracking-uri") from error
    model_id = log_bundle_model(client, record["run_id"], chosen, bundle_root)
    return register_model(client, name, model_id, record["run_id"], judgement)


def _judged_checkpoint(evaluation_dir: Path, output_dir: Path) -> Path | None:
    """The checkpoint that an evaluation names, also where the output folder was moved; None when it is gone."""
    named = Path(json.loads((evaluation_dir / "metrics.json").read_text())["checkpoint"])
    return next((path for path in (named, output_dir / "models" / named.name) if path.is_file()), None)


def _store(recorded: str) -> str:
    """The recorded address, with user and password from MLFLOW_TRACKING_URI when that is the same address."""
    current = os.environ.get("MLFLOW_TRACKING_URI", "")
    return current if current and without_login(current) == recorded else recorded
