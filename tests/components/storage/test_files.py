"""Storage: whose fault it is that a file cannot be read or written."""

from __future__ import annotations

import errno
import os

import pytest

from components.storage.files import StorageError, naming, outgoing, remote
from ssl_core.errors import InputError


def test_what_the_system_refuses_is_told_with_the_place() -> None:
    with pytest.raises(StorageError, match=r"^/data/x: no space left on the device; free some$"), naming("/data/x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"^/data/x: there is no such file or folder"), naming("/data/x"):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def test_an_error_that_is_worded_already_is_left_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^too wide$"), naming("s3://bucket/x"):
        raise InputError("too wide")


def test_a_remote_place_answers_for_itself_and_not_for_who_writes_the_file() -> None:
    with outgoing("memory://corpus/good") as path:
        path.write_bytes(b"x")
    fs, place = remote("memory://corpus/good")
    assert fs.cat_file(place) == b"x"
    with pytest.raises(TypeError, match=r"^of the writer$"), outgoing("memory://corpus/bad"):
        raise TypeError("of the writer")
    with pytest.raises(StorageError, match=r"^nowhere://corpus/x: "), outgoing("nowhere://corpus/x") as path:
        path.write_bytes(b"x")
