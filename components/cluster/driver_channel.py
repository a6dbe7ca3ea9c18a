"""The channel between a run's driver and its workers: points go up, the request to stop goes down.

A Ray actor on the driver's node; it outlives the worker group, so that a restarted group finds the failure of the one
before.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class DriverChannel:
    """Async, so that a caller who waits for items or for a request to stop blocks no other."""

    def __init__(self) -> None:
        self._post: list[Any] = []
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._stop: asyncio.Future[str] = asyncio.get_event_loop().create_future()
        self._failure = ""

    async def post(self, item: Any) -> None:
        """Sends plain data to the driver, in the sender's order; a class of ours would make this actor import torch."""
        self._post.append(item)
        self._settled.clear()
        self._arrived.set()

    async def receive(self, seconds: float) -> list[Any]:
        """The items that have arrived, after up to `seconds`; a call confirms that the items before are handled."""
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
        """Returns once the driver has handled everything posted so far; never, if the driver is dead."""
        await self._settled.wait()

    async def request_stop(self, reason: str) -> None:
        """Wakes everyone who waits in `stop_requested`."""
        if not self._stop.done():
            self._stop.set_result(reason)

    async def stop_requested(self) -> str:
        """Returns the reason to stop as soon as there is one."""
        return await asyncio.shield(self._stop)

    async def fail(self, sentence: str) -> None:
        """Stores an error of a worker that a restart would not mend; the first one counts."""
        self._failure = self._failure or sentence

    async def failure(self) -> str:
        """The sentence of `fail`, or empty."""
        return self._failure


def open_driver_channel() -> Any:
    """A channel on this node that ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(DriverChannel).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
