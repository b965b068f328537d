"""The three commands of the README as programs, from another working directory; and MONAI's own bundle tools."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import ROOT, commands
from programs import Program, until_the_module_ends
from workflows import SHRUNK, SMALL_NETWORK

from fairlung.pipeline.common.bundle import bundle_folder
from fairlung.pipeline.reports.bundle_archive import write_archive

pytestmark = pytest.mark.slow
programs = pytest.fixture(scope="module", autouse=True)(until_the_module_ends)


def command(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Run `python -m monai.bundle ARGUMENTS`; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def job(bundle_dir: Path, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, evaluate and infer by the README's own commands, shrunk; the working directory."""
    folder = tmp_path_factory.mktemp("elsewhere")
    configs = shutil.copytree(bundle_dir / "configs", folder / "bundles" / bundle_dir.name / "configs")
    shutil.copy(small_cohort, folder)
    (folder / "scans").symlink_to(small_cohort.parent / "scans")
    (folder / "DIR").symlink_to(small_cohort.parent / "scans" / "val")
    train, evaluate, infer = (c.words[3:] for c in commands(ROOT / "README.md") if "monai.bundle" in c.words)
    shrunk = [f"--{name}={value}" for name, value in SHRUNK.items()]
    command(*train, *shrunk, "--pretrained=False", cwd=folder)
    command(*evaluate, "--num_workers=0", cwd=folder)
    command(*infer, "--num_workers=0", cwd=folder)
    shutil.copy(configs.parent / "models" / "model.pt", folder)
    return folder


