"""What the bundle's configs call to look at themselves: the settings in force, and overrides nobody reads."""

import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY, MERGE_KEY
from tqdm.contrib.logging import logging_redirect_tqdm

from .bundle import check_version
from .claims import end_in_order
from .distributed import is_primary, world_size
from .errors import UserError, show_errors_in_a_line
from .references import read_by, references, unread_by_objective
from .settings import KINDS, SettingError, check_values, is_expression, settings_text, typed_settings
from .text import did_you_mean, without_login

# where and how a training runs, not what it computes: a training that is resumed may change them
RUN_SETTINGS = (
    "bundle_root", "cohort", "output_dir", "overwrite", "resume", "weights", "tracking_uri", "experiment", "run_name",
    "parent_run", "tags", "system_metrics", "keep_checkpoints", "model_file", "replace_model", "device", "num_workers",
    "cache_dir", "cache_limit", "cache_in_memory", "max_bad_steps", "save_on_sigterm", "pseudonymize", "pseudonyms",
    "patient_key",
)  # fmt: skip

_UNTIL_EXIT = ExitStack()
Running = TypeVar("Running", ConfigParser, ConfigWorkflow)


class UnknownSettingError(UserError, ValueError):
    """An override or config entry that nothing reads; says the nearest valid name."""


def _running(kind: type[Running]) -> Running:
    """The parser or workflow whose expression is being evaluated: MONAI tells it to none, so look among the callers."""
    for frame, _ in traceback.walk_stack(sys._getframe()):
        if isinstance(owner := frame.f_locals.get("self"), kind):
            return owner
    raise RuntimeError(f"no {kind.__name__} is evaluating an expression")


def run_name(system: str, **settings: Any) -> str:
    """A run in a line, ``LA+CVaR R3D18 alpha 0.8 tau 1.0 exact seed 42``; what its loss does not read is left out."""
    config = _running(ConfigParser).config
    unread = unread_by_objective(config)
    shown = {name: value for name, value in settings.items() if value is not None and name not in unread}
    named = [system, network_name(config).removesuffix("Classifier")]
    named += [str(v) if name == "gradient" else f"{name} {v}" for name, v in shown.items()]
    return " ".join(filter(None, named))


def network_name(config: dict[str, Any]) -> str:
    """What the network of a config is called, such as ``R3D18Classifier``; "" where the config does not say."""
    target = config["network_def"].get("_target_", "") if isinstance(config.get("network_def"), dict) else ""
    return target.rpartition(".")[2]


def check_settings() -> None:
    """Stop on any entry of the running config that nothing reads, such as a mistyped override, and on any wrong value.

    MONAI accepts ``--lrr 1e-3``, adds an entry ``lrr`` and ignores it. Here every entry, of sections too, must be
    referenced by another one, be an instruction list, or be declared by one of the merged config files (not every
    overlay uses all of train.yaml). A setting that the objective does not read must be as train.yaml has it: plain
    cross-entropy with ``--alpha 0.7`` is refused. Every other setting must be what :class:`~.settings.Settings` says.
    ``--help`` shows the settings and ends the process.

    Raises:
        UnknownSettingError: all entries that nothing reads.
        SettingError: all values that do not fit.
    """
    show_errors_in_a_line()  # from now on the process ends on an error in a line
    end_in_order()
    if sys.stderr.isatty():
        _UNTIL_EXIT.enter_context(logging_redirect_tqdm())  # a line of the log does not end in a progress bar
    workflow = _running(ConfigWorkflow)
    typed = typed_settings()
    for name in typed.keys() & workflow.parser.config.keys():
        _settle(workflow.parser, name, typed[name])
    config = resolved_config()
    if isinstance(root := config.get("bundle_root"), str) and not is_expression(root):
        check_version(root, required=config.get("loss") is not None)
    if config.pop("help", False):
        print(settings_text(config))
        sys.exit(0)
    referenced = set(references(config))
    files = _merged_files(workflow.config_root_path, config)
    passed = _instructions(workflow) | {entry for content in files for entry in _entries(content)}
    unread = [entry for entry in _entries(config) if entry not in passed and not _is_read(entry, referenced)]
    if unread:
        listed = ", ".join(f"{entry!r}{_nearest(entry, config, unread)}" for entry in unread)
        raise UnknownSettingError(f"unknown setting, nothing in the config reads it: {listed}")
    _refuse_replaced_sections(config, files)
    if config.get("loss") is not None:  # inference and evaluation have none
        _refuse_unread_settings(config, workflow.config_root_path / "train.yaml")
        _refuse_unread_weights(config)
    _check_values(workflow.parser, typed)
    show_errors_in_a_line(_if_interrupted(config, workflow.parser))


