"""The settings of the bundle's configs: what each is, what it may be, and what the command line said of it.

The configs hold their values. A top-level entry whose name is a field of :class:`Settings` is checked before anything
is built (:func:`~.config.check_settings`). ``fairlung settings`` shows them.
"""

import ast
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval, Len
from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .errors import UserError


class SettingError(UserError, ValueError):
    """A setting has a value that it cannot have; a line for each, with the value."""


def _device(value: Any) -> Any:
    """A device, of which a text is the name; ValueError when this machine has none of the name."""
    import torch

    if isinstance(value, torch.device):
        return value
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except Exception as error:  # torch raises a kind for each sort of device
        reason = str(error).splitlines()[0]
        raise ValueError(f"must be a device of this machine, such as cpu, got {value!r} ({reason})") from error
    return device


def _writable(value: str) -> str:
    """The path of a folder that is there or can be made."""
    there = next(path for path in (Path(value).absolute(), *Path(value).absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        kind = "cannot be written to" if there.is_dir() else "is a file"
        raise ValueError(f"must be a folder that can be written, got {value!r}: {there} {kind}")
    return value


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError(f"must name each once, got {values!r}")
    return values


def _rising(values: list[float]) -> list[float]:
    if any(low >= high for low, high in pairwise(values)):
        raise ValueError(f"must rise, got {values!r}")
    return values


Whole = Annotated[int, Interval(ge=0)]
Positive = Annotated[int, Interval(ge=1)]
Seconds = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Device = Annotated[Any, BeforeValidator(_device)]
Folder = Annotated[str, AfterValidator(_writable)]
Names = Annotated[list[str], AfterValidator(_distinct)]
Rising = Annotated[list[float], AfterValidator(_rising)]
Frequencies = dict[str, float]


class Settings(TypedDict, total=False):
    """Every setting of train.yaml, evaluate.yaml, inference.yaml and the overlays on them, by the name of its entry.

    A config has some of them. What is declared as text is taken from the command line as it was typed.
    """

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)  # type: ignore[misc]

    # ---- what is read and written
    bundle_root: Annotated[str, "folder of the bundle"]
    cohort: Annotated[str, "the data set: a CSV with scan, label, sex, split and more"]
    columns: Annotated[str, "what the cohort's CSV calls its columns otherwise, such as path=scan,gender=sex"]
    patient_key: Annotated[
        str | None, "a file with a key: patients are the same digests in every run; null: a run's own"
    ]
    scans: Annotated[str, "new scans: a folder tree, one scan, an archive, or a CSV of paths; or an address (s3://...)"]
    output_dir: Annotated[Folder, "folder for all that a run writes"]
    overwrite: Annotated[bool, "train into an output_dir that already holds a training"]
    resume: Annotated[bool, "go on with a training that was interrupted; where there is none, begin"]
    save_on_sigterm: Annotated[bool, "SIGTERM saves after the step, for a training that is resumed"]
    pretrained: Annotated[bool, "start from published weights, which are fetched once"]
    weights: Annotated[str | None, "which: a name of `fairlung weights list`, or a file; null: the network's own"]
    train_layers: Annotated[
        Literal["all", "head", "frozen"], "what a training changes; head: a linear probe; frozen: on cached features"
    ]
    views: Annotated[Whole, "frozen features: augmented views of a scan beside the test-time crop"]
    body_seed: Annotated[Whole, "frozen features: seed of a body without published weights"]
    feature_precision: Annotated[Literal["float32", "bfloat16"], "frozen features: in what they are computed"]
    model_file: Annotated[str, "the best checkpoint is also put here for inference; empty: nowhere"]
    checkpoint: Annotated[str | list[str], "the trained model; inference takes a list or a pattern too"]
    replace_model: Annotated[bool, "put the best checkpoint at model_file in place of another run's"]
    keep_checkpoints: Annotated[Positive | None, "how many of the epochs' checkpoints to keep; null: all"]
    cache_dir: Annotated[str | None, "preprocessed volumes, shared by runs; empty: no cache"]
    cache_limit: Annotated[Annotated[float, Interval(gt=0)] | None, "GB that cache_dir may hold; null: no limit"]
    cache_in_memory: Annotated[bool, "keep the volumes in memory too"]

    # ---- MLflow
    tracking_uri: Annotated[str | None, "address of MLflow; null: its own choice; empty: no tracking"]
    experiment: Annotated[str, "experiment in MLflow"]
    system: Annotated[str, "what the objective is called in MLflow and reports"]
    run_name: Annotated[str, "name of the run in MLflow"]
    parent_run: Annotated[str | None, "id of the MLflow run to nest this one under"]
    tags: Annotated[dict[str, Any], "more tags in MLflow, {name: value}"]
    system_metrics: Annotated[bool, "log the load of CPU, memory and GPU to MLflow"]
    register: Annotated[str, "also register the judged checkpoint in MLflow under this name; empty: do not"]

    # ---- classes and groups
    class_names: Annotated[Names, Len(2), "classes, in the order of the network's outputs"]
    group_by: Annotated[str | Names, "the cohort's column of groups; of several, every combination is a group"]
    group_names: Annotated[Names | None, "groups in order, the gap is first minus second; null: those that occur"]
    age_bands: Annotated[
        Annotated[list[int], AfterValidator(_rising)] | None, "edges in whole years of the column age_band"
    ]
    unknown_groups: Annotated[Literal["leave_out", "own_group"], "what becomes of scans of unknown group"]
    min_cell: Annotated[Whole, "training scans of a group or cell below which a warning is given"]
    small_groups: Annotated[Literal["keep", "leave_out"], "groups below min_cell in the aggregation of the training"]
    allow_empty_cells: Annotated[bool, "train although a split has no scan of some class and group"]
    required_splits: Annotated[list[str], "splits that the cohort must have; evaluate.yaml names its own"]
    metric_prefix: Annotated[str, "prefix of the metrics' names; evaluate.yaml names its own"]

    # ---- objective
    alpha: Annotated[float, Interval(gt=0, le=1), "CVaR over G groups: 1 their mean, 1/G the worst alone"]
    tau: Annotated[float, Interval(ge=0), "logit adjustment; 0: none"]
    gradient: Annotated[Literal["exact", "published"], "of CVaR; published reproduces the authors' code"]
    alpha_inner: Annotated[float, Interval(gt=0, le=1), "CVaR over the scans of a group (daw_fdd)"]
    gamma: Annotated[
        float,
        Interval(ge=0),
        "focal: focusing parameter, 0 or from 1; eql: chance of a mask, to 1; site_head, disentangled, "
        "individual_fairness: weight of the source, group or pair loss",
    ]
    rare_below: Annotated[Share, "share of the training scans below which a class is rare (eql)"]
    eta: Annotated[
        float, Interval(gt=0), "step size of the groups' weights (group_dro), penalty on unequal ones (kl_dro)"
    ]
    contrast: Annotated[float, Interval(ge=0), "weight of the contrastive loss of the features' halves (disentangled)"]
    contrast_margin: Annotated[
        float, Interval(ge=0), "how much nearer than others a scan's own class or group is to be (disentangled)"
    ]
    lipschitz: Annotated[
        float, Interval(ge=0), "how far answers may differ per distance of their spectra (individual_fairness)"
    ]
    max_margin: Annotated[float, Interval(ge=0), "margin of the rarest class (ldam) or group (disentangled)"]
    logit_scale: Annotated[float, Interval(gt=0), "factor of the logits (ldam), the groups' (disentangled)"]
    estimator: Annotated[Literal["batch", "running"], "of the groups' losses (recommended)"]
    momentum: Annotated[float, Interval(ge=0, lt=1), "weight of the past in running estimates (recommended, kl_dro)"]

    # ---- recipe
    epochs: Annotated[Positive, "passes over the training scans"]
    batch_size: Annotated[Positive, "scans at a time in the network"]
    accumulate: Annotated[Positive, "batches of an optimiser step, weighed as one"]
    every_group: Annotated[bool, "every group in every batch, all groups equally often"]
    every_cell: Annotated[bool, "every class of every group in every batch, all equally often"]
    rho: Annotated[float, Interval(ge=0), "how far SAM climbs before it takes the gradient; 0: not at all (sam)"]
    learning_rate: Annotated[float, Interval(gt=0), "of the optimiser, at the start"]
    weight_decay: Annotated[float, Interval(ge=0), "of the optimiser"]
    cosine_epochs: Annotated[Positive, "epochs until the learning rate is 0"]
    dropout: Annotated[float, Interval(ge=0, lt=1), "share of the features that a training step leaves out"]
    amp: Annotated[bool, "mixed precision: float16 on CUDA, bfloat16 on a CPU"]
    max_bad_steps: Annotated[Positive, "steps in a row that are not finite, before the training ends with an error"]
    seed: Annotated[Whole, "same seed, same training"]
    val_interval: Annotated[Positive, "epochs from one validation to the next"]
    key_metric: Annotated[str, "chooses the best checkpoint: val_score is P, the mean of the groups' F1"]
    device: Annotated[Device, "cpu, cuda or cuda:N"]
    backend: Annotated[
        Literal["nccl", "gloo", "mpi", "ucc"], "how several processes talk (multi_gpu_train, multi_gpu_inference)"
    ]
    num_workers: Annotated[Whole, "processes that read scans; 0: none beside this one"]
    encoder_mode: Annotated[Literal["freeze", "recompute", "full"], "how the encoder is trained (cnn_rnn, racnet)"]
    chunk: Annotated[Positive, "slices encoded at a time (cnn_rnn, racnet)"]

    # ---- volumes
    window: Annotated[Rising, Len(2, 2), "HU that become 0 and 1"]
    min_slices: Annotated[Positive, "scans of fewer slices are refused"]
    trim_fraction: Annotated[float, Interval(ge=0, lt=0.5), "share of the slices dropped at each end"]
    num_slices: Annotated[Positive, "slices of a volume"]
    image_size: Annotated[Positive, "pixels of a slice along each side, before it is cropped"]
    fast_decode: Annotated[bool, "JPEG slices are shrunk while they are decoded: faster, grey levels differ a little"]
    crop_size: Annotated[Positive, "pixels of a slice along each side in the network"]
    flip_prob: Annotated[Share, "how often a training volume is mirrored left to right"]
    rotation_prob: Annotated[Share, "how often a training volume is turned by a multiple of 90 degrees"]
    brightness: Annotated[Share, "training volumes are multiplied by 1 - this to 1 + this"]
    brightness_prob: Annotated[Share, "how often the brightness of a training volume is changed"]

    # ---- evaluation
    split: Annotated[str, "split of the cohort that is judged"]
    confidence: Annotated[float, Interval(gt=0, lt=1), "of the audit's intervals"]
    resamples: Annotated[int, Interval(ge=100), "bootstrap draws, and permutations, of the audit"]
    margin: Annotated[float | None, Interval(gt=0, lt=1), "gap within which the groups count as served alike"]
    error_images: Annotated[Whole, "pictures of the worst errors"]
    report: Annotated[bool, "write report.html, report.md and confusion.png"]
    save_features: Annotated[bool, "write the network's features of each scan, for fairlung probe: features.npz"]
    duplicates: Annotated[str | None, "also save features, and search this split, such as train, for the same patients"]

    # ---- inference
    all_series: Annotated[bool, "answer every DICOM series of a folder, not the chest CT among them alone"]
    overlay: Annotated[bool, "write a montage a scan, and what the answer looked at as NIfTI"]
    dicom_out: Annotated[bool, "write the answer as a DICOM report, the montage as secondary capture"]
    dicom_identity: Annotated[Literal["remove", "keep"], "keep: DICOM with the name and ID of the scan's patient"]
    pseudonymize: Annotated[str | None, "a file with a key: scans are named by keyed digests; null: by name"]
    one_per_study: Annotated[bool, "answer one CT a study, whichever of its folders it lies in"]
    flip_tta: Annotated[bool, "also show each volume mirrored, and average: twice the time"]
    prevalence: Annotated[Frequencies | list[str] | None, "class frequencies where the model works, {class: number}"]
    trained_prevalence: Annotated[Frequencies | list[str] | None, "those under which it answers; null: even"]
    append: Annotated[bool, "keep the rows of a predictions.csv that is there, and add to it"]
    watch: Annotated[bool, "go on answering what comes into the folder scans, until stopped"]
    quiet_seconds: Annotated[Seconds, "watch: a study is complete when nothing in it has changed for so long"]
    poll_seconds: Annotated[float, Interval(gt=0), "watch: between two looks at the folder"]
    idle_seconds: Annotated[Seconds | None, "watch: stop when nothing new has come for so long; null: never"]
    ray_address: Annotated[str | None, "HOST:PORT of a Ray cluster (ray_inference); null: one of this machine alone"]
    cpus_per_reader: Annotated[float, Interval(gt=0), "ray_inference: cores that the reading of one scan takes"]
    gpus_per_model: Annotated[
        Annotated[int, Interval(ge=0, le=1)] | None, "ray_inference: GPUs of a network; null: 1 where there are GPUs"
    ]
    models: Annotated[Positive | None, "ray_inference: networks at once; null: one a GPU, or one for two cores"]
    read_timeout: Annotated[float, Interval(gt=0), "seconds that one scan may take to be read"]
    runtime: Annotated[
        Literal["torch", "torch_bf16", "openvino", "openvino_bf16", "auto"],
        "what computes, torch alone on a GPU; auto: the fastest whose answers on two phantoms are near torch's",
    ]
    keep_memory: Annotated[bool, "what a layer frees is kept for the next: faster, takes more memory"]
    page_pictures: Annotated[Whole, "pictures in the page of fairlung check at most"]


KINDS: Mapping[str, Any] = get_type_hints(Settings, include_extras=True)


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings, a device's name as a torch.device; those of other names are left out.

    SettingError, with all of them, when some are of another type or out of range.
    """
    given = {name: _lists(value) for name, value in values.items() if name in KINDS}
    try:
        checked = _checker().validate_python(given)
    except ValidationError as error:
        said = {}
        for one in error.errors(include_url=False):
            name, own = str(one["loc"][0]), one.get("ctx", {}).get("error")  # what a check of ours raised
            said[name] = f"{name} {own or f'must be {kind_text(KINDS[name])}, got {given[name]!r}'}"
        raise SettingError("\n".join(said[name] for name in given if name in said)) from None
    if {"crop_size", "image_size"} <= checked.keys() and checked["crop_size"] > checked["image_size"]:
        raise SettingError(
            f"crop_size must be at most image_size = {checked['image_size']}, got {checked['crop_size']}"
        )
    return dict(checked)


@cache
def _checker() -> TypeAdapter[Settings]:
    return TypeAdapter(Settings)


def _lists(value: Any) -> Any:
    """Lists for the tuples that python-fire makes of ``a,b``."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def kind_text(kind: Any) -> str:
    """What a setting may be, in words: ``in [0, 1)``, ``a whole number of at least 1 or null``."""
    base, *rules = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    inner = get_args(base)
    if get_origin(base) in (Union, UnionType):
        return " or ".join(map(kind_text, inner))
    if get_origin(base) is Literal:
        return f"one of {', '.join(inner)}"
    if get_origin(base) is list:
        length = next((rule for rule in rules if isinstance(rule, Len)), Len())
        count = (
            f"{length.min_length} " if length.max_length else f"{length.min_length} or more " * bool(length.min_length)
        )
        return f"a list of {count}{'texts' if inner[0] is str else 'numbers'}"
    if base in (int, float):
        return _number_text(base, next((rule for rule in rules if isinstance(rule, Interval)), Interval()))
    names = {bool: "true or false", str: "text", NoneType: "null", Any: "a device"}
    return names.get(base, "{name: value}")


def _number_text(base: type, limits: Interval) -> str:
    above = limits.lt if limits.le is None else limits.le
    if above is not None:
        low = f"({limits.gt:g}" if limits.ge is None else f"[{limits.ge:g}"  # type: ignore[str-format]
        found = f"in {low}, {above:g}{')' if limits.le is None else ']'}"  # type: ignore[str-format]
    else:
        found = "positive" if limits.ge is None else f"at least {limits.ge:g}"  # type: ignore[str-format]
    return f"a whole number of {found}" if base is int else found


def settings_text(config: Mapping[str, Any]) -> str:
    """The settings of a config, each with its value, what it is and what it may be."""
    lines = []
    for name in (name for name in config if name in KINDS):
        lines.append(f"--{name} {json.dumps(config[name], default=str)}")
        lines.append(f"      {KINDS[name].__metadata__[-1]} ({kind_text(KINDS[name])})")
    return "\n".join(lines)


# ---- the command line ------------------------------------------------------------------------------------------------
def is_bundle_run() -> bool:
    """Whether this process is ``python -m monai.bundle``."""
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def typed_settings() -> dict[str, Any]:
    """What this ``python -m monai.bundle run`` was told of settings, as it was typed; {} in any other process.

    python-fire cuts a word at ``#``, and makes a number of ``12`` or ``2026_11`` and a tuple of ``Roe,Jane``; MONAI
    makes ``::`` of ``#``, and passes over None. Here are the settings that take a text, as that text unless it is
    quoted, lists and mappings with a ``#`` in them, and None. Left out is what MONAI has to evaluate: ``$...``,
    ``@...`` and ``%...``. SettingError: a ``#`` in a list or mapping outside quotes.
    """
    if not is_bundle_run():
        return {}
    typed: dict[str, Any] = {}
    for name, text in _flags(sys.argv[2:]).items():
        if name not in KINDS or is_expression(text):
            continue
        base = get_args(KINDS[name])[0]
        value: Any = None
        if text != "null":
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = text
        if value is None or ("#" in text and isinstance(value, (list, tuple, dict))):
            typed[name] = value
        elif (base is str or str in get_args(base)) and text[:1] not in ("[", "("):
            typed[name] = value if isinstance(value, str) else text
        elif "#" in text:
            raise SettingError(f"{name}: a text that holds # must be in quotes, got {text}")
    return typed


def _flags(words: list[str]) -> dict[str, str]:
    """The words of a command line by the name of their flag, as python-fire pairs them.

    SettingError: one is there twice; python-fire would take the last and say nothing.
    """
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if re.match(r"--|-[a-zA-Z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            if equals or not re.match(r"--|-[a-zA-Z]", following):
                name, value = name.replace("-", "_"), value if equals else following
                if name in found:
                    raise SettingError(f"{name} is given twice: {found[name]} and {value}")
                found[name] = value
    return found


def is_expression(value: Any) -> bool:
    """Whether MONAI evaluates a value, or something in it, instead of taking it as it is."""
    if isinstance(value, (Mapping, list, tuple)):
        return any(map(is_expression, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def verbatim(value: Any) -> Any:
    """A text for a workflow that is made in Python, as an expression where MONAI would not leave it as it is."""
    if not isinstance(value, str) or not ("#" in value or is_expression(value)):
        return value
    return "$" + ascii(value).replace("#", r"\x23").replace("@", r"\x40")
