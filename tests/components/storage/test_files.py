"""Local paths and an S3 server answer alike; every refusal is a StorageError that names the URI."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from components.storage import files
from components.storage.files import (
    StorageError,
    absolute,
    download,
    entries,
    is_remote,
    join,
    open_file,
    read,
    remote,
    remove,
    replacing,
    stat,
    storage_errors,
    text,
    write,
)
from ssl_core.errors import InputError


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place to keep files in, of each kind."""
    if request.param == "folder":
        yield str(tmp_path / "store")
        return
    bucket = f"files-{tmp_path.name.replace('_', '-').lower()[:50]}"
    boto3.client("s3", endpoint_url=request.getfixturevalue("s3")).create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/store"


def test_what_is_written_is_read_and_what_is_removed_is_gone(root: str) -> None:
    uri = join(root, "a", "note.txt")
    assert read(uri) is None and stat(uri) is None
    write(uri, b"first")
    write(uri, b"second, longer")
    assert read(uri) == b"second, longer"
    found = stat(uri)
    assert found is not None and (found.folder, found.size) == (False, 14) and found.mtime > 1_600_000_000 * 10**9
    with open_file(uri) as file:
        assert file.read(6) == b"second"
    remove(uri)
    remove(uri)
    assert read(uri) is None
    with pytest.raises(FileNotFoundError):
        open_file(uri)


def test_a_folder_lists_files_and_folders_by_name_and_asks_before_it_looks(root: str) -> None:
    for name in ("b.txt", "a.txt", ".hidden", "sub/c.txt"):
        write(join(root, name), name.encode())
    found = list(entries(root))
    assert [(one.uri, one.folder) for one in found if not one.folder] == [
        (join(root, name), False) for name in (".hidden", "a.txt", "b.txt")
    ]
    assert [one.uri for one in found if one.folder] == [join(root, "sub")]
    asked: list[tuple[str, bool]] = []

    def wanted(name: str, folder: bool) -> bool:
        asked.append((name, folder))
        return name == "b.txt"

    assert [one.uri for one in entries(root, wanted)] == [join(root, "b.txt")]
    assert sorted(asked) == [(".hidden", False), ("a.txt", False), ("b.txt", False), ("sub", True)]


def test_a_file_written_outside_arrives_when_the_block_ends_well(root: str) -> None:
    uri = join(root, "made.bin")
    with replacing(uri) as path:
        path.write_bytes(b"made elsewhere")
    assert read(uri) == b"made elsewhere"


def test_a_local_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    write(str(path), b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=rf"{path}: no space left on the device"):
        write(str(path), b"new and longer")
    assert path.read_bytes() == b"old"


def test_a_download_that_breaks_off_leaves_nothing(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = "files-download"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=bucket)
    write(f"s3://{bucket}/big", b"x" * 100)
    download(f"s3://{bucket}/big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == b"x" * 100
    with pytest.raises(StorageError, match=f"s3://{bucket}/none: there is no such file"):
        download(f"s3://{bucket}/none", tmp_path / "none")

    def cut(source: str, target: str) -> None:
        Path(target).write_bytes(b"x")
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(files, "remote", lambda uri: (type("Cut", (), {"get_file": staticmethod(cut)}), "big"))
    with pytest.raises(StorageError, match=f"s3://{bucket}/big: reset by peer"):
        download(f"s3://{bucket}/big", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_storage_that_refuses_is_named(s3_environment: str, s3: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-here.*: "):
        list(entries("s3://no-such-bucket-here/x"))
    with pytest.raises(StorageError, match=f"{tmp_path}/none: there is no such file or folder"):
        list(entries(str(tmp_path / "none")))
    with pytest.raises(StorageError, match=r"nosuch://place/x: "):
        read("nosuch://place/x")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file"), "x: there is no such file or folder (No such file)"),
        (PermissionError(13, "denied"), "x: permission denied; check its mode or the credentials"),
        (OSError(5, "Input/output error"), "x: the device cannot be read or written; see the system log"),
        (StorageError("y: said already"), "y: said already"),
    ],
)
def test_whatever_a_storage_raises_becomes_one_sentence(error: Exception, said: str) -> None:
    with pytest.raises(StorageError) as told, storage_errors("x"):
        raise error
    assert str(told.value) == said


def test_a_mistake_of_ours_is_not_blamed_on_local_storage_and_a_clients_own_error_is() -> None:
    with pytest.raises(ZeroDivisionError), storage_errors("/x"):
        _ = 1 / 0
    with pytest.raises(StorageError, match="s3://b/x: division by zero"), storage_errors("s3://b/x"):
        _ = 1 / 0


def test_a_location_has_one_spelling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    spelt = {
        "a/../b": f"{tmp_path}/b",
        "~/x": "/home/anna/x",
        "/a#b%20c?d": "/a#b%20c?d",
        "file:///a%20b": "/a b",
        "s3://bucket/x/": "s3://bucket/x",
    }
    assert {uri: absolute(uri) for uri in spelt} == spelt
    assert [is_remote(uri) for uri in ("s3://b", "file:///x", "/x", "c:x")] == [True, False, False, False]
    assert join("/a/", "b", "c") == "/a/b/c" and join("s3://b", "c") == "s3://b/c"


def test_names_that_are_no_text_are_shown_with_their_bytes(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (found,) = entries(str(tmp_path))
    assert text(found.uri).endswith("caf\\xe9.png") and read(found.uri) == b"x"


def test_links_are_followed_and_a_link_to_itself_pipes_and_gaps_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"xyz")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    found = {Path(one.uri).name: one for one in entries(str(tmp_path))}
    assert set(found) == {"file", "link", "folder"}
    assert found["link"].size == 3
    assert found["folder"].identity == (os.stat(tmp_path / "folder").st_dev, os.stat(tmp_path / "folder").st_ino)
    assert stat(str(tmp_path / "loop")) is None and stat(str(tmp_path / "pipe")) is None


def test_a_huge_folder_comes_in_sorted_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(25):
        (tmp_path / f"{i:02d}").touch()
    monkeypatch.setattr(files, "SORTED_AT_ONCE", 10)
    names = [Path(one.uri).name for one in entries(str(tmp_path))]
    assert sorted(names) == [f"{i:02d}" for i in range(25)]
    for stretch in (names[:10], names[10:20], names[20:]):
        assert stretch == sorted(stretch)


def test_a_folder_is_removed_only_when_empty(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(StorageError, match="not empty"):
        remove(str(tmp_path / "folder"))
    remove(str(tmp_path / "folder" / "file"))
    remove(str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def names_in(root: str) -> list[str]:
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
    assert read(uri) == b"a third" and names_in(root) == ["a #%b.parquet"]


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
    assert read(uri) == b"old" and names_in(root) == ["x"]


def test_what_the_system_refuses_is_told_with_the_place() -> None:
    with (
        pytest.raises(StorageError, match=r"^/data/x: no space left on the device; free some$"),
        storage_errors("/data/x"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"^/data/x: there is no such file or folder"), storage_errors("/data/x"):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def test_an_error_that_is_worded_already_is_left_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^too wide$"), storage_errors("s3://bucket/x"):
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
