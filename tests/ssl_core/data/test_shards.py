"""A shard is a Parquet file whose payloads are found without reading them, and anything else is refused by name."""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from corpora import corpus, rows

from ssl_core.data import shards as shards_module
from ssl_core.data.shards import SCHEMA, ShardError, Shards, write_shard

MIXED = [(height, width) for height in (8, 9, 31) for width in (8, 17, 64)] * 9


def assert_mapped(shards: Shards, table: pa.Table) -> None:
    assert len(shards) == len(table)
    for i, payload in enumerate(table["payload"].to_pylist()):
        assert bytes(shards.payload(i)) == payload


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_payloads_are_where_parquet_says(tmp_path: Path, codec: str) -> None:
    table = rows(MIXED, codec)
    shards = corpus(tmp_path, [table])
    assert_mapped(shards, table)
    assert pq.read_table(shards.paths[0]).equals(table)
    assert shards.height.tolist() == table["height"].to_pylist()
    assert shards.width.tolist() == table["width"].to_pylist()
    assert set(shards.codec) == {codec}
    assert shards.hashes.tolist() == table["hash"].to_pylist()
    assert shards.labels.tolist() == table["label"].to_pylist()


def test_payloads_of_both_codecs_may_share_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "ROW_GROUP_BYTES", 20_000)
    raw, jpeg = rows(MIXED), rows(MIXED, "jpeg", first=len(MIXED))
    table = pa.concat_tables([raw, jpeg]).take(np.random.default_rng(0).permutation(2 * len(MIXED)))
    shards = corpus(tmp_path, [table])
    assert pq.read_metadata(shards.paths[0]).num_row_groups > 10
    assert_mapped(shards, table)


@pytest.mark.parametrize("chunks", [1, 7])
def test_many_small_rows_stay_one_page_per_row_group(tmp_path: Path, chunks: int) -> None:
    """Arrow's writer works in batches of 1,024 rows and starts a second page at 20,000."""
    part = rows([(2, 2)] * 3_000)
    table = pa.concat_tables([part.take(np.random.default_rng(i).permutation(3_000)) for i in range(14)])
    if chunks == 1:
        table = table.combine_chunks()
    shards = corpus(tmp_path, [table])
    assert pq.read_metadata(shards.paths[0]).num_row_groups == 3
    assert np.array_equal(
        np.concatenate([shards.payload(i) for i in range(len(shards))]),
        np.frombuffer(b"".join(table["payload"].to_pylist()), np.uint8),
    )


def test_a_payload_larger_than_a_row_group_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "ROW_GROUP_BYTES", 1_000)
    table = rows([(4, 4), (90, 90), (4, 4), (4, 5), (90, 90)])
    shards = corpus(tmp_path, [table])
    meta = pq.read_metadata(shards.paths[0])
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [1, 1, 2, 1]
    assert_mapped(shards, table)


def test_samples_are_numbered_by_shard_name_then_row(tmp_path: Path) -> None:
    corpus(tmp_path, [rows([(4, 4)] * 3), rows([(4, 4)] * 2, first=3), rows([(4, 4)] * 4, first=5)])
    paths = list(tmp_path.glob("shard*"))
    random.Random(0).shuffle(paths)
    shards = Shards.open(paths)
    assert shards.column("uri").to_pylist() == [f"file-{i}.png" for i in range(9)]
    assert [shards.locate(i) for i in (0, 2, 3, 8)] == [
        (tmp_path / f"shard-00{shard}.parquet", row) for shard, row in ((0, 0), (0, 2), (1, 0), (2, 3))
    ]
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            shards.payload(outside)


def test_no_shards_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shards"):
        Shards.open([])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "x.parquet", rows([(4, 4)]))
    with pytest.raises(ValueError, match="share a name"):
        Shards.open(list(tmp_path.glob("*/x.parquet")))


def test_payloads_are_read_only_views_that_outlive_their_corpus(tmp_path: Path) -> None:
    table = rows([(4, 4)] * 3)
    payload = corpus(tmp_path, [table]).payload(1)
    assert not payload.flags.owndata
    with pytest.raises(ValueError):
        payload[0] = 1
    for path in tmp_path.glob("shard*"):
        path.unlink()
    assert bytes(payload) == table["payload"][1].as_py()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_touches_no_raw_payload_and_maps_hold_no_descriptor(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [rows([(256, 256)] * 40, first=40 * i) for i in range(3)])
    before = len(os.listdir("/proc/self/fd"))
    assert (shards.height == 256).all()
    shards.payload(100)
    assert len(os.listdir("/proc/self/fd")) == before
    smaps = Path("/proc/self/smaps").read_text()
    resident = [int(kb) for kb in re.findall(rf"{re.escape(str(tmp_path))}/shard-.*\n(?:.*\n)*?Rss: +(\d+) kB", smaps)]
    assert len(resident) == 3 and max(resident) < 1_024  # of 7,700 kB each


