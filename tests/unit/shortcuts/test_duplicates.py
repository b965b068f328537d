"""Scans that look like one patient's: those that are there twice are listed, and hardly any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from workflows import SMALL_NETWORK, Start, run

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.evaluation.audit_words import duplicates_verdict
from fairlung.pipeline.evaluation.records import Audit, NearDuplicate, NearDuplicates, read_record
from fairlung.pipeline.phantoms.cohort import Preset, plan_cohort, write_planned
from fairlung.pipeline.shortcuts.duplicates import embedded, near_duplicates, write_duplicates
from fairlung.pipeline.shortcuts.features import FeatureError, Features, FeatureWriter


def sides(seed: int, twice: int, noise: float = 0.0, scans: int = 30) -> tuple[Features, Features, set]:
    """Two sides of a split, of which ``twice`` scans are there on both, under other names; and these pairs."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((2 * scans, 24))
    own[scans : scans + twice] = own[:twice]
    labels = np.tile(["covid", "normal"], scans)

    def kind(dimensions: int) -> np.ndarray:
        mixed = own @ rng.standard_normal((24, dimensions)) * (0.9 ** np.arange(dimensions))
        return (mixed + noise * rng.standard_normal(mixed.shape)).astype(np.float32)

    kinds = kind(40), kind(40), kind(9)
    names = np.array([f"a{i}" for i in range(scans)] + [f"b{i}" for i in range(scans)])
    first, second = (
        Features(names[part], *(v[part] for v in kinds), labels[part], np.ones(scans, bool), "random", "run 1", "c")
        for part in (slice(scans), slice(scans, None))
    )
    return first, second, {(f"a{i}", f"b{i}") for i in range(twice)}


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(0, 8))
def test_scans_that_are_there_twice_are_found(seed: int, twice: int) -> None:
    first, second, true = sides(seed, twice, noise=0.001)
    found = near_duplicates(first, second, "train", ratio=0.3).pairs
    assert {(pair.scan, pair.other) for pair in found} >= true and len(found) <= twice + 1
    assert [pair.ratio for pair in found] == sorted(pair.ratio for pair in found)
    assert {(pair.other, pair.scan) for pair in near_duplicates(second, first, "val", ratio=0.3).pairs} == {
        (pair.scan, pair.other) for pair in found
    }


def test_the_evidence_is_that_of_brute_force() -> None:
    first, second, _ = sides(3, 4, noise=0.3)
    vectors = embedded([np.concatenate(pair) for pair in zip(first.kinds().values(), second.kinds().values())])  # noqa: B905
    names, label = [*first.scan, *second.scan], [*first.label, *second.label]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    found = near_duplicates(first, second, "train").pairs
    assert found
    for pair in found:
        i, j = names.index(pair.scan), names.index(pair.other)
        like = [k for k in range(len(names)) if label[k] == label[i] and k not in (i, j)]
        others = [1 - vectors[k] @ vectors[at] for at in (i, j) for k in like]
        assert label[i] == label[j] == pair.label
        assert (pair.distance, pair.next) == (pytest.approx(1 - vectors[i] @ vectors[j]), pytest.approx(min(others)))
        assert pair.ratio == pytest.approx(pair.distance / pair.next) and pair.ratio <= 0.7


def test_three_copies_of_a_scan_are_listed() -> None:
    first, second, _ = sides(0, 1)
    for values in second.kinds().values():
        values[2] = values[0]
    found = near_duplicates(first, second, "train").pairs
    assert [pair.ratio for pair in found if pair.scan == "a0"] == [pytest.approx(0)]


def test_sides_that_cannot_be_compared_are_refused() -> None:
    first, second, _ = sides(0, 0)
    with pytest.raises(FeatureError, match="30 scans are on both sides, such as a0"):
        near_duplicates(first, replace(second, scan=first.scan), "train")
    with pytest.raises(FeatureError, match="of two networks: run 1; run 2"):
        near_duplicates(first, replace(second, judged="run 2"), "train")


def test_a_class_of_a_single_pair_says_nothing() -> None:
    first, second, _ = sides(0, 1)
    first, second = (replace(side, label=np.array(["rare"] + ["normal"] * 29)) for side in (first, second))
    assert "rare" not in {pair.label for pair in near_duplicates(first, second, "train").pairs}


def test_patients_are_told_apart_where_one_cohort_knows_both() -> None:
    first, second, _ = sides(0, 2)
    second.patient_known[0] = False
    found = near_duplicates(first, second, "train")
    assert {pair.other: pair.two_patients for pair in found.pairs[:2]} == {"b0": False, "b1": True}
    assert "Of 1 the cohort says that they are of two patients" in duplicates_verdict(found).text
    of_another = near_duplicates(first, replace(second, cohort="another"), "train")
    assert not any(pair.two_patients for pair in of_another.pairs)


def test_a_verdict_names_no_scan() -> None:
    first, second, _ = sides(0, 3)
    found = near_duplicates(first, second, "train")
    verdict = duplicates_verdict(found)
    assert verdict.level == "warning" and f"{len(found.pairs)} pairs look" in verdict.text
    assert not any(name in verdict.text for pair in found.pairs for name in (pair.scan, pair.other))
    none = duplicates_verdict(replace(found, pairs=()))
    assert none.level == "note" and "no proof" in none.text


