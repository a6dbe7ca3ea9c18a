"""The corpus as a Delta table: versions, digests, turns of writers, leftovers of dead ingests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.corpus import delta
from components.corpus.corpus import Corpus, CorpusError, corpus_uri
from components.corpus.delta import DataFile, OvertakenError
from components.ingest.vacuum import ingest_lease, vacuum
from components.storage.files import StorageError, join, replacing
from components.storage.lease import Lease, is_held
from ssl_core.data.decode import SampleFormat
from ssl_core.data.shards import SCHEMA, Shards, write_shard

FORMAT = SampleFormat(size=4)


def rows(first: int, count: int) -> pa.Table:
    columns = {
        "hash": [f"{i:064x}" for i in range(first, first + count)],
        "uri": [f"/media/{i}.png" for i in range(first, first + count)],
        "source_size": [10] * count,
        "source_mtime": [1] * count,
        "payload": [np.full(4 * 5 * 3, i % 256, np.uint8).tobytes() for i in range(first, first + count)],
        "codec": ["raw"] * count,
        "height": [4] * count,
        "width": [5] * count,
        "label": [None] * count,
        "batch": [1] * count,
    }
    return pa.table(columns, schema=SCHEMA)


def add(corpus: Corpus, name: str, first: int, count: int, folder: str = "ingest-a") -> Corpus:
    path = Path(corpus.uri) / folder / f"part-{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    write_shard(path, rows(first, count))
    table = delta.open_table(corpus.uri)
    delta.append(table, [DataFile(f"{folder}/{path.name}", count, path.stat().st_size)], {"pretext.rows": count})
    return Corpus.open(corpus.uri)


def test_a_version_stays_as_it_was_when_the_corpus_grows():
    empty = Corpus.create("c", FORMAT)
    first = add(empty, "b", 0, 3)
    second = add(first, "a", 3, 2)
    assert [c.version for c in (empty, first, second)] == [0, 1, 2]
    assert [c.count() for c in (empty, first, second)] == [0, 3, 5]
    assert second.at(1).digest() == first.digest() == second.digest(1)
    assert len({c.digest() for c in (empty, first, second)}) == 3
    assert [p.name for p in second.shards()] == ["part-a.parquet", "part-b.parquet"]
    assert [p.name for p in second.shards(version=1)] == ["part-b.parquet"]
    assert len(Shards.open(second.shards())) == 5
    assert [(c.version, c.added) for c in second.history()] == [(0, 0), (1, 3), (2, 2)]


def test_the_digest_is_of_the_content_not_of_the_place():
    one = add(add(Corpus.create("one", FORMAT), "a", 0, 1), "b", 1, 1)
    other = add(add(Corpus.create("other", FORMAT), "b", 1, 1, "ingest-x"), "a", 0, 1, "ingest-y")
    assert one.digest() == other.digest()


def test_the_form_of_samples_is_kept_and_another_is_refused():
    Corpus.create("c", SampleFormat(size=4, payload="jpeg", quality=80))
    found = Corpus.open("c")
    assert (found.size, found.payload, found.sample_format.quality) == (4, "jpeg", 80)
    with pytest.raises(CorpusError, match="short side 4, but raw images with short side 4 were requested"):
        Corpus.create("c", FORMAT)
    assert Corpus.create("c", SampleFormat(size=4, payload="jpeg", quality=80)).version == 0


def test_what_is_not_there_is_named():
    with pytest.raises(CorpusError, match=r"no corpus at .*/corpora/none; `pretext ingest SOURCE --corpus none`"):
        Corpus.open("none")
    with pytest.raises(CorpusError, match="has versions 0 to 0, not 7"):
        Corpus.create("c", FORMAT).at(7)
    with pytest.raises(CorpusError, match="cannot name a corpus"):
        Corpus.open("a b")
    delta.create_table(corpus_uri("foreign"), SCHEMA, {})
    with pytest.raises(CorpusError, match="not a corpus"):
        Corpus.open("foreign")


def test_a_missing_or_cut_shard_is_a_storage_error_that_names_it():
    corpus = add(Corpus.create("c", FORMAT), "a", 0, 3)
    (path,) = corpus.shards()
    os.truncate(path, 100)
    with pytest.raises(StorageError, match=r"part-a\.parquet: 100 bytes"):
        corpus.shards()
    path.unlink()
    with pytest.raises(StorageError, match=r"part-a\.parquet: .* gone"):
        corpus.shards()


def test_a_log_that_cannot_be_read_is_a_storage_error_that_names_the_corpus(tmp_path: Path):
    log = tmp_path / "c" / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020d}.json").write_text("{")
    with pytest.raises(StorageError, match=str(tmp_path / "c")):
        Corpus.open(str(tmp_path / "c"))
    with pytest.raises(StorageError, match=r"nosuch://bucket/c: .*Unknown scheme"):
        Corpus.create("nosuch://bucket/c", FORMAT)


def test_of_two_appends_on_one_version_the_second_is_refused():
    uri = Corpus.create("c", FORMAT).uri
    mine, yours = delta.open_table(uri), delta.open_table(uri)
    delta.append(mine, [DataFile("ingest-a/part-a.parquet", 1, 10)], {})
    with pytest.raises(OvertakenError):
        delta.append(yours, [DataFile("ingest-b/part-b.parquet", 1, 10)], {})
    yours.update_incremental()
    delta.append(yours, [DataFile("ingest-b/part-b.parquet", 1, 10)], {})
    assert Corpus.open(uri).count() == 2


def test_sweeping_overtakes_a_sleeper_even_without_files():
    uri = Corpus.create("c", FORMAT).uri
    sleeper = delta.open_table(uri)
    delta.append(delta.open_table(uri), [], {})
    with pytest.raises(OvertakenError):
        delta.append(sleeper, [DataFile("ingest-a/part-a.parquet", 1, 10)], {})


def leave_uncommitted(uri: str, script_end: str) -> subprocess.Popen[bytes]:
    """A process that takes a lease, writes a file below its folder, and does as told."""
    script = f"""
