"""The files of an inference in which each of its processes writes until the table is complete."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ..common.distributed import gather_interleaved, rank, world_size
from ..common.errors import UserError
from ..common.files import encoded

Item = TypeVar("Item")


class DealingError(UserError):
    """Processes that share scans do not see the same ones."""


def own_part(path: Path, kind: str = "part") -> Path:
    """Where this process writes a file until it is complete: ``<path>.part``, of a process beside the first ``.part1``.

    Example:
        >>> own_part(Path("out/predictions.csv")).name
        'predictions.csv.part'
    """
    return path.with_name(f"{path.name}.{kind}{rank() or ''}")


def parts_of(path: Path, kind: str = "part") -> list[Path]:
    """The parts of a file that there are, in the order of the processes; also of a run that had more of them."""
    named = re.compile(re.escape(f"{path.name}.{kind}") + r"(\d*)")
    near = path.parent.iterdir() if path.parent.is_dir() else ()
    found = {int(match[1] or 0): part for part in near if (match := named.fullmatch(part.name))}
    return [found[number] for number in sorted(found)]


def in_order(items: Iterable[Item], scans: Sequence[str], scan_of: Callable[[Item], str]) -> list[Item]:
    """Items in the order of ``scans``, those of other scans as they are, before them.

    Example:
        >>> in_order(["c", "old", "a", "b"], ["a", "b", "c"], str)
        ['old', 'a', 'b', 'c']
    """
    order = {encoded(scan).decode(): number for number, scan in enumerate(scans)}
    return sorted(items, key=lambda item: order.get(scan_of(item), -1))


def own_share(items: Sequence[Item], name_of: Callable[[Item], str]) -> Sequence[Item]:
    """Every W-th of N items, of W processes this one's; DealingError where they are not the same to all of them."""
    names = [name_of(item) for item in items]
    if any(other != names for other in gather_interleaved([names])):
        raise DealingError("the processes do not find the same scans, or rows: all hosts need the same folders")
    return items[rank() :: world_size()]
