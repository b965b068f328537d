"""Scans for inference, read in processes of their own: one that hangs or crashes its reader costs only itself."""

import gc
import io
import logging
import math
import multiprocessing
import os
import pickle
import queue
import select
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, nullcontext, suppress
from importlib.machinery import ModuleSpec
from itertools import islice, pairwise, takewhile
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from fairlung.transforms.checks import check_setting
from fairlung.transforms.remote import remove_left

from ..common.errors import UserError, shows_whole_stack
from ..common.settings import is_bundle_run
from ..data.dataset import NewScanDataset
from ..data.intake_records import failure_reason

logger = logging.getLogger(__name__)
Item = dict[str, Any]

FIRST_IMPORTS = 600.0  # seconds; on a busy machine or a slow disk a minute is not enough
START_PAUSES = (1.0, 10.0, 30.0)  # seconds before a process that could not start is tried again
STOP_CHECK = 0.2  # seconds
GRACE = 30.0  # seconds beyond the timeout after which a process whose parent did not end it ends itself
END_WAIT = 10.0  # seconds; a process that waits for a dead network drive cannot be ended at all


class ReaderStartError(UserError, RuntimeError):
    """The processes that read scans do not start; no scan is to blame."""


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: ``image`` stacked to [N, ...], every other key a list of N."""
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    return batch | {"image": torch.stack(batch["image"])}


class ScanLoader:
    """Batches of a :class:`~.NewScanDataset` in its order, every scan once, whatever happens while it is read.

    With ``num_workers`` each scan is read in one of so many processes, while the network computes. Where a process
    hangs or dies, the scan that it was reading becomes an item that says so, and another process takes its place. A
    scan whose process was killed from outside gets a second chance while no other is read: the system does that when
    memory runs out, and not always to the process that used it. Without workers neither hangs nor crashes are caught.
    What decoders write to the console is dropped, as it may quote a scan's header; ``FAIRLUNG_TRACEBACK=1`` shows it.

    The processes are forked from a server that has neither threads nor CUDA (:func:`start_server`). So the data set
    must pickle, or there is a TypeError; and where the main script defines the transform's class, it
    runs again in each of them up to its ``if __name__ == "__main__"``. They end with the iteration and this process.

    Args:
        timeout: seconds that the reading of one scan may take.
        prefetch: scans read, or being read, ahead of those asked for; None is twice ``num_workers``. At any time at
            most ``prefetch + batch_size`` scans are in memory, beside the batch that is out.
        preload: further modules to import before the first scan, such as decoders that the transform imports late.
    """

    def __init__(
        self, dataset: NewScanDataset, batch_size: int = 1, num_workers: int = 0, timeout: float = 600.0,
        prefetch: int | None = None, preload: Sequence[str] = (),
    ) -> None:  # fmt: skip
        check_setting("batch_size", batch_size, batch_size >= 1, "at least 1")
        check_setting("num_workers", num_workers, num_workers >= 0, "at least 0")
        check_setting("timeout", timeout, timeout > 0, "positive")
        check_setting("prefetch", prefetch, prefetch is None or prefetch >= 1, "at least 1")
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.timeout, self.prefetch, self.preload = timeout, prefetch, tuple(preload)
        self._stopped = False
        if num_workers > 0:
            self._pickled, modules = _pickled(dataset)
            self._needs_main = "__main__" in modules
            needed = dict.fromkeys((__name__, *modules, *self.preload))
            start_server([name for name in needed if name != "__main__"])

    def with_data(self, data: Sequence[Mapping[str, Any]]) -> "ScanLoader":
        """The same for other scans."""
        dataset = self.dataset.with_data(data)
        return ScanLoader(dataset, self.batch_size, self.num_workers, self.timeout, self.prefetch, self.preload)

    def stop(self) -> None:
        """Give no further batch, from an iteration under way or a later one; may be called by a signal's handler."""
        self._stopped = True

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        items: list[Item] = []
        with closing(self._items()) as reading:
            for number, item in enumerate(reading, start=1):
                items.append(item)
                last = number == len(self.dataset)
                if last or len(items) == self.batch_size:
                    batch, items = collate(items), []
                    if last:
                        reading.close()  # an engine does not ask for more than the last batch
                    yield batch

    def _items(self) -> Generator[Item, None, None]:
        if self.num_workers > 0 and len(self.dataset) > 0:
            yield from self._read_ahead()
        else:
            indices = takewhile(lambda index: not self._stopped, range(len(self.dataset)))
            yield from map(self.dataset.__getitem__, indices)

    def _read_ahead(self) -> Iterator[Item]:
        readers = _Readers(self.dataset, self._pickled, self._needs_main, self.num_workers, self.timeout)
        ahead: deque[Future[Item]] = deque()
        indices = iter(range(len(self.dataset)))
        prefetch = self.prefetch or 2 * self.num_workers

        def fill() -> None:
            ahead.extend(readers.submit(index) for index in islice(indices, prefetch - len(ahead)))

        try:
            fill()
            while ahead:
                while not (self._stopped or wait([ahead[0]], timeout=STOP_CHECK).done):
                    pass
                if self._stopped:
                    return
                item = ahead.popleft().result()
                fill()
                yield item
        finally:
            readers.close()


