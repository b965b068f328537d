"""Scans at remote addresses (``s3://``, ``gs://``, ``https://``, ...), through fsspec: listed, and fetched one by one.

Credentials come from the environment, as fsspec's packages take them. Nothing that is raised or named here holds a
login. No file system is kept here: fsspec itself keeps one a process, as none may go through a fork.
"""

import errno
import hashlib
import multiprocessing.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .addresses import WEB, file_name, folder_of, has_login, is_remote, is_web, shown
from .files import DICOM_SUFFIXES, OTHER_SUFFIXES, SLICE_SUFFIXES, has_suffix, named_voxels, natural_key
from .scan import Refusal, ScanSource
from .tolerances import MAX_REMOTE_BYTES

HEADERS = (".mhd", ".nhdr")  # of voxels that lie in a file beside
# what file systems call that which changes with a file's content, the most telling first
STATES = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")
MAX_DEPTH = 100  # folders one in another: pages that a web server makes up may link to each other without end
AT_ONCE = 8  # files of a scan that are fetched at the same time
HEAD = 1 << 16  # bytes of a file that are looked at before it is fetched
PREFIX = "fairlung-scan-"
CONNECT_SECONDS, SILENT_SECONDS = 30, 60  # after which a web server is taken not to answer
REMOTE_EXTRA, IN_EXTRA = "pip install 'fairlung[remote]'", ("s3", "s3a", "http", "https")


@dataclass(frozen=True)
class Entry:
    """What lies in a remote folder."""

    name: str  # as it stands in the address
    address: str
    is_folder: bool
    size: int | None  # bytes; None where a listing does not say
    state: str  # changes with the content, as far as a listing says


def file_at(address: str) -> Entry | None:
    """The file at an address; None for a folder. Of a web server's the name tells. Refusal where there is nothing."""
    known = has_suffix(Path(file_name(address)), (*OTHER_SUFFIXES, *DICOM_SUFFIXES))
    if address.endswith("/") or (is_web(address) and not known):
        return None
    found = entry_of(address)
    return None if found.is_folder else found


def entry_of(address: str) -> Entry:
    """What is at an address; Refusal where there is nothing."""
    with _telling(address):
        store, path = _opened(address)
        return _entry(address, shown(address).rpartition("/")[2], store.info(path))


def entries(address: str) -> list[Entry]:
    """What lies in a remote folder now, in natural order, without hidden entries; Refusal where it cannot be listed."""
    if is_web(address) and "?" in address:
        raise Refusal("an address with a query is one file's, no folder's")
    if address.count("/") > MAX_DEPTH:
        raise Refusal(f"lies more than {MAX_DEPTH} folders deep")
    with _telling(address):
        store, path = _opened(address)
        store.invalidate_cache()
        listing = store.ls(path, detail=True)
    found = []
    for info in listing:
        place = str(info["name"]).rstrip("/")
        name = place.rpartition("/")[2]
        itself = place == path.rstrip("/") or (is_web(address) and "?" in name)  # in another order
        if name and not name.startswith(".") and not itself:
            found.append(_entry(f"{address.rstrip('/')}/{name}", name, info))
    return sorted(found, key=lambda entry: natural_key(entry.name))


def files_below(address: str) -> list[str]:
    """The addresses of the files below a remote folder, without hidden ones; Refusal where it cannot be listed.

    A folder in it that cannot be listed is left out; :func:`~.find_scans` tells of it.
    """
    found = []
    for entry in entries(address):
        if not entry.is_folder:
            found.append(entry.address)
            continue
        with suppress(Refusal):
            found += files_below(entry.address)
    return found


def _entry(address: str, name: str, info: dict[str, Any]) -> Entry:
    state = next((str(info[key]) for key in STATES if info.get(key)), "")
    return Entry(name, address, info["type"] == "directory", info.get("size"), state)


def head(address: str) -> bytes:
    """The first bytes of a remote file."""
    with _telling(address):
        store, path = _opened(address)
        return bytes(store.cat_file(path, start=0, end=HEAD)[:HEAD])


