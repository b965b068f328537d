"""Studies: what is planned, and runs that are killed, resumed and repeated elsewhere with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from fake_slurm import write_programs
from filelock import FileLock
from typer.testing import CliRunner
from workflows import SHRUNK, SMALL_NETWORK

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.studies import worker as study_worker
from fairlung.pipeline.studies.folder import StudyFolder
from fairlung.pipeline.studies.plan import final_study, plan, read_study
from fairlung.pipeline.studies.record import StudyError
from fairlung.pipeline.studies.tables import write_tables

TINY = SHRUNK | {"pretrained": False, "epochs": 1, "network_def": SMALL_NETWORK}


@pytest.fixture
def write(bundle_dir: Path, small_cohort: Path, tmp_path: Path) -> Any:
    """Write a small study: entries by name."""

    def write(**entries: Any) -> Path:
        tracking = f"sqlite:///{tmp_path}/mlflow.db"
        content: dict[str, Any] = {"cohort": str(small_cohort), "bundle_root": str(bundle_dir), "seeds": [1]}
        content |= {"systems": [{"system": "ce"}], "evaluation": {"resamples": 200, "error_images": 0}}
        settings = {
            **TINY,
            "cache_dir": str(tmp_path / "cache"),
            "tracking_uri": tracking,
            **entries.pop("settings", {}),
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(content | {"settings": settings} | entries))
        return path

    return write


# ---- planning ------------------------------------------------------------------------------------------------------
def test_a_grid_is_written_out_seed_by_seed(write: Any, tmp_path: Path) -> None:
    systems = [
        {"system": "ce"},
        {"system": "la_cvar", "alpha": [0.5, 1.0]},
        {"system": "la", "label": "mine", "tau": 2},
    ]
    runs = plan(read_study(write(systems=systems, seeds=[3, 4])), tmp_path)
    labels = ["CE", "LA+CVaR alpha 0.5", "LA+CVaR alpha 1.0", "mine"]
    assert [(run.label, run.seed) for run in runs] == [(label, seed) for seed in (3, 4) for label in labels]
    assert [run.alpha for run in runs[:4]] == [None, 0.5, 1.0, None]
    assert runs[1].configs == ("train", "systems/la_cvar")
    assert runs[1].settings["alpha"] == 0.5 and runs[3].settings["tau"] == 2
    assert len({run.id for run in runs}) == 8
    assert runs[1].id == "LA+CVaR_alpha_0.5_seed_3"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"sytems": []}, "'sytems' is no entry of a study (did you mean 'systems'?)"),
        ({"systems": []}, "systems must hold one at least"),
        ({"systems": [{"system": "cvr"}]}, "has no cvr.yaml (did you mean 'cvar'?)"),
        ({"systems": ["ce"]}, "systems.0 must be an object, got 'ce'"),
        ({"systems": [{"tau": 1}]}, "systems: {'tau': 1} names no system"),
        ({"systems": [{"system": "ce", "alhpa": 1}]}, "'alhpa' is no setting of its training (did you mean 'alpha'?)"),
        ({"systems": [{"system": "ce", "seed": 1}]}, "seed is the study's own to say"),
        ({"systems": [{"system": "ce"}, {"system": "ce"}]}, "the systems hold 'CE' twice"),
        ({"settings": {"resamples": 100}}, "'resamples' is no setting of its training; it belongs under evaluation"),
        ({"evaluation": {"resample": 100}}, "evaluation: 'resample' is no setting (did you mean 'resamples'?)"),
        ({"seeds": [1, 1]}, "seeds must differ, got 1, 1"),
        (
            {"protocol": "loo"},
            "protocol must be 'given', 'nested', 'cross_validation', 'leave_site_out' or 'final', got 'loo'",
        ),
        ({"protocol": "nested", "folds": 1}, "folds must be at least 2"),
        ({"protocol": "final"}, "the held-out split is judged with --final"),
        ({"seeds": ["a"]}, "seeds.0 must be a valid integer, got 'a'"),
        ({"evaluation": None}, "evaluation must be an object, got None"),
        ({"overlays": "demo"}, "overlays must be a valid array, got 'demo'"),
        ({"systems": [{"system": "ce"}, {"system": "la", "group_by": "site"}]}, "must have the same class_names"),
        ({"overlays": ["dmo"]}, "has no dmo.yaml (did you mean 'demo'?)"),
    ],
)
def test_mistakes_are_found_before_anything_runs(write: Any, tmp_path: Path, entries: dict, said: str) -> None:
    with pytest.raises(StudyError) as caught:
        plan(read_study(write(**entries)), tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count"),
    [("paper", 45), ("hardware", 3), ("demo", 600), ("objective", 14), ("sites", 36), ("systems", 162)],
)
def test_shipped_studies_can_be_planned(
    name: str, count: int, small_cohort: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    path = bundle_dir.parents[1] / "studies" / f"{name}.yaml"
    changes = {"cohort": str(small_cohort), "bundle_root": str(bundle_dir), "folds": 2}  # so few scans
    runs = plan(read_study(path, **changes), tmp_path)
    assert len(runs) == count


def test_a_folder_holds_one_study(write: Any, tmp_path: Path) -> None:
    def folder(**entries: Any) -> StudyFolder:
        study = read_study(write(**entries))
        return StudyFolder(tmp_path / "out", study, plan(study, tmp_path / "out"))

    assert folder().counts()["pending"] == 1
    folder(settings={"epochs": 2})  # nothing has begun
    (tmp_path / "out" / "runs" / "CE_seed_1" / "log.txt").touch()
    with pytest.raises(StudyError, match="begun with other epochs; choose another folder"):
        folder(settings={"epochs": 3})
    with pytest.raises(StudyError, match=r"out holds the study small \(given\); choose another"):
        folder(name="other")
    with pytest.raises(StudyError, match="judged when the study in .* 1 of its 1 runs are not"):
        final_study(read_study(write()), tmp_path / "out", "CE")


def test_threads_may_write_at_once(write: Any, tmp_path: Path) -> None:
    study = read_study(write(seeds=list(range(8))))
    folder = StudyFolder(tmp_path / "out", study, plan(study, tmp_path / "out"))

    def carry_out_nothing(run_id: str) -> None:
        for _ in range(20):
            folder.begins(run_id)
            folder.ends(run_id, -9)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(carry_out_nothing, folder.planned))
    assert folder.counts()["failed"] == 8
    assert "its process ended with -9" in folder.reason("CE_seed_0")


# ---- runs ----------------------------------------------------------------------------------------------------------
def carry_out(path: Path, output: Path, *options: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["study", str(path), "-o", str(output), *options], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output
    return done.output


def numbers(folder: Path) -> dict[str, Any]:
    """What a study's runs found, by run."""
    return {
        path.parents[2].name: json.loads(path.read_text())["metrics"]
        for path in folder.glob("runs/*/*/evaluation/metrics.json")
    }


