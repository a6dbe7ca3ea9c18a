"""The decisions, as tables."""

from __future__ import annotations

import pytest

from components.tracking.stale_runs import is_stale, oldest_run


@pytest.mark.parametrize(
    ("beat_minutes_ago", "started_minutes_ago", "stale"),
    [(0, 100, False), (14.9, 100, False), (15.1, 100, True), (None, 14, False), (None, 16, True), (-3, 100, False)],
)
def test_a_run_is_dead_after_its_last_sign_of_life(
    beat_minutes_ago: float | None, started_minutes_ago: float, stale: bool
) -> None:
    now = 1_700_000_000_000
    beat = None if beat_minutes_ago is None else now - int(beat_minutes_ago * 60_000)
    assert is_stale(beat, now - int(started_minutes_ago * 60_000), now, minutes=15) is stale


def test_every_process_picks_the_same_of_several_runs() -> None:
    assert oldest_run([]) is None
    assert oldest_run([(5, "b"), (3, "z"), (3, "a")]) == "a"
