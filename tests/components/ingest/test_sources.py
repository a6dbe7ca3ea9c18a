"""What is found in folders, globs, tars and Parquet files, however they are named, and however hostile they are."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingest.containers import HEADER_BYTES, ColumnError
from components.ingest.dedup import DedupIndex, Listed
from components.ingest.listing import list_files
from components.ingest.sources import SHARES, Part, SourceOptions, parts
from components.ingest.stages import read_source
from components.storage.files import StorageError
from ssl_core.data.decode import Limits


def options(labels: Any = None, column: str | None = None, max_bytes: int = 1000) -> SourceOptions:
    return SourceOptions(labels, column, Limits(max_bytes=max_bytes))


def everything(files: Sequence[Listed]) -> list[bool]:
    return [True] * len(files)


def rows(
    *sources: object, how: SourceOptions | None = None, fresh: Any = everything, enough: int = 64
) -> list[dict[str, Any]]:
    cut = parts([str(source) for source in sources], enough)
    tables = [table for part in cut for table in list_files(part, how or options(), fresh, lambda uri: None)]
    return [row for table in tables for row in table.to_pylist()]


def names(found_rows: list[dict[str, Any]], root: Path) -> list[str]:
    return sorted(row["uri"].removeprefix(f"{root}/") for row in found_rows)


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("enough", [1, 3, 64])
def test_a_folder_is_walked_once_however_it_is_cut_into_parts(tmp_path: Path, enough: int):
    wanted = ["a/b/c/1.png", "a/b/2.jpg", "a/3", "4.png", "z/5.png"]
    for name in [*wanted, ".hidden/6.png", "a/.7.png", "__MACOSX/8.png", "labels.csv", "a/README.txt"]:
        put(tmp_path / name)
    assert names(rows(tmp_path, enough=enough), tmp_path) == sorted(wanted)


ODD = [
    "with blank.png",
    "ünïcödé 画像.png",
    "a#b.png",
    "100%.png",
    "%20.png",
    "why?.png",
    "star*.png",
    "[x].png",
    "n" * 250,
]


def test_odd_names_are_found_and_read_as_they_are(tmp_path: Path):
    for name in ODD:
        put(tmp_path / "f o#l%d?er" / name, name.encode())
    for row in rows(tmp_path):
        assert read_source(os.fsdecode(row["locator"]), Limits()) == os.path.basename(row["uri"]).encode()
    assert len(rows(tmp_path)) == len(ODD)
    assert len(rows(tmp_path / "f o#l%d?er" / "star*.png")) == 1  # a name that is there is no pattern
    assert len(rows((tmp_path / "f o#l%d?er" / "100%.png").as_uri())) == 1


def test_a_name_that_is_not_unicode_is_shown_escaped_and_read_all_the_same(tmp_path: Path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(b"data")
    (row,) = rows(tmp_path)
    assert row["uri"].endswith(r"\xff.png")
    assert read_source(os.fsdecode(row["locator"]), Limits()) == b"data"


def test_links_are_followed_and_a_loop_of_links_ends(tmp_path: Path):
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "nowhere")
    outside = put(tmp_path.parent / f"{tmp_path.name}-outside" / "2.png")
    (tmp_path / "link").symlink_to(outside.parent)
    for enough in (1, 64):
        found_names = {os.path.basename(name) for name in names(rows(tmp_path, enough=enough), tmp_path)}
        assert found_names == {"1.png", "2.png"}


@pytest.mark.parametrize("enough", [0, 64])
def test_a_link_back_to_the_source_lists_nothing_twice(tmp_path: Path, enough: int):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "2.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert names(rows(tmp_path, enough=enough), tmp_path) == ["2.png", "a/1.png"]


def test_pipes_and_devices_are_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    assert rows(tmp_path) == []


def test_an_empty_folder_and_a_pattern_without_match_hold_nothing(tmp_path: Path):
    assert rows(tmp_path, tmp_path / "*.png", tmp_path / "**" / "*.png") == []


@pytest.mark.parametrize("source", ["none", "none/*.png", "none/**/x.png"])
def test_a_source_that_is_not_there_is_named(tmp_path: Path, source: str):
    with pytest.raises(StorageError, match=f"{tmp_path}/none"):
        rows(tmp_path / source)


def test_patterns_find_files_folders_and_containers(tmp_path: Path):
    put(tmp_path / "day1" / "a" / "1.png")
    put(tmp_path / "day2" / "2.png")
    tar(tmp_path / "day3.tar", {"3.png": b"x"})
    assert names(rows(tmp_path / "day*"), tmp_path) == ["day1/a/1.png", "day2/2.png", "day3.tar!3.png"]
    assert names(rows(tmp_path / "**" / "*.png"), tmp_path) == ["day1/a/1.png", "day2/2.png"]


TREE = ["1.png", "a/1.png", "a/2.jpg", "a/b/3.png", "a/b/c/1.png", "ab/1.png", "ab/a/1.png", "c/d [1]/1.png"]
UNSEEN = [".h/1.png", "a/.h/1.png", "a/.4.png", "__MACOSX/1.png"]
PATTERNS = [
    *("*.png", "*/*.png", "**/*.png", "**/1.png", "a*/**/1.png", "**/a/**/*.png", "**/**/[23].*", "a/**"),
    *("?/b/*/1.png", "*/.h/*.png", ".*/*.png", "a/.*g", "c/d [[]1]/*.png", "**/none/*", "*/1.png/*"),
]


@pytest.fixture
def bucket(s3: str) -> Any:
    import boto3

    def fill(files: Sequence[str]) -> str:
        client = boto3.client("s3", endpoint_url=s3)
        name = f"bucket-{os.urandom(4).hex()}"
        client.create_bucket(Bucket=name)
        for file in files:
            client.put_object(Bucket=name, Key=file, Body=b"x")
        return f"s3://{name}"

    return fill


@pytest.mark.parametrize("enough", [1, 64])
def test_a_pattern_matches_what_it_matches_in_a_shell_here_and_in_a_bucket(tmp_path: Path, bucket: Any, enough: int):
    for name in (*TREE, *UNSEEN):
        put(tmp_path / name)
    there = bucket([*TREE, *UNSEEN])
    for pattern in PATTERNS:
        shell = {name for name in glob.glob(pattern, root_dir=tmp_path, recursive=True) if (tmp_path / name).is_file()}
        seen = sorted(name for name in shell if "__MACOSX" not in name)
        assert names(rows(tmp_path / pattern, enough=enough), tmp_path) == seen, pattern
        assert sorted(r["uri"].removeprefix(f"{there}/") for r in rows(f"{there}/{pattern}", enough=enough)) == seen


def test_a_bucket_is_listed_page_by_page(bucket: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    files = [f"x/{i:02d}.png" for i in range(25)] + [f"x/{i}/{i}.png" for i in range(14)]
    there = bucket(["x/", *files])
    got = [row["uri"] for row in rows(f"{there}/x")]
    assert sorted(got) == sorted(f"{there}/{name}" for name in files)


def test_companions_that_a_wildcard_matches_are_skipped_and_those_named_are_tried(tmp_path: Path):
    for name in ("a/1.png", "a/notes.txt", "b/notes.txt"):
        put(tmp_path / name)
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "a" / "labels.parquet")
    skipped: list[str] = []
    (part,) = parts([str(tmp_path / "**" / "*")], 0)
    tables = list(list_files(part, options(), everything, skipped.append))
    assert [row["uri"] for table in tables for row in table.to_pylist()] == [str(tmp_path / "a/1.png")]
    assert sorted(skipped) == [str(tmp_path / name) for name in ("a/labels.parquet", "a/notes.txt", "b/notes.txt")]
    assert names(rows(tmp_path / "*" / "notes.txt"), tmp_path) == ["a/notes.txt", "b/notes.txt"]
    assert names(rows(tmp_path / "a" / "notes.txt"), tmp_path) == ["a/notes.txt"]
    with pytest.raises(ColumnError, match=r"labels\.parquet"):
        rows(tmp_path / "*" / "*.parquet")


def test_cutting_a_source_costs_the_same_memory_however_much_is_in_it(tmp_path: Path):
    def peak(source: Path) -> int:
        tracemalloc.start()
        parts([str(source)])
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    for count in (100, 4000):
        for i in range(count):
            put(tmp_path / str(count) / f"{i}.png")
    for pattern in ("", "*.png", "**/*.png"):
        peak(tmp_path / "100" / pattern)  # what is imported and compiled on first use
        assert peak(tmp_path / "4000" / pattern) < peak(tmp_path / "100" / pattern) + 50_000, pattern


@pytest.mark.parametrize("pattern", ["", "*", "**/*.tar", "*.tar"])
def test_a_folder_that_holds_very_many_containers_is_shared_out_and_listed_once(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("components.ingest.sources.MOST_PARTS", 10)
    root = tmp_path / "root"
    for i in range(30):
        tar(put(root / f"{i}.tar"), {"1.png": b"x"})
        tar(put(root / str(i) / f"{i}.tar"), {"1.png": b"x"})
        put(root / f"{i}.png")
    top = [f"{i}.tar!1.png" for i in range(30)]
    below = [f"{i}/{name}" for i, name in enumerate(top)]
    pngs = [f"{i}.png" for i in range(30)]
    wanted = top + (below if pattern != "*.tar" else []) + (pngs if not pattern.endswith(".tar") else [])
    cut = parts([str(root / pattern)])
    assert len(cut) == SHARES
    sent = [Part(**json.loads(json.dumps(asdict(part)))) for part in cut]  # as the tasks get them
    tables = [list(list_files(part, options(), everything, lambda uri: None)) for part in sent]
    assert sum(map(bool, tables)) > 10
    got = [row for held in tables for table in held for row in table.to_pylist()]
    assert names(got, root) == sorted(wanted)


def test_labels_are_the_names_of_the_parent_folders(tmp_path: Path):
    put(tmp_path / "cat" / "1.png")
    tar(tmp_path / "t.tar", {"set/dog/2.png": b"x", "top.png": b"x"})
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "data/cow/3.png"}]}), tmp_path / "h.parquet")
    got = {row["uri"].removeprefix(f"{tmp_path}/"): row["label"] for row in rows(tmp_path, how=options("parent"))}
    assert got == {"cat/1.png": "cat", "t.tar!set/dog/2.png": "dog", "t.tar!top.png": None, "h.parquet!0": "cow"}
    assert {row["label"] for row in rows(tmp_path)} == {None}


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path):
    put(tmp_path / "big.png", b"x" * 1001)
    tar(tmp_path / "t.tar", {"big.png": b"x" * 1001, "small.png": b"x"})
    got = {os.path.basename(row["uri"]): (row["reason"], row["data"]) for row in rows(tmp_path)}
    assert got == {
        "big.png": ("too_large", None),
        "t.tar!big.png": ("too_large", None),
        "t.tar!small.png": (None, b"x"),
    }


@pytest.mark.parametrize(("name", "mode"), [("t.tar", "w"), ("t.tar.gz", "w:gz"), ("t.tgz", "w:gz")])
def test_a_tar_is_read_in_place(tmp_path: Path, name: str, mode: str):
    members = {f"d/{i}.png": bytes([i]) * i for i in range(1, 60)}
    tar(
        tmp_path / name,
        {**members, ".hidden.png": b"x", "d/meta.json": b"{}", "../up.png": b"up", "./here.png": b"here"},
        mode,
    )
    got = {row["uri"].split("!")[1]: row["data"] for row in rows(tmp_path / name)}
    assert got == {**members, "../up.png": b"up", "./here.png": b"here"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_members_of_one_name_are_all_taken_and_told_apart(tmp_path: Path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for data in (b"one", b"two"):
            info = tarfile.TarInfo("a.png")
            info.size = 3
            archive.addfile(info, io.BytesIO(data))
    index = DedupIndex()
    got = rows(tmp_path / "t.tar", fresh=lambda files: index.fresh(0, files))
    index.close()
    assert [row["data"] for row in got] == [b"one", b"two"]
    assert got[0]["place"] != got[1]["place"]


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_what_precedes_the_damage_of_a_tar_counts_and_the_tar_is_refused(tmp_path: Path, name: str):
    data = bytearray(tar(tmp_path / "whole.tar", {f"{i}.png": os.urandom(600) for i in range(40)}).read_bytes())
    (tmp_path / "whole.tar").unlink()
    for damage, reason in (("cut", "truncated"), ("broken", "corrupt")):
        harmed = data[:40_000] if damage == "cut" else data[:30_720] + os.urandom(512) + data[31_232:]
        packed = gzip.compress(harmed) if name.endswith("gz") else bytes(harmed)
        put(tmp_path / name, packed)
        *good, refused = rows(tmp_path)
        assert 10 < len(good) < 30 and all(row["reason"] is None for row in good)
        assert (refused["uri"], refused["reason"]) == (str(tmp_path / name), reason)


def test_a_file_that_only_claims_to_be_a_container_is_refused(tmp_path: Path):
    for name in ("a.tar", "b.tar.gz", "c.parquet"):
        put(tmp_path / name, b"no such thing" * 50)
    put(tmp_path / "d.tar", b"")
    assert [row["reason"] for row in rows(tmp_path)] == ["corrupt"] * 3 + ["corrupt"]


def test_a_tar_header_of_gigabytes_is_not_read(tmp_path: Path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, HEADER_BYTES + 1
    put(tmp_path / "t.tar", info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 2048)
    (row,) = rows(tmp_path)
    assert row["reason"] == "corrupt" and "header of 1,048,577 bytes" in row["message"]


def test_a_compressed_tar_that_explodes_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("components.ingest.containers.EXPANSION_FREE", 1 << 20)
    tar(tmp_path / "t.tar.gz", {"1.png": b"x", "zeros.png": b"\0" * (3 << 20), "2.png": b"x"}, "w:gz")
    *_, refused = rows(tmp_path)
    assert (refused["uri"], refused["reason"]) == (str(tmp_path / "t.tar.gz"), "too_large")


def test_a_table_without_pictures_stops_only_if_it_was_named(tmp_path: Path):
    put(tmp_path / "1.png")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "metadata.parquet")
    assert names(rows(tmp_path), tmp_path) == ["1.png"]
    assert names(rows(tmp_path, enough=1), tmp_path) == ["1.png"]
    with pytest.raises(ColumnError, match=r"metadata\.parquet"):
        rows(tmp_path / "metadata.parquet")


def test_parquet_columns_of_bytes_and_of_structs_are_read(tmp_path: Path):
    for i, column in enumerate([[b"a", None, b"c"], [{"bytes": b, "path": None} for b in (b"a", None, b"c")]]):
        pq.write_table(pa.table({"n": [1, 2, 3], "picture": column}), tmp_path / f"{i}.parquet", row_group_size=2)
        got = rows(tmp_path / f"{i}.parquet")
        assert [row["data"] for row in got] == [b"a", b"", b"c"]
        assert [row["uri"] for row in got] == [f"{tmp_path}/{i}.parquet!{n}" for n in range(3)]


def test_the_column_must_be_clear(tmp_path: Path):
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "n": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ColumnError, match=r"several columns of bytes; choose one of a, b"):
        rows(tmp_path)
    with pytest.raises(ColumnError, match=r"no column of bytes n; choose one of a, b"):
        rows(tmp_path, how=options(column="n"))
    assert [row["data"] for row in rows(tmp_path, how=options(column="b"))] == [b"2"]


def test_what_is_known_is_not_passed_on_and_a_known_row_group_is_not_read(tmp_path: Path):
    put(tmp_path / "1.png")
    tar(tmp_path / "t.tar", {"2.png": b"x"})
    pq.write_table(pa.table({"a": [b"1", b"2"]}), tmp_path / "t.parquet")
    index = DedupIndex()
    index.load([(row["uri"], row["size"], row["mtime"], None) for row in rows(tmp_path)])
    put(tmp_path / "3.png")
    assert names(rows(tmp_path, fresh=lambda files: index.fresh(0, files)), tmp_path) == ["3.png"]
    assert rows(tmp_path, fresh=lambda files: index.fresh(1, files)) == []  # listed by part 0 before
    assert index.counts()["seen"] == 5
    index.close()


def test_a_file_that_went_away_is_passed_over_but_a_folder_that_went_away_stops(tmp_path: Path):
    path = put(tmp_path / "d" / "1.png")
    path.unlink()
    assert read_source(str(path), Limits()) is None
    path.parent.rmdir()
    with pytest.raises(StorageError, match=f"{path.parent}: gone"):
        read_source(str(path), Limits())


UNPRIVILEGED = """
import os, sys
os.setegid(65534); os.seteuid(65534)
from components.storage.files import StorageError
{code}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's rights to be refused")
def test_what_may_not_be_read_stops_with_its_name(tmp_path: Path):
    path = put(tmp_path / "d" / "1.png")
    os.chmod(tmp_path, 0o755)
    for parent in list(tmp_path.parents)[:3]:
        os.chmod(parent, 0o755)
    for locked, call in (
        (path, f"from components.ingest.stages import read_source, Limits; read_source({str(path)!r}, Limits())"),
        (path.parent, f"from components.storage.files import entries; list(entries({str(path.parent)!r}))"),
    ):
        os.chmod(locked, 0)
        code = f"import components.ingest.stages\n{UNPRIVILEGED.format(code=call)}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        os.chmod(locked, 0o755)
        assert done.stderr.splitlines()[-1].endswith(
            f"StorageError: {locked}: permission denied; check its mode or the credentials"
        )
