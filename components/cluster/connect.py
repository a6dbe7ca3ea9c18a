"""The one way to reach Ray: the named cluster, else a local one on this machine, quiet and without a dashboard."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ssl_core.errors import InputError, PretextError

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, every init warns


@dataclass(frozen=True)
class Cluster:
    """Where and how wide training runs.

    Attributes:
        workers: DDP workers; part of the run key, since they change the weights.
        gpus: one GPU for each worker, with nccl; else CPUs, with gloo; part of the run key.
        max_failures: restarts of the worker group after a lost worker or node.
        address: Ray cluster; none: RAY_ADDRESS, else a local one.
        storage: folder or URI for the run folders, which all nodes reach; default <home>/runs.
    """

    workers: int = 1
    gpus: bool = False
    max_failures: int = 3
    address: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"cluster.workers is {self.workers}; it must be at least 1.")
        if self.max_failures < 0:
            raise InputError(f"cluster.max_failures is {self.max_failures}; it must be at least 0.")


class ClusterError(PretextError):
    """Ray cannot be reached or started."""


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Connect to Ray for the block; a connection that was open before stays open after it.

    Args:
        address: of a cluster; None takes RAY_ADDRESS, else starts a local cluster that ends with the block.

    Raises:
        ClusterError: the named cluster does not answer, or a local one does not start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _start(address or os.environ.get("RAY_ADDRESS"))
    try:
        yield
    finally:
        ray.shutdown()


def lacking_gpus(workers: int, address: str | None) -> str:
    """The error message if a local Ray lacks the GPUs, else empty; a named cluster may still grow. Needs `connect`."""
    import ray

    shown = int(ray.cluster_resources().get("GPU", 0))
    if shown >= workers or address or os.environ.get("RAY_ADDRESS"):
        return ""
    return f"cluster.gpus asks for {workers} GPUs and this machine shows {shown}; set it to false or name a cluster."


def _start(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    cpus = max(2, len(os.sched_getaffinity(0)))  # with a single CPU a pipeline of two stages would starve
    local: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if in_main:  # Ray's processes inherit it: a closed terminal must not end workers before they checkpoint
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if address:
            _check_listening(address)
        ray.init(**({"address": address} if address else local), **quiet)
    except Exception as error:  # Ray raises bare Exceptions where a node does not come up in time
        ray.shutdown()
        reason = " ".join(str(error).split())[:200]
        if address:
            raise ClusterError(f"the Ray cluster at {address} does not answer; check its address: {reason}") from error
        raise ClusterError(f"Ray did not start on this machine (is it very busy? try again): {reason}") from error
    finally:
        if in_main:
            for number, handler in before.items():  # Ray's own for SIGTERM exits without unwinding the stack
                signal.signal(number, handler)


def _check_listening(address: str) -> None:
    """Raises OSError if nothing listens at host:port; Ray itself would keep trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
