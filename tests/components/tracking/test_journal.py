"""The journal: what survives crashes, outages and resumed steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.storage.locks import Busy
from components.tracking.journal import Journal, JournalEntry, Shipper, Unavailable, last_header


class Store:
    """A receiver in memory that keeps every (key, step) it was given and can be away."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.away, self.takes = journal, False, 0
        self.points: Counter[tuple[str, int]] = Counter()

    def connect(self) -> None:
        if self.away:
            raise Unavailable("away")
        self.journal.bind("run")

    def deliver(self, entries: Sequence[JournalEntry]) -> None:
        self.connect()
        self.takes += 1
        for entry in entries:
            for key in entry.record.get("metrics", {}):
                self.points[key, entry.record["step"]] += 1

    def pulse(self) -> None:
        self.connect()


def fill(journal: Journal, steps: range, key: str = "loss") -> None:
    for step in steps:
        journal.append_point(step, 1_000 + step, {key: step / 3})


def ship(journal: Journal, store: Store, seconds: float = 5.0) -> bool:
    shipper = Shipper(journal, store, pause=0.01)
    shipper.start()
    return shipper.drain(seconds)


def test_every_point_arrives_once_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(50_000))
    store = Store(journal)
    assert ship(journal, store)
    assert list(store.points) == [("loss", step) for step in range(50_000)]
    assert set(store.points.values()) == {1} and store.takes > 1


def test_steps_that_a_resumed_run_repeats_are_dropped_also_after_reopening(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(100))
    journal.close()
    again = Journal(tmp_path)
    fill(again, range(60, 140))
    again.append_point(20, 5, {"new": 1.0, "loss": 9.0})
    store = Store(again)
    assert ship(again, store)
    assert set(store.points.values()) == {1}
    assert set(store.points) == {("loss", step) for step in range(140)} | {("new", 20)}


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(10))
    journal.close()
    whole = (tmp_path / "journal.jsonl").read_bytes()
    for cut in range(1, 40):
        (tmp_path / "journal.jsonl").write_bytes(whole[:-cut])
        journal = Journal(tmp_path)
        assert [record["step"] for record in journal.records()] == list(range(10 - whole[-cut:].count(b"\n")))
        fill(journal, range(10))
        assert [record["step"] for record in journal.records()] == list(range(10))
        journal.close()


def test_a_line_garbled_on_disk_costs_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(3))
    journal.close()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(lines[0] + b"\0" * 30 + b"\n" + lines[2])
    journal = Journal(tmp_path)
    store = Store(journal)
    assert ship(journal, store)
    assert set(store.points) == {("loss", 0), ("loss", 2)}


def test_records_that_lack_their_fields_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(
        '{"kind":"point"}\n{"kind":"point","step":1,"metrics":3}\n{"kind":"run"}\n[1]\n'
    )
    for ack in ("[]", '{"owner":"run","offset":-5}', '{"owner":"run","offset":null}'):
        (tmp_path / "journal.ack").write_text(ack)
        journal = Journal(tmp_path)
        assert journal.acked == 0 and journal.left() == 4
        assert last_header(journal) is None
        journal.close()


def test_a_damaged_ack_sends_all_again_and_another_run_gets_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(5))
    assert ship(journal, Store(journal))
    assert not journal.pending()
    journal.bind("another run")
    assert len(journal.pending()) == 5
    journal.close()
    (tmp_path / "journal.ack").write_text('{"owner": "ru')
    assert len(Journal(tmp_path).pending()) == 5


def test_an_outage_delays_points_and_costs_the_run_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    store = Store(journal)
    store.away = True
    shipper = Shipper(journal, store, pause=0.01, longest_pause=0.05)
    shipper.start()
    started = time.monotonic()
    fill(journal, range(2_000))
    assert time.monotonic() - started < 2.0
    assert not store.points and journal.left() == 2_000
    store.away = False
    fill(journal, range(2_000, 2_100))
    assert shipper.drain(5.0)
    assert len(store.points) == 2_100 and set(store.points.values()) == {1}


def test_closing_in_an_outage_is_bounded_and_the_next_opening_sends_the_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    store = Store(journal)
    store.away = True
    fill(journal, range(30))
    started = time.monotonic()
    assert not ship(journal, store, seconds=0.3)
    assert time.monotonic() - started < 2.0
    journal.close()
    again = Journal(tmp_path)
    store = Store(again)
    assert ship(again, store)
    assert len(store.points) == 30


def test_one_process_at_a_time_holds_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(Busy, match=str(os.getpid())):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_killed_writer_leaves_every_point_whose_append_returned(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from components.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    journal.append_point(step, step, {'loss': 0.1}); print(step, flush=True)\n"
    )
    for round_ in range(3):
        folder = tmp_path / str(round_)
        writer = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(50 + 77 * round_)]
        writer.send_signal(signal.SIGKILL)
        seen += [int(line) for line in writer.stdout.read().splitlines() if line.strip()]
        writer.wait()
        writer.stdout.close()
        journal = Journal(folder)
        steps = [record["step"] for record in journal.records()]
        assert steps == list(range(len(steps))) and len(steps) >= len(seen)
        journal.close()


def test_two_threads_append_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    threads = [threading.Thread(target=fill, args=(journal, range(2_000), key)) for key in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 4_000 and all(json.loads(line)["kind"] == "point" for line in lines)


def test_a_bug_in_the_receiver_does_not_end_the_thread(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    class Faulty(Store):
        def deliver(self, entries: Sequence[JournalEntry]) -> None:
            if self.takes == 0:
                self.takes = 1
                raise ZeroDivisionError
            super().deliver(entries)

    store = Faulty(journal)
    fill(journal, range(3))
    assert ship(journal, store)
    assert set(store.points) == {("loss", step) for step in range(3)}
