"""CPU, memory, disk, network and GPU of this machine as points of a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger("pretext.tracking")


class SystemMetrics(threading.Thread):
    """System metrics of this machine under MLflow's own names, through the journal like every other point."""

    def __init__(self, sink: Callable[[int, int, Mapping[str, float]], None], seconds: float) -> None:
        super().__init__(name="pretext-system-metrics", daemon=True)
        self._sink, self._seconds = sink, seconds
        self._monitors = _monitors()
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._sample()

    def stop(self) -> None:
        self._stopped.set()
        self.join(5.0)

    def _sample(self) -> None:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            try:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            except Exception as error:  # a counter that this machine lacks does not cost the others
                log.debug("no system metrics from %s: %s", type(monitor).__name__, error)
        now = time.time_ns() // 1_000_000
        # Steps are seconds since the epoch: they grow over attempts and machines, so that no point hides another.
        self._sink(now // 1000, now, {f"system/{key}": float(value) for key, value in values.items()})


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    always: tuple[Callable[[], Any], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    gpu: Callable[[], Any] = GPUMonitor
    monitors = [kind() for kind in always]
    try:
        monitors.append(gpu())
    except Exception as error:  # no GPU, or no nvidia-ml-py to read it with
        log.debug("no GPU metrics: %s", error)
    return monitors
