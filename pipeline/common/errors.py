"""Errors that the user can mend, shown without the stack of libraries they travelled through."""

import os
import sys
import traceback
from types import TracebackType

from .text import printable

EXIT_SOME_FAILED = 3  # exit code of an inference in which some scans failed, or none was answered


class UserError(Exception):
    """Something about the input, the settings or the machine that the user can mend; the message says what and how."""


def user_error(error: BaseException | None) -> BaseException | None:
    """What the user can mend in a chain of causes, or None: MONAI wraps what a config raises.

    That is a :class:`UserError`, or a ValueError or missing file that fairlung's own code raised: from within a library
    they are bugs until shown otherwise. That a loader process was killed torch says by a RuntimeError.
    """
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            said = str(error).strip().rstrip(".")
            return UserError(f"{said}: most likely memory ran out; take fewer --num_workers or a smaller --batch_size")
        if isinstance(error, UserError) or (isinstance(error, (ValueError, FileNotFoundError)) and _is_ours(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_ours(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("fairlung.")


def show_user_errors() -> None:
    """Let the process end on a user error with its message alone; FAIRLUNG_TRACEBACK=1 shows everything."""
    if os.environ.get("FAIRLUNG_TRACEBACK") != "1":
        sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if found := user_error(error):
        print(f"error: {printable(str(found))}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