def in_process(folder: StudyFolder) -> None:
    for run in folder.to_run():
        run_file = folder.run_file(run.id)
        folder.begins(run.id)
        folder.ends(run.id, study_worker.main(str(run_file)))


def test_what_slurm_is_told_is_for_slurm_alone(write: Any, tmp_path: Path) -> None:
    said = carry_out(write(), tmp_path / "out", "--slurm", "time=60", code=1)
    assert "is for --engine slurm" in said and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_resumed_by_ray_and_by_slurm_the_numbers_are_the_same(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process
    path = write(settings={"epochs": 3, "num_workers": 1})  # loader processes are forked beside the watching thread
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "fairlung.pipeline", "study", str(path), "-o", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    history = killed / "runs" / "CE_seed_1" / "history.csv"
    until = time.monotonic() + 600
    while not (history.is_file() and ",val_score" in history.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with FileLock(history.with_name("run.lock"), timeout=600):  # the run ends with the study
        assert not history.with_name("done.json").exists()
    assert "finished CE_seed_1 (1 of 1 finished)" in carry_out(path, killed)
    assert "0 of 1 runs to do" in carry_out(path, killed)  # what is finished is not run again

    ray = tmp_path / "ray"
    carry_out(path, ray, "--engine", "ray")
    assert list(numbers(killed)) == ["CE_seed_1"] and numbers(killed) == numbers(ray)  # which ran without a stop
    slurm = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{write_programs(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    carry_out(path, slurm, "--engine", "slurm", "--slurm", "time=60")
    assert numbers(killed) == numbers(slurm)
    tables = [pd.read_csv(folder / "tables" / "table1.csv") for folder in (killed, ray, slurm)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], table)

    client = mlflow.MlflowClient(read_study(path).settings["tracking_uri"])
    parents = client.search_runs(
        [client.get_experiment_by_name("fair-lung-ct").experiment_id], "tags.`fairlung.kind` = 'study'"
    )
    assert [run.info.status for run in parents] == ["FINISHED"] * 3
    for parent in parents:
        (child,) = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        )
        assert child.data.tags.items() >= {"fairlung.system": "CE", "fairlung.seed": "1", "study": "small"}.items()
        assert child.info.status == "FINISHED" and child.data.tags["fairlung.device"]


def test_a_cohort_with_other_columns_is_read_by_them_and_its_folds_without(
    write: Any, small_cohort: Path, tmp_path: Path
) -> None:
    content = pd.read_csv(small_cohort)
    content["scan"] = [str(small_cohort.parent / scan) for scan in content["scan"]]
    content.rename(columns={"scan": "path", "sex": "gender"}).to_csv(tmp_path / "other.csv", index=False)
    settings = {"columns": "path=scan,gender=sex", "allow_empty_cells": True}
    for protocol, columns in (("given", settings["columns"]), ("nested", "")):
        study = read_study(write(cohort=str(tmp_path / "other.csv"), settings=settings, protocol=protocol, folds=2))
        for run in plan(study, tmp_path / protocol):
            assert run.settings.get("columns", "") == columns
            assert ("path" in pd.read_csv(run.cohort)) == bool(columns)


@pytest.mark.slow
def test_nested_folds_choose_and_judge_on_different_scans(
    write: Any, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohort = pd.read_csv(small_cohort)
    cohort["scan"] = [str(small_cohort.parent / scan) for scan in cohort["scan"]]
    held_out = cohort.groupby(["label", "sex"]).head(1)
    cohort.loc[held_out.index[:2], "split"] = "test"
    cohort["patient_name"] = "DOE^JANE"
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    path = write(
        cohort=str(tmp_path / "cohort.csv"),
        protocol="nested",
        folds=2,
        settings={"allow_empty_cells": True, "tracking_uri": ""},
        systems=[{"system": "la_cvar", "alpha": [0.5, 1.0]}],
    )
    study, output = read_study(path), tmp_path / "out"
    folder = StudyFolder(output, study, plan(study, output))
    in_process(folder)
    assert folder.counts()["finished"] == 4
    judged = {}
    for run in folder.planned.values():
        table = pd.read_csv(run.cohort)
        assert "patient_name" not in table
        scans = [os.path.normpath(Path(run.cohort).parent / scan) for scan in table["scan"]]
        assert not set(scans) & {os.path.normpath(scan) for scan in held_out["scan"][:2]}
        predictions = pd.read_csv(folder.run_file(run.id).parent / "test" / "evaluation" / "predictions.csv")
        assert set(predictions["scan"]) == set(table.loc[table["split"] == "test", "scan"])
        judged.setdefault(run.label, []).extend(predictions["scan"])
    for scans in judged.values():  # each scan that is not held out, once
        assert len(set(scans)) == len(scans) == len(cohort) - 2

    # the held-out scans are judged at the end, by the configuration that was chosen
    last, place = final_study(study, output, "LA+CVaR alpha 0.5")
    (run,) = StudyFolder(place, last, plan(last, place, "LA+CVaR alpha 0.5")).planned.values()
    with pytest.raises(StudyError, match="was judged by LA.CVaR alpha 0.5: another"):
        final_study(study, output, "LA+CVaR alpha 1.0")
    assert (run.evaluate, run.cohort) == (("test",), str(tmp_path / "cohort.csv"))
    with pytest.raises(StudyError, match="no configuration 'LA\\+CVaR alpha 0.7' .did you mean 'LA\\+CVaR alpha"):
        plan(last, place, "LA+CVaR alpha 0.7")


@pytest.mark.slow
def test_every_site_is_left_out_with_groups_by_site_a_tree_over_sites_and_a_site_head(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {"_target_": "fairlung.pipeline.losses.GroupTreeCVaR", "parents": "$@cohort_data.group_parents"}
    path = write(
        protocol="leave_site_out",
        folds=2,
        settings={"allow_empty_cells": True, "tracking_uri": "", "group_by": ["site", "sex"]},
        systems=[{"system": "ce", "aggregation": tree, "label": "tree"}, {"system": "site_head"}],
    )
    study, output = read_study(path), tmp_path / "out"
    folder = StudyFolder(output, study, plan(study, output))
    in_process(folder)
    assert folder.counts()["finished"] == 6, [folder.reason(run) for run in folder.planned]
    record = json.loads((output / "study.json").read_text())
    assert (record["sites"], record["folds"]) == (["alder", "birch", "cedar"], 3)
    for run in folder.planned.values():
        split = pd.read_csv(run.cohort).groupby("split")["site"].agg(set)
        judged = pd.read_csv(folder.run_file(run.id).parent / "test" / "evaluation" / "predictions.csv")
        site = record["sites"][run.fold or 0]
        assert split["test"] == {site} == set(judged["site"]) and site not in split["train"] | split["val"]
    table = write_tables([output], resamples=200).table
    assert [row[0] for row in table.rows] == ["tree", "site head"]
    sites = pd.read_csv(output / "tables" / "sites.csv")
    assert list(sites["left_out"]) == [*record["sites"], "all sites"] * 2


def test_a_failed_run_is_shown_and_the_others_go_on(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    systems = [{"system": "la_cvar", "alpha": [2.0, 0.8]}]
    study = read_study(write(systems=systems, settings={"tracking_uri": ""}))
    folder = StudyFolder(tmp_path / "out", study, plan(study, tmp_path / "out"))
    in_process(folder)
    first, second = json.loads((tmp_path / "out" / "study.json").read_text())["runs"]
    assert (first["status"], first["reason"]) == ("failed", "alpha must be in (0, 1], got 2.0")
    assert (second["status"], second["reason"]) == ("finished", "")
    assert [run.label for run in folder.to_run()] == ["LA+CVaR alpha 2.0"]  # tried again
