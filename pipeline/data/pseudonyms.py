"""Keyed digests for what may identify somebody: studies, patients, and on request the names of scans.

A digest is HMAC-SHA256 (RFC 2104), cut to 64 bits. Who does not have the key cannot try names or UIDs out.
"""

import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlung.transforms.addresses import shown
from fairlung.transforms.remote import fetched_file
from fairlung.transforms.scan import ScanSource, as_source

from ..common.distributed import gather_interleaved
from ..common.errors import UserError
from .archives import SUFFIXES

MIN_KEY_BYTES = 16
DIGITS = 16  # hexadecimal, of a digest
PATH_END = r"[^:'\"\n]*"  # a message goes on after a path with a colon, or has it in quotes
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")

Finder = Callable[..., Sequence[Mapping[str, Any]]]


class PseudonymKeyError(UserError, ValueError):
    """A key file that cannot be used."""


def read_key(key_file: str | Path, output_dir: str | Path, setting: str = "pseudonymize") -> bytes:
    """The key in a file; PseudonymKeyError when there is none, it is short, or lies where the outputs go."""
    path = Path(key_file).expanduser()
    if path.resolve().is_relative_to(Path(output_dir).resolve()):
        raise PseudonymKeyError(f"{setting}: {path} lies in {output_dir}, beside what it protects; move it elsewhere")
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        how = f"make one with: openssl rand -hex 32 > {path}"
        raise PseudonymKeyError(f"{setting}: {path} cannot be read ({error.strerror}); {how}") from error
    if len(key) < MIN_KEY_BYTES:
        raise PseudonymKeyError(f"{setting}: the key in {path} must have at least {MIN_KEY_BYTES} bytes")
    return key


class Digests:
    """Keyed digests: with a key file the same in every run with that key, else of a random key that ends with the run.

    Args:
        key_file: of at least 16 bytes; PseudonymKeyError where it cannot be used.
        output_dir: where the key must not lie.
        setting: what names the file, for errors.
    """

    def __init__(self, key_file: str | Path | None, output_dir: str | Path, setting: str) -> None:
        self._key = read_key(key_file, output_dir, setting) if key_file else secrets.token_bytes(32)

    def digest(self, *what: str) -> str:
        text = "\0".join(what).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, text, "sha256").hexdigest()[:DIGITS]

    def share(self) -> None:
        """Take the first process's key, where several answer together."""
        self._key = gather_interleaved([self._key])[0]