import sys
from pathlib import Path
from components.ingest.vacuum import folder_of, ingest_lease
with ingest_lease({uri!r}) as lease:
    folder = Path({uri!r}) / folder_of(lease)
    folder.mkdir()
    (folder / "part-x.parquet").write_bytes(b"half")
    print(lease.id, flush=True)
    {script_end}
"""
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_leftovers_of_a_killed_ingest_go_and_those_of_a_running_one_stay():
    corpus = add(Corpus.create("c", FORMAT), "a", 0, 3)
    process = leave_uncommitted(corpus.uri, "sys.stdin.read()")
    ingest = process.stdout.readline().decode().strip()
    left = Path(corpus.uri) / f"ingest-{ingest}" / "part-x.parquet"
    with ingest_lease(corpus.uri) as mine:
        vacuum(mine, [corpus.uri])
        assert left.exists()
        process.kill()
        process.communicate()
        vacuum(mine, [corpus.uri])
    assert not left.parent.exists()
    assert not list((Path(corpus.uri) / "_ingests").iterdir())
    assert len(Corpus.open(corpus.uri).shards()) == 1


def test_an_ingest_of_another_machine_is_dead_after_ten_minutes_of_silence():
    corpus = Corpus.create("c", FORMAT)
    record = Path(corpus.uri) / "_ingests" / "elsewhere.json"
    left = Path(corpus.uri) / "ingest-elsewhere" / "part-x.parquet"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with ingest_lease(corpus.uri) as mine:
        record.write_text(json.dumps({"machine": "another boot", "pid": 1, "started": 1.0}))
        vacuum(mine, [corpus.uri])
        assert left.exists()
        then = record.stat().st_mtime - Lease.DEAD_AFTER - 1
        os.utime(record, (then, then))
        vacuum(mine, [corpus.uri])
        assert not left.exists() and not record.exists()


def test_a_lease_that_was_swept_is_no_longer_held():
    corpus = Corpus.create("c", FORMAT)
    with ingest_lease(corpus.uri) as mine:
        assert is_held(mine.record)
        (Path(corpus.uri) / "_ingests" / f"{mine.id}.json").unlink()
        assert not is_held(mine.record)


def test_a_cached_shard_that_a_power_cut_emptied_is_fetched_again_and_half_ones_go(s3: str, tmp_path: Path):
    import boto3

    bucket = "corpus-cache"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=bucket)
    corpus = Corpus.create(f"s3://{bucket}/c", FORMAT)
    with replacing(join(corpus.uri, "part-a.parquet")) as shard:
        write_shard(shard, rows(0, 3))
        size = shard.stat().st_size
    delta.append(delta.open_table(corpus.uri), [DataFile("part-a.parquet", 3, size)], {"pretext.rows": 3})
    cache = tmp_path / "cache"
    (path,) = Corpus.open(corpus.uri).shards(cache=cache)
    before = path.read_bytes()
    path.write_bytes(b"")
    (cache / ".part-b.parquet.0123456789abcdef.part").touch()
    assert Corpus.open(corpus.uri).shards(cache=cache) == [path] and path.read_bytes() == before
    assert sorted(entry.name for entry in cache.iterdir()) == [".lock", path.name]