def _settle(parser: ConfigParser, name: str, value: Any) -> None:
    """Give a setting its value, past MONAI, which makes ``::`` of ``#`` whenever it resolves a text."""
    parser.config[name] = value
    parser.ref_resolver.resolved_content[name] = value


def _check_values(parser: ConfigParser, typed: Mapping[str, Any]) -> None:
    """SettingError unless every setting is as declared; an expression is evaluated if it reads settings alone.

    What it reads besides, such as a checkpoint's settings, is not there yet, and no user's to set.
    """
    config = resolved_config()
    unread = unread_by_objective(config)
    names = [name for name in config if name in KINDS and name not in unread]
    computed = [name for name in names if name not in typed and is_expression(config[name])]
    values = {name: config[name] for name in names if name not in computed}
    for name in values.keys() - typed.keys():
        if ID_SEP_KEY in str(values[name]):
            said = "MONAI makes that of every # in a file, so use the command line, or a text without"
            raise SettingError(f"{name} holds ::, got {values[name]!r}; {said}")
    checked = check_values(values)
    if "device" in checked:  # a text became a device
        parser.ref_resolver.resolved_content["device"] = checked["device"]
    for name in computed:
        if {entry.split(ID_SEP_KEY)[0] for entry in read_by(name, config)} <= KINDS.keys():
            values[name] = parser.get_parsed_content(name)
    check_values(values)


def _if_interrupted(config: Mapping[str, Any], parser: ConfigParser) -> str:
    """What to say when a user stops the run."""
    if config.get("loss") is not None:
        return "interrupted; --resume True goes on after the last epoch that was finished"
    if "scans" in config and "predictions" in config:
        table = Path(parser.get_parsed_content("output_dir"), "predictions.csv")
        kept = table if parser.get_parsed_content("append") else f"{table}.part"
        return f"interrupted; the answers so far are in {kept}; --append True goes on with those in {table}"
    return "interrupted"


def _refuse_replaced_sections(config: Mapping[str, Any], files: Iterable[Mapping[str, Any]]) -> None:
    """SettingError for a plain value where the files have a section, such as ``--optimizer AdamW``."""
    sections = {name for content in files for name, value in content.items() if isinstance(value, (dict, list))}
    for name in sections - KINDS.keys():
        if isinstance(value := config.get(name), (str, int, float)) and not is_expression(value):
            how = f"replace one of its entries, such as --{name}::_target_ torch.optim.AdamW"
            raise SettingError(f"{name} is a section of the config, got {value!r}; {how}")


def _refuse_unread_settings(config: dict[str, Any], defaults: Path) -> None:
    """UnknownSettingError when a setting was changed that the objective does not read."""
    default = ConfigParser.load_config_file(defaults) if defaults.is_file() else {}
    changed = [name for name in unread_by_objective(config) if config.get(name) not in (None, default.get(name))]
    if changed:
        listed = ", ".join(f"{name} is {config[name]}" for name in changed)
        objective = f"the objective ({config.get('system', 'loss_function')})"
        raise UnknownSettingError(f"{objective} reads no such setting: {listed}; leave it out, or make it null")


def _refuse_unread_weights(config: dict[str, Any]) -> None:
    """UnknownSettingError when weights are named and the network is none that starts from them."""
    read = {entry.split(ID_SEP_KEY)[0] for entry in read_by("network_def", config)}
    if config.get("weights") is not None and not read & {"weights", "initial_weights"}:
        name = network_name(config) or "the network"
        raise UnknownSettingError(f"{name} reads no weights: weights is {config['weights']}; leave it out")


