"""Addresses for fsspec (``s3://``, ``https://``, ...) as text: told from paths, shown without logins, joined."""

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LOGIN = re.compile(r"[^/@:]+:(?!\d+/).*@|[^/@]+@")  # a password may hold / and @; what follows a port is a path
WEB = ("http", "https")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address for fsspec, such as ``s3://bucket/scans``."""
    return ADDRESS.match(os.fspath(path)) is not None


def is_web(address: str) -> bool:
    """Whether an address is a web server's."""
    return address.partition("://")[0].lower() in WEB


def shown(address: str) -> str:
    """An address without user, password and query, for messages and names; a local path as it is.

    Example:
        >>> shown("https://ann:pw@host/ct.nii.gz?X-Amz-Signature=1a2b"), shown("scans/a?b")
        ('https://host/ct.nii.gz', 'scans/a?b')
    """
    if not is_remote(address):
        return address
    scheme, _, rest = address.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if is_web(address) else rest
    login = LOGIN.match(rest)
    return f"{scheme}://{rest[login.end() :] if login else rest}"


def has_login(address: str) -> bool:
    """Whether an address has parts that :func:`shown` leaves out."""
    return shown(address) != address


def file_name(address: str) -> str:
    """The last part of an address, for a name."""
    return plain_name(shown(address).rstrip("/").rpartition("/")[2], address)


def plain_name(part: str, address: str) -> str:
    """A part of an address, for a name: of a web server's without escapes."""
    return unquote(part) if is_web(address) else part


def folder_of(address: str) -> str:
    """The address of the folder that a remote file lies in, with the login."""
    return (address.partition("?")[0] if is_web(address) else address).rpartition("/")[0]


def located(root: str | os.PathLike[str], path: str) -> str:
    """Where a path of a table lies: an address or an absolute path as it is, another one below ``root``."""
    root = os.fspath(root)
    if is_remote(path) or os.path.isabs(path):
        return path
    if not is_remote(root):
        return str(Path(root) / path)
    scheme, _, below = root.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(below, path))}"
