"""Which entries of a bundle's config refer to which; a config is read as plain data, without MONAI."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .names import OBJECTIVE_SETTINGS

SEPARATOR = "::"
REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")


def references(value: Any) -> Iterator[str]:
    """Ids of the entries that a value of a config refers to: ``"@x::y"``, or an expression that holds it."""
    if isinstance(value, str):
        whole = value.startswith("$") or REFERENCE.fullmatch(value)
        named = REFERENCE.findall(value) if whole else []
        yield from (name.replace("#", SEPARATOR) for name in named)
    elif isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from references(item)


def read_by(entry: str, config: Mapping[str, Any]) -> set[str]:
    """Ids of all entries that an entry refers to, directly or through others, and its own."""
    found: set[str] = set()
    unvisited = [entry]
    while unvisited:
        name = unvisited.pop()
        found.add(name)
        value: Any = config
        for part in name.split(SEPARATOR):
            value = value[int(part)] if isinstance(value, list) else (value or {}).get(part)
        unvisited += set(references(value)) - found
    return found


def unread_by_objective(config: Mapping[str, Any]) -> list[str]:
    """The :data:`OBJECTIVE_SETTINGS` that the loss of a config does not read; all of them where it has no loss."""
    read = read_by("loss", config) if config.get("loss") is not None else set()
    return [name for name in OBJECTIVE_SETTINGS if name not in read]
