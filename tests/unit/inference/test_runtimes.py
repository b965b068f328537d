"""OpenVINO answers as PyTorch does, says why it cannot, and reports nothing to its makers; auto takes the fastest."""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest
import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from workflows import CLASSES, SMALL_SETTINGS, Start, run

from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.inference import Classifier, runtimes
from fairlung.pipeline.inference.runtimes import (
    AUTO,
    RUNTIMES,
    FastestInferer,
    MemoryKeeper,
    MirrorInferer,
    OpenVINOInferer,
    RuntimeUnavailableError,
    check_volumes,
    fastest,
    inferer_of,
    openvino_network,
)
from fairlung.pipeline.networks.ensemble import Ensemble
from fairlung.pipeline.networks.r3d18 import R3D18Classifier


def classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = R3D18Classifier(num_classes=len(CLASSES))
    with torch.no_grad():
        network(torch.rand(4, 1, 8, 32, 32))  # statistics of batch normalisation that are not 0 and 1
        nn.init.normal_(network.backbone.fc[-1].weight, std=0.5)
    return network.eval().to(memory_format=torch.channels_last_3d)


def small(seed: int) -> nn.Module:
    """Where the network is not in question: it is compiled in a twentieth of the time."""
    torch.manual_seed(seed)
    layers = (nn.Conv3d(1, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, len(CLASSES)))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 1, 8, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return classifier(0)


@pytest.mark.parametrize(("runtime", "tolerance"), [("torch_bf16", 0.05), ("openvino", 1e-5), ("openvino_bf16", 0.05)])
@pytest.mark.slow
def test_its_logits_are_those_of_pytorch(network: nn.Module, images: Tensor, runtime: str, tolerance: float) -> None:
    inferer = inferer_of(runtime, torch.device("cpu"))
    with torch.inference_mode():
        for batch in (images[:2], images[2:], images[:1]):
            expected = network(batch)
            found = inferer(batch, network)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert "openvino_telemetry" not in sys.modules


def test_of_several_networks_and_mirrored_volumes(images: Tensor) -> None:
    ensemble = Ensemble([small(0), small(1)]).eval()
    with torch.inference_mode():
        expected = MirrorInferer(True)(images, ensemble)
        found = MirrorInferer(True, OpenVINOInferer())(images, ensemble)
    assert expected.shape == (5, 2, len(CLASSES))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_another_network_is_not_answered_by_the_first(images: Tensor) -> None:
    inferer, other = OpenVINOInferer(), small(2)
    with torch.inference_mode():
        inferer(images, small(0))
        torch.testing.assert_close(inferer(images, other), other(images), rtol=1e-5, atol=1e-5)


def test_a_network_may_go_on_another_thread(images: Tensor) -> None:
    """Where a CPU has AMX, the process died of the next signal, as the stack of its handlers had gone too."""
    kept = [openvino_network(small(0), images, "bf16")]

    def drop() -> None:  # as the garbage collector may, on whatever thread it runs
        kept.clear()
        gc.collect()

    thread = Thread(target=drop)
    thread.start()
    thread.join()
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_a_network_in_training_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        OpenVINOInferer()(images, R3D18Classifier(num_classes=4).train())


