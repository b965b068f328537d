"""New scans answered by a Ray cluster, through Ray Data: tasks read, an actor pool holds the networks.

Ray Data hands the scans out, holds readers back while the networks are busy, and begins anew what was lost with a
process or a machine, as often as it takes. So a scan over which processes end is noted (:class:`Ends`), and after two
of them it is a failed scan. The answers come to the process that began the run, which alone writes the table.
"""

import faulthandler
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from fairlung.transforms.checks import check_setting

from ..common.config import literal_parser, resolved_config
from ..common.errors import in_a_line, shows_whole_stack
from ..common.ray_cluster import EngineError, ray_cluster
from ..data.dataset import NewScanDataset
from ..data.pseudonyms import Pseudonyms
from .answers import Answer
from .prediction_writer import PredictionWriter
from .scan_readers import collate, drop_console, pack, read_alone, read_packed, unpack
from .watch import Scan, Stop, answer_left

if TYPE_CHECKING:
    import pyarrow

ARROW = "pyarrow"
TRIES = 2  # processes that may end over a scan


def run_on_ray(
    dataset: NewScanDataset, predictions: PredictionWriter, pseudonyms: Pseudonyms, read_timeout: float,
    address: str | None = None, cpus_per_reader: float = 1, gpus_per_model: int | None = None,
    models: int | None = None, watch: bool = False,
) -> None:  # fmt: skip
    """Have a Ray cluster answer the scans of a data set by the running config, in place of ``evaluator.run()``.

    SIGINT and SIGTERM end it at once, with exit code 128 and their number; the table is completed with what was
    answered until then. Scans that have a row already (``append``) are not read again. All machines need this fairlung,
    and scans, checkpoints and the output folder at the same paths.

    Args:
        pseudonyms: of this process, whose key the networks' processes take.
        read_timeout: seconds that the reading of one scan may take.
        address: of the cluster, ``HOST:PORT``; None begins one of this machine.
        cpus_per_reader: processor cores that the reading of one scan takes.
        gpus_per_model: 0 or 1; None is 1 where the cluster has GPUs.
        models: networks that answer at once, a process each; None is one a GPU, or one for two cores.
        watch: must be false: a folder that fills is for one process.

    EngineError: Ray is not installed or not reached, the cluster is too small, or a network's process cannot answer.
    """
    if watch:
        raise EngineError("a folder is watched by the engine local alone: leave out --watch, or take --engine local")
    check_setting("cpus_per_reader", cpus_per_reader, cpus_per_reader > 0, "positive")
    with ray_cluster(address) as ray:
        gpus, size = _shares(ray, cpus_per_reader, gpus_per_model, models)
        config = resolved_config() | {"gpus_per_model": gpus, "pseudonyms": pseudonyms}
        preload = tuple(config["dataloader"].get("preload", ()))
        config["dataloader"] = "$[None]"  # each batch takes its place
        section = {name: value for name, value in config["predictions"].items() if name != "append"}
        config["predictions"] = section | {"_target_": f"{__name__}.KeptAnswers"}
        stop = Stop()

        def answer(scans: Sequence[Scan]) -> None:
            counter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ends)
            how = {"dataset": dataset.with_data([]), "timeout": read_timeout, "ends": counter.remote()}
            how |= {"folder": os.getcwd(), "preload": preload}
            read = {"num_cpus": cpus_per_reader, "fn_kwargs": how}
            network = {"num_gpus": gpus, "fn_constructor_args": (config, counter.remote(), os.getcwd())}
            answers = _answers(scans, read, network, size, literal_parser(config).get_parsed_content("batch_size"))
            _write(ray, predictions, len(scans), _until(stop, answers), stop)
            predictions.complete([scan["scan"] for scan in dataset.data])

        answer_left(dataset.data, predictions, stop, answer)


def _shares(ray: ModuleType, cpus: float, gpus: int | None, models: int | None) -> tuple[int, int]:
    """GPUs of a network's process and how many there are; EngineError where Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    gpus = int(has["GPU"] >= 1) if gpus is None else gpus
    size = models or max(1, int(has["GPU"] if gpus else has["CPU"] // 2))
    needed = {"CPU": size + cpus, "GPU": size * gpus}  # a network's process has a core
    for kind, number in needed.items():
        if number > has[kind]:
            raise EngineError(
                f"models {size} of gpus_per_model {gpus} and a reader of cpus_per_reader {cpus:g} need {number:g} "
                f"{kind}s, and the cluster has {has[kind]:g}: take less of them, or more machines"
            )
    if cpus > (largest := max(node.get("CPU", 0.0) for node in nodes)):
        raise EngineError(f"cpus_per_reader must be at most {largest:g}, the CPUs of the largest machine, got {cpus:g}")
    return gpus, size


def _answers(
    scans: Sequence[Scan], read: Mapping[str, Any], network: Mapping[str, Any], models: int, batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """Numbers of scans and their answers, in the order in which they come: the pipeline of Ray Data."""
    from ray import data

    if not shows_whole_stack():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    data.DataContext.get_current().enable_progress_bars = False
    pool = data.ActorPoolStrategy(size=models)
    rows = (
        data.from_arrow([_table([number], [pickle.dumps(scan)]) for number, scan in enumerate(scans)])
        # a byte, for which networks do not ask, keeps Ray Data from reading in their processes
        .map_batches(_read, batch_format=ARROW, memory=1, **read)
        .map_batches(_Network, batch_format=ARROW, compute=pool, batch_size=batch_size, **network)
    )
    for table in rows.iter_batches(batch_size=None, batch_format=ARROW, prefetch_batches=0):
        for number, answer in zip(*table.to_pydict().values(), strict=True):
            if number < 0:
                raise EngineError(f"a process with the network cannot answer: {answer.decode()}")
            yield number, pickle.loads(answer)  # noqa: S301  (of a process of this run)


def _write(
    ray: ModuleType, predictions: PredictionWriter, count: int, answers: Iterator[tuple[int, Answer]], stop: Stop
) -> None:
    """Write the answers to so many scans as they come."""
    left = set(range(count))
    predictions.start()
    with tqdm(total=count, desc="inference", unit="scan", disable=None) as bar:
        try:
            for number, answer in answers:
                left.remove(number)  # each comes once
                predictions.add([answer])
                bar.update()
        except ray.exceptions.RayTaskError as error:
            raise EngineError(f"a process of Ray's cannot go on: {str(error.cause).splitlines()[0]}") from error
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray has ended the run: {type(error).__name__}") from error
    if left and not stop.asked:
        raise EngineError(f"Ray has lost {len(left)} scans; --append True goes on with them")


class _Stopped(BaseException):
    """A signal came while an answer was waited for."""


def _until(stop: Stop, answers: Iterator[tuple[int, Answer]]) -> Iterator[tuple[int, Answer]]:
    """Answers, until a signal asks for the end: at once, but not while one of them is written."""

    def interrupt() -> None:
        raise _Stopped

    def go_on() -> None:
        pass

    with suppress(_Stopped):
        try:
            while not stop.asked:
                stop.ends(interrupt)
                answer = next(answers)
                stop.ends(go_on)
                yield answer
        except StopIteration:
            pass
        finally:
            stop.ends(go_on)


# ---- in processes of Ray's -------------------------------------------------------------------------------------------
class Ends:
    """Counts the processes that ended over each scan: those that began with it, and did not say that it is done."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()

    def most(self, numbers: Sequence[int]) -> int:
        return max(self._open[number] for number in numbers)

    def begin(self, numbers: Sequence[int]) -> None:
        self._open.update(numbers)

    def done(self, numbers: Sequence[int]) -> None:
        self._open.subtract(numbers)


