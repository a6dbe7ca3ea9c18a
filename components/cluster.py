"""One way to reach Ray: the cluster that is named, else a local one of this machine, quiet and without a dashboard."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, every init warns


class ClusterError(RuntimeError):
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


def _start(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    cpus = max(2, len(os.sched_getaffinity(0)))  # one core must not starve a pipeline of two stages
    local: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(**({"address": address} if address else local), **quiet)
    except Exception as error:  # Ray raises bare Exceptions where a node does not come up in time
        ray.shutdown()
        reason = " ".join(str(error).split())[:200]
        if address:
            raise ClusterError(f"the Ray cluster at {address} does not answer: {reason}") from error
        raise ClusterError(f"Ray did not start on this machine (is it very busy? try again): {reason}") from error
