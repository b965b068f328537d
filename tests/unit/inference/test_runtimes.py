"""OpenVINO answers as PyTorch does, says why it cannot, and reports nothing to its makers."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from workflows import CLASSES, SMALL_SETTINGS, Start, run

from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.inference.runtimes import (
    RUNTIMES,
    MemoryKeeper,
    MirrorInferer,
    OpenVINOInferer,
    RuntimeUnavailableError,
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


@pytest.mark.parametrize(("runtime", "tolerance"), [("openvino", 1e-5), ("openvino_bf16", 0.05)])
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
    with pytest.raises(ValueError, match=f"one of {', '.join(RUNTIMES)}, got 'onnx'"):
        inferer_of("onnx", "cpu")
    with pytest.raises(RuntimeUnavailableError, match="computes on a CPU, the device is cuda"):
        inferer_of("openvino", torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'fairlung\[openvino\]'") as caught:
        inferer_of("openvino", "cpu")
    assert user_error(caught.value) is caught.value


@pytest.mark.slow
def test_the_bundle_answers_as_with_pytorch(start: Start, network: nn.Module, data_dir: Path, tmp_path: Path) -> None:
    from fairlung.pipeline.networks.checkpoint import ModelSettings

    checkpoint = tmp_path / "best.pt"
    settings = ModelSettings(network="R3D18Classifier", **SMALL_SETTINGS).state_dict()
    torch.save({"model": network.state_dict(), "settings": settings}, checkpoint)
    tables = []
    for runtime in ("torch", "openvino"):
        output = tmp_path / runtime
        scans = str(data_dir / "chest_ct.nrrd")
        settings = {"checkpoint": str(checkpoint), "runtime": runtime, "device": "$torch.device('cpu')"}
        parser = run(start("inference", scans=scans, output_dir=str(output), **settings)).parser
        tables.append(pd.read_csv(output / "predictions.csv"))
        kept = [isinstance(handler, MemoryKeeper) for handler in parser.get_parsed_content("handlers")]
        assert sum(kept) == (runtime == "torch") and parser.get_parsed_content("batch_size") == 1
    assert tables[0]["status"].tolist() == ["ok"]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)
