"""Files here and in a bucket are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest

from components.storage import files
from components.storage.files import StorageError, download, join, read, replacing, write


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
    with pytest.raises(StorageError, match=r"/x: No space left on device$"):
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
