"""Inference: the network alone in several runtimes with what they change, then whole scans against `evaluate.py`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from fairlung.pipeline.inference.runtimes import (
    AUTO,
    OPENVINO_PRECISIONS,
    TOLERANCE,
    RuntimeUnavailableError,
    import_openvino,
    kept_memory,
    openvino_network,
)

from . import bundle
from .harness import (
    Options,
    Result,
    Timing,
    alternate,
    arithmetic_limits,
    in_process,
    peak_of,
    ratio_text,
    seconds_text,
)
from .published import PublishedCode
from .scans import jpeg_scan
from .step import flops

CLASSES = bundle.SETTINGS["class_names"]
FULL, SMALL = (64, 224), (8, 64)
REPEATS = 3
DEFAULT = "channels_last_3d, freed memory kept (default)"


def onnx_network(net: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """The network in ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "network.onnx")
        torch.onnx.export(net.eval(), (example,), str(path), dynamo=True, external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def folded(net: nn.Module) -> nn.Module:
    """The network with each batch normalisation folded into the convolution before it."""
    from torch.fx.experimental.optimization import fuse

    return fuse(net.eval())


def autocast(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x)

    return run


def runtimes(x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> network, of those that this machine has."""
    made: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "plain": lambda: bundle.network().eval(),
        "channels_last_3d": lambda: bundle.network(True).eval(),
        DEFAULT: lambda: bundle.network(True).eval(),
        "folded, channels_last_3d": lambda: folded(bundle.network()).to(memory_format=torch.channels_last_3d),
        "bf16 autocast, channels_last_3d (runtime torch_bf16)": lambda: autocast(bundle.network(True).eval()),
        "OpenVINO float32 (runtime openvino)": lambda: openvino_network(bundle.network().eval(), x),
        "OpenVINO bfloat16 (runtime openvino_bf16)": lambda: openvino_network(bundle.network().eval(), x, "bf16"),
        "ONNX Runtime": lambda: onnx_network(bundle.network(), x),
    }
    found = {}
    for name, build in made.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = build()
        except (ImportError, RuntimeUnavailableError):
            continue
    return found


def measure(options: Options) -> Result:
    result = Result("inference")
    depth, side = SMALL if options.small else FULL
    repeats = options.repeats or REPEATS
    torch.manual_seed(0)
    x = torch.rand(1, 1, depth, side, side)
    result.limits = arithmetic_limits()
    operations = flops(bundle.network(True).eval(), x[:, :, : max(4, depth // 8)], backward=False)
    operations *= depth / max(4, depth // 8)
    networks = runtimes(x)
    with torch.inference_mode():
        logits = {name: network(x).float() for name, network in networks.items()}
        if options.published:
            code = PublishedCode(options.published)
            theirs = code.network(bundle.network()).eval()
            difference = float((theirs(x) - logits["plain"]).abs().max())
            if difference > 1e-4:
                raise AssertionError(f"the logits differ from the published network's by {difference:.1e}")
            result.equal["logits"] = f"within {difference:.1e} of the published network's"
            networks = {"published": theirs, **networks}
            logits["published"] = theirs(x)
        calls = {name: _call(network, x) for name, network in networks.items()}
        default = {DEFAULT: calls.pop(DEFAULT)}
        times = alternate(calls, repeats, warmup=0)
        with kept_memory():  # last: some stays kept when it has ended
            times |= alternate(default, repeats)
    for name, timing in times.items():
        kind = "bfloat16" if "bf" in name else "float32"
        rate = operations / timing.median / 1e9
        result.rows.append(
            {
                "what": f"network alone, {name}", "a scan": seconds_text(timing),
                "times plain": ratio_text(timing.ratio_of(times["plain"])),
                "times published": ratio_text(timing.ratio_of(times["published"])) if options.published else None,
                "GFLOP/s": f"{rate:.0f}",
                "share of matmul rate": f"{rate / result.limits[f'matmul_{kind}_gflops']:.0%} ({kind})",
                "largest change of a logit": f"{float((logits[name] - logits['plain']).abs().max()):.1e}",
            }
        )  # fmt: skip
    ratio = times[DEFAULT].ratio_of(times["plain"])[0]
    result.target("inference, network alone, default", "1.35x plain", f"{ratio:.3g}x", ratio >= 1.35)
    exact = {name: timing for name, timing in times.items() if name != "published" and "bf" not in name}
    fastest = min(exact, key=lambda name: exact[name].median)
    ratio = exact[fastest].ratio_of(times["plain"])[0]
    share = operations / exact[fastest].median / 1e9 / result.limits["matmul_float32_gflops"]
    result.target(
        "inference, network alone, fastest float32 setting", ">= 85 % of GEMM, 1.7x plain",
        f"{fastest}: {share:.0%}, {ratio:.3g}x", share >= 0.85 and ratio >= 1.7,
    )  # fmt: skip
    whole_scans(options, result)
    memory(options, result)
    result.notes.append(
        f"One scan, 1 x {depth} x {side} x {side}, batch 1; the default is timed after the others, which "
        "its kept memory would help too. bfloat16 rows are held against the bfloat16 rate. Logits of the plain "
        f"network are {', '.join(f'{value:.3g}' for value in logits['plain'][0].tolist())}."
    )
    return result


def _call(network: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        network(x)

    return run


# ---------------------------------------------------------------------------------------------------------------------
# whole scans
# ---------------------------------------------------------------------------------------------------------------------
def whole_scans(options: Options, result: Result) -> None:
    """JPEG scans in, answers out: `inference.yaml` against `evaluate.py`, each in its own process."""
    slices, size, number = (12, 64, 4) if options.small else (300, 512, 6)
    folder = options.scratch / f"inference_{slices}_{size}_{number}"
    for k in range(number):
        link = folder / "Val" / CLASSES[k % 4] / ("male", "female")[k // 4] / "scan"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.symlink(jpeg_scan(options.scratch, slices, size), link)
    model = bundle.checkpoint(options.scratch / "model.pt", bundle.network())
    sides: dict[str, tuple[Any, ...]] = {"ours": ("answer", str(folder), str(model), "torch")}
    if not options.small:
        sides["ours, keep_memory False"] = (*sides["ours"], False)
    with contextlib.suppress(RuntimeUnavailableError):
        import_openvino()
        anew = (*sides["ours"][:3], "openvino_bf16", True, False)
        sides |= {"ours, readers import anew, runtime openvino_bf16": anew} if not options.small else {}
        sides |= {f"ours, runtime {name}": (*sides["ours"][:3], name) for name in OPENVINO_PRECISIONS}
    sides |= {f"ours, runtime {name}": (*sides["ours"][:3], name) for name in ("torch_bf16", AUTO)}
    if options.published:
        sides["published"] = ("answer_published", str(folder), str(options.published))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(1 if options.small else options.repeats or REPEATS):
        for name, (function, *args) in sides.items():
            found[name].append(in_process("inference", function, *args))
    timings = {name: Timing([_later(run) for run in runs]) for name, runs in found.items()}
    for name, runs in found.items():
        result.extra[f"end to end, {name}"] = runs
        row = dict.fromkeys(result.rows[0])
        row["what"] = f"scans end to end, {name}"
        row["a scan"] = seconds_text(timings[name])
        if "published" in found:
            row["times published"] = ratio_text(timings[name].ratio_of(timings["published"]))
        result.rows.append(row)
        first, last = (min(run["stamps"][place] for run in runs) for place in (0, -1))
        batch, peak = number // len(runs[0]["stamps"]), min(run["peak"] for run in runs) / 1e9
        result.notes.append(
            f"End to end, {number} JPEG scans of {slices} slices in batches of {batch}, {name}: first answers after "
            f"{first:.3g} s, all after {last:.3g} s; peak memory {peak:.2f} GB in the process that computes."
        )
    result.notes.append("A scan end to end is the time between the first batch's answers and the last, by scans.")
    if "published" not in found:
        return
    for name in sides:
        pairs = zip(*(chain(*found[side][0]["probabilities"]) for side in (name, "published")), strict=True)
        difference = max(abs(a - b) for a, b in pairs)
        if difference > (TOLERANCE if name.endswith(("bf16", AUTO)) else 1e-4):
            raise AssertionError(f"{name}: probabilities differ from the published code's by {difference:.1e}")
        if name != "published":
            result.equal[f"probabilities end to end, {name}"] = f"within {difference:.1e}"
    said = {
        name: f"{name} {timing.ratio_of(timings['published'])[0]:.3g}x a scan, "
        f"{min(run['stamps'][-1] for run in found['published']) / min(run['stamps'][-1] for run in found[name]):.3g}x "
        f"all {number} with the start"
        for name, timing in timings.items() if name != "published"
    }  # fmt: skip
    result.target(
        "inference on JPEG scans end to end", "1.3x published evaluate", "; ".join(said.values()),
        timings["ours"].ratio_of(timings["published"])[0] >= 1.3,
    )  # fmt: skip


def _later(run: dict[str, Any]) -> float:
    """Seconds a scan after the first batch, in which everything starts."""
    later = len(run["probabilities"]) * (1 - 1 / len(run["stamps"]))
    return (run["stamps"][-1] - run["stamps"][0]) / later


def answer(folder: str, checkpoint: str, runtime: str, keep_memory: bool = True, forked: bool = True) -> dict[str, Any]:
    """inference.yaml on a folder; seconds to each batch's answers from where its scans begin to be read.

    ``forked``: the processes that read are forks of this one, as of a program of ours; else they import anew.
    """
    if forked:
        sys.argv[0] = "fairlung"
    with tempfile.TemporaryDirectory() as out:
        settings = {} if keep_memory else {"keep_memory": False}
        workflow = bundle.run_config(
            "inference.yaml", scans=folder, output_dir=out, checkpoint=checkpoint, runtime=runtime, **settings
        )
        workflow.initialize()
        probabilities: list[list[float]] = []
        stamps: list[float] = []
        evaluator = workflow.parser.get_parsed_content("evaluator")

        def answered(engine: Engine) -> None:
            stamps.append(time.perf_counter() - start)
            probabilities.extend(_softmax(engine.state.output))

        evaluator.add_event_handler(Events.ITERATION_COMPLETED, answered)
        start = time.perf_counter()
        found = peak_of(workflow.run)
    return {**found, "stamps": stamps, "probabilities": probabilities}


def _softmax(output: Any) -> list[list[float]]:
    rows = output["pred"] if isinstance(output, dict) else torch.stack([item["pred"] for item in output])
    return torch.softmax(rows.float(), dim=1).tolist()


def answer_published(folder: str, published: str) -> dict[str, Any]:
    """evaluate.py on the same scans."""
    code = PublishedCode(Path(published))
    script = code.evaluate
    probabilities: list[list[float]] = []
    stamps: list[float] = []
    softmax = torch.softmax

    def watched(outputs: Tensor, dim: int) -> Tensor:
        stamps.append(time.perf_counter() - start)
        probabilities.extend(softmax(outputs.float(), dim=dim).tolist())
        return softmax(outputs, dim=dim)

    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint = Path(out, "model.pth")
        torch.save(code.network(bundle.network()).state_dict(), checkpoint)
        # what it reports needs scans of every class and draws pictures; answering is what is timed
        script.classification_report = script.f1_score = script.confusion_matrix = _done
        torch.softmax = watched
        try:
            start = time.perf_counter()
            with contextlib.suppress(_Done), contextlib.redirect_stdout(io.StringIO()):
                found = peak_of(lambda: _evaluate(script, folder, checkpoint, out))
        finally:
            torch.softmax = softmax
    return {**found, "stamps": stamps, "probabilities": probabilities}


class _Done(Exception):
    """All scans are answered."""


def _done(*args: Any, **kwargs: Any) -> Any:
    raise _Done


def _evaluate(script: Any, folder: str, checkpoint: Path, out: str) -> None:
    with contextlib.suppress(_Done):
        script.evaluate(Namespace(data_dir=folder, checkpoint=str(checkpoint), output_dir=out, batch_size=2))


# ---------------------------------------------------------------------------------------------------------------------
# memory
# ---------------------------------------------------------------------------------------------------------------------
def memory(options: Options, result: Result) -> None:
    """Peak memory of reading a scan of 700 slices, above what the process held before, in processes of their own."""
    folder = jpeg_scan(options.scratch, 40 if options.small else 700, 128 if options.small else 512)
    ours = in_process("inference", "read_ours", str(folder))
    result.extra["memory_ours"] = ours
    measured, met = f"{ours['above'] / 1e6:.0f} MB", None
    if options.published:
        theirs = in_process("inference", "read_published", str(folder), str(options.published))
        result.extra["memory_published"] = theirs
        measured += f" against {theirs['above'] / 1e6:.0f} MB, 1/{theirs['above'] / ours['above']:.1f}"
        met = ours["above"] * 5 <= theirs["above"]
    result.target("peak memory of reading 700 slices", "1/5 of published", measured, met)


def read_ours(folder: str) -> dict[str, float]:
    preprocessing = bundle.parts("preprocessing", config="inference.yaml", checkpoints=[], model=_model())[0]
    preprocessing({"image": str(jpeg_warm(folder))})
    return peak_of(lambda: preprocessing({"image": folder}))


def _model() -> dict[str, Any]:
    """The settings that inference.yaml takes from a checkpoint, of train.yaml."""
    from fairlung.pipeline.networks.checkpoint import model_settings

    return model_settings("", bundle.CONFIGS / "train.yaml")


def jpeg_warm(folder: str) -> Path:
    """A short scan, so that libraries are loaded before anything is measured."""
    return jpeg_scan(Path(folder).parent, 12, 64)


def read_published(folder: str, published: str) -> dict[str, float]:
    code = PublishedCode(Path(published))
    code.scans([jpeg_warm(folder)])[0]
    return peak_of(lambda: code.scans([Path(folder)])[0])
