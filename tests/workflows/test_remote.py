"""The shipped inference and training on scans in object storage: moto's S3 server on loopback, read by s3fs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pandas as pd
import pydicom
import pytest
import torch
from monai.transforms import Compose
from remote_stores import left, web
from typer.testing import CliRunner
from workflows import CLASSES, EXPLAINED_NETWORK, SMALL_NETWORK, SMALL_SETTINGS, Start, cause, run

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.data.dataset import NewScanDataset
from fairlung.pipeline.inference.scan_readers import ScanLoader
from fairlung.pipeline.inference.watch import WatchError
from fairlung.pipeline.networks.checkpoint import ModelSettings
from fairlung.transforms import LoadScand
from fairlung.transforms.scan import ScanError

ADMIN = {"aws_access_key_id": "admin", "aws_secret_access_key": "QZXADMIN", "region_name": "us-east-1"}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left() == []


@pytest.fixture(scope="module")
def scans(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in three formats, and a volume in an archive."""
    root = tmp_path_factory.mktemp("near")
    for scan in pd.read_csv(small_cohort)["scan"].head(6):
        source = small_cohort.parent / scan
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / source.name)
    volume = next(root.glob("*.nii.gz"))
    (root / "packed").mkdir()
    volume.rename(root / "packed" / "in an archive.nii.gz")
    shutil.make_archive(str(root / "more"), "zip", root / "packed")
    shutil.rmtree(root / "packed")
    return root


def _upload(client: Any, folder: Path, bucket: str, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def _user(rights: Any, name: str, actions: list[str], where: list[str]) -> dict[str, str]:
    """The credentials of a new user who may do this there, and nothing else."""
    rights.create_user(UserName=name)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": where}]}
    rights.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(policy))
    key = rights.create_access_key(UserName=name)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def _ask_for_rights(address: str, after: bytes) -> None:
    """Let moto ask for rights after so many calls."""
    header = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset-auth", after, header)).close()