def _pickled(dataset: NewScanDataset) -> tuple[bytes, list[str]]:
    """A data set as bytes, and the modules that it needs."""
    modules: set[str] = set()

    class Noting(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            modules.add(module)
            return super().find_class(module, name)

    try:
        content = pickle.dumps(dataset)
        Noting(io.BytesIO(content)).load()
    except Exception as error:  # each class refuses in its own way
        raise TypeError(f"the data set cannot be sent to the processes that read ({error}); num_workers 0") from error
    return content, sorted(modules)


def start_server(modules: Sequence[str]) -> None:
    """Start multiprocessing's server, which forks the processes that read; one that runs keeps the imports it has.

    Forking them from this process would copy its threads' locks and its CUDA context, and starting each anew would
    import MONAI once a process. The server itself is a fork of this process where that has done nothing but imports: a
    bundle's run, or a command of ours, that has neither threads nor CUDA yet. Else it is a new process, and imports
    while this one builds its network.
    """
    forkserver.set_forkserver_preload(list(modules))
    program = is_bundle_run() or Path(sys.argv[0]).name == "fairlung"
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if program and threading.active_count() == 1 and not (grouped or torch.cuda.is_initialized()):
        resource_tracker.ensure_running()  # which would be forked too
        spawn = util.spawnv_passfds
        util.spawnv_passfds = _forked  # type: ignore[assignment]  # its arguments have narrower types
        try:
            forkserver.ensure_running()
        finally:
            util.spawnv_passfds = spawn
    else:
        forkserver.ensure_running()


def _forked(path: Any, arguments: Sequence[Any], descriptors: Sequence[int]) -> int:
    """As ``multiprocessing.util.spawnv_passfds`` for ``python -c PROGRAM``, in a fork of this process; its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # what the garbage collector does not touch stays shared between the processes
    process = os.fork()
    if process:
        gc.unfreeze()
        return process
    try:
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        kept = sorted({0, 1, 2, *descriptors})
        for below, above in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(below + 1, above)
        exec(arguments[-1], {})  # noqa: S102  (multiprocessing's own words, which begin the server)
    finally:
        os._exit(1)


@contextmanager
def _without_main_script() -> Iterator[None]:
    """Processes started meanwhile do not run this process's main script, which may lack its ``if __name__``."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    main.__spec__ = ModuleSpec("fairlung.__main__", None)  # multiprocessing never runs the main module of a package
    try:
        yield
    finally:
        main.__spec__ = spec


def _serve(connection: Connection, pickled: bytes, timeout: float) -> None:
    """Answer indices by items until the other side closes."""
    threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with suppress(OSError):  # when memory runs out, a reader is ended rather than the process that holds the network
        Path("/proc/self/oom_score_adj").write_text("1000")
    read_alone()
    tempfile.tempdir = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]  # its parent's
    dataset = pickle.loads(pickled)  # noqa: S301  (of the parent, over a pipe of the two)
    connection.send_bytes(b"")
    with suppress(EOFError):
        while True:
            index = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, timeout + GRACE)  # its signal's default is the end
            connection.send_bytes(read_packed(dataset, index))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _end_with(descriptor: int) -> None:
    """End this process when the other side of its connection does, however that ends, even if a decoder hangs here."""
    poll = select.poll()
    poll.register(descriptor, 0)  # of nothing but its end
    poll.poll()
    os._exit(0)


def drop_console() -> None:
    """Let nothing that this process prints be seen, as decoders may quote a scan's header."""
    if not shows_whole_stack():
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)


def read_alone() -> None:
    """Make this process one of many that read, one a core."""
    drop_console()
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    torch.set_num_threads(1)


def read_packed(dataset: NewScanDataset, index: int) -> bytes:
    """A scan's item, or that of its failure, for another process to :func:`unpack`."""
    try:
        return pack(dataset[index])
    except BaseException as error:  # sys.exit in a decoder, too
        return pack(dataset.failed(index, failure_reason(error)))


def pack(item: Item) -> bytes:
    # Not a tensor: torch would send it through shared memory, of which containers have 64 MB. A pipe takes some 10 ms.
    return pickle.dumps(item | {"image": item["image"].numpy()}, protocol=pickle.HIGHEST_PROTOCOL)


def unpack(packed: bytes) -> Item:
    item = pickle.loads(packed)  # noqa: S301  (of a reader of this run)
    return item | {"image": torch.from_numpy(item["image"])}


