"""The declared settings: they are the configs', refuse what cannot be meant, and take a text as it was typed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fire
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from workflows import Start, cause

from fairlung.pipeline.common.settings import (
    KINDS,
    SettingError,
    check_values,
    is_expression,
    kind_text,
    settings_text,
    verbatim,
)

CONFIGS = Path(__file__).parents[3] / "bundles" / "fair_lung_ct" / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
INSTRUCTIONS = {"imports", "initialize", "run", "finalize", "start_processes", "handlers", "augmentation", "pauses"}
EMPTIED = {"loss", "class_counts"}  # sections that evaluate.yaml makes null


def plain(path: Path) -> dict[str, Any]:
    """The top-level entries of a config that hold a value, neither a section nor what is computed."""
    content = yaml.safe_load(path.read_text())
    named = {name: value for name, value in content.items() if "::" not in name and not name.startswith("+")}
    return {
        name: value
        for name, value in named.items()
        if name not in INSTRUCTIONS | EMPTIED and not is_expression(value) and not (isinstance(value, dict) and value)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_setting_of_a_config_is_declared_and_its_default_fits(path: Path) -> None:
    values = plain(path)
    assert set(values) <= set(KINDS)
    assert set(check_values(values)) == set(values)


def test_every_declared_setting_is_in_a_config() -> None:
    named = {name for path in FILES for name in yaml.safe_load(path.read_text())}
    assert set(KINDS) - named == set()


def test_every_setting_says_what_it_is_and_may_be() -> None:
    text = settings_text(dict.fromkeys(KINDS))
    assert text.count("\n") + 1 == 2 * len(KINDS)
    assert "--dropout null\n      share of" in text and "(in [0, 1))" in text
    assert all(kind_text(kind) for kind in KINDS.values())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"epochs": "two"}, "epochs must be a whole number of at least 1, got 'two'"),
    ({"epochs": 2.0}, "epochs must be a whole number of at least 1, got 2.0"),
    ({"epochs": True}, "epochs must be a whole number of at least 1, got True"),
    ({"learning_rate": -1}, "learning_rate must be positive, got -1"),
    ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
    ({"weight_decay": math.inf}, "weight_decay must be at least 0, got inf"),
    ({"num_workers": -1}, "num_workers must be a whole number of at least 0, got -1"),
    ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
    ({"alpha": 0}, "alpha must be in (0, 1], got 0"),
    ({"trim_fraction": 0.5}, "trim_fraction must be in [0, 0.5), got 0.5"),
    ({"crop_size": 300, "image_size": 256}, "crop_size must be at most image_size = 256, got 300"),
    ({"cache_in_memory": "yes"}, "cache_in_memory must be true or false, got 'yes'"),
    ({"every_group": 1}, "every_group must be true or false, got 1"),
    ({"every_cell": 1}, "every_cell must be true or false, got 1"),
    ({"rho": -0.1}, "rho must be at least 0, got -0.1"),
    ({"rare_below": 1.5}, "rare_below must be in [0, 1], got 1.5"),
    ({"eta": 0}, "eta must be positive, got 0"),
    ({"pretrained": "maybe"}, "pretrained must be true or false, got 'maybe'"),
    ({"train_layers": "heads"}, "train_layers must be one of all, head, frozen, got 'heads'"),
    ({"resume": "yes"}, "resume must be true or false, got 'yes'"),
    ({"overlay": "yes"}, "overlay must be true or false, got 'yes'"),
    ({"keep_checkpoints": 0}, "keep_checkpoints must be a whole number of at least 1 or null, got 0"),
    ({"gradient": "exakt"}, "gradient must be one of exact, published, got 'exakt'"),
    ({"window": [150, -1350]}, "window must rise, got [150.0, -1350.0]"),
    ({"window": [-1350]}, "window must be a list of 2 numbers, got [-1350]"),
    ({"class_names": ["normal"]}, "class_names must be a list of 2 or more texts, got ['normal']"),
    ({"class_names": [True, False]}, "class_names must be a list of 2 or more texts, got [True, False]"),
    ({"class_names": ["a", "b", "a"]}, "class_names must name each once, got ['a', 'b', 'a']"),
    ({"cohort": None}, "cohort must be text, got None"),
    ({"scans": 12}, "scans must be text, got 12"),
    ({"prevalence": {"normal": "half"}}, "prevalence must be {name: value} or a list of texts or null, got "),
    ({"device": "gpu"}, "device must be a device of this machine, such as cpu, got 'gpu'"),
    ({"device": "cuda:99"}, "device must be a device of this machine, such as cpu, got 'cuda:99'"),
]


@pytest.mark.fault(
    "wrong", "a setting of another type or out of range", before="taken, or ended in 60 lines of stack",
    now="refused by name before a scan is read",
)  # fmt: skip
@pytest.mark.parametrize(("values", "said"), WRONG, ids=[str(values) for values, _ in WRONG])
def test_a_value_that_cannot_be_meant_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_values(values)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        check_values({"epochs": 0, "tau": -1, "seed": 3, "someone_elses": object()})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["epochs", "tau"]


@given(st.floats())
def test_a_number_fits_when_it_lies_in_the_interval(value: float) -> None:
    fits = 0 <= value < 1
    try:
        assert check_values({"dropout": value}) == {"dropout": value} and fits
    except SettingError:
        assert not fits


def test_the_output_folder_can_be_made(tmp_path: Path) -> None:
    assert check_values({"output_dir": str(tmp_path / "a" / "b")})
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="output_dir must be a folder that can be written, .*file is a file"):
        check_values({"output_dir": str(tmp_path / "file" / "run")})


# ---- in a running config ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"dropout": "$@tau"}, "dropout must be in [0, 1), got 1.0"),
        ({"cosine_epochs": "@dropout"}, "cosine_epochs must be a whole number of at least 1, got 0.5"),
        ({"optimizer": "AdamW"}, "optimizer is a section of the config, got 'AdamW'"),
        ({"augmentation": "none"}, "augmentation is a section of the config, got 'none'"),
        ({"tau": None}, "tau must be at least 0, got None"),
        ({"output_dir": "runs/r#1"}, "output_dir holds ::, got 'runs/r::1'"),
    ],
)
def test_what_is_computed_replaced_or_rewritten_is_checked(start: Start, setting: dict, said: str) -> None:
    assert str(cause(start("train", cohort="none.csv", **setting))).startswith(said)


@pytest.mark.fault("words", "--device cpu", before="'str' object has no attribute 'type'", now="is the CPU")
def test_a_device_is_named_by_its_name(start: Start) -> None:
    workflow = start("train", cohort="none.csv", device="cpu")
    assert "none.csv" in str(cause(workflow))
    assert workflow.parser.get_parsed_content("device") == torch.device("cpu")
    assert workflow.parser.get_parsed_content("amp") is False


def test_an_overlay_may_add_settings_of_its_own(start: Start) -> None:
    own = {"my_rate": -3, "optimizer::lr": "@my_rate"}
    assert "none.csv" in str(cause(start("train", cohort="none.csv", **own)))


# ---- the command line ------------------------------------------------------------------------------------------------
TYPED = ["12", "2026_11", "1e3", "0x1f", "Roe,Jane", "r#1", "a # b", "r::1", "True", "1,2", "{a}", "ü", "'12'"]


def ran(start: Start, monkeypatch: pytest.MonkeyPatch, *names: str, words: list[str]) -> ConfigParser:
    """The parser of a run that was told these words, after it has stopped for want of scans."""
    monkeypatch.setattr("sys.argv", ["/lib/monai/bundle/__main__.py", "run", *words])
    told = fire.Fire(lambda **settings: settings.copy(), command=words, serialize=lambda _: "")
    workflow = start(*names, **told)
    cause(workflow)
    return workflow.parser


@pytest.mark.fault(
    "lost", "a path such as 12, 1e3, Roe,Jane or out#1 on the command line",
    before="cut, rewritten or a stack; two runs wrote one folder", now="is the path as typed",
)  # fmt: skip
@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("text", TYPED)
def test_a_text_is_what_was_typed(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, equals: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [[f"--{name}={text}"] if equals else [f"--{name}", text] for name in ("scans", "output-dir")]
    parser = ran(start, monkeypatch, "inference", "check", words=[word for flag in flags for word in flag])
    for name in ("scans", "dataset_dir", "output_dir"):
        assert parser.get_parsed_content(name) == text.strip("'")
    assert parser.config["output_dir"] == text.strip("'")


def test_columns_are_told_on_the_command_line(
    start: Start, monkeypatch: pytest.MonkeyPatch, small_cohort: Path
) -> None:
    other = small_cohort.with_name("other.csv")
    other.write_text(small_cohort.read_text().replace("scan,", "path,", 1).replace("sex", "gender", 1))
    words = ["--cohort", str(other), "--epochs", "0", "--columns"]
    parser = ran(start, monkeypatch, "train", words=[*words, "path=scan,gender=sex"])
    assert parser.get_parsed_content("cohort_data").group_names == ("male", "female")
    monkeypatch.undo()
    said = str(cause(start("train", cohort=str(other), columns="pth=scan")))
    assert said.endswith("other.csv: no column 'pth' to take for 'scan' (did you mean 'path'?)")


def test_expressions_lists_and_none_are_what_they_were(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--output_dir", "$'a' + 'b'", "--group_by", "['sex#1', 'site']", "--class_names", "[x, y]"]
    words += ["--group_names", "null", "--weights", "None", "--tags", "{'a': 'b#c'}", "--resume", "--epochs", "3"]
    parser = ran(start, monkeypatch, "train", words=[*words, "--cohort", "none#1.csv"])
    found = {name: parser.get_parsed_content(name) for name in ("output_dir", "group_by", "class_names", "tags")}
    assert found == {
        "output_dir": "ab", "group_by": ["sex#1", "site"], "class_names": ["x", "y"], "tags": {"a": "b#c"},
    }  # fmt: skip
    assert parser.get_parsed_content("epochs") == 3
    assert parser.get_parsed_content("resume") is True


def test_a_number_sign_in_a_list_needs_quotes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--class_names", "[a#1,b]"]
    monkeypatch.setattr("sys.argv", ["/lib/monai/bundle/__main__.py", "run", *words])
    assert "class_names: a text that holds # must be in quotes" in str(cause(start("train", class_names="[a::1,b]")))


@given(st.text())
def test_a_verbatim_text_passes_monai(text: str) -> None:
    parser = ConfigParser({"text": verbatim(text), "other": "@text"})
    assert parser.get_parsed_content("other") == text


def test_help_shows_the_settings_of_the_merged_configs(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        start("train", "demo", help=True).initialize()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--epochs 2\n" in printed and "--crop_size 24\n" in printed and "--scans" not in printed
