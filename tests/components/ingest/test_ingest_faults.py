"""The two claims of ingest that take minutes to show; the benchmarks do the work and print the figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def figures(script: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_lose_nothing_double_nothing_and_leave_nothing():
    found = figures("bench_ingest_faults.py", "--kills", "50")
    assert found["kills"] >= 50
    wrong = ("lost", "twice", "foreign", "wrong payload", "quarantine lost", "quarantine twice", "missing shards")
    assert {name: found[name] for name in (*wrong, "left over")} == dict.fromkeys((*wrong, "left over"), 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peak_memory_does_not_grow_with_the_corpus():
    found = figures("bench_ingest_memory.py")
    assert found["large"]["files"] == 6 * found["small"]["files"]
    assert found["peak ratio"] < 1.15