@pytest.fixture(scope="module")
def s3(scans: Path, small_cohort: Path) -> Iterator[SimpleNamespace]:
    """A server with a bucket that the environment's user may read, and one that they may not."""
    pytest.importorskip("s3fs")
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client, rights = (boto3.client(name, endpoint_url=address, **ADMIN) for name in ("s3", "iam"))
    for bucket in ("open", "closed"):
        client.create_bucket(Bucket=bucket)
        _upload(client, scans, bucket, "new/scans")
    _upload(client, small_cohort.parent, "open", "cohort")
    where = ["arn:aws:s3:::open", "arn:aws:s3:::open/*"]
    reader = _user(rights, "reader", ["s3:ListBucket", "s3:GetObject"], where)
    writer = _user(rights, "writer", ["s3:*"], ["*"])
    _ask_for_rights(address, b"0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name, value in reader.items():
            patch.setenv(name.upper(), value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        client = boto3.client("s3", endpoint_url=address, **writer)
        yield SimpleNamespace(client=client, secret=reader["aws_secret_access_key"])
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    _ask_for_rights(address, b"inf")
    server.stop()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from monai.networks.nets import DenseNet

    torch.manual_seed(0)
    small = {name: value for name, value in SMALL_NETWORK.items() if name != "_target_"}
    network = DenseNet(**small | {"out_channels": len(CLASSES)})
    torch.nn.init.normal_(network.class_layers.out.bias, std=0.5)
    settings = ModelSettings(network="ExplainedDenseNet", **SMALL_SETTINGS).state_dict()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save({"model": network.state_dict(), "settings": settings, "training": {}}, path)
    return str(path)


def _answers(start: Start, scans: str, output: Path, checkpoint: str, **settings: Any) -> pd.DataFrame:
    settings |= {"network_def": EXPLAINED_NETWORK, "checkpoint": checkpoint, "output_dir": str(output)}
    with suppress(SystemExit):  # some failed
        run(start("inference", scans=scans, **settings))
    return pd.read_csv(output / "predictions.csv", keep_default_na=False)


@pytest.mark.slow
def test_a_bucket_is_answered_as_its_folder(
    start: Start, s3: SimpleNamespace, scans: Path, checkpoint: str, bundle_dir: Path, tmp_path: Path
) -> None:
    """By the documented command, with two readers: the same rows, the same reports, and nowhere a credential."""
    near = _answers(start, str(scans), tmp_path / "near", checkpoint, dicom_out=True)
    config = bundle_dir / "configs" / "inference.yaml"
    (tmp_path / "network.json").write_text(json.dumps({"network_def": EXPLAINED_NETWORK}))
    settings = {"bundle_root": bundle_dir, "scans": "s3://open/new/scans", "output_dir": tmp_path / "far"}
    settings |= {"checkpoint": checkpoint, "num_workers": 2, "dicom_out": True}
    command = [sys.executable, "-m", "monai.bundle", "run", f"--config_file=['{config}','{tmp_path / 'network.json'}']"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    helpers = f"{Path(__file__).parents[1] / 'helpers'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": helpers}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    far = pd.read_csv(tmp_path / "far" / "predictions.csv", keep_default_na=False)
    assert list(near["status"]) == ["ok"] * 6 and "more.zip/in an archive.nii.gz" in set(near["scan"])
    pd.testing.assert_frame_equal(near.drop(columns="study"), far.drop(columns="study"))
    assert list(near["study"] != "") == list(far["study"] != "")
    reports = sorted((tmp_path / "near" / "dicom").rglob("*.dcm"))
    assert reports
    for report in reports:
        other = pydicom.dcmread(tmp_path / "far" / report.relative_to(tmp_path / "near"))
        assert other.StudyInstanceUID == pydicom.dcmread(report).StudyInstanceUID
    written = [path.read_bytes() for path in (tmp_path / "far").rglob("*") if path.is_file()]
    assert not [
        content for content in (*written, (done.stdout + done.stderr).encode()) if s3.secret.encode() in content
    ]


def test_what_cannot_be_read_is_a_line_of_its_own(
    start: Start, s3: SimpleNamespace, scans: Path, checkpoint: str, tmp_path: Path
) -> None:
    error = cause(start("inference", scans="s3://closed/new", checkpoint=checkpoint, output_dir=str(tmp_path / "no")))
    assert str(error).startswith("--scans: s3://closed/new: access is denied") and "\n" not in str(error)
    name = next(path.name for path in scans.iterdir() if path.is_dir())
    rows = {f"s3://open/new/scans/{name}": "ok", f"s3://closed/new/scans/{name}": "failed", "s3://open/none": "failed"}
    rows |= {"s3://none/at-all": "failed"}
    (tmp_path / "list.csv").write_text("scan\n" + "\n".join(rows))
    table = _answers(start, str(tmp_path / "list.csv"), tmp_path / "out", checkpoint)
    assert dict(zip(table["scan"], table["status"], strict=True)) == rows
    reasons = list(table["reason"])
    said = [
        "",
        "access is denied: ",
        "does not exist",
        "access is denied: ",
    ]  # who has no right may not know of a bucket
    for scan, why, reason in zip(rows, said, reasons, strict=True):
        assert reason.startswith(f"{scan}: {why}" if why else "") and bool(reason) == bool(why)
    assert cause(start("inference", scans="s3://open", watch=True, checkpoint=checkpoint, network_def=SMALL_NETWORK,
        output_dir=str(tmp_path / "watch"))).__class__ is WatchError  # fmt: skip


def test_a_slice_that_goes_between_listing_and_reading(s3: SimpleNamespace, scans: Path) -> None:
    from fairlung.transforms import LoadScan, find_scans

    folder = next(path for path in scans.iterdir() if path.is_dir())
    _upload(s3.client, folder, "open", "going/scan")
    (item,) = find_scans("s3://open/going")
    LoadScan()(item["image"])
    name = sorted(path.name for path in folder.iterdir())[3]
    s3.client.delete_object(Bucket="open", Key=f"going/scan/{name}")
    with pytest.raises(ScanError, match="not those that were listed"):
        LoadScan()(item["image"])


def test_check_looks_into_a_bucket(s3: SimpleNamespace, bundle_dir: Path, tmp_path: Path) -> None:
    command = ["check", "s3://open/new/scans", "-o", str(tmp_path / "check"), "--workers", "0"]
    result = CliRunner().invoke(app, [*command, "--bundle-root", str(bundle_dir)])
    assert result.exit_code == 0, result.output
    assert "6 scans: 0 refused" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_training_on_a_bucket_is_that_on_its_folder(
    start: Start, s3: SimpleNamespace, small_cohort: Path, tmp_path: Path
) -> None:
    """The same numbers, the same cached volumes; with a full cache nothing is fetched again."""
    table = pd.read_csv(small_cohort, dtype=str)
    histories = []
    for name, root in (("near", str(small_cohort.parent)), ("far", "s3://open/cohort"), ("again", "s3://open/cohort")):
        cohort = tmp_path / f"{name}.csv"
        table.assign(scan=[f"{root}/{scan}" for scan in table["scan"]]).to_csv(cohort, index=False)
        cache = tmp_path / ("cache near" if name == "near" else "cache far")
        before = {path: path.stat().st_mtime_ns for path in cache.glob("*.pt")}
        settings = {"network_def": SMALL_NETWORK, "epochs": 1, "cache_dir": str(cache), "num_workers": 1}
        run(start("train", cohort=str(cohort), output_dir=str(tmp_path / name), **settings))
        histories.append((tmp_path / name / "history.csv").read_bytes())
        if name == "again":
            assert {path: path.stat().st_mtime_ns for path in cache.glob("*.pt")} == before
    assert histories[0] == histories[1] == histories[2]
    volumes = [_volumes(tmp_path / f"cache {name}") for name in ("near", "far")]
    assert volumes[0] == volumes[1] and len(volumes[0]) == len(table)


def _volumes(cache: Path) -> list[str]:
    return sorted(torch.load(path, weights_only=True)["digest"] for path in cache.glob("*.pt"))


def test_a_cohort_takes_addresses_without_logins_alone(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(small_cohort, dtype=str)
    table.loc[0, "scan"] = "https://ann:QZXPASS@host/ct.nii.gz"
    table.loc[1, "scan"] = "https://host/ct.nii.gz?sig=QZXSIGNATURE"
    table.to_csv(tmp_path / "cohort.csv", index=False)
    text = str(cause(start("train", cohort=str(tmp_path / "cohort.csv"), output_dir=str(tmp_path / "run"))))
    assert text.count("is given with a login or a query") == 2 and "QZX" not in text
    table.loc[[0, 1], "scan"] = ["memory://none/a", "memory://none/b"]
    table.assign(scan=[s if "://" in s else str(small_cohort.parent / s) for s in table["scan"]]).to_csv(
        tmp_path / "cohort.csv", index=False
    )
    error = cause(start("train", cohort=str(tmp_path / "cohort.csv"), output_dir=str(tmp_path / "run")))
    assert "2 of" in str(error) and "memory://none/b: does not exist" in str(error)


def test_a_reader_that_is_killed_while_it_fetches_leaves_nothing(scans: Path) -> None:
    folder = next(path for path in scans.iterdir() if path.is_dir())
    with web(scans) as server:
        file = sorted(folder.iterdir())[0].name
        server.faults = {f"/{folder.name}/{file}": "stalls"}
        data = [{"image": f"{server.address}/{folder.name}", "scan": "stalls"}]
        dataset = NewScanDataset(data, Compose([LoadScand("image")]), (1, 1, 1, 1))
        (batch,) = ScanLoader(dataset, num_workers=1, timeout=10)
        assert "took more than 10 s" in batch["reason"][0]
        assert server.seen  # its files lay where this process finds them
