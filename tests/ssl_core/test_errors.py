"""Errors: the message that a user gets, and which of our errors are meant for a user."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import components
import pipelines
import ssl_core
from pipelines.catalogue import UnknownTaskError
from pipelines.loading import RecipeError
from ssl_core.errors import InputError, PretextError, bug_message, trace_of, user_message
from ssl_core.folder import write_tensors

INTERNAL = {
    "ssl_core.data.decode.Rejected": "a file's verdict: it becomes a row of the quarantine",
    "components.corpus.delta.OvertakenError": "another commit was quicker: the caller commits again",
    "components.decoding.sandbox._Died": "the child died: reported as Rejected, or as DecoderError at its start",
    "components.ingest.containers._Hostile": "a tar's verdict: it becomes a row of the quarantine",
    "components.tracking.journal.Unavailable": "the tracker is away: the journal is sent again later",
    "components.cluster.stopping.Stopped": "a signal, no failure; the command line knows it",
}
"""Exceptions of ours that no user meets as an error, and why."""


def _errors() -> Iterator[type[BaseException]]:
    """Every exception class that our packages define."""
    for package in (ssl_core, components, pipelines):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith(".__main__"):
                continue
            module = importlib.import_module(found.name)
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ == found.name and issubclass(kind, BaseException):
                    yield kind


ERRORS = list(_errors())
OF_USERS = [kind for kind in ERRORS if issubclass(kind, PretextError)]


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_every_error_class_is_for_the_user_or_internal_for_a_stated_reason() -> None:
    others = {f"{kind.__module__}.{kind.__qualname__}" for kind in ERRORS if kind not in OF_USERS}
    assert others == set(INTERNAL)
    assert len(OF_USERS) > 15


@pytest.mark.parametrize("kind", OF_USERS, ids=lambda kind: kind.__name__)
def test_an_error_comes_whole_from_another_process(kind: type[PretextError]) -> None:
    back = pickle.loads(pickle.dumps(kind("the corpus is away; mount it")))  # noqa: S301
    assert type(back) is kind
    assert str(back) == user_message(back) == "the corpus is away; mount it"
    assert back.exit_status == kind.exit_status


def test_what_is_badly_written_exits_with_2_and_what_fails_with_1() -> None:
    assert {kind for kind in OF_USERS if kind.exit_status != 1} == {RecipeError, UnknownTaskError}
    assert RecipeError.exit_status == UnknownTaskError.exit_status == 2


def test_an_input_error_is_a_value_error_to_who_checks_values() -> None:
    with pytest.raises(ValueError, match="too wide"):
        raise InputError("too wide")


def test_what_the_machine_refuses_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as none:
        (tmp_path / "file" / "inner").write_text("")
    assert user_message(none.value) == f"{tmp_path / 'file' / 'inner'}: part of the path is a file, not a folder"
    with pytest.raises(OSError) as long:
        (tmp_path / ("a" * 300)).write_text("")
    assert str(user_message(long.value)).endswith("the name is too long for the file system; choose a shorter one")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert user_message(full) == "no space left on the device; free some"
    assert user_message(OSError(errno.ENOSPC, "no space left to write /x")) == (
        "no space left on the device; free some (no space left to write /x)"
    )


@pytest.mark.parametrize("error", [MemoryError("8 GiB"), torch.OutOfMemoryError("8 GiB")])
def test_too_little_memory_is_no_fault_of_ours(error: Exception) -> None:
    assert "out of memory (8 GiB); lower train.batch_size" in str(user_message(error))


def test_torch_and_numpy_really_say_so_where_memory_lacks() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, dtype=np.uint8)
    assert "out of memory" in str(user_message(of_torch.value)) and "out of memory" in str(user_message(of_numpy.value))


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), TypeError("x"), RuntimeError("x"), KeyError("x"), OSError(errno.EBADF, "x"), OSError("x")],
)
def test_any_other_error_is_a_fault_of_ours(error: Exception) -> None:
    assert user_message(error) is None


def test_a_bug_is_reported_with_its_place_in_our_code_and_keeps_the_trace_of_all_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as failed:
        write_tensors(tmp_path / "never", {"x": torch.empty(2, device="meta")})
    assert user_message(failed.value) is None
    sentence = bug_message(failed.value, "/tmp/trace.txt")
    assert sentence.startswith(f"unexpected {failed.type.__name__} in ssl_core/folder.py:")
    assert sentence.endswith("this is a bug in pretext, not in your input; its trace is in /tmp/trace.txt")
    assert "Traceback" in trace_of(failed.value) and "\n" not in sentence


def test_a_bug_in_another_process_or_without_a_message_is_reported_too() -> None:
    assert bug_message(ValueError("a\nb"), "T").startswith("unexpected ValueError: a; this is a bug")
    assert "no message" in bug_message(_raised(AssertionError()), "T")


def _where_no_file_may_be_larger_than(size: int, code: str) -> str:
    """What the code prints in a process of that limit, at which writing fails as on a full disk."""
    limit = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""
    done = subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "write",
    [
        "write_folder(path, {'model.safetensors': {'x': torch.zeros(10**6)}}, {})",
        "write_tensors(path, {'x': torch.zeros(10**6)})",
    ],
)
def test_a_disk_that_refuses_tensors_is_the_disk_and_names_the_file(tmp_path: Path, write: str) -> None:
    code = f"""
import pathlib, torch
from ssl_core.errors import user_message
from ssl_core.folder import write_folder, write_tensors
path = pathlib.Path({str(tmp_path / "model")!r})
try:
    {write}
except OSError as error:
    print(user_message(error))
"""
    printed = _where_no_file_may_be_larger_than(65536, code)
    assert printed.startswith(f"{tmp_path}/.model.") and "the file would be larger" in printed
    assert not list(tmp_path.iterdir())


def test_full_disks_that_leave_no_temporary_folder_are_no_fault_of_ours() -> None:
    code = """
import tempfile
from ssl_core.errors import user_message
try:
    tempfile.mkdtemp()
except OSError as error:
    print(user_message(error))
"""
    printed = _where_no_file_may_be_larger_than(0, code)
    assert "No usable temporary directory" in printed and "set TMPDIR" in printed


def test_telling_errors_apart_imports_nothing_heavy() -> None:
    code = "import sys, ssl_core.errors; print({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
