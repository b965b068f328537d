"""A run whose process dies is a failed run, and the others go on."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fairlung.pipeline.studies import engines


@pytest.mark.slow
def test_a_run_that_is_killed_holds_up_no_other(tmp_path: Path) -> None:
    runs = [tmp_path / name / "run.json" for name in ("killed", "broken")]
    for path in runs:
        path.parent.mkdir()
        path.write_text("{}")  # a run that fails by itself

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if str(runs[0].with_name("log.txt")) in {file.path for file in child.open_files()}:
                        child.kill()
                        return

    killer = threading.Thread(target=kill)
    killer.start()
    codes: dict[str, int] = {}
    ended = lambda path, code, reason: codes.update({path.parent.name: code})  # noqa: E731
    engines.run_locally(runs, lambda path: None, ended, workers=1)
    killer.join()
    assert codes == {"killed": -9, "broken": 1}