class _Readers:
    """Threads with a process each, that take scans from one queue.

    Each process has a pipe of its own. Where workers share one, such as in the pools of multiprocessing,
    concurrent.futures and pebble, a process that is killed while it sends takes the answers of all others with it.
    """

    def __init__(self, dataset: NewScanDataset, pickled: bytes, needs_main: bool, workers: int, timeout: float) -> None:
        self.dataset, self.pickled, self.needs_main, self.timeout = dataset, pickled, needs_main, timeout
        self.tasks: queue.SimpleQueue[tuple[int, Future[Item]] | None] = queue.SimpleQueue()
        self.closing = threading.Event()
        self.number = min(workers, len(dataset))
        self.permits = threading.Semaphore(self.number)
        self._one = threading.Lock()
        self.threads = [_Reader(self) for _ in range(self.number)]
        for thread in self.threads:
            thread.start()

    def submit(self, index: int) -> Future[Item]:
        future: Future[Item] = Future()
        self.tasks.put((index, future))
        return future

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other scan is being read, and let none begin."""
        with self._one:
            for _ in range(self.number):
                self.permits.acquire()
            try:
                yield
            finally:
                self.permits.release(self.number)

    def close(self) -> None:
        self.closing.set()
        for thread in self.threads:
            self.tasks.put(None)
            thread.kill()
        for thread in self.threads:
            thread.join(END_WAIT)


class _Reader(threading.Thread):
    """A thread that has scans read by a process, and replaces the process when it hangs or dies."""

    _table = threading.Lock()  # multiprocessing's own table of processes is not made for several threads

    def __init__(self, readers: _Readers) -> None:
        super().__init__(name="scan reader", daemon=True)  # a daemon: nothing may keep the interpreter from its end
        self.readers = readers
        self.process: ForkServerProcess | None = None
        self.connection: Connection | None = None

    def run(self) -> None:
        for index, future in iter(self.readers.tasks.get, None):
            if self.readers.closing.is_set():
                break
            try:
                future.set_result(self.read(index))
            except BaseException as error:
                future.set_exception(error)
        self.end()

    def kill(self) -> None:
        """End the process at once; from any thread."""
        process = self.process
        if process is not None and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def read(self, index: int) -> Item:
        with self.readers.permits:
            item = self._attempt(index)
        if isinstance(item, int) and item == -signal.SIGKILL and not self.readers.closing.is_set():
            with self.readers.alone():
                item = self._attempt(index)
        if isinstance(item, int):
            why = ": killed twice, most likely as memory ran out" if item == -signal.SIGKILL else ""
            return self.readers.dataset.failed(index, f"the reader crashed (exit code {item}){why}")
        return item

    def _attempt(self, index: int) -> Item | int:
        """The item, or the exit code of a process that died over it."""
        connection = self._connected()
        try:
            connection.send(index)
            if not connection.poll(self.readers.timeout):
                self.kill()
                self.end()
                said = f"reading it took more than {self.readers.timeout:g} s, stopped"
                return self.readers.dataset.failed(index, said)
            answer = connection.recv_bytes()
        except (EOFError, OSError):
            return self.end()
        return unpack(answer)

    def _connected(self) -> Connection:
        """The connection to a process that is ready; ReaderStartError when none can be started."""
        if self.connection is not None and self.connection.poll(0):  # nothing is due: it ended while it had no scan
            self.end()
        pauses = iter(START_PAUSES)
        while self.connection is None:
            code = self._launch()
            if self.connection is not None:
                break
            if self.readers.closing.is_set():
                raise ReaderStartError("the loader is closed")
            pause = next(pauses, None)
            if code == 1 or pause is None:  # 1: Python says why, and would say it again
                raise ReaderStartError(
                    f"the processes that read scans do not start (exit code {code}); the reason stands above. With "
                    "num_workers 0 none are needed, but then a scan that crashes its reader ends everything"
                )
            logger.warning("a process that reads scans did not start (exit code %s); trying again", code)
            self.readers.closing.wait(pause)
        return self.connection

    def _launch(self) -> int | None:
        """Start a process and wait until it is ready; else its exit code."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.readers.pickled, self.readers.timeout)
        process = context.Process(target=_serve, args=arguments, name="scan reader", daemon=True)
        try:
            with self._table, nullcontext() if self.readers.needs_main else _without_main_script():
                process.start()
        except (OSError, EOFError):  # the server was ended; the next start brings up another
            ours.close()
            return None
        finally:
            theirs.close()
        self.process, self.connection = process, ours
        if self.readers.closing.is_set():
            self.kill()
        try:
            if ours.poll(FIRST_IMPORTS):
                ours.recv_bytes()
                return None
        except (EOFError, OSError):
            return self.end()
        self.kill()
        return self.end()

    def end(self) -> int:
        """The exit code of the process, once it has ended; 255 where nothing is known of it."""
        if self.connection is not None:
            self.connection.close()
        process, self.process, self.connection = self.process, None, None
        if process is None:
            return 255
        with self._table:
            process.join(END_WAIT)
            if process.exitcode is None:
                process.kill()
                process.join(END_WAIT)
            code = process.exitcode
            if code is None:
                logger.warning("process %d, which reads scans, cannot be ended", process.pid)
                return 255
            remove_left(process.pid)
            process.close()
        return code