class Pseudonyms(Digests):
    """Gives each DICOM study a digest and, with a key file, each scan a name that says nothing.

    Without a key file names stay, and the key is a random one that ends with the process: digests then tell which rows
    of one run belong together, and nothing else. With one they are the same in every run with that key. From then on
    the process's log entries are without the names as well.

    Args:
        key_file: of at least 16 bytes; PseudonymKeyError where it cannot be used.
        output_dir: where the key must not lie.
        scans: below which the scans lie; its own name stays, as it is no scan's.
    """

    def __init__(
        self, key_file: str | Path | None = None, output_dir: str | Path = ".", scans: str | Path | None = None
    ) -> None:
        super().__init__(key_file, output_dir, "pseudonymize")
        self.named = bool(key_file)
        self._names: dict[str, str] = {}  # real paths and names: what stands for them
        self._paths: dict[str, str] = {}  # pseudonyms of scans: their paths
        self._roots = {shown(os.path.expanduser(scans))} if scans else set()
        if self.named:
            self._rename_in_logs()

    def finder(self, find: Finder) -> Finder:
        """The same, with pseudonyms for names where there is a key file."""
        return lambda roots: self._renamed(roots, find(roots)) if self.named else find(roots)

    def scan(self, name: str) -> str:
        """What a scan is called: its pseudonym where there is a key file."""
        return f"scan-{self.digest('scan', name)}" if self.named else name

    def items(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Items of a cohort, in their order, with pseudonyms for names where there is a key file."""
        return [self._item(item) if self.named else dict(item) for item in items]

    def study(self, intake: Mapping[str, Any]) -> str:
        """The digest of the DICOM study that a scan is of, by the record of how it was read; else ""."""
        uid = study_uid((intake.get("files") or [""])[0]) if intake.get("kind") == "dicom" else ""
        return self.digest("study", uid) if uid else ""

    def record(self, scan: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of a scan, its texts without names."""
        if not self.named:
            return dict(record)
        texts = {name: self.text(record[name], scan) for name in ("reason", "series") if name in record}
        return {**record, **texts, "warnings": [self.text(text, scan) for text in record.get("warnings") or ()]}

    def text(self, text: str, scan: str = "") -> str:
        """A text without the paths of scans, of what lies below the roots, and of the files of ``scan``."""
        if not self.named:
            return text
        head, colon, rest = text.partition(": ")
        head = self._names.get(head, head)
        text = self._without_files(f"{head}{colon}{rest}", self._paths.get(scan or head, ""))
        known = [path for path in self._names if os.sep in path and path in text]
        for path in sorted({*known, *self._roots}, key=len, reverse=True):
            below = f"{re.escape(path.rstrip(os.sep))}{re.escape(os.sep)}{PATH_END}"
            text = re.sub(below, lambda found: self._names.get(found[0]) or self.digest("path", found[0]), text)
            text = text.replace(path, self._names.get(path, path))
        return text

    def _without_files(self, text: str, path: str) -> str:
        """A text in which nothing begins with the name of a file in a folder, as in ``0001.png: cannot be decoded``."""
        files = os.listdir(path) if os.path.isdir(path) else [os.path.basename(path)]
        for name in sorted((name for name in files if name and name in text), key=len, reverse=True):
            digest = f"file-{self.digest('file', path, name)}"
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=: )", digest, text)
        return text

    def _renamed(self, roots: Any, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        several = [roots] if isinstance(roots, (str, os.PathLike)) else [path for _, path, _ in roots]
        self._roots |= {shown(os.fspath(root)) for root in several}
        return [self._item(item) for item in items]

    def _item(self, item: Mapping[str, Any]) -> dict[str, Any]:
        name = self.scan(item["scan"])
        source = as_source(item["image"])
        self._paths[name] = source.path
        self._names |= dict.fromkeys((item["scan"], str(source), source.path, *source.more), name)
        if not source.problem:
            return {**item, "scan": name}
        # what is said of an archive may name the files in it
        said = QUOTED.sub("...", source.problem).rpartition(": ")[2]
        return {**item, "scan": name, "image": ScanSource(source.path, problem=said, expected=source.expected)}

    def _rename_in_logs(self) -> None:
        make = logging.getLogRecordFactory()

        def without_names(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = make(*args, **kwargs)
            record.msg = self.text(record.msg) if isinstance(record.msg, str) else record.msg
            if isinstance(record.args, tuple):
                record.args = tuple(map(self._argument, record.args))
            return record

        logging.setLogRecordFactory(without_names)

    def _argument(self, value: Any) -> Any:
        """A value of a log entry: a name, several, a path or an error are told without names."""
        if not isinstance(value, (str, os.PathLike, Exception)):
            return value
        return ", ".join(map(self._without_name, str(value).split(", ")))

    def _without_name(self, text: str) -> str:
        if text in self._names:
            return self._names[text]
        below = any(os.path.lexists(os.path.join(root, text)) for root in self._roots)
        if text.strip("./") and not os.path.isabs(text) and (below or text.casefold().endswith(SUFFIXES)):
            return self.digest("path", text)
        return self.text(text)


def study_uid(path: str) -> str:
    """The StudyInstanceUID in a DICOM file, here or at an address; "" where it has none."""
    import pydicom

    try:
        with fetched_file(path) as local:
            read = pydicom.dcmread(local, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID"])
        return str(read.get("StudyInstanceUID") or "")
    except Exception:  # pydicom raises many kinds on damaged files
        return ""
