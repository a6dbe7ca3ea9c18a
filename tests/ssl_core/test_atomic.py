"""A write leaves the old content or the new one, and once it is done a power cut leaves the new one."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_core import atomic
from ssl_core.atomic import ABANDONED, is_leftover, replace_bytes, replace_text, replacing, sweep
from ssl_core.folder import write_folder, write_tensors

KINDS = ("file", "folder")
FILES = ("a", "b")


def put(path: Path, kind: str, content: str) -> None:
    """A file, or a folder of two files, whose every byte is of `content`."""
    with replacing(path) as temporary:
        fill(temporary, kind, content)


def fill(temporary: Path, kind: str, content: str) -> None:
    if kind == "file":
        temporary.write_text(content * 1000)
        return
    temporary.mkdir()
    for name in FILES:
        (temporary / name).write_text(content * 1000)


def content_of(path: Path, kind: str) -> str:
    """The one letter that all is made of; fails for what is torn."""
    files = [path] if kind == "file" else [path / name for name in FILES]
    texts = {file.read_text() for file in files}
    assert kind == "file" or names(path) == [*FILES]
    (text,) = texts
    assert text == text[0] * 1000
    return text[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_content_takes_the_place_of_the_old_one_and_nothing_else_is_left(tmp_path: Path, kind: str) -> None:
    for content in "xyz":
        put(tmp_path / "deep" / "er" / "target", kind, content)
        assert content_of(tmp_path / "deep" / "er" / "target", kind) == content
    assert names(tmp_path / "deep" / "er") == ["target"]


def test_bytes_and_text_are_written_as_they_are(tmp_path: Path) -> None:
    replace_bytes(tmp_path / "bytes", b"\x00\r\n\xff")
    replace_text(tmp_path / "text", "ä\r\nb\n", durable=False)
    assert (tmp_path / "bytes").read_bytes() == b"\x00\r\n\xff"
    assert (tmp_path / "text").read_bytes() == "ä\r\nb\n".encode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_content(tmp_path: Path, kind: str, failure: type[BaseException]) -> None:
    put(tmp_path / "target", kind, "x")

    def fail() -> None:
        with replacing(tmp_path / "target") as temporary:
            fill(temporary, kind, "y")
            raise failure

    with pytest.raises(failure):
        fail()
    assert content_of(tmp_path / "target", kind) == "x" and names(tmp_path) == ["target"]


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_content(tmp_path: Path) -> None:
    put(tmp_path / "target", "file", "x")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "target"):
        pass
    assert content_of(tmp_path / "target", "file") == "x" and names(tmp_path) == ["target"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("kind", "call"),
    [(kind, call) for kind in KINDS for call in ("write", "fsync", "replace")] + [("folder", "rename")],
)
def test_a_full_disk_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str
) -> None:
    put(tmp_path / "target", kind, "x")
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_text", full)
        else:
            patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            put(tmp_path / "target", kind, "y")
    assert content_of(tmp_path / "target", kind) == "x" and names(tmp_path) == ["target"]


def test_an_old_folder_that_stepped_aside_returns_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "target", "folder", "x")
    tries, replace = [], os.replace

    def second_fails(*paths: Path) -> None:
        tries.append(paths)
        if len(tries) == 2:
            full()
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)
        with pytest.raises(OSError, match="No space left"):
            put(tmp_path / "target", "folder", "y")
    assert len(tries) == 2
    assert content_of(tmp_path / "target", "folder") == "x" and names(tmp_path) == ["target"]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from ssl_core.atomic import replacing, sweep

folder, kind = Path(sys.argv[1]), sys.argv[2]
target = folder / "target"

def write(letter, durable):
    with replacing(target, durable=durable) as temporary:
        if kind == "folder":
            temporary.mkdir()
        for file in (temporary / "a", temporary / "b") if kind == "folder" else (temporary,):
            with open(file, "w", buffering=1) as opened:
                for _ in range(3):
                    opened.write(letter * 10 + "\\n")

def killed_after(lines):
    def trace(frame, event, argument):
        nonlocal lines
        if os.path.basename(frame.f_code.co_filename) not in ("<string>", "atomic.py", "shutil.py"):
            return None
        if lines == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        lines -= 1
        return trace
    return trace

seen, leftovers, lines, status = [], 0, 0, None
while status != 0:
    write("x", False)
    child = os.fork()
    if child == 0:
        sys.settrace(killed_after(lines))
        write("y", True)
        sys.settrace(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    leftovers += len(list(folder.iterdir())) > 1
    sweep(folder, older_than=0)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    seen.append([(str(path.relative_to(folder)), path.read_text()) for path in files])
    lines += 1
print(json.dumps({"seen": seen, "leftovers": leftovers}))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_line_leaves_the_old_content_or_the_new_and_the_next_sweep_the_rest(
    tmp_path: Path, kind: str
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), kind]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    files = ["target"] if kind == "file" else ["target/a", "target/b"]
    old, new = ([[file, 3 * (10 * letter + "\n")] for file in files] for letter in "xy")
    outcomes = ["old" if held == old else "new" if held == new else str(held) for held in told["seen"]]
    turn = outcomes.index("new")
    assert set(outcomes[:turn]) == {"old"} and set(outcomes[turn:]) == {"new"}  # there is one moment between them
    assert turn > 50 and len(outcomes) - turn > 10 and told["leftovers"] > 20


def test_a_sweep_takes_only_what_is_abandoned_or_asked_for(tmp_path: Path) -> None:
    with replacing(tmp_path / "one") as young, replacing(tmp_path / "two") as old:
        young.write_text("x")
        old.write_text("x")
        past = time.time() - ABANDONED - 1
        os.utime(old, (past, past))
        for name in (".hidden", ".gone.part", ".x.0123456789abcdef.tmp", "x.0123456789abcdef.part"):
            (tmp_path / name).write_text("not ours")
        sweep(tmp_path)
        assert young.exists() and not old.exists()
        old.write_text("x")
        sweep(tmp_path, "tw*", older_than=0)
        assert young.exists() and not old.exists()
        old.write_text("x")
    assert names(tmp_path) == [
        ".gone.part",
        ".hidden",
        ".x.0123456789abcdef.tmp",
        "one",
        "two",
        "x.0123456789abcdef.part",
    ]
    sweep(tmp_path / "nowhere")


def test_a_writer_survives_a_sweep_between_its_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "target", "folder", "x")
    rename, swept = os.rename, []

    def swept_after(source: Path, target: Path) -> None:
        rename(source, target)
        if not swept:
            swept.append(target)
            assert not (tmp_path / "target").exists()
            sweep(tmp_path)
            assert content_of(tmp_path / "target", "folder") == "x"

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", swept_after)
        put(tmp_path / "target", "folder", "y")
    assert swept and content_of(tmp_path / "target", "folder") == "y" and names(tmp_path) == ["target"]


RACING = """
import sys
from pathlib import Path
from ssl_core.atomic import replacing