def test_maps_are_dropped_when_they_hold_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "RESIDENT_BYTES", 10_000)
    table = rows([(32, 32)] * 12)
    shards = corpus(tmp_path, [table.slice(4 * i, 4) for i in range(3)])
    held = shards.payload(0)
    first = shards.mapped(0)
    for i in range(len(table)):
        shards.will_need(shards.places(np.array([i])))
    assert shards.mapped(0) is not first
    assert bytes(held) == table["payload"][0].as_py()
    assert_mapped(shards, table)


def test_a_shard_that_ends_early_is_refused_by_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "whole.parquet", rows(MIXED))
    data = (tmp_path / "whole.parquet").read_bytes()
    for size in (0, 3, 4, 100, len(data) // 2, len(data) - 9, len(data) - 1):
        path = tmp_path / f"cut-{size}.parquet"
        path.write_bytes(data[:size])
        with pytest.raises(ShardError, match=f"{re.escape(str(path))} is cut short"):
            Shards.open([path])


def test_a_hole_in_the_middle_is_refused_by_name(tmp_path: Path) -> None:
    """A download that lost some bytes but has its end."""
    write_shard(tmp_path / "whole.parquet", rows(MIXED))
    data = (tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "hole.parquet"
    path.write_bytes(data[:1_000] + data[50_000:])
    with pytest.raises(ShardError, match="hole"):
        Shards.open([path]).payload(0)


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gone\.parquet is missing"):
        Shards.open([tmp_path / "gone.parquet"])
    shards = corpus(tmp_path, [rows([(4, 4)])])
    shards.paths[0].unlink()
    with pytest.raises(ShardError, match="shard-000"):
        shards.payload(0)


def test_a_shard_that_was_replaced_is_refused(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [rows([(4, 4)] * 5)])
    write_shard(shards.paths[0], rows([(4, 4)] * 6))
    with pytest.raises(ShardError, match="was replaced"):
        shards.payload(0)


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "none"},
        {"compression": "none", "use_dictionary": False, "data_page_size": 4_096, "write_batch_size": 8},
        {"compression": "none", "use_dictionary": False, "max_rows_per_page": 10},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0", "column_encoding": "PLAIN"},
        {"compression": "none", "use_dictionary": False, "column_encoding": {"payload": "DELTA_BYTE_ARRAY"}},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_a_shard_rewritten_by_another_tool_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], codec: str
) -> None:
    path = tmp_path / "part-0.parquet"
    pq.write_table(rows(MIXED, codec), path, **options)
    with pytest.raises(ShardError, match=r"part-0\.parquet was not written by pretext or was rewritten"):
        Shards.open([path]).payload(0)


def test_a_shard_whose_columns_became_nullable_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    table = rows(MIXED)
    nullable = pa.schema([field.with_nullable(True) for field in SCHEMA])
    pq.write_table(table.cast(nullable), path, compression="none", use_dictionary=False)
    with pytest.raises(ShardError, match="its columns are not those of a shard"):
        Shards.open([path]).payload(0)


def test_wrong_lengths_are_refused_by_name(tmp_path: Path) -> None:
    """One flipped bit in a length sends every later payload astray."""
    table = rows(MIXED, "jpeg")
    shards = corpus(tmp_path, [table])
    data = bytearray(shards.paths[0].read_bytes())
    at = data.find(table["payload"][5].as_py()) - 4
    for flip, byte in ((1, 0), (0x80, 3)):
        changed = bytearray(data)
        changed[at + byte] ^= flip
        path = tmp_path / f"flipped-{byte}.parquet"
        path.write_bytes(changed)
        with pytest.raises(ShardError, match=rf"flipped-{byte}\.parquet"):
            Shards.open([path]).payload(0)


def set_column(name: str, value: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    at = SCHEMA.get_field_index(name)
    return lambda table: table.set_column(at, SCHEMA.field(name), value(table[name]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["uri"]), "missing: \\['uri'\\]"),
        (lambda table: table.select(SCHEMA.names[::-1]), "order of columns"),
        (lambda table: table.slice(0, 0), "no rows"),
        (lambda table: table.cast(SCHEMA.set(6, pa.field("height", pa.int64(), nullable=False))), "height: int64"),
        (set_column("height", lambda column: pc.add(column, 1).cast(pa.int32())), "row 0 says codec 'raw', height 5"),
        (set_column("codec", lambda column: pa.array(["raw", "webp"])), "row 1 says codec 'webp'"),
        (set_column("payload", lambda column: pa.array([column[0].as_py(), None], pa.binary())), "null in column"),
    ],
)
def test_rows_that_break_the_schema_are_refused_and_leave_nothing(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "x.parquet", change(rows([(4, 4)] * 2)))
    assert not list(tmp_path.glob("*.parquet")) + list(tmp_path.glob(".*"))


def test_a_write_that_fails_leaves_the_old_shard_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    write_shard(path, rows([(4, 4)]))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(path, rows([(4, 4)] * 9))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["x.parquet"]


def test_equal_rows_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, rows(MIXED))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