def test_the_three_commands(job: Path) -> None:
    metrics = json.loads((job / "runs" / "a08" / "val" / "evaluation" / "metrics.json").read_text())["metrics"]
    assert 0 <= metrics["score"] <= 1
    rows = list(csv.DictReader((job / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["ok"] * 8
    assert (job / "mlflow.db").is_file()  # where a plain `mlflow ui` in this folder looks


def forked(*arguments: str, cwd: Path, code: int = 0) -> str:
    """The same without the imports; what it printed."""
    log = cwd.parent / f"{cwd.name}.txt"
    ended = Program("monai.bundle", arguments, log, cwd).wait()
    assert ended == code, log.read_text()[-3000:]
    return log.read_text()


def test_a_user_error_ends_with_its_message_alone(bundle_dir: Path, tmp_path: Path) -> None:
    arguments = ["--config_file", str(bundle_dir / "configs" / "train.yaml"), "--bundle_root", str(bundle_dir)]
    printed = forked("run", *arguments, "--lrr", "1", cwd=tmp_path, code=1)
    assert printed.rstrip().endswith("'lrr' (did you mean 'learning_rate'?)")
    assert "Traceback" not in printed


@pytest.mark.fault(
    "lost", "two runs with --output_dir out#A and out#B", before="one folder out, the second table replaced the first",
    now="each in its own",
)  # fmt: skip
def test_folders_are_what_was_typed(bundle_dir: Path, small_cohort: Path, tmp_path: Path) -> None:
    configs = str([str(bundle_dir / "configs" / name) for name in ("inference.yaml", "check.yaml")])
    scan = next((small_cohort.parent / "scans" / "val").rglob("*.nii.gz"))
    (tmp_path / "1e3").mkdir()
    (tmp_path / "1e3" / "ct.nii.gz").symlink_to(scan)
    arguments = ["run", "--config_file", configs, "--bundle_root", str(bundle_dir), "--num_workers", "0"]
    for output in (["--output_dir", "out#A"], ["--output-dir=2026_12"]):
        forked(*arguments, "--scans", "1e3", *output, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1e3", "2026_12", "out#A"]
    assert "ct.nii.gz" in (tmp_path / "out#A" / "intake.csv").read_text()


@pytest.mark.fault(
    "words", "a command that fails", before="50 to 70 lines of stack", now="one line; FAIRLUNG_TRACEBACK=1 shows all"
)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer::_target_", "torch.optim.Nadam"], "optimizer: "),
        (["--batch_size", "0"], "batch_size must be a whole number of at least 1, got 0"),
        (["--device", "cuda:99"], "device must be a device of this machine"),
    ],
)
def test_a_command_that_fails_says_why_in_a_line(
    bundle_dir: Path, small_cohort: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    arguments = ["--config_file", str(bundle_dir / "configs" / "train.yaml"), "--bundle_root", str(bundle_dir)]
    arguments += ["--cohort", str(small_cohort), "--pretrained", "False", "--tracking_uri", ""]
    printed = forked("run", *arguments, *words, cwd=tmp_path, code=1)
    assert "Traceback" not in printed
    assert any(line.startswith(f"error: {said}") for line in printed.splitlines()[-2:])


@pytest.mark.fault("words", "Ctrl-C in a training", before="60 lines of stack", now="one line that says how to go on")
def test_an_interrupted_training_says_how_to_go_on(bundle_dir: Path, small_cohort: Path, tmp_path: Path) -> None:
    shrunk = [f"--{name}={value}" for name, value in SHRUNK.items() if name not in ("epochs", "num_workers")]
    arguments = ["--config_file", str(bundle_dir / "configs" / "train.yaml"), "--bundle_root", str(bundle_dir)]
    arguments += ["--cohort", str(small_cohort), "--pretrained=False", "--tracking_uri=", "--num_workers=2", *shrunk]
    arguments += [f"--network_def={SMALL_NETWORK}"]
    log = tmp_path / "log.txt"
    training = Program("monai.bundle", ["run", *arguments], log, tmp_path)
    while training.poll() is None and " epoch 1  train " not in log.read_text():
        time.sleep(0.02)
    os.killpg(training.pid, signal.SIGINT)
    assert training.wait() == -signal.SIGINT
    lines = log.read_text().splitlines()
    assert lines[-1] == "interrupted; --resume True goes on after the last epoch that was finished"
    printed = "\n".join(lines)
    assert "Traceback" not in printed and "\r" not in printed
    assert "resuming from iteration" not in printed and "best metric of train_loss" not in printed


def test_training_needs_no_mlflow_when_tracking_is_off(bundle_dir: Path, small_cohort: Path, tmp_path: Path) -> None:
    """On a machine without mlflow, itk and matplotlib, epochs are trained and checkpoints written."""
    overrides = SHRUNK | {"epochs": 1, "cohort": str(small_cohort), "output_dir": str(tmp_path / "run")}
    overrides |= {"bundle_root": str(bundle_dir), "pretrained": False, "tracking_uri": "", "cache_dir": ""}
    code = f"""
import sys
for name in ("mlflow", "itk", "matplotlib"):
    sys.modules[name] = None
from monai.bundle import ConfigWorkflow
workflow = ConfigWorkflow({str(bundle_dir / "configs" / "train.yaml")!r}, model_file="", **{overrides!r})
workflow.initialize()
workflow.run()
workflow.finalize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "models" / "best.pt").is_file()
    assert (tmp_path / "run" / "val" / "metrics.json").is_file()
    assert not (tmp_path / "mlflow.db").exists()


# ---- MONAI's tools -------------------------------------------------------------------------------------------------
def test_verify_metadata(bundle_dir: Path, tmp_path: Path) -> None:
    """Against the fields that MONAI's schema 20240725 requires, written out here: the schema itself is online."""
    from monai.bundle import verify_metadata

    tensor = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]
    io = {"type": "object", "additionalProperties": {"type": "object", "required": tensor}}
    required = [
        "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format",
    ]  # fmt: skip
    schema = {
        "$schema": "https://json-schema.org/draft/2019-09/schema",
        "type": "object",
        "required": required,
        "properties": {
            "changelog": {"type": "object"},
            "eval_metrics": {"type": "object"},
            "references": {"type": "array", "items": {"type": "string"}},
            "network_data_format": {
                "type": "object",
                "required": ["inputs", "outputs"],
                "properties": {"inputs": io, "outputs": io},
            },
        },
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    verify_metadata(
        str(bundle_dir / "configs" / "metadata.json"),
        filepath=str(tmp_path / "schema.json"),
        hash_val=hashlib.sha256((tmp_path / "schema.json").read_bytes()).hexdigest(),
        hash_type="sha256",
    )


def test_verify_net_in_out(bundle_dir: Path) -> None:
    """The full-size network on the documented input shape; test_bundle.py says that training's is the same."""
    from monai.bundle import verify_net_in_out

    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle_dir / "configs" / "metadata.json"),
        config_file=str(bundle_dir / "configs" / "inference.yaml"),
        device="cpu",
        bundle_root=str(bundle_dir),
    )


def exported(job: Path, bundle_dir: Path) -> dict[str, str]:
    """What both exports are told about the network."""
    configs = bundle_dir / "configs"
    return {
        "net_id": "network_def",
        "ckpt_file": str(job / "model.pt"),
        "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.yaml"),
        "bundle_root": str(bundle_dir),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_ckpt_export(job: Path, bundle_dir: Path) -> None:
    from monai.bundle import ckpt_export

    ckpt_export(filepath=str(job / "model.ts"), **exported(job, bundle_dir))
    image = torch.rand(2, 1, 8, 24, 24)
    torch.testing.assert_close(torch.jit.load(job / "model.ts")(image), network(job)(image))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_export(job: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    from monai.bundle import onnx_export

    monkeypatch.setattr(tempfile, "tempdir", str(job))  # where MONAI leaves 130 MB
    onnx_export(filepath=str(job / "model.onnx"), input_shape=[1, 1, 8, 24, 24], **exported(job, bundle_dir))
    image = torch.rand(1, 1, 8, 24, 24)
    session = onnxruntime.InferenceSession(job / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(logits, network(job)(image).detach().numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_the_model_zoo_checks(job: Path, small_cohort: Path, tmp_path: Path) -> None:
    """Its ci/verify_bundle.py, on an archive with weights: files, version, shapes, TorchScript, properties."""
    from monai.bundle import ckpt_export, create_workflow, verify_net_in_out

    (archive,) = write_archive(bundle_folder(), tmp_path, job / "model.pt")
    shutil.unpack_archive(archive, tmp_path)
    root = tmp_path / "fair_lung_ct"
    assert all((root / name).is_file() for name in ("LICENSE", "configs/metadata.json", "models/model.pt"))
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"] and archive.stem == f"fair_lung_ct_v{metadata['version']}"
    files = {"meta_file": str(root / "configs" / "metadata.json"), "bundle_root": str(root)}
    files["config_file"] = str(root / "configs" / "inference.yaml")
    verify_net_in_out(net_id="network_def", device="cpu", **files)
    script = root / "models" / "verify_model.ts"
    ckpt_export(net_id="network_def", filepath=str(script), ckpt_file=str(root / "models" / "model.pt"), **files)
    image = torch.rand(2, 1, 8, 24, 24)
    torch.testing.assert_close(torch.jit.load(script)(image), network(job)(image))
    files |= {"logging_file": str(root / "configs" / "logging.conf"), "output_dir": str(tmp_path / "out")}
    files |= {"scans": str(small_cohort.parent / "scans" / "val")}
    assert create_workflow(workflow_type="inference", num_workers=0, **files).check_properties() == []


def network(job: Path) -> torch.nn.Module:
    from fairlung.pipeline.networks.r3d18 import R3D18Classifier

    net = R3D18Classifier(4).eval()
    net.load_state_dict(torch.load(job / "model.pt", weights_only=True))
    return net