def test_the_list_is_a_table_also_when_it_is_empty(tmp_path: Path) -> None:
    none = NearDuplicates("train", 5, 5, 0.7, ())
    assert list(pd.read_csv(write_duplicates(tmp_path, none))) == list(NearDuplicate.__dataclass_fields__)
    pair = NearDuplicate("=a", "b", "normal", 0.1, 0.4, 0.25, False)
    path = write_duplicates(tmp_path, replace(none, pairs=(pair,)))
    assert pd.read_csv(path).to_dict("records")[0]["ratio"] == 0.25 and "'=a" in path.read_text()


# ---- an evaluation ---------------------------------------------------------------------------------------------------
REPEATED = 4
SMALL = {"network_def": SMALL_NETWORK, "error_images": 0, "resamples": 100}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cohort.csv of 32 and 16 phantoms; ``REPEATED`` of the first are in val again, not so in clean.csv."""
    cells = [(label, sex) for label in CLASS_NAMES for sex in SEXES]
    preset = Preset({"train": dict.fromkeys(cells, 4), "val": dict.fromkeys(cells, 2)}, size=40, slices=(12, 16))
    specs, folder = plan_cohort(preset, fmt="nifti", seed=3), tmp_path_factory.mktemp("planted")
    again = [replace(spec, path=f"scans/again-{i}.nii.gz", split="val") for i, spec in enumerate(specs[:32:8])]
    rows = pd.DataFrame(write_planned(folder, [*specs, *again], workers=1, progress=False), dtype=str)
    assert len(again) == REPEATED
    rows.loc[len(specs) :, "patient"] = ""
    rows.to_csv(folder / "cohort.csv", index=False)
    rows[: len(specs)].to_csv(folder / "clean.csv", index=False)
    return folder / "cohort.csv"


@pytest.mark.slow
def test_an_evaluation_warns_of_planted_repeats(
    start: Start, planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"cohort": str(planted.with_name("clean.csv")), "output_dir": str(tmp_path / "run")}
    run(start("train", network_def=SMALL_NETWORK, epochs=1, **settings))
    settings["cohort"] = str(planted)
    folder = tmp_path / "run" / "val" / "evaluation"

    # not asked for: nothing of it
    run(start("train", "evaluate", **SMALL, **settings))
    plain = read_record(Audit, folder / "audit.json")
    assert plain.duplicates is None
    assert not any((folder / name).exists() for name in ("features.npz", "duplicates.csv"))
    assert "one patient" not in (folder / "report.md").read_text()

    # asked for: in the audit, the report and the log, and every other number as before
    run(start("train", "evaluate", duplicates="train", **SMALL, **settings))
    audit = read_record(Audit, folder / "audit.json")
    found = audit.duplicates
    assert found is not None and (found.split, found.n, found.n_other) == ("train", 16 + REPEATED, 32)
    again = {pair.scan: pair for pair in found.pairs if "again" in pair.scan}
    assert len(again) == REPEATED and len(found.pairs) <= REPEATED + 1
    assert all(pair.other.startswith("scans/train/") and not pair.two_patients for pair in again.values())
    assert max(pair.ratio for pair in again.values()) < 1e-3
    assert audit.verdicts[1].level == "warning"
    assert replace(audit, duplicates=None, verdicts=()) == replace(plain, verdicts=())
    report = (folder / "report.md").read_text()
    assert "Scans that may be of one patient" in report and "again" in report and "proof" in report
    assert "scans that may be of one patient, judged and in train" in caplog.text

    # what is known is not computed anew, and the command finds the same
    monkeypatch.setattr(FeatureWriter, "write_others", lambda *_: pytest.fail("computed anew"))
    run(start("train", "evaluate", duplicates="train", **SMALL, **settings))
    assert read_record(Audit, folder / "audit.json").duplicates == found
    done = CliRunner().invoke(app, ["probe", str(tmp_path / "run"), "--split", "val", "--duplicates", "train"])
    assert done.exit_code == 0 and done.output.count("same patient?") == len(found.pairs), done.output
    assert read_record(Audit, folder / "audit.json") == audit
    card = CliRunner().invoke(app, ["model-card", str(tmp_path / "run"), "-o", str(tmp_path / "card.md")])
    assert card.exit_code == 0 and "one patient" in (tmp_path / "card.md").read_text()
    assert "again-" not in (tmp_path / "card.md").read_text()
    shown = CliRunner().invoke(app, ["audit", str(tmp_path / "run"), "--resamples", "100"])
    assert shown.exit_code == 0 and "warning: " in shown.output
    monkeypatch.undo()

    # without the repeats there is no warning; the features of the other cohort are not taken for this one's
    settings["cohort"] = str(planted.with_name("clean.csv"))
    run(start("train", "evaluate", duplicates="train", **SMALL, **settings))
    audit = read_record(Audit, folder / "audit.json")
    assert audit.duplicates is not None and not [p for p in audit.duplicates.pairs if "again" in p.scan]
    assert all(pair.two_patients for pair in audit.duplicates.pairs)
