"""The channel between driver and workers, without Ray."""

from __future__ import annotations

import asyncio

import pytest

from components.cluster.driver_channel import DriverChannel


def test_post_comes_in_order_and_once() -> None:
    async def story() -> None:
        channel = DriverChannel()
        assert await channel.receive(0.01) == []
        for item in ("a", "b"):
            await channel.post(item)
        assert await channel.receive(1) == ["a", "b"]
        assert await channel.receive(0.01) == []

    asyncio.run(story())


def test_settled_means_taken_and_dealt_with() -> None:
    async def story() -> None:
        channel = DriverChannel()
        await channel.post("a")
        await channel.receive(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.settle(), 0.05)
        await channel.receive(0.01)
        await asyncio.wait_for(channel.settle(), 1)
        await channel.post("b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.settle(), 0.05)

    asyncio.run(story())


def test_everyone_who_waits_hears_the_first_wish_to_stop() -> None:
    async def story() -> None:
        channel = DriverChannel()
        waiting = [asyncio.create_task(channel.stop_requested()) for _ in range(2)]
        await asyncio.sleep(0)
        await channel.request_stop("SIGTERM")
        await channel.request_stop("later")
        assert await asyncio.gather(*waiting) == ["SIGTERM", "SIGTERM"]

    asyncio.run(story())


def test_the_first_failure_counts() -> None:
    async def story() -> None:
        channel = DriverChannel()
        assert await channel.failure() == ""
        await channel.fail("first")
        await channel.fail("second")
        assert await channel.failure() == "first"

    asyncio.run(story())