def test_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(inferer_of("torch", "cuda")) is SimpleInferer
    with pytest.raises(ValueError, match=f"one of {', '.join(RUNTIMES)}, auto, got 'onnx'"):
        inferer_of("onnx", "cpu")
    for runtime in ("openvino", "torch_bf16"):
        with pytest.raises(RuntimeUnavailableError, match="computes on a CPU, the device is cuda"):
            inferer_of(runtime, torch.device("cuda"))
    with pytest.raises(ValueError, match="amp must be false on a CPU, where --runtime torch_bf16 is .*, got True"):
        inferer_of("torch", "cpu", amp=True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'fairlung\[openvino\]'") as caught:
        inferer_of("openvino", "cpu")
    assert user_error(caught.value) is caught.value


# ---- auto ------------------------------------------------------------------------------------------------------------
class Slow(nn.Module):
    """A network that waits when Python runs it, which a compiled one does not."""

    def __init__(self, seconds: float = 1.0, factor: float = 1.0) -> None:
        super().__init__()
        self.network, self.seconds, self.factor = small(0), seconds, factor
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            time.sleep(self.seconds)
        return self.network(image) * self.factor


class Uncompiled(Slow):
    """One whose program depends on its numbers, which no compiler here takes."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * (1.0 if image.mean() >= 0 else 2.0)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(runtimes, "has_bfloat16", lambda: True)
    caplog.set_level(logging.INFO, logger=runtimes.__name__)
    return caplog


VOLUMES = check_volumes((8, 24, 24), (-1350, 150))


def test_the_fastest_is_taken_and_all_times_are_said(said: pytest.LogCaptureFixture) -> None:
    taken, inferer = fastest(Slow(), VOLUMES)
    assert taken in ("openvino", "openvino_bf16") and inferer.runtime == taken  # type: ignore[attr-defined]
    assert f"runtime auto takes {taken}, the fastest of those within 0.02" in said.text
    assert all(f" {name} " in said.text for name in RUNTIMES) and "; not" not in said.text
    assert len(said.records) == 1


def test_what_answers_otherwise_stays_out(said: pytest.LogCaptureFixture) -> None:
    """Logits that are small differences of larger numbers, times a thousand: three digits are no longer near."""
    network = Slow(factor=1e3)
    with torch.no_grad():
        network.network[-1].bias -= network.network(VOLUMES).mean(0)  # type: ignore[index,operator,union-attr]
        exact = torch.softmax(network(VOLUMES), -1)
        rounded = torch.softmax(inferer_of("torch_bf16", "cpu")(VOLUMES, network), -1)
    moved = float((exact - rounded).abs().max())
    assert moved > 0.02
    assert fastest(network, VOLUMES)[0].startswith("openvino")  # in float32, whatever computes in bfloat16
    assert f"not torch_bf16: a probability is {moved:.1e} from PyTorch's, at most 0.02 is taken" in said.text
    assert fastest(network, VOLUMES, tolerance=2)[0] in ("openvino", "openvino_bf16")


def test_what_cannot_compile_import_or_compute_is_out_with_its_reason(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fastest(Uncompiled(0.0), VOLUMES)[0] in ("torch", "torch_bf16")
    assert "; not openvino: " in said.text and "; not openvino_bf16: " in said.text
    monkeypatch.setattr(runtimes, "has_bfloat16", lambda: False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    said.clear()
    assert fastest(small(0), VOLUMES)[0] == "torch"
    assert "not torch_bf16: this processor names no instructions for bfloat16; not openvino: OpenVINO is not" in (
        said.text
    )
    with pytest.raises(RuntimeError, match="expected"):  # of PyTorch's own there is no way around
        fastest(nn.Sequential(nn.Conv3d(2, 1, 1)).eval(), VOLUMES)


def test_a_network_that_is_no_number_is_answered_by_pytorch(said: pytest.LogCaptureFixture) -> None:
    assert fastest(Slow(0.0, factor=float("nan")), VOLUMES)[0] == "torch"


def test_it_chooses_once_a_network_and_answers_as_the_one_taken(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[tuple[int, ...]] = []
    monkeypatch.setattr(runtimes, "RUNTIMES", ("torch", "openvino"))

    def watched(network: nn.Module, volumes: Tensor) -> tuple[str, Any]:
        chosen.append(tuple(volumes.shape))
        return fastest(network, volumes)

    inferer, first, second = inferer_of(AUTO, "cpu", window=(-1000, 400)), small(0), small(1)
    monkeypatch.setattr(runtimes, "fastest", watched)
    assert isinstance(inferer, FastestInferer) and inferer.runtime == AUTO and inferer.window == (-1000, 400)
    for network in (first, first, second):
        with torch.inference_mode():
            torch.testing.assert_close(inferer(images, network), network(images), rtol=1e-5, atol=1e-5)
        assert MirrorInferer(inferer=inferer).runtime == inferer.runtime in ("torch", "openvino")
    assert chosen == [(2, 1, 8, 32, 32)] * 2


def test_on_a_gpu_it_is_pytorch_at_once(said: pytest.LogCaptureFixture) -> None:
    assert type(inferer_of(AUTO, "cuda", amp=True)) is SimpleInferer
    assert "runtime auto is torch: the others compute on a CPU, the device is cuda" in said.text
    assert MirrorInferer(inferer=SimpleInferer()).runtime == "torch"


def test_check_volumes_are_chests_of_any_size_and_always_the_same() -> None:
    volumes = check_volumes((16, 48, 40), (-1350, 150))
    assert volumes.shape == (2, 1, 16, 48, 40) and volumes.dtype == torch.float32
    assert torch.equal(volumes, check_volumes((16, 48, 40), (-1350, 150)))
    assert volumes.min() >= 0 and volumes.max() == 1 and not torch.equal(volumes[0], volumes[1])
    centre = volumes[:, 0, 8, 12:36, 8:32]  # lung (some -850 HU) and soft tissue (0 to 100) in one slice of each
    assert ((centre > 0.2) & (centre < 0.5)).float().mean() > 0.1 and (centre > 0.85).float().mean() > 0.1
    wide = check_volumes((16, 48, 40), (-1350, 1650))
    inside = (volumes > 0) & (volumes < 1)
    torch.testing.assert_close(wide[inside], volumes[inside] / 2)
    assert check_volumes((4, 6, 8), (-1350, 150)).shape == (2, 1, 4, 6, 8)


@pytest.mark.slow
def test_the_bundle_answers_as_with_pytorch(start: Start, network: nn.Module, data_dir: Path, tmp_path: Path) -> None:
    from fairlung.pipeline.networks.checkpoint import ModelSettings

    checkpoint = tmp_path / "best.pt"
    settings = ModelSettings(network="R3D18Classifier", **SMALL_SETTINGS).state_dict()
    torch.save({"model": network.state_dict(), "settings": settings}, checkpoint)
    tables = []
    for runtime in ("torch", "openvino", AUTO):
        output = tmp_path / runtime
        scans = str(data_dir / "chest_ct.nrrd")
        settings = {"checkpoint": str(checkpoint), "runtime": runtime, "device": "$torch.device('cpu')"}
        parser = run(start("inference", scans=scans, output_dir=str(output), **settings)).parser
        tables.append(pd.read_csv(output / "predictions.csv"))
        kept = [isinstance(handler, MemoryKeeper) for handler in parser.get_parsed_content("handlers")]
        assert sum(kept) == (runtime != "openvino") and parser.get_parsed_content("batch_size") == 1
        (record,) = json.loads((output / "predictions.json").read_text())
        assert record["runtime"] == runtime or (runtime == AUTO and record["runtime"] in RUNTIMES)
    assert tables[0]["status"].tolist() == ["ok"]
    pd.testing.assert_frame_equal(*tables[:2], rtol=1e-4)
    pd.testing.assert_frame_equal(tables[0], tables[2], atol=0.02)
    chosen: list[str] = []
    classifier = Classifier(checkpoint, runtime=AUTO, device="$torch.device('cpu')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "fastest", lambda *given: (chosen.append(AUTO), fastest(*given))[1])
        for _ in range(2):
            answer = classifier.predict(scans)
            pd.testing.assert_frame_equal(answer[tables[0].columns[2:6]], tables[0].iloc[:, 2:6], atol=0.02)
    assert chosen == [AUTO]  # and compiled, once
