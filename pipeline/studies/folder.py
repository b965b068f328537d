"""The folder of a study: its runs, what is done and what is left; and its run in MLflow, which it can do without."""

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..common import text
from ..common.files import json_or_nothing, write_json
from ..data.folds import fold_warnings, patient_warnings, site_names, site_warnings
from ..tracking import store
from .plan import PROTOCOLS, StudyPlan, cohort_settings, read_whole
from .record import STUDY_FILE, Place, PlannedRun, Status, Study, StudyError, StudyRun, load_study
from .worker import DONE, FAILED, LOG

logger = logging.getLogger(__name__)
RUN = "run.json"
NOT_COMPARED = ("bundle_root", "cohort", "parent_run", "tracking_uri")  # they say where a run is, not what it is


class StudyFolder:
    """A study's folder: writes what is to be run and how far it is, or with ``write`` False only looks.

    Its methods may be called from several threads. StudyError: the folder holds another study, or a run of this one
    that began under other settings or data.
    """

    def __init__(self, folder: str | Path, study: StudyPlan, planned: Sequence[PlannedRun], write: bool = True) -> None:
        self.folder = Path(folder)
        self.study = study
        self.planned = {run.id: run for run in planned}
        self.parent_run: str | None = None
        self._reasons: dict[str, str] = {}  # why runs failed that left no word themselves
        self._running: set[str] = set()
        self._lock = threading.RLock()
        if (self.folder / STUDY_FILE).is_file():
            earlier = load_study(self.folder)
            if (earlier.name, earlier.protocol) != (study.name, study.protocol):
                raise StudyError(f"{folder} holds the study {earlier.name} ({earlier.protocol}); choose another")
            self.parent_run = earlier.parent_run
        cohort = read_whole(study.cohort, cohort_settings(study))
        self.synthetic = cohort.synthetic
        self.warnings = fold_warnings(cohort, study.folds) if study.protocol == "nested" else []
        if study.protocol == "cross_validation":
            self.warnings = patient_warnings(cohort)
        self.sites: tuple[str, ...] = ()
        if study.protocol == "leave_site_out":
            self.sites, self.warnings = site_names(cohort), site_warnings(cohort)
        for run in planned:
            self._compare(run)
        if write:
            self._write_runs()
            self.write()

    def _compare(self, run: PlannedRun) -> None:
        """StudyError when a run began under other settings or data than are planned now."""
        path = self.run_file(run.id)
        if not path.with_name(LOG).exists() and not path.with_name(DONE).exists():
            return
        planned, begun = json.loads(json.dumps(asdict(run))), json_or_nothing(path)
        overrides = ("settings", "evaluation")
        pairs = [(planned, begun), *((planned[name], begun.get(name, {})) for name in overrides)]
        ignored = (*NOT_COMPARED, *overrides)
        names = [(name, now.get(name) != then.get(name)) for now, then in pairs for name in {**then, **now}]
        if differing := [name for name, differs in names if differs and name not in ignored]:
            what = f"{path.parent} was begun with other {', '.join(differing)}"
            raise StudyError(f"{what}; choose another folder for this study")

    def _write_runs(self) -> None:
        for run in self.planned.values():
            path = self.run_file(run.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(run))

    def run_file(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id / RUN

    def set_parent(self, parent_run: str, tracking_uri: str | None) -> None:
        """Nest the runs to come under a run of MLflow, in the store that has it."""
        self.parent_run = parent_run
        runs = self.planned.items()
        self.planned = {name: replace(run, parent_run=parent_run, tracking_uri=tracking_uri) for name, run in runs}
        self._write_runs()
        self.write()

    def status(self, run_id: str) -> Status:
        """How far a run is, by its files."""
        folder = self.run_file(run_id).parent
        if (folder / DONE).is_file():
            return "finished"
        if run_id in self._running:
            return "running"
        return "failed" if run_id in self._reasons or (folder / FAILED).is_file() else "pending"

    def reason(self, run_id: str) -> str:
        """Why a run failed; empty when it did not."""
        if self.status(run_id) != "failed":
            return ""
        return self._reasons.get(run_id) or json_or_nothing(self.run_file(run_id).with_name(FAILED)).get("reason", "")

    def to_run(self) -> list[PlannedRun]:
        """Runs that are not finished; those that failed are tried again."""
        return [run for run in self.planned.values() if self.status(run.id) != "finished"]

    def begins(self, run_id: str) -> None:
        with self._lock:
            self._reasons.pop(run_id, None)
            self.run_file(run_id).with_name(FAILED).unlink(missing_ok=True)
            self._running.add(run_id)
            self.write()

    def ends(self, run_id: str, code: int, reason: str = "") -> None:
        """A run's process ended with an exit code, or was never started for a reason."""
        with self._lock:
            self._running.discard(run_id)
            folder = self.run_file(run_id).parent
            if not (folder / DONE).is_file() and not (folder / FAILED).is_file():
                self._reasons[run_id] = reason or f"its process ended with {code}; see {folder.name}/{LOG}"
            self.write()

    def counts(self) -> dict[Status, int]:
        return self.record().counts()

    def write(self) -> None:
        with self._lock:
            write_json(self.folder / STUDY_FILE, self.record().as_json())

    def record(self) -> Study:
        study = self.study
        folds = len({run.fold for run in self.planned.values()} - {None})
        split, chosen, judged = PROTOCOLS[study.protocol]
        return Study(
            name=study.name, protocol=study.protocol, reported_split=split, chosen_on=chosen, judged_on=judged,
            runs=tuple(map(self._run, self.planned.values())), synthetic=self.synthetic,
            folds=folds, repeats=study.repeats if folds else 0, sites=self.sites, warnings=tuple(self.warnings),
            parent_run=self.parent_run,
        )  # fmt: skip

    def _run(self, run: PlannedRun) -> StudyRun:
        place = {field.name: getattr(run, field.name) for field in fields(Place)}
        device = json_or_nothing(self.run_file(run.id).with_name(DONE)).get("device")
        status, reason = self.status(run.id), self.reason(run.id)
        return StudyRun(**place, status=status, output_dir=Path("runs", run.id), device=device, reason=reason)


def open_study_run(study: StudyPlan, folder: StudyFolder) -> None:
    """Make the study's run, or open it again when the study goes on, and nest the runs to come under it."""
    uri = study.settings.get("tracking_uri")
    if uri == "":
        return None
    try:
        import mlflow

        uri = store.absolute(uri or mlflow.get_tracking_uri())
        experiment = str(study.settings.get("experiment", "fair-lung-ct"))
        client, experiment = store.connect(uri, experiment, known=folder.parent_run is not None)
        known = store.living_run(client, folder.parent_run)
        # A run elsewhere could choose another store, so run.json names it, unless its address holds a login.
        told = uri if text.without_login(uri) == uri else None
        if known is not None:
            client.update_run(known.info.run_id, status="RUNNING")
            return folder.set_parent(known.info.run_id, told)
        tags = {"fairlung.kind": "study", "study": study.name}
        tags |= {"fairlung.synthetic": "true"} if folder.synthetic else {}
        run = client.create_run(experiment, run_name=f"study {study.name}", tags=tags)
        facts: dict[str, Any] = {"protocol": study.protocol, "seeds": list(study.seeds)}
        facts["overlays"] = list(study.overlays)
        if folder.record().folds:
            facts |= {"folds": folder.record().folds, "repeats": study.repeats}
        facts |= {"sites": list(folder.sites)} if folder.sites else {}
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
