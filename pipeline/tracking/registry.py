"""Publishing a checkpoint as an MLflow model: logged, registered, and made champion by a stated rule."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common import run_folder
from ..common.distributed import is_primary
from ..common.run_folder import RECORD, training_dir
from ..common.text import without_login
from ..evaluation.records import Audit, read_record
from ..evaluation.wording import number_name, value_text
from ..networks.checkpoint import require_checkpoint, same_checkpoint, training_record
from ..reports.document import escape_markdown
from ..reports.model_card import eval_metrics
from .bundle_model import log_bundle_model
from .champion import RULE, Candidate, Decision, Judgement, RegistryError, challenge, champion, read_judgement
from .loggable import headline_table, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .run import RunTracker

logger = logging.getLogger(__name__)
CHAMPION = "champion"


class Registered(NamedTuple):
    name: str
    version: int
    decision: Decision


def register_model(
    client: MlflowClient, name: str, model_id: str, run_id: str, judgement: Judgement, evaluation_dir: Path
) -> Registered:
    """Register a logged model as a new version, and let it challenge the champion.

    The alias moves by :data:`RULE`, also where a person moved it by hand to the version that holds it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(name, description=f"Chest-CT classifier, made by fairlung.\n\n{RULE}")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    result = json.loads((evaluation_dir / run_folder.METRICS).read_text())
    named = [(group, result["metrics"].get(f"f1_{group}")) for group in result["group_names"]]
    # first: the list of versions shows them in this order
    tags = {f"fairlung.f1.{metric_name(group)}": json.dumps(value) for group, value in named if value is not None}
    tags |= judgement.tags()
    run = client.get_run(run_id)
    if run.data.tags.get("fairlung.kind") == "evaluate":  # of a training's run the cohort may be another
        tags["fairlung.cohort_digest"] = run.data.tags["fairlung.cohort_digest"]
    evaluation = _evaluation_run(client, run, judgement.split)
    tags |= {"fairlung.evaluation_run_id": evaluation.info.run_id} if evaluation is not None else {}
    # without a server, MLflow would look for models:/ in the process's default store, which may be another
    server = client.tracking_uri.startswith("http")
    source = f"models:/{model_id}" if server else client.get_logged_model(model_id).artifact_location
    audit = _audit(evaluation_dir)
    about = {"tags": tags, "description": _description(judgement, result, audit, evaluation)}
    created = client.create_model_version(name, source, run_id=run_id, model_id=model_id, **about)
    new = Candidate(int(created.version), judgement)
    decision = _decide(client, name, new)
    if decision.champion:
        client.set_registered_model_alias(name, CHAMPION, str(new.version))
    logger.info("%s version %d, champion: %s (%s)", name, new.version, decision.champion, decision.reason)
    return Registered(name, new.version, decision)


def _audit(evaluation_dir: Path) -> Audit | None:
    with suppress(OSError, ValueError):
        return read_record(Audit, evaluation_dir / run_folder.AUDIT)
    return None


def _eval_metrics(evaluation_dir: Path, checkpoint: str | Path) -> dict[str, Any]:
    """What the audit of the checkpoint's evaluation says, for the published bundle's metadata; nothing without one."""
    audit = _audit(evaluation_dir)
    if audit is None:
        return {}
    split = json.loads((evaluation_dir / run_folder.METRICS).read_text())["split"]
    return eval_metrics(audit, split, str(training_record(checkpoint).get("run") or ""))


def _decide(client: MlflowClient, name: str, new: Candidate) -> Decision:
    if new.judgement.unfit:
        return Decision(False, new.judgement.unfit)
    alias = client.get_registered_model(name).aliases.get(CHAMPION)
    if alias is not None:
        holder = Judgement.from_tags(client.get_model_version(name, str(alias)).tags)
        if holder is None:
            return Decision(False, f"version {alias} holds the alias and has no judgement to compare with")
        decision = challenge(holder, new.judgement)
        return Decision(decision.champion, f"{decision.reason}; the champion was version {alias}")
    quoted = name.replace("'", "''")
    found = client.search_model_versions(f"name='{quoted}'")
    judged = ((int(version.version), Judgement.from_tags(version.tags)) for version in found)
    others = [Candidate(number, one) for number, one in judged if one is not None and number != new.version]
    if champion([*others, new]) != new.version:
        return Decision(False, "no version holds the alias, and this one would not win it from an earlier one")
    return Decision(True, "no version holds the alias")


