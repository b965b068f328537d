"""How fast is it: against the published code, and against what the machine can do?

    python benchmarks/run.py loader|cache|step|epoch|inference|loss|intake|imports|start|accuracy [--published DIR]
    python benchmarks/run.py load|frozen|profile|precision
    python benchmarks/run.py all --published DIR
    python benchmarks/run.py docs

DIR is your own checkout of the authors' repository. Both sides do the same work on the same phantom scans; their
numbers are shown to be equal first, then they are timed in turn. Writes benchmarks/results/<name>.json and .md;
``docs`` puts them into docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
import warnings
from pathlib import Path

from speed import harness

BENCHMARKS = (
    "loader", "cache", "loss", "intake", "imports", "start", "profile", "inference", "step", "epoch", "accuracy",
    "precision", "load", "frozen",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=(*BENCHMARKS, "all", "docs"))
    parser.add_argument("--published", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--repeats", type=int, help="of every measurement")
    parser.add_argument("--small", action="store_true", help="reduced sizes, to try it out")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder for the results")
    parser.add_argument("--scratch", type=Path, help="folder for phantom scans, kept between runs")
    given = parser.parse_args(argv)
    options = harness.Options(given.published, given.small, given.repeats, given.results)
    if given.scratch is not None:
        options.scratch = given.scratch
    if given.benchmark == "docs":
        from speed import docs

        print(docs.write(options.results))
        return
    logging.getLogger().setLevel(logging.WARNING)
    for name in BENCHMARKS if given.benchmark == "all" else (given.benchmark,):
        start = time.perf_counter()
        about = harness.machine(options.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = importlib.import_module(f"speed.{name}").measure(options)
        path = harness.write(result, options, about)
        print(path.with_suffix(".md").read_text())
        for target in result.targets:
            print(f"{target['measure']}: {target['measured']} (target {target['target']})")
        print(f"{path}, {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
