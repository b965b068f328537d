"""A Ray cluster, which carries out the runs of a study or an inference."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .errors import UserError, shows_whole_stack

PATIENCE = 10.0  # seconds for an address to answer; Ray itself tries for minutes


class EngineError(UserError):
    """An engine that is not installed, is not reached, or cannot do what it is asked for."""


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[ModuleType]:
    """Ray, connected for the block to the cluster at an ``address``.

    None is RAY_ADDRESS of the environment, as in a job of Ray's; without it, one of this machine alone is begun.

    EngineError: Ray is not installed, or the cluster is not reached.
    """
    if not shows_whole_stack():
        logging.getLogger("ray").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else every cluster is reported to Ray's makers
    try:
        import ray
    except ImportError as error:
        raise EngineError("the engine ray needs Ray: pip install 'fairlung[ray]'") from error
    try:
        if place := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address or ""):
            socket.create_connection((place[1], int(place[2])), timeout=PATIENCE).close()
        ray.init(address or "local", log_to_driver=False, include_dashboard=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"Ray at {address or 'this machine'} does not answer: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
