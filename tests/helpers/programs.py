"""`python -m monai.bundle` and the like as processes of their own, without seven seconds of imports each.

A process that has done the imports forks for every program; what a program does, prints and ends with is its own.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

IMPORTED = "monai.bundle"
GRACE = 0.02  # seconds between two looks at a program that is waited for


class Program:
    """A running ``python -m MODULE ARGUMENTS``, in a session of its own; Ctrl-C ends it, as in a terminal."""

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str] = os.environ
    ) -> None:
        log.write_text("")  # there to be read before the program is
        asked = {"module": module, "arguments": arguments, "log": str(log), "cwd": str(cwd)}
        self.pid: int = _ask(asked | {"environment": dict(environment)})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, that of the signal that ended it below 0; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            time.sleep(GRACE)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until_the_module_ends() -> Iterator[None]:
    """A fixture of a module that runs programs: other tests look for processes that were left behind."""
    yield
    if _server.cache_info().currsize:
        with _server():  # closes what it reads, and waits for it
            _server.cache_clear()


def _ask(request: Mapping[str, object]) -> int:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def _serve() -> None:
    """Answer requests, a line each, until the asking process has gone."""
    __import__(IMPORTED)
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            _run(**request)
            break
        print(json.dumps(answer), flush=True)


def _run(module: str, arguments: Sequence[str], log: str, cwd: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output, nothing = os.open(log, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