path, kind, letter = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.stdin.read(1)
for _ in range(150):
    with replacing(path, durable=False) as temporary:
        if kind == "folder":
            temporary.mkdir()
        for file in (temporary / "a", temporary / "b") if kind == "folder" else (temporary,):
            file.write_text(letter * 1000)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_processes_that_write_one_target_at_once_one_wins_whole(tmp_path: Path, kind: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", RACING, str(tmp_path / "target"), kind, letter], stdin=subprocess.PIPE)
        for letter in "xy"
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"g")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert content_of(tmp_path / "target", kind) in "xy" and names(tmp_path) == ["target"]


def test_threads_of_one_process_do_not_share_a_temporary(tmp_path: Path) -> None:
    inside = threading.Barrier(4)

    def write(letter: str) -> None:
        with replacing(tmp_path / "target") as temporary:
            inside.wait(10)
            temporary.write_text(letter * 1000)
            inside.wait(10)

    threads = [threading.Thread(target=write, args=[letter]) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content_of(tmp_path / "target", "file") in "abcd" and names(tmp_path) == ["target"]


Step = tuple[str, str]


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What happens on the disk, in its order: ("fsync", path), ("rename", new path); paths below tmp_path."""
    done: list[Step] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def where(path: str | Path) -> str:
        parts = Path(path).relative_to(tmp_path).parts
        return "/".join("TEMPORARY" if is_leftover(part) else part for part in parts) or "."

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("fsync", where(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def renamed(call: Callable[..., None]) -> Callable[..., None]:
        def recorded(source: Path, target: Path) -> None:
            call(source, target)
            done.append(("rename", where(target)))

        return recorded

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed(replace))
    monkeypatch.setattr(os, "rename", renamed(rename))
    return done


def test_a_durable_file_is_on_disk_before_its_name_and_its_name_before_the_end(
    tmp_path: Path, steps: list[Step]
) -> None:
    put(tmp_path / "target", "file", "x")
    assert steps == [("fsync", "TEMPORARY"), ("rename", "target"), ("fsync", ".")]
    steps.clear()
    write_tensors(tmp_path / "new" / "deep" / "t.safetensors", {"a": torch.zeros(3)})
    assert steps[:2] == [("fsync", "new/deep/TEMPORARY"), ("rename", "new/deep/t.safetensors")]
    assert set(steps[2:]) == {("fsync", "new/deep"), ("fsync", "new"), ("fsync", ".")}


def test_a_durable_folder_is_on_disk_with_all_its_files_before_its_name(tmp_path: Path, steps: list[Step]) -> None:
    tensors, documents = {"t.safetensors": {"a": torch.zeros(3)}}, {"m.json": {"step": 1}}
    write_folder(tmp_path / "target", tensors, documents)
    inside = [("fsync", f"TEMPORARY/{name}") for name in ("COMPLETE", "m.json", "t.safetensors")]
    assert sorted(steps[:3]) == inside
    assert steps[3:] == [("fsync", "TEMPORARY"), ("rename", "target"), ("fsync", ".")]
    steps.clear()
    write_folder(tmp_path / "target", tensors, documents)
    assert sorted(steps[:3]) == inside
    assert steps[3:] == [("fsync", "TEMPORARY"), ("rename", "TEMPORARY"), ("rename", "target"), ("fsync", ".")]


def test_what_need_not_be_durable_costs_no_sync(tmp_path: Path, steps: list[Step]) -> None:
    replace_text(tmp_path / "target", "x", durable=False)
    assert steps == [("rename", "target")]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        put(tmp_path / "file", "file", "x")
        put(tmp_path / "folder", "folder", "x")
        write_tensors(tmp_path / "tensors", {"a": torch.zeros(3)})
        write_folder(tmp_path / "checkpoint", {"t.safetensors": {"a": torch.zeros(3)}}, {})
    finally:
        os.umask(before)

    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("file") == mode("folder/a") == 0o666 & ~mask and mode("folder") == 0o777 & ~mask
    assert mode("tensors") == mode("checkpoint/t.safetensors") == 0o666 & ~mask


def test_a_name_as_long_as_most_disks_take_leaves_room_for_the_temporary(tmp_path: Path) -> None:
    name = "x" * 230
    put(tmp_path / name, "file", "x")
    assert names(tmp_path) == [name] and is_leftover(atomic._beside(tmp_path / "with\nbreak", "part").name)
