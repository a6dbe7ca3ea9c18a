"""One way to reach Ray: the cluster that is named, else a local one of this machine, quiet and without a dashboard."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, every init warns


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block; a connection that was open before stays open after it.

    Args:
        address: of a cluster; None takes RAY_ADDRESS, else starts a local cluster that ends with the block.

    Raises:
        ConnectionError: the named cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    named = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if named:
        ray.init(address=named, **quiet)
    else:
        cpus = max(2, len(os.sched_getaffinity(0)))  # one core must not starve a pipeline of two stages
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