def scan_files(address: str) -> list[Entry]:
    """The files that are fetched of a remote scan: its own, or those of its folder that may be slices, by name."""
    file = file_at(address)
    if file is None:
        return [entry for entry in entries(address) if not entry.is_folder and is_part(entry.name)]
    if not has_suffix(Path(file.name), HEADERS):
        return [file]
    named = named_voxels(head(address).decode("latin-1"))
    if named == "LOCAL":
        return [file]
    if named and {"/", "\\"} & {*named}:
        raise Refusal("its header names voxels that do not lie beside it")
    beside = [entry for entry in entries(folder_of(address)) if not entry.is_folder and entry.name != file.name]
    return [file, *([entry for entry in beside if entry.name == named] or beside)]


def is_part(name: str) -> bool:
    """Whether a file of a folder of slices or DICOM files may be one of them, by its name."""
    return has_suffix(Path(name), SLICE_SUFFIXES) or not has_suffix(Path(name), OTHER_SUFFIXES)


def state_of(files: Iterable[Entry]) -> str:
    """Digest of the names, sizes and states of a scan's files."""
    described = sorted((file.name, file.size, file.state) for file in files)
    return hashlib.sha256(repr(described).encode()).hexdigest()


def remote_fingerprint(address: str) -> str:
    """:func:`state_of` a scan's files; a web server, whose pages say names alone, is asked for each."""
    files = scan_files(address)
    if any(file.size is None for file in files):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            files = list(pool.map(entry_of, [file.address for file in files]))
    return state_of(files)


@contextmanager
def fetched(source: ScanSource) -> Iterator[tuple[ScanSource, dict[str, str]]]:
    """A remote scan's files in a local folder for the block, and the address of each; a local scan as it is.

    The folder lies in that of multiprocessing's temporary files, which goes with the process.

    Raises:
        Refusal: a file is gone, or has changed since ``source.listed``; the download breaks off; there is no room.
    """
    if not is_remote(source.path):
        yield source, {}
        return
    with _temporary_folder() as folder:
        wanted: dict[str, Entry] = {}
        places = []
        for number, address in enumerate((source.path, *source.more)):
            files = scan_files(address)
            if source.listed and source.listed[number] != state_of(files):
                raise Refusal("its files are not those that were listed: some have gone, come or changed")
            here = folder / str(number)
            here.mkdir()
            wanted |= {str(here / file.name): file for file in files}
            places.append(str(here / files[0].name if files and files[0].address == address else here))
        _fetch(wanted, MAX_REMOTE_BYTES)
        addresses = {path: file.address for path, file in wanted.items()}
        yield replace(source, path=places[0], more=tuple(places[1:])), addresses


@contextmanager
def fetched_files(paths: Sequence[str], most: int = MAX_REMOTE_BYTES) -> Iterator[list[str]]:
    """Remote files, of at most so many bytes together, in a local folder for the block; local ones as they are."""
    if not any(map(is_remote, paths)):
        yield list(paths)
        return
    with _temporary_folder() as folder:
        wanted = {}
        for number, address in enumerate(paths):
            file = entry_of(address)
            (folder / str(number)).mkdir()
            wanted[str(folder / str(number) / file.name)] = file
        _fetch(wanted, most)
        yield list(wanted)


@contextmanager
def fetched_file(path: str | os.PathLike[str], most: int = MAX_REMOTE_BYTES) -> Iterator[Path]:
    """:func:`fetched_files` of one."""
    with fetched_files([os.fspath(path)], most) as (local,):
        yield Path(local)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    # its parent is known to every process of a run, so that what a killed reader leaves goes with the run at the latest
    parent = multiprocessing.util.get_temp_dir()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


