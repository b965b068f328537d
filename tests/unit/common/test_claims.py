"""One process a folder; temporary folders that a kill leaves are removed by the next process, and no stranger's."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlung.pipeline.common import claims
from fairlung.pipeline.common.claims import LOCK, OWNER, FolderError, claim, claimed, release, temporary_folder

LEFT: list[Any] = []
FORK = multiprocessing.get_context("fork")


@contextmanager
def another(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process that does its work, says that it is done, and waits to be killed."""
    ours, theirs = FORK.Pipe()

    def run() -> None:
        work(*arguments)
        theirs.send("done")
        time.sleep(600)

    process = FORK.Process(target=run, daemon=True)
    process.start()
    assert ours.poll(60) and ours.recv() == "done"
    try:
        yield process
    finally:
        kill(process)


def kill(process: Any) -> None:
    process.kill()
    process.join()


def parent_of_a_loader(folder: Path) -> None:
    """Claims a folder, and begins a process that outlives it a little, as the workers of a DataLoader do."""
    claim(folder)
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)


@pytest.mark.fault(
    "lost", "two processes that write into one output folder",
    before="their files mix, rows are doubled or a KeyError ends both", now="the second stops and names the first",
)  # fmt: skip
def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with another(claim, tmp_path / "out") as process:
        with pytest.raises(FolderError, match=f"out is in use by process {process.pid} on ") as refused:
            claim(tmp_path / "out")
        assert "\n" not in str(refused.value)
    claim(tmp_path / "out")  # it was killed
    claim(tmp_path / "out")  # by the same process
    release(tmp_path / "out")
    assert not (tmp_path / "out" / OWNER).exists()


def test_a_lock_goes_with_the_block_on_errors_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path):
        raise ZeroDivisionError
    with another(claim, tmp_path):
        pass


def test_what_a_killed_process_began_is_waited_for(tmp_path: Path) -> None:
    with another(parent_of_a_loader, tmp_path) as process:
        kill(process)
        with claimed(tmp_path):
            assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


def test_a_process_that_is_forked_neither_has_nor_ends_the_claim(tmp_path: Path) -> None:
    def try_it() -> None:
        release(tmp_path)
        claims._release_all()
        with pytest.raises(FolderError):
            claim(tmp_path)

    with claimed(tmp_path), temporary_folder(tmp_path) as folder:
        with another(try_it):
            pass
        assert folder.exists()


def test_a_number_that_another_process_was_given_is_no_owner(tmp_path: Path) -> None:
    owner = claims._this_process()
    assert claims._lives(owner)
    assert not claims._lives(owner | {"begun": owner["begun"] - 100})
    (tmp_path / OWNER).write_text(json.dumps(owner))
    with claimed(tmp_path):
        pass


def test_an_owner_of_another_host_is_believed_until_it_is_removed(tmp_path: Path) -> None:
    owner = claims._this_process() | {"host": "elsewhere", "boot": "another"}
    (tmp_path / OWNER).write_text(json.dumps(owner))
    with pytest.raises(FolderError, match=rf"on elsewhere, since .*; if it has ended, remove {tmp_path / OWNER}"):
        claim(tmp_path)
    (tmp_path / OWNER).unlink()
    with claimed(tmp_path):
        pass


def lock_from(folder: Path, owner: dict[str, Any]) -> None:
    claim(folder)
    (folder / OWNER).write_text(json.dumps(owner)) if owner else (folder / OWNER).unlink()


def test_a_lock_that_another_host_has_is_told_of_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over NFS; so is one whose owner is not known, after the patience for a training that was killed."""
    elsewhere = claims._this_process() | {"host": "elsewhere", "boot": "another"}
    for folder, owner, who in (
        (tmp_path / "a", elsewhere, f"process {os.getpid()} on elsewhere, since "),
        (tmp_path / "b", {}, "another process; "),
    ):
        with another(lock_from, folder, owner):
            begun = time.monotonic()
            monkeypatch.setattr(claims, "PATIENCE", 600 if owner else 0.3)
            with pytest.raises(FolderError, match=f"is in use by {who}") as refused:
                claim(folder)
            assert time.monotonic() - begun < 60
            assert f"if it has ended, remove {folder / OWNER} and {folder / LOCK}; " in str(refused.value)
            assert "\n" not in str(refused.value)
            for name in (OWNER, LOCK):
                (folder / name).unlink(missing_ok=True)
            with claimed(folder):
                pass


def test_another_container_and_another_start_of_this_machine_are_this_machine(tmp_path: Path) -> None:
    for other in ({"host": "container"}, {"boot": "yesterday"}):
        (tmp_path / OWNER).write_text(json.dumps(claims._this_process() | other))
        with claimed(tmp_path):
            pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="file/out cannot be written to: Not a directory"):
        claim(tmp_path / "file" / "out")


def leave(parent: Path) -> None:
    LEFT.append(temporary_folder(parent))
    (LEFT[0].__enter__() / "DOE^JANE").touch()


@pytest.mark.fault(
    "leaked", "temporary folders of a killed process", before="stay, with patients' names in them",
    now="the next process removes them",
)  # fmt: skip
def test_what_a_kill_leaves_is_removed_by_the_next_process(tmp_path: Path) -> None:
    for name in ("fairlung-strange", "other"):
        (tmp_path / name).mkdir()
    with another(leave, tmp_path), another(leave, tmp_path) as killed:
        kill(killed)
        assert len(list(tmp_path.rglob("DOE*"))) == 2
        with temporary_folder(tmp_path):
            assert len(list(tmp_path.rglob("DOE*"))) == 1  # of the one that lives
    with temporary_folder(tmp_path) as last:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "fairlung-strange", last, tmp_path / "other"])
    assert not last.exists()


@pytest.mark.parametrize("whose", ["another host", "another user", "a link"])
def test_a_strangers_temporary_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    folder, owner = tmp_path / "fairlung-1", claims._this_process()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere") if whose == "a link" else folder.mkdir()
    if whose == "another host":
        owner |= {"host": "elsewhere", "boot": "another"}
    if whose == "another user":
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    (folder / OWNER).write_text(json.dumps(owner))
    with temporary_folder(tmp_path):
        assert (folder / OWNER).exists()


PROGRAM = """
import multiprocessing.util, time
from fairlung.pipeline.common.claims import end_in_order
end_in_order()
multiprocessing.util.get_temp_dir()
print("done", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.fault(
    "leaked", "a process that is ended by a signal", before="leaves folders pymp-* in the temporary folder",
    now="SIGTERM leaves nothing, and what SIGKILL leaves the next process removes",
)  # fmt: skip
def test_multiprocessing_leaves_no_folder(tmp_path: Path, number: int) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"done\n"
        assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["fairlung"]
        process.send_signal(number)
        assert process.wait(60) == (128 + number if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:
        claims.remove_abandoned(tmp_path, "fairlung-")
    assert list(tmp_path.iterdir()) == []
