"""Files here and in a bucket are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import boto3
import pytest

from components.storage import files
from components.storage.files import StorageError, download, join, naming, read, remote, replacing, write
from ssl_core.errors import InputError


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "deep" / "root")
    bucket = f"files-{tmp_path.name.replace('_', '-').lower()}"
    boto3.client("s3", endpoint_url=request.getfixturevalue("s3")).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/deep/root"


def names(root: str) -> list[str]:
    return [entry.uri.rsplit("/", 1)[1] for entry in files.entries(root)]


def test_a_file_is_at_its_uri_once_the_block_has_ended(root: str) -> None:
    uri = join(root, "a #%b.parquet")
    for content in (b"one", b"another"):
        before = read(uri)
        with replacing(uri) as path:
            path.write_bytes(content)
            assert read(uri) == before
        assert read(uri) == content
    write(uri, b"a third")
    assert read(uri) == b"a third" and names(root) == ["a #%b.parquet"]


def test_a_block_that_fails_leaves_what_was_there(root: str) -> None:
    uri = join(root, "x")
    write(uri, b"old")

    def fail(error: Exception) -> None:
        with replacing(uri) as path:
            path.write_bytes(b"new")
            raise error

    with pytest.raises((KeyError, StorageError)):  # a storage behind a URI raises types of its own: all of them name it
        fail(KeyError("x"))
    with pytest.raises((OSError, StorageError), match=r"(?i)no space left on"):  # behind a URI the scratch disk is full
        fail(OSError(28, "No space left on device"))
    assert read(uri) == b"old" and names(root) == ["x"]


def test_a_download_that_breaks_leaves_no_half_file(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"files-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=bucket)
    uri = f"s3://{bucket}/shard"
    write(uri, b"x" * 1000)
    download(uri, tmp_path / "shard")
    assert (tmp_path / "shard").read_bytes() == b"x" * 1000
    (tmp_path / "shard").write_bytes(b"cached")

    class Broken:
        def get_file(self, source: str, target: str) -> None:
            Path(target).write_bytes(b"x" * 500)
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(files, "remote", lambda uri: (Broken(), "shard"))
    with pytest.raises(StorageError, match="reset by peer"):
        download(uri, tmp_path / "shard")
    assert (tmp_path / "shard").read_bytes() == b"cached"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["shard"]


def test_what_the_system_refuses_is_told_with_the_place() -> None:
    with pytest.raises(StorageError, match=r"^/data/x: no space left on the device; free some$"), naming("/data/x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"^/data/x: there is no such file or folder"), naming("/data/x"):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def test_an_error_that_is_worded_already_is_left_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^too wide$"), naming("s3://bucket/x"):
        raise InputError("too wide")


def test_a_remote_place_answers_for_itself_and_not_for_who_writes_the_file() -> None:
    with replacing("memory://corpus/good") as path:
        path.write_bytes(b"x")
    fs, place = remote("memory://corpus/good")
    assert fs.cat_file(place) == b"x"
    with pytest.raises(TypeError, match=r"^of the writer$"), replacing("memory://corpus/bad"):
        raise TypeError("of the writer")
    with pytest.raises(StorageError, match=r"^nowhere://corpus/x: "), replacing("nowhere://corpus/x") as path:
        path.write_bytes(b"x")