def remove_left(process: int | None) -> None:
    """Remove what a process, which has ended, had fetched."""
    for folder in Path(multiprocessing.util.get_temp_dir()).glob(f"{PREFIX}{process}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(files: dict[str, Entry], most: int) -> None:
    """Download files to local paths, several at once where the file system can."""
    from fsspec.callbacks import Callback

    class Count(Callback):  # type: ignore[misc]
        """Refuses what turns out larger than it may be, while it comes."""

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _check_size(self.value, most)

    known = sum(file.size or 0 for file in files.values())
    _check_size(known, most)
    if not files:
        return
    folder = Path(next(iter(files))).parent
    if known > (free := shutil.disk_usage(folder).free):
        where = multiprocessing.util.get_temp_dir()
        raise Refusal(f"{known / 1e9:.3g} GB are to be fetched to {where}, where {free / 1e9:.3g} GB are free")
    count = Count()
    several = len(files) > 1

    def get(path: str, file: Entry) -> None:
        with _telling(file.address, f"{file.name}: " if several else ""):
            store, place = _opened(file.address)
            store.get_file(place, path, callback=count)
            size = os.path.getsize(path) if os.path.exists(path) else 0
            if file.size is not None and size != file.size:
                raise Refusal(f"the download broke off: {size} of {file.size} bytes")

    first = next(iter(files.values()))
    with _telling(first.address):
        store, _ = _opened(first.address)
    with ThreadPoolExecutor(AT_ONCE if getattr(store, "async_impl", False) else 1) as pool:
        jobs = [pool.submit(get, path, file) for path, file in files.items()]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise Refusal(f"more than {most / (1 << 30):g} GiB, the limit of what is fetched at a time")


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    options: dict[str, Any] = {}
    if is_web(address):
        import aiohttp

        # files as they are stored; and no limit on the time that a large one takes, but on silence
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        ours = {"timeout": timeout, "auto_decompress": False}
        theirs = {key: value for name in WEB for key, value in _configured(name).items()}
        headers = {"Accept-Encoding": "identity", **theirs.get("headers", {})}
        options["client_kwargs"] = ours | theirs | {"headers": headers}
    store, path = fsspec.url_to_fs(address, **options)
    return store, path


def _configured(protocol: str) -> dict[str, Any]:
    """What the user's settings for fsspec say of connections (environment variables FSSPEC_*, or its files)."""
    from fsspec.config import conf

    said: dict[str, Any] = conf.get(protocol, {}).get("client_kwargs", {})
    return said


@contextmanager
def _telling(address: str, which: str = "") -> Iterator[None]:
    """Every error within it as a Refusal in a line, without what a library quotes of the address."""
    try:
        yield
    except Refusal as error:
        raise Refusal(f"{which}{error}") from None
    except Exception as error:  # each file system raises kinds of its own
        raise Refusal(f"{which}{_cause(error, address)}") from None


def _cause(error: BaseException | None, address: str) -> str:
    chain: list[BaseException] = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    protocol = address.partition("://")[0]
    plain = (_known(each, protocol) for each in reversed(chain))
    return next(filter(None, (*plain, *map(_general, reversed(chain)))), "") or _quoted(chain[0], address)


def _known(error: BaseException, protocol: str) -> str:
    """What an error that says it plainly means, else ""."""
    status = getattr(error, "status", None)
    if isinstance(error, ImportError):
        how = REMOTE_EXTRA if protocol in IN_EXTRA else " ".join(str(error).split())  # fsspec names the package
        return f"{protocol}:// needs a package that is not installed: {how}"
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        return f"{protocol}:// is no protocol that fsspec knows"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return "access is denied: are the credentials in the environment, and have they the right to list and read?"
    if status == 404:
        return "does not exist"
    return f"the server answers {status}" if isinstance(status, int) else ""


def _general(error: BaseException) -> str:
    name = type(error).__name__
    if re.search("Payload|IncompleteRead|Disconnected|ConnectionReset", name):
        return f"the download broke off ({name})"
    if isinstance(error, (ConnectionError, TimeoutError)) or re.search("Connect|Timeout|Resol|gaierror", name):
        return f"does not answer ({name})"
    return "does not exist" if isinstance(error, FileNotFoundError) else ""


def _quoted(error: BaseException, address: str) -> str:
    """What an error says, without addresses; of one with a login its kind alone, as the words may hold a part of it."""
    lines = str(error).strip().splitlines() or [""]
    text = "" if has_login(address) else re.sub(r"[\w+.-]+://\S+", "...", lines[-1])
    return f"{type(error).__name__}: {text}".rstrip(": ")