def _evaluation_run(client: MlflowClient, run: Any, split: str) -> Any:
    """The run of the evaluation: itself, or the last one of its training on a split; None where MLflow has none."""
    if run.data.tags.get("fairlung.kind") == "evaluate":
        return run
    of = f"tags.`fairlung.training_run_id` = '{run.info.run_id}' and params.split = '{split}'"
    found = client.search_runs([run.info.experiment_id], of, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


def _description(judgement: Judgement, result: dict[str, Any], audit: Audit | None, evaluation: Any) -> str:
    scores, groups = result["metrics"], result["group_names"]
    known = [key for key in (f"f1_{group}" for group in groups) if scores.get(key) is not None]
    # the list of versions shows the beginning, as it is written
    begin = ", ".join(f"{escape_markdown(number_name(key))} {value_text(scores[key])}" for key in known)
    lines = [begin, "", *headline_table(scores, groups, audit), ""]
    lines.append(
        f"On split {escape_markdown(judgement.split)}.{' SYNTHETIC scans (phantoms).' if judgement.synthetic else ''}"
    )
    if evaluation is not None:
        place = f"#/experiments/{evaluation.info.experiment_id}/runs/{evaluation.info.run_id}"
        lines.append(f"[The evaluation]({place}), {escape_markdown(evaluation.info.run_name)}.")
    return "\n".join(lines)


def require_tracking(name: str, tracking_uri: str | None, checkpoints: Sequence[str] = ("",)) -> None:
    """RegistryError, before any work is done, where a run that is to register is untracked or judges several."""
    if name and tracking_uri == "":
        raise RegistryError("--register needs MLflow: leave --tracking_uri away, or give a store's address")
    if name and len(checkpoints) > 1:
        raise RegistryError(f"--register takes one checkpoint, and {len(checkpoints)} are judged together")


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
        model_id = log_bundle_model(
            client, tracker.run_id, checkpoint, bundle_root, metrics=_eval_metrics(Path(evaluation_dir), checkpoint)
        )
        return register_model(client, name, model_id, tracker.run_id, judgement, Path(evaluation_dir))
    except Exception as error:
        tracker.finish()  # the evaluation is done and did not fail
        raise RegistryError(
            f"the evaluation is done, its model is not registered: {error}. Later, once MLflow has its runs (fairlung "
            f"mlflow-sync OUTPUT_DIR): fairlung register OUTPUT_DIR --name {name} --split SPLIT"
        ) from error


def register_output(
    output_dir: str | Path, name: str, bundle_root: str | Path, split: str = "test",
    checkpoint: str | Path | None = None, tracking_uri: str | None = None,
) -> Registered:  # fmt: skip
    """Log and register a checkpoint after its evaluation (on ``split``, in ``output_dir``), in its training's run.

    Without ``checkpoint`` the evaluated one is taken, without ``tracking_uri`` the address that the training noted.
    RegistryError: the evaluation, its checkpoint or the run is missing, or the checkpoint is not the judged one.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    evaluation_dir = Path(output_dir, split, "evaluation")
    judgement = read_judgement(evaluation_dir)
    of = json.loads((evaluation_dir / run_folder.METRICS).read_text())["checkpoint"]
    if isinstance(of, list):
        raise RegistryError(f"{evaluation_dir} judged {len(of)} checkpoints together; a model is one")
    named = Path(of)
    moved = Path(output_dir, "models", named.name)  # where the output folder was moved
    judged = next((path for path in (named, moved) if path.is_file()), None)
    if checkpoint is None and judged is None:
        raise RegistryError(f"the checkpoint that {evaluation_dir} judged is gone; pass --checkpoint FILE")
    chosen = Path(checkpoint or judged or "")
    require_checkpoint(chosen)
    if judged is not None and not same_checkpoint(chosen, judged):
        raise RegistryError(f"{evaluation_dir} judged {judged}, whose content differs from {chosen}: evaluate that one")
    trainings = [training_dir(judged or chosen, Path(output_dir)), Path(output_dir)]
    training = next((folder for folder in trainings if folder is not None and (folder / RECORD).is_file()), None)
    if training is None:
        text = f"names no MLflow run ({RECORD}): it was trained without tracking"
        raise RegistryError(f"{trainings[0] or output_dir} {text}")
    record = json.loads((training / RECORD).read_text())
    if record["run_id"] is None:
        raise RegistryError(f"MLflow does not have the run yet; first: fairlung mlflow-sync {training}")
    current, recorded = os.environ.get("MLFLOW_TRACKING_URI", ""), record["tracking_uri"]  # the first may have a login
    uri = tracking_uri or (current if current and without_login(current) == recorded else recorded)
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise RegistryError(f"no MLflow store at {file} (from here); pass --tracking-uri")
    client = MlflowClient(tracking_uri=uri)
    try:
        client.get_run(record["run_id"])
    except MlflowException as error:
        raise RegistryError(f"the store has no run {record['run_id']} ({error}); pass --tracking-uri") from error
    model_id = log_bundle_model(
        client, record["run_id"], chosen, bundle_root, metrics=_eval_metrics(evaluation_dir, chosen)
    )
    return register_model(client, name, model_id, record["run_id"], judgement, evaluation_dir)
