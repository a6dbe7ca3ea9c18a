"""The line between a run's driver and its workers: points go up, a wish to stop goes down.

A Ray actor on the driver's node; it outlives the worker group, so that a restarted group finds the verdict of the one
before.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class DriverChannel:
    """Async, so that waiting for a wish and waiting for post block nobody else."""

    def __init__(self) -> None:
        self._post: list[Any] = []
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._stop: asyncio.Future[str] = asyncio.get_event_loop().create_future()
        self._failure = ""

    async def post(self, item: Any) -> None:
        """Plain data for the driver, in the sender's order; a class of ours would make this actor import torch."""
        self._post.append(item)
        self._settled.clear()
        self._arrived.set()

    async def receive(self, seconds: float) -> list[Any]:
        """What has arrived, waiting up to `seconds` for the first; each call says that the lot before is dealt with."""
        if not self._post:
            self._settled.set()
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return []
        self._arrived.clear()
        items, self._post = self._post, []
        return items

    async def settle(self) -> None:
        """Returns once the driver has dealt with everything posted so far; never, if the driver is dead."""
        await self._settled.wait()

    async def ask_to_stop(self, reason: str) -> None:
        """Wakes everyone in `stop_asked`."""
        if not self._stop.done():
            self._stop.set_result(reason)

    async def stop_asked(self) -> str:
        """Returns the reason as soon as there is one."""
        return await asyncio.shield(self._stop)

    async def fail(self, sentence: str) -> None:
        """A worker met an error that trying again does not mend; the first one counts."""
        self._failure = self._failure or sentence

    async def failure(self) -> str:
        """The sentence of `fail`, or empty."""
        return self._failure


def open_driver_channel() -> Any:
    """A channel on this node that ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(DriverChannel).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
