"""What 0.1 left behind still works: a registered model carries its script and configs, and users have copies."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from workflows import CLASSES, run

from fairlung.pipeline import Classifier, R3D18Classifier

PROBABILITIES = [f"prob_{name}" for name in CLASSES]


@pytest.fixture(scope="module")
def old(small_cohort: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint as 0.1 wrote it, its bundle, and a scan."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "class_names": CLASSES, "group_by": "sex", "group_names": ["male", "female"], "window": [-1000, 400],
        "trim_fraction": 0.15, "num_slices": 8, "image_size": 32, "crop_size": 24,
    }  # fmt: skip
    checkpoint = tmp_path_factory.mktemp("registered") / "best.pt"
    torch.save({"model": R3D18Classifier(len(CLASSES)).state_dict(), "settings": settings}, checkpoint)
    scan = small_cohort.parent / pd.read_csv(small_cohort)["scan"][0]
    return SimpleNamespace(checkpoint=str(checkpoint), bundle=str(data_dir / "registered_0_1"), scan=str(scan))


def script(path: Path) -> ModuleType:
    """MLflow runs the script of a model in this way."""
    spec = importlib.util.spec_from_file_location("pyfunc_model_0_1", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*Any type hint")  # MLflow, at import, about its own classes
def test_a_registered_model_of_0_1_answers_as_it_did(old: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.models
    from mlflow.pyfunc import PythonModelContext

    monkeypatch.setattr(mlflow.models, "set_model", lambda model: None)
    model = script(Path(old.bundle, "pyfunc_model.py")).ScanClassifier()
    artifacts = {"checkpoint": old.checkpoint, "bundle": old.bundle, "source": ""}
    context = PythonModelContext(artifacts, {"fairlung_version": "0.1.0"})
    model.load_context(context)
    table = model.predict(context, pd.DataFrame({"scan": [old.scan, None]}))
    assert table["status"].tolist() == ["ok", "failed"]
    assert table[PROBABILITIES].loc[0].sum() == pytest.approx(1)
    now = Classifier(old.checkpoint).predict([old.scan, None])
    pd.testing.assert_frame_equal(now.astype(object).where(now.notna(), None), table)


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.slow
def test_a_copy_of_0_1s_inference_runs(old: SimpleNamespace, tmp_path: Path, append: bool) -> None:
    settings = {"scans": old.scan, "output_dir": str(tmp_path), "checkpoint": old.checkpoint, "append": append}
    file = f"{old.bundle}/configs/inference.yaml"
    for _ in range(2):
        run(ConfigWorkflow(file, logging_file=False, bundle_root=old.bundle, num_workers=0, **settings))
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["status"].tolist() == ["ok"]
    expected = Classifier(old.checkpoint).predict([old.scan])
    assert table[PROBABILITIES].loc[0].tolist() == pytest.approx(expected[PROBABILITIES].loc[0].tolist(), abs=1e-6)
