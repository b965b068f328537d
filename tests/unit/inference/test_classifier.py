"""Answers in Python: those of inference.yaml (tests of the registered model compare them), and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from workflows import CLASSES

from fairlung.pipeline import Classifier, R3D18Classifier
from fairlung.pipeline.inference.classifier import BundleError
from fairlung.pipeline.networks.checkpoint import CheckpointError, model_settings


@pytest.fixture(scope="module")
def checkpoints(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks that learnt nothing."""
    folder = tmp_path_factory.mktemp("checkpoints")
    settings = model_settings("", bundle_dir / "configs" / "train.yaml")
    settings |= {"num_slices": 8, "image_size": 32, "crop_size": 24, "network": "R3D18Classifier"}
    settings["group_names"] = ["male", "female"]
    for seed in range(2):
        torch.manual_seed(seed)
        content = {"model": R3D18Classifier(len(CLASSES)).state_dict(), "settings": settings}
        torch.save(content, folder / f"{seed}.pt")
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_several_checkpoints_answer_together(checkpoints: list[Path], small_cohort: Path) -> None:
    scans = [small_cohort.parent / scan for scan in pd.read_csv(small_cohort)["scan"][:2]]
    names = [f"prob_{name}" for name in CLASSES]
    own = [Classifier(path).predict([*scans, None]) for path in checkpoints]
    together = Classifier(str(checkpoints[0].parent / "*.pt"), flip_tta=False).predict(scans, batch_size=2)
    for table in own:
        assert table["scan"].tolist() == [*map(str, scans), ""]
        assert table["status"].tolist() == ["ok", "ok", "failed"]
        assert table[names].loc[:1].sum(axis=1).tolist() == pytest.approx([1, 1])
        assert table[names].loc[2].isna().all()
    mean = (own[0][names] + own[1][names]).loc[:1] / 2
    pd.testing.assert_frame_equal(together[names], mean, rtol=1e-4, check_dtype=False)
    assert {"agreement", *(f"spread_{name}" for name in CLASSES)} <= set(together.columns)


def test_what_is_missing_is_named(checkpoints: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at .*pass bundle_root"):
        Classifier(checkpoints[0], tmp_path)
    with pytest.raises(BundleError, match="inference.yaml has no setting flip"):
        Classifier(checkpoints[0], flip=True)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Classifier(tmp_path / "gone.pt")
