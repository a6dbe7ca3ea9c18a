"""The mailbox between driver and workers, without Ray."""

from __future__ import annotations

import asyncio

import pytest

from components.cluster.driver_channel import Mailbox


def test_post_comes_in_order_and_once() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        assert await mailbox.take(0.01) == []
        for item in ("a", "b"):
            await mailbox.post(item)
        assert await mailbox.take(1) == ["a", "b"]
        assert await mailbox.take(0.01) == []

    asyncio.run(story())


def test_settled_means_taken_and_dealt_with() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        await mailbox.post("a")
        await mailbox.take(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mailbox.settle(), 0.05)
        await mailbox.take(0.01)
        await asyncio.wait_for(mailbox.settle(), 1)
        await mailbox.post("b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mailbox.settle(), 0.05)

    asyncio.run(story())


def test_everyone_who_waits_hears_the_first_wish_to_stop() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        waiting = [asyncio.create_task(mailbox.stop_asked()) for _ in range(2)]
        await asyncio.sleep(0)
        await mailbox.ask_to_stop("SIGTERM")
        await mailbox.ask_to_stop("later")
        assert await asyncio.gather(*waiting) == ["SIGTERM", "SIGTERM"]

    asyncio.run(story())


def test_the_first_failure_counts() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        assert await mailbox.failure() == ""
        await mailbox.fail("first")
        await mailbox.fail("second")
        assert await mailbox.failure() == "first"

    asyncio.run(story())