@contextmanager
def _noting(ends: Any, numbers: Sequence[int]) -> Iterator[bool]:
    """Note it if this process ends in the block; whether scans may be tried, as not too many have ended over them."""
    import ray

    may_try = ray.get(ends.most.remote(numbers)) < TRIES
    ray.get(ends.begin.remote(numbers))
    yield may_try
    ray.get(ends.done.remote(numbers))


def _table(numbers: list[int], contents: list[bytes]) -> "pyarrow.Table":
    import pyarrow

    return pyarrow.table({"number": numbers, "content": pyarrow.array(contents, pyarrow.binary())})


@cache
def _begin_reading(folder: str, preload: tuple[str, ...]) -> None:
    read_alone()
    os.chdir(folder)
    for name in preload:  # no scan's time
        import_module(name)


def _read(
    table: "pyarrow.Table", dataset: NewScanDataset, timeout: float, ends: Any, folder: str, preload: tuple[str, ...]
) -> "pyarrow.Table":
    """A packed scan, as a packed item."""
    _begin_reading(folder, preload)
    ((number,), (content,)) = table.to_pydict().values()
    one = dataset.with_data([pickle.loads(content)])  # noqa: S301  (of this run)
    with _noting(ends, [number]) as may_try:
        if may_try:
            faulthandler.dump_traceback_later(timeout, exit=True)  # also of a decoder that hangs in native code
            packed = read_packed(one, 0)
            faulthandler.cancel_dump_traceback_later()
        else:
            reason = f"the reader crashed twice, or took more than {timeout:g} s, or was killed as memory ran out"
            packed = pack(one.failed(0, reason))
    return _table([number], [packed])


class KeptAnswers(PredictionWriter):
    """Keeps the answers to a batch, with what handlers have added to them, for another process to write."""

    def start(self) -> None:
        self.kept: list[Answer] = []

    def add(self, answers: Sequence[Answer]) -> None:
        self.kept += answers

    def complete(self, scans: Sequence[str] = ()) -> None:
        pass


class _Network:
    """The network of a config, with the evaluator's handlers: pictures and DICOM objects are written by its process."""

    def __init__(self, config: Mapping[str, Any], ends: Any, folder: str) -> None:
        self.config, self.ends, self.folder = config, ends, folder

    @cached_property
    def parser(self) -> ConfigParser:
        drop_console()
        os.chdir(self.folder)
        parser = literal_parser(self.config)
        parser.get_parsed_content("evaluator")
        parser.get_parsed_content("attached")
        return parser

    def __call__(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """Packed items, as pickled answers; once a process has ended over one of them, each by itself.

        Where the network cannot answer at all, number -1 and why.
        """
        import ray

        numbers, packed = table.to_pydict().values()
        items = dict(zip(numbers, map(unpack, packed), strict=True))
        together = ray.get(self.ends.most.remote(numbers)) == 0
        answers: list[Answer] = []
        for group in [numbers] if together else [[number] for number in numbers]:
            with _noting(self.ends, group) as may_try:
                batch = [items[number] if may_try else _given_up(items[number]) for number in group]
                try:
                    answers += self._answers(batch)
                except Exception as error:  # Ray Data would not say which
                    return _table([-1], [in_a_line(error).encode()])
        return _table(numbers, [pickle.dumps(answer) for answer in answers])

    def _answers(self, items: list[dict[str, Any]]) -> list[Answer]:
        evaluator, kept = map(self.parser.get_parsed_content, ("evaluator", "predictions"))
        evaluator.data_loader = [collate(items)]
        evaluator.run()
        return kept.kept


def _given_up(item: dict[str, Any]) -> dict[str, Any]:
    reason = "the process with the network ended twice"
    intake = item["intake"] | {"status": "refused", "reason": reason}
    return item | {"image": torch.zeros_like(item["image"]), "reason": reason, "intake": intake}
