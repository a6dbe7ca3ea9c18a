"""Storage: whose fault it is that a file cannot be read or written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from components.storage.files import StorageError, naming, outgoing, remote
from ssl_core.errors import InputError


def test_what_the_system_refuses_is_told_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="^/data/x: no space left on the device; free some$"), naming("/data/x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"^{tmp_path}/file/x: there is no such file or folder"):
        naming_of = f"{tmp_path}/file/x"
        with naming(naming_of):
            Path(naming_of).read_bytes()


def test_an_error_that_is_worded_already_is_left_as_it_is() -> None:
    with pytest.raises(InputError, match="^too wide$"), naming("s3://bucket/x"):
        raise InputError("too wide")


def test_a_remote_place_answers_for_itself_and_not_for_who_writes_the_file(tmp_path: Path) -> None:
    with outgoing("memory://corpus/good") as path:
        path.write_bytes(b"x")
    fs, place = remote("memory://corpus/good")
    assert fs.cat_file(place) == b"x"
    with pytest.raises(TypeError, match="^of the writer$"), outgoing("memory://corpus/bad"):
        raise TypeError("of the writer")
    with pytest.raises(StorageError, match="^nowhere://corpus/x: "), outgoing("nowhere://corpus/x") as path:
        path.write_bytes(b"x")
