"""The MLflow run of a study, under which its runs are nested. A study goes on without it."""

import logging
from pathlib import Path

from ..common import text
from ..tracking import store
from .folder import StudyFolder
from .plan import StudyPlan

logger = logging.getLogger(__name__)


def open_study_run(study: StudyPlan, folder: StudyFolder) -> None:
    """Make the study's run, or open it again when the study goes on, and nest the runs to come under it."""
    uri = study.settings.get("tracking_uri")
    if uri == "":
        return
    try:
        import mlflow

        uri = store.absolute(uri or mlflow.get_tracking_uri())
        client, experiment = store.connect(uri, str(study.settings.get("experiment", "fair-lung-ct")))
        known = store.living_run(client, folder.parent_run)
        # A run elsewhere could choose another store, so run.json names it, unless its address holds a login.
        told = uri if text.without_login(uri) == uri else None
        if known is not None:
            client.update_run(known.info.run_id, status="RUNNING")
            folder.set_parent(known.info.run_id, told)
            return
        tags = {"fairlung.kind": "study", "study": study.name}
        tags |= {"fairlung.synthetic": "true"} if folder.synthetic else {}
        run = client.create_run(experiment, run_name=f"study {study.name}", tags=tags)
        facts: dict[str, object] = {"protocol": study.protocol}
        facts |= {"seeds": list(study.seeds), "overlays": list(study.overlays)}
        facts |= {"folds": study.folds, "repeats": study.repeats} if study.protocol == "nested" else {}
        for name, value in facts.items():
            client.log_param(run.info.run_id, name, value)
        folder.set_parent(run.info.run_id, told)
    except store.TrackingError:
        raise
    except Exception as error:  # the server does not answer
        logger.warning("the study has no run of its own in MLflow: %s", text.without_login(str(error)))


def close_study_run(study: StudyPlan, folder: StudyFolder, tables: Path | None = None) -> None:
    """Put a study's tables into its run and close it: FINISHED when all its runs are, else FAILED."""
    if folder.parent_run is None:
        return
    try:
        import mlflow

        uri = store.absolute(study.settings.get("tracking_uri") or mlflow.get_tracking_uri())
        with store.impatient(MLFLOW_HTTP_REQUEST_TIMEOUT=store.UPLOAD_TIMEOUT):
            client = mlflow.MlflowClient(tracking_uri=uri)
            if tables is not None:
                client.log_artifacts(folder.parent_run, str(tables), "tables")
            counts = folder.counts()
            status = "FINISHED" if counts["finished"] == sum(counts.values()) else "FAILED"
            client.set_terminated(folder.parent_run, status)
    except Exception as error:
        logger.warning("the study's run in MLflow is not complete: %s", text.without_login(str(error)))
