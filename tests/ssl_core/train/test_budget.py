"""A budget of computing time: it is kept, it is the same run as one with that many steps, and it resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import stop_after, train
from tiny import tiny_run, tiny_shards

from ssl_core.data.shards import Shards
from ssl_core.train import budget, checkpoint
from ssl_core.train.budget import Clock, steps_within
from ssl_core.train.ranks import Ranks
from ssl_core.train.run import Train


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return tiny_shards(tmp_path / "corpus")


class Hand(Clock):
    """A clock whose hand the test moves."""

    def __init__(self) -> None:
        self.hand = 0.0
        super().__init__(Ranks(0, 1, torch.device("cpu")))

    def _now(self) -> float:
        return self.hand


def batches() -> Iterator[int]:
    while True:
        yield 0


@pytest.mark.parametrize("each", [0.02, 0.3, 1.0])
def test_as_many_steps_as_fit_after_a_trial_whose_slow_start_does_not_count(each: float) -> None:
    clock, seen = Hand(), []

    def step(batch: int) -> None:
        seen.append(batch)
        clock.hand += each * (5 if len(seen) < budget.WARM else 1)

    steps = steps_within(100.0, clock, step, batches())
    assert clock.hand + steps * each <= 100.0 < clock.hand + (steps * 1.04 + 1) * each
    assert budget.TRIAL[0] <= len(seen) - budget.WARM <= budget.TRIAL[1]


def test_a_budget_that_the_trial_uses_up_is_refused() -> None:
    clock = Hand()

    def step(batch: int) -> None:
        clock.hand += 2.0

    with pytest.raises(ValueError, match=r"train\.seconds is 10, but a step takes 2 s"):
        steps_within(10.0, clock, step, batches())


def test_a_clock_counts_the_work_of_all_workers_and_no_sleep() -> None:
    clock = Clock(Ranks(0, 3, torch.device("cpu")), used=7.0)
    began = time.process_time()
    time.sleep(0.05)
    while time.process_time() - began < 0.05:
        pass
    assert 7.15 <= clock.read() < 7.3


def test_a_run_of_so_many_seconds_is_the_run_of_so_many_steps_and_uses_up_its_seconds(
    shards: Shards, tmp_path: Path
) -> None:
    run = tiny_run(steps=None, seconds=1.5, checkpoint_every=10**6)
    outcome, points = train(run, shards, tmp_path / "seconds")
    assert outcome.status == "FINISHED" and outcome.step == outcome.steps > 30
    assert points[-1].metrics["compute_seconds"] == pytest.approx(1.5, rel=0.5)
    same = replace(run, train=replace(run.train, seconds=None, steps=outcome.steps))
    train(same, shards, tmp_path / "steps")
    name = checkpoint.name_of(outcome.steps)
    ours, theirs = (checkpoint.load(tmp_path / way / name)[0] for way in ("seconds", "steps"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_stopped_run_goes_on_with_the_steps_that_its_first_attempt_found(shards: Shards, tmp_path: Path) -> None:
    run = tiny_run(steps=None, seconds=1.0)
    first, points = train(run, shards, tmp_path / "run", stop_after(7))
    assert first.status == "KILLED"
    second, more = train(run, shards, tmp_path / "run")
    assert (second.status, second.steps) == ("FINISHED", first.steps)
    assert more[0].metrics["compute_seconds"] > points[-1].metrics["compute_seconds"]


def test_a_run_that_died_before_its_first_checkpoint_goes_on_with_them_too(shards: Shards, tmp_path: Path) -> None:
    run = tiny_run(steps=None, seconds=1.0, checkpoint_every=10**6)

    def die() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, shards, tmp_path / "run", die)
    _, meta = checkpoint.load(tmp_path / "run" / checkpoint.name_of(0))
    assert train(run, shards, tmp_path / "run")[0].steps == meta["steps"]


def test_seconds_and_steps_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="both given"):
        Train(steps=10, seconds=1.0)
    with pytest.raises(ValueError, match=r"train\.seconds is -1"):
        Train(seconds=-1.0)
