"""Errors as a user meets them: one line with the cause, without the stack of libraries they travelled through."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from .text import mask_logins, printable, without_login

EXIT_SOME_FAILED = 3  # exit code of an inference in which some scans failed, or none was answered
WHOLE_STACK = "FAIRLUNG_TRACEBACK"  # the environment variable that, set to 1, shows the stack
# what to do about causes that libraries name in their own words
REMEDIES = {
    r"shared memory|\bshm\b|/torch_\d": "the loaders' processes need more shared memory (docker run --shm-size 8g), or "
    "--num_workers 0",
    r"AF_UNIX path too long": "the temporary folder's name is too long for a socket: set TMPDIR to a shorter one",
    r"out of memory|alloc.*memory": "a smaller --batch_size needs less; --accumulate makes up for it in training",
    r"DataLoader worker": "most likely memory ran out, and the system killed it: take fewer --num_workers",
}


class UserError(Exception):
    """Something about the input, the settings or the machine that the user can mend; the message says what and how."""


def user_error(error: BaseException | None) -> BaseException | None:
    """What the user can mend in a chain of causes, or None: MONAI wraps what a config raises.

    That is a :class:`UserError`, or a ValueError or missing file that fairlung's own code raised: from within a library
    they are bugs until shown otherwise.
    """
    while error is not None:
        if isinstance(error, UserError) or (isinstance(error, (ValueError, FileNotFoundError)) and _is_ours(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_ours(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("fairlung.")


def in_a_line(error: BaseException) -> str:
    """What a user needs to know of an error: the message of one that they can mend (:func:`user_error`), else the
    innermost cause, with the config's entry that was being made; of a bug in a second line how to see where it arose.
    """
    if found := user_error(error):
        return _words(found) if isinstance(found, OSError) and found.strerror else str(found)
    *_, cause = _causes(error)
    text = _words(cause)
    entry = next((f"{entry}: " for each in _causes(error) if (entry := _entry(each))), "")
    if remedy := next((said for pattern, said in REMEDIES.items() if re.search(pattern, text, re.IGNORECASE)), ""):
        return f"{entry}{text}; {remedy}"
    where = "" if isinstance(cause, OSError) else f"\n{WHOLE_STACK}=1 before the command shows where this arose"
    return f"{entry}{text}{where}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the one that it was raised from, and so on."""
    while True:
        yield error
        if error.__cause__ is None:
            return
        error = error.__cause__


def _words(error: BaseException) -> str:
    """An error without its stack; a file's with its path alone."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = "".join(traceback.format_exception_only(error)).strip()
    if "Traceback (most recent call last)" in text:  # of a loader's process, as the text of its error
        text = text.splitlines()[-1]
    return " ".join(text.split())


def _entry(error: BaseException) -> str:
    """The entry of a config that MONAI was making when the error arose; "" for one of its instructions, or none."""
    made = [
        str(frame.f_locals.get("id", ""))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "_resolve_one_item"
    ]
    return made[-1] if made and not re.match(r"(initialize|run|finalize)\b", made[-1]) else ""


def show_errors_in_a_line(interrupted: str = "interrupted") -> None:
    """Let the process end on an error with :func:`in_a_line`, and on Ctrl-C with the words ``interrupted``.

    FAIRLUNG_TRACEBACK=1 shows everything but logins.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if shows_whole_stack():
            said = "".join(traceback.format_exception(kind, error, trace)).rstrip()
        elif isinstance(error, KeyboardInterrupt):
            said = f"\n{interrupted}"
        else:
            said = f"error: {printable(in_a_line(error))}"
        print(without_login(said), file=sys.stderr)

    sys.excepthook = show
    mask_logins()


def shows_whole_stack() -> bool:
    return os.environ.get(WHOLE_STACK) == "1"