def _instructions(workflow: ConfigWorkflow) -> set[str]:
    """Entries that the workflow executes: nothing reads them, and reading them would run them."""
    return {"imports", "start_processes", workflow.init_id, workflow.run_id, workflow.final_id}


def _nearest(entry: str, config: dict[str, Any], unread: list[str]) -> str:
    """A hint at the most similar name of a plain setting, or, for an id inside a section, of any entry."""
    valid = [name for name in _entries(config) if name not in unread]
    plain = [name for name in valid if not isinstance(config.get(name, {}), dict)]
    return did_you_mean(entry, valid if ID_SEP_KEY in entry else plain, cutoff=0)


def _merged_files(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The folder's config files that were merged: each whose top-level entries are all there, without its ``+``."""
    contents = []
    for path in folder.glob("*.yaml"):
        content = {key.removeprefix(MERGE_KEY): value for key, value in ConfigParser.load_config_file(path).items()}
        if {ReferenceResolver.split_id(key)[0] for key in content} <= set(config):
            contents.append(content)
    return contents


def _entries(config: dict, prefix: str = "") -> Iterator[str]:
    """Ids of all entries down to the first value that is no plain section."""
    for key, value in config.items():
        entry = f"{prefix}{key}"
        section = isinstance(value, dict) and "_target_" not in value
        if section and any(isinstance(item, (list, dict)) for item in value.values()):
            yield from _entries(value, entry + ID_SEP_KEY)
        else:
            yield entry


def _is_read(entry: str, referenced: set[str]) -> bool:
    parts = entry.split(ID_SEP_KEY)
    above = {ID_SEP_KEY.join(parts[: i + 1]) for i in range(len(parts))}
    return bool(above & referenced) or any(other.startswith(entry + ID_SEP_KEY) for other in referenced)


def resolved_config() -> dict[str, Any]:
    """The running config as merged: files, overlays and overrides, expressions unevaluated."""
    parser = _running(ConfigWorkflow).parser
    return {key: value for key, value in parser.config.items() if key != parser.meta_key}


def literal_parser(config: Mapping[str, Any]) -> ConfigParser:
    """A parser of a running config, for another process: its settings stay what they are, also with a ``#`` in them."""
    parser = ConfigParser(deepcopy({**config}))  # MONAI writes into it
    parser.parse()
    for name in config.keys() & KINDS.keys():
        if not is_expression(value := config[name]):
            _settle(parser, name, torch.device(value) if name == "device" else value)
    return parser


def training_config() -> dict[str, str]:
    """Every entry of the running config that a training's numbers depend on, as JSON text, and how many processes."""
    config = resolved_config()
    instructions = _instructions(_running(ConfigWorkflow))
    return {"processes": str(world_size())} | {
        key: json.dumps(value, sort_keys=True, default=str)
        for key, value in config.items()
        if key not in RUN_SETTINGS and key not in instructions
    }


def resolved_settings() -> dict[str, Any]:
    """Every plain top-level setting that is read, with its value: what a user can override by name; and the network."""
    workflow = _running(ConfigWorkflow)
    config = resolved_config()
    passed_over = _instructions(workflow) | set(unread_by_objective(config))
    names = [key for key, value in config.items() if key not in passed_over and not isinstance(value, dict)]
    settings = {name: workflow.parser.get_parsed_content(name) for name in names}
    plain = {name: content for name, content in settings.items() if _is_plain(content)}
    network = network_name(config)
    return {"network": network, **plain} if network else plain


def write_settings(path: str | Path) -> None:
    """Write :func:`resolved_settings` as JSON, logins of addresses left out."""
    if is_primary():
        settings = {k: without_login(v) if isinstance(v, str) else v for k, v in resolved_settings().items()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(settings, indent=2) + "\n")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple)):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (str, int, float, bool))
