"""The index of an ingest: what is known, what is claimed, and that asking twice changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingest.dedup import DedupIndex, Listed
from components.storage.files import StorageError

A, B, C = (f"{i:064x}" for i in (10, 11, 12))


@pytest.fixture
def index() -> Iterator[DedupIndex]:
    made = DedupIndex()
    yield made
    made.close()


def listed(uri: str, size: int | None = 5, mtime: int = 7, place: int = 0) -> Listed:
    return (uri, place, size, mtime)


def test_a_file_is_known_by_name_size_and_time_together(index: DedupIndex) -> None:
    index.load([("/a.png", 5, 7, A)])
    asked = [listed("/a.png"), listed("/a.png", size=6), listed("/a.png", mtime=8), listed("/b.png")]
    assert index.known(asked) == [True, False, False, False]
    assert index.known([listed("/a.png", size=None)]) == [True], "a size not known before reading does not count"


def test_a_file_without_a_time_is_never_known_but_its_content_is(index: DedupIndex) -> None:
    index.load([("/a.png", 5, 0, A)])
    assert index.known([listed("/a.png", mtime=0)]) == [False]
    assert index.holds([A, B]) == [True, False]


def test_quarantined_files_are_known_and_hold_no_content(index: DedupIndex) -> None:
    index.load([("/bad.png", 5, 7, None)])
    assert index.known([listed("/bad.png")]) == [True]
    assert index.holds([A]) == [False]


def test_only_new_files_are_read_and_each_by_the_part_that_lists_it_first(index: DedupIndex) -> None:
    index.load([("/old.png", 5, 7, A)])
    files = [listed("/old.png"), listed("/new.png")]
    assert index.fresh(0, files) == [False, True]
    assert index.fresh(1, files) == [False, False], "another part lists them again"
    assert index.fresh(0, files) == [False, True], "the same part, repeated by Ray, gets the same answer"
    assert index.counts() == {"seen": 2}


def test_two_members_of_one_name_are_two_files(index: DedupIndex) -> None:
    assert index.fresh(0, [listed("x.tar#a", place=1)]) == [True]
    assert index.fresh(1, [listed("x.tar#a", place=2)]) == [True]


def test_a_content_is_claimed_by_the_first_who_asks_and_by_nobody_else(index: DedupIndex) -> None:
    assert index.claim([(A, "/one.png", 0), (A, "/copy.png", 0), (B, "/two.png", 0)]) == [True, False, True]
    assert index.claim([(A, "/one.png", 0), (A, "/copy.png", 0)]) == [True, False]


def test_settled_is_what_the_corpus_holds_or_another_file_has_claimed(index: DedupIndex) -> None:
    index.load([("/a.png", 5, 7, A)])
    index.claim([(B, "/one.png", 0)])
    asked = [(A, "/x.png", 0), (B, "/one.png", 0), (B, "/copy.png", 0), (C, "/new.png", 0)]
    assert index.settled(asked) == [True, False, True, False]


def test_a_note_counts_once_and_a_tally_each_time(index: DedupIndex) -> None:
    for _ in range(2):
        index.count_once("vanished", "/a.png")
        index.tally(decoded=3)
    index.count_once("vanished", "/b.png")
    index.count_once("skipped", "/a.png")
    assert index.counts() == {"vanished": 2, "skipped": 1, "decoded": 6}


def test_the_first_failure_is_kept(index: DedupIndex) -> None:
    assert index.failure() is None
    first = StorageError("s3://a: refused")
    index.fail(first)
    index.fail(StorageError("s3://b: refused"))
    assert index.failure() is first


def test_it_learns_from_the_corpus_files(index: DedupIndex, tmp_path: Path) -> None:
    rows = {"uri": ["/a.png", "/b.png"], "source_size": [5, 6], "source_mtime": [7, 7], "hash": [A, B]}
    pq.write_table(pa.table(rows), tmp_path / "shard.parquet")
    index.load_file(str(tmp_path / "shard.parquet"), ["uri", "source_size", "source_mtime", "hash"])
    assert index.known([listed("/a.png"), listed("/b.png", size=6)]) == [True, True]
    assert index.holds([A, B, C]) == [True, True, False]
    pq.write_table(pa.table({"uri": ["/bad.png"], "size": [5], "mtime": [7]}), tmp_path / "quarantine.parquet")
    index.load_file(str(tmp_path / "quarantine.parquet"), ["uri", "size", "mtime"])
    assert index.known([listed("/bad.png")]) == [True]
