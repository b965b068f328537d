"""Errors as a user meets them: one line with the innermost cause."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader

from fairlung.pipeline.common.errors import UserError, in_a_line, show_errors_in_a_line
from fairlung.pipeline.common.files import why_unreadable


def raised(do: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        do()
    return caught.value


def made(**config: object) -> BaseException:
    """What MONAI raises when it makes the last entry of a config."""
    return raised(lambda: ConfigParser(config).get_parsed_content(list(config)[-1]))


class Broken:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise KeyError("affine\nof a scan")


def load_broken() -> None:
    batches = iter(DataLoader(Broken(), num_workers=1))
    try:
        next(batches)
    finally:
        batches._shutdown_workers()  # Python's collector would wait five seconds for the process


FAULT = pytest.mark.fault(
    "words", "an error from within a library", before="50 to 220 lines of stack whose last hides the cause",
    now="a line with the cause and the setting",
)  # fmt: skip


@FAULT
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: made(dropout="$1/0", net="@dropout"), "dropout: ZeroDivisionError: division by zero"),
        (lambda: made(adam={"_target_": "torch.optim.Adam", "params": [], "lr": 1}),
         "adam: ValueError: optimizer got an empty parameter list"),
        (lambda: made(start="$open('/no/such')"), "start: /no/such: No such file or directory"),
        (lambda: raised(load_broken), "KeyError: "),
    ],
)  # fmt: skip
def test_the_innermost_cause_and_the_entry_are_named(error: Callable[[], BaseException], said: str) -> None:
    first, *rest = in_a_line(error()).split("\n")
    assert first.startswith(said)
    assert rest in ([], ["FAIRLUNG_TRACEBACK=1 before the command shows where this arose"])


def test_a_user_error_is_its_message_alone_however_deep() -> None:
    def deep() -> None:
        try:
            raise UserError("no scans in x")
        except UserError as error:
            raise RuntimeError("Failed to evaluate") from error

    assert in_a_line(raised(deep)) == "no scans in x"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
         "of shared memory.", "--num_workers 0"),
        ("unable to write to file </torch_7_1_0>: No space left on device (28)", "--shm-size"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "--batch_size"),
        ("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory", "--batch_size"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_comes_with_a_remedy(text: str, remedy: str) -> None:
    said = in_a_line(RuntimeError(text))
    assert remedy in said and "\n" not in said


def test_a_file_is_named_with_its_reason() -> None:
    assert in_a_line(PermissionError(errno.EACCES, "Permission denied", "/data/x")) == "/data/x: Permission denied"
    assert in_a_line(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"


def test_the_process_ends_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("FAIRLUNG_TRACEBACK", raising=False)
    show_errors_in_a_line("interrupted; go on with --resume True")
    for error in (made(dropout="$1/0"), raised(lambda: int("x")), KeyboardInterrupt()):
        sys.excepthook(type(error), error, error.__traceback__)
        printed = capsys.readouterr().err.strip()
        assert printed.count("\n") <= 1 and "File " not in printed
    assert printed == "interrupted; go on with --resume True"


def test_the_whole_stack_is_shown_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("FAIRLUNG_TRACEBACK", "1")
    show_errors_in_a_line()
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "_ = 1 / 0" in said


@pytest.mark.fault(
    "words", "a checkpoint that torch cannot read", before="torch's words about its options", now="the reason"
)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
        (b"", "it is empty"),
        (b"PK\x03\x04archive/data.pkl", "cut short"),
        (b"hello", "no file that torch saved"),
        (None, "No such file"),
    ],
)
def test_a_file_that_torch_cannot_read(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    assert said in why_unreadable(tmp_path / "model.pt")
