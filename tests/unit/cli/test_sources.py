"""Where predictions come from: files, patterns, output folders, and runs in a real MLflow store on SQLite."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from fairlung.pipeline.cli.sources import find_predictions, named_sources
from fairlung.pipeline.evaluation.predictions import PredictionsError


def put(path: Path, text: str = "scan,label,sex,prediction\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(message: str):
    return pytest.raises(PredictionsError, match=re.escape(message))


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = put(tmp_path / "odd [name]*.csv")
    assert find_predictions(str(path)) == [path]


def test_a_pattern_is_every_match_in_order(tmp_path: Path) -> None:
    tables = [put(tmp_path / f"seed_{seed}" / "test" / "evaluation" / "predictions.csv") for seed in (3, 1, 2)]
    inside = str(tmp_path / "seed_*" / "test" / "evaluation" / "*.csv")
    assert find_predictions(inside) == sorted(tables)
    assert find_predictions(f"{tmp_path}/seed_*") == sorted(tables)
    assert find_predictions(f"{tmp_path}/**/predictions.csv") == sorted(tables)
    assert find_predictions(f"{tmp_path}/seed_[12]") == sorted(tables)[:2]
    with refused(f"nothing matches {tmp_path}/sead_*; in {tmp_path} there is seed_1, seed_2, seed_3"):
        find_predictions(f"{tmp_path}/sead_*")
    put(tmp_path / "seed_2" / "val" / "evaluation" / "predictions.csv")
    with refused(f"{tmp_path}/seed_2 has evaluations of test, val: choose one with --split"):
        find_predictions(f"{tmp_path}/seed_*")
    assert find_predictions(f"{tmp_path}/seed_*", "test") == sorted(tables)


def test_an_output_folder_is_its_evaluation(tmp_path: Path) -> None:
    best = put(tmp_path / "val" / "predictions.csv")
    put(tmp_path / "val" / "latest.csv")
    assert find_predictions(str(tmp_path)) == find_predictions(str(tmp_path), "val") == [best]
    with refused(f"{tmp_path} has no evaluation of the split test; it has val"):
        find_predictions(str(tmp_path), "test")
    test = put(tmp_path / "test" / "evaluation" / "predictions.csv")
    assert find_predictions(str(tmp_path)) == find_predictions(str(tmp_path), "test") == [test]
    assert find_predictions(str(tmp_path), "val") == [best]
    val = put(tmp_path / "val" / "evaluation" / "predictions.csv")
    assert find_predictions(str(tmp_path), "val") == [val]
    with refused(f"{tmp_path} has evaluations of test, val: choose one with --split"):
        find_predictions(str(tmp_path))
    with refused(f"{tmp_path} has no evaluation of the split train; it has test, val"):
        find_predictions(str(tmp_path), "train")


def test_a_folder_without_evaluation_says_what_it_holds(tmp_path: Path) -> None:
    with refused(f"{tmp_path} holds no evaluation (no */evaluation/predictions.csv)"):
        find_predictions(str(tmp_path))
    put(tmp_path / "predictions.csv")
    with refused("(no test/evaluation/predictions.csv); it holds a predictions.csv itself, name that file"):
        find_predictions(str(tmp_path), "test")


def test_what_is_not_there_is_named_with_the_nearest_thing(tmp_path: Path) -> None:
    for name in ("alpha08", "alpha07", "zebra"):
        put(tmp_path / name / "x.csv")
    with refused(f"{tmp_path}/alhpa08: no such file or folder; in {tmp_path} there is alpha07, alpha08"):
        find_predictions(f"{tmp_path}/alhpa08")
    with refused(f"in {tmp_path}/zebra there is x.csv"):
        find_predictions(f"{tmp_path}/zebra/test/evaluation/predictions.csv")
    (tmp_path / "empty").mkdir()
    with refused(f"{tmp_path}/empty is empty"):
        find_predictions(f"{tmp_path}/empty/a.csv")


def test_sources_have_names(tmp_path: Path) -> None:
    run = "0123456789abcdef" * 2
    assert named_sources(["A=x/a.csv", "B=x/b*.csv", "A=x/c.csv"]) == {"A": ["x/a.csv", "x/c.csv"], "B": ["x/b*.csv"]}
    assert named_sources(["x/a.csv", "runs/alpha=0.8", "runs/s_*", f"runs:/{run}", "y/a.csv"]) == {
        "a": ["x/a.csv"],
        "alpha=0.8": ["runs/alpha=0.8"],
        "runs/s_*": ["runs/s_*"],
        "01234567": [f"runs:/{run}"],
        "y/a.csv": ["y/a.csv"],
    }
    odd = put(tmp_path / "tau=1.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert named_sources([odd.name]) == {"tau=1": ["tau=1.csv"]}
    for arguments, message in (
        (["=a.csv"], "'=a.csv': give"),
        (["A="], "'A=': give"),
        (["a", "B=a"], "a is given twice"),
    ):
        with refused(message):
            named_sources(arguments)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A training with an evaluation of val and of test under it, laid out as the tracker does."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=str(folder / "artifacts"))
    runs = {}
    for name, splits, parent in (
        ("training", ["val"], None),
        ("both", ["val", "test"], "training"),
        ("empty", [], None),
        ("deleted", ["val"], None),
    ):
        tags = {"mlflow.parentRunId": runs[parent]} if parent else {}
        runs[name] = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for split in splits:
            table = put(folder / "tables" / "predictions.csv", f"{name} {split}")
            client.log_artifact(runs[name], str(table), f"evaluation/{split}")
    client.log_text(runs["empty"], "{}", "evaluation/test/metrics.json")
    client.delete_run(runs["deleted"])
    return SimpleNamespace(uri=uri, folder=folder, **runs)


def test_a_run_is_its_evaluation(store: SimpleNamespace) -> None:
    for source in (f"runs:/{store.training}", store.training):
        (path,) = find_predictions(source, tracking_uri=store.uri)
        assert path.read_text() == "training val"
    for split in ("val", "test"):
        (path,) = find_predictions(store.both, split, store.uri)
        assert path.name == "predictions.csv" and path.read_text() == f"both {split}"


def test_the_store_is_mlflows_own_choice(store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    before = dict(os.environ)
    (path,) = find_predictions(store.training)
    assert path.read_text() == "training val"
    assert dict(os.environ) == before


def test_a_run_without_the_evaluation_says_what_it_has(store: SimpleNamespace, tmp_path: Path) -> None:
    with refused("has evaluations of test, val: choose one with --split"):
        find_predictions(store.both, tracking_uri=store.uri)
    below = f"MLflow run training ({store.training}) has no evaluation of the split test; it has val; "
    with refused(f"{below}runs below it: both (runs:/{store.both})"):
        find_predictions(store.training, "test", store.uri)
    with refused(f"MLflow run empty ({store.empty}) has no evaluation"):
        find_predictions(store.empty, tracking_uri=store.uri)
    for run in (store.deleted, "f" * 32):
        with refused(f"has no run {run}; another store: --tracking-uri"):
            find_predictions(run, tracking_uri=store.uri)
    with refused("runs:/best names no MLflow run: it is runs:/ and 32 hex digits"):
        find_predictions("runs:/best", tracking_uri=store.uri)
    with refused(f"no MLflow store at {tmp_path}/none.db; say where it is with --tracking-uri"):
        find_predictions(store.training, tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_store_that_does_not_answer_is_named_without_its_password() -> None:
    with refused("MLflow at http://127.0.0.1:9: ") as caught:
        find_predictions("f" * 32, tracking_uri="http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
