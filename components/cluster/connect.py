"""One way to reach Ray: the cluster that is named, else a local one of this machine, quiet and without a dashboard."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ssl_core.errors import PretextError

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, every init warns


class ClusterError(PretextError):
    """Ray cannot be reached or started."""


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block; a connection that was open before stays open after it.

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
    """A sentence where a local Ray will never have the GPUs; a named cluster may still grow. To be asked connected."""
    import ray

    shown = int(ray.cluster_resources().get("GPU", 0))
    if shown >= workers or address or os.environ.get("RAY_ADDRESS"):
        return ""
    return f"cluster.gpus asks for {workers} GPUs and this machine shows {shown}; set it to false or name a cluster."


def _start(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    cpus = max(2, len(os.sched_getaffinity(0)))  # one core must not starve a pipeline of two stages
    local: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _knock(address)
        ray.init(**({"address": address} if address else local), **quiet)
    except Exception as error:  # Ray raises bare Exceptions where a node does not come up in time
        ray.shutdown()
        reason = " ".join(str(error).split())[:200]
        if address:
            raise ClusterError(f"the Ray cluster at {address} does not answer: {reason}") from error
        raise ClusterError(f"Ray did not start on this machine (is it very busy? try again): {reason}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts one in place that exits without unwinding


def _knock(address: str) -> None:
    """Whether anybody listens at host:port; Ray itself would go on trying for minutes. Raises OSError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
