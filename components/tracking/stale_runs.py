"""Whether a run is dead, and which of several runs with one key counts: plain values in, a decision out."""

from __future__ import annotations

from collections.abc import Sequence


def is_stale(heartbeat_ms: int | None, started_ms: int, now_ms: int, minutes: float) -> bool:
    """Whether a RUNNING run is dead: its last sign of life (heartbeat, else start) is more than `minutes` old."""
    return now_ms - (heartbeat_ms if heartbeat_ms is not None else started_ms) > minutes * 60_000


def oldest_run(runs: Sequence[tuple[int, str]]) -> str | None:
    """From (start time, run id), the run that every process chooses: the first started, then the smaller id."""
    return min(runs)[1] if runs else None
