"""Text for logs and messages: addresses without logins, names of devices, what a misspelt name may have meant."""

from __future__ import annotations

import difflib
import logging
import platform
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most ``count`` names like a misspelt one in any case, the best first; cutoff: 0 (anything) to 1 (equal)."""
    by_key = {each.casefold(): each for each in reversed(list(known))}
    return [by_key[key] for key in difflib.get_close_matches(name.casefold(), by_key, n=count, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for a message that a name is unknown; "" where none is near.

    Example:
        >>> "no class 'nromal'" + did_you_mean("nromal", ["covid19", "normal"])
        "no class 'nromal' (did you mean 'normal'?)"
    """
    return hint_at(nearest(name, known, cutoff=cutoff))


def hint_at(near: Sequence[str]) -> str:
    return f" (did you mean {near[0]!r}?)" if near else ""


def spelling(name: str) -> str:
    """A name or an id in one Unicode form (NFC), without space at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def spelling_key(value: str) -> str:
    """The same for values that are most likely one: of other case, Unicode form, spaces, zeros before or behind.

    Example:
        >>> [spelling_key(value) for value in ("Rome", "ro\\u200bme ", "P01", "p1", "1.0")]
        ['rome', 'rome', 'p1', 'p1', '1']
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    text = " ".join("".join(sign for sign in text if unicodedata.category(sign) != "Cf").split())
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    return text.rstrip("0").rstrip(".") if re.fullmatch(r"[+-]?\d+\.\d*", text) else text


LONGEST = 120  # characters of a table's value that a message shows


def printable(text: str) -> str:
    """Text without what a terminal or a page would obey, such as control characters: a name may hold anything.

    Example:
        >>> printable("a\\x1b[2J\\u202eb")
        'a\\\\x1b[2J\\\\u202eb'
    """
    if text.isprintable():
        return text
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(
        sign if sign.isprintable() or sign == "\n" else " " if sign.isspace() else ascii(sign)[1:-1] for sign in text
    )


def cut(text: str) -> str:
    """The beginning of a text that is long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def quoted(value: str) -> str:
    """A table's value for a message: cut, on one line, in quotes; what is not printable as an escape."""
    return repr(cut(value))


def one_line(text: object) -> str:
    """Text for a log, where a name with line feeds in it could pass for an entry of its own."""
    return printable(" ".join(str(text).split()))


def named(scan: str) -> str:
    """A scan's name for the beginning of a message: cut, on one line."""
    return cut(one_line(scan))


def device_name(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the processor's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


# how the names of those parts of an address's query end that let their holder in
SECRETS = "user(?:name)?|pass(?:word|wd)?|pwd|token|secret|key(?:id)?|accessid|credential|sig(?:nature)?"


def without_login(text: str) -> str:
    """Text without the user and password of every address in it, in its query too."""
    # a password may hold / and @, so up to the last @; what follows a port is a path
    text = re.sub(r"(?<=://)([^/@:\s]+:(?!\d+/)[^\s'\"]*@|[^/@\s]+@)", "", text)
    return re.sub(rf"(?i)(?<=[?&])([\w-]*(?:{SECRETS}))=[^&\s'\"]*", r"\1=", text)


def mask_logins() -> None:
    """From now on nothing that this process logs holds a login of an address, whichever library logs it."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Masking):
        logging.setLogRecordFactory(_Masking(make))
    logging.raiseExceptions = False  # a line that cannot be written is dropped, not shown with the stack and its values


class _Masking:
    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self.make = make

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self.make(*arguments, **named)
        with suppress(Exception):  # a message that does not fit its values; logging itself says so
            message = record.getMessage()
            if (masked := without_login(message)) != message:
                record.msg, record.args = masked, None
        if record.exc_info:
            record.exc_text = without_login(logging.Formatter().formatException(record.exc_info))
        return record
