"""The command line: results on stdout, errors in one sentence on stderr, exit statuses that scripts can rely on."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.storage.files import StorageError
from pipelines.cli import main
from pipelines.loading import RecipeError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks import TASKS
from ssl_core.tasks.rotation import Rotation
from ssl_core.train.checkpoint import save_model


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


Pretext = Callable[..., Done]


@pytest.fixture
def pretext(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Pretext:
    """Runs a command in this process, as the installed script would."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["pretext", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return Done(int(left.value.code or 0), out, err)

    return run


def test_help_comes_without_importing_torch_ray_or_mlflow() -> None:
    code = "import sys, pipelines.cli; print({'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_tasks_lists_every_task_and_shows_every_field_of_one(pretext: Pretext) -> None:
    listed = json.loads(pretext("tasks", "-o", "json").stdout)
    assert [about["task"] for about in listed] == list(TASKS)
    assert [about["task"] for about in listed if about["reference"]] == ["supervised"]
    shown = pretext("tasks", "simclr").stdout
    assert all(name in shown for name in ("temperature", "Shortcuts", "colour_histogram", "Search"))


def test_samples_writes_a_corpus_into_the_home_where_recipes_look(pretext: Pretext, home: Path) -> None:
    done = json.loads(pretext("samples", "digits", "-o", "json").stdout)
    folder = home / "samples" / "digits"
    assert done == {"folder": str(folder), "pictures": {"unlabelled": 1347, "train": 1347, "test": 450}}
    assert len(list((folder / "unlabelled").iterdir())) == 1347
    assert "450 pictures" in pretext("samples", "digits").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["tasks", "simcl"], 2, "did you mean simclr?"),
        (["validate", "digit"], 2, "did you mean digits?"),
        (["run", "digits", "--set", "train.sed=1"], 2, "did you mean `train.seed`?"),
        (["run", "digits"], 1, "samples/digits; `pretext samples digits` writes them"),
        (["corpus", "show", "nothing-here"], 1, "There is no corpus at"),
        (["ingest", "/no/such/folder", "--corpus", "x"], 1, "/no/such/folder: there is no such file or folder"),
        (["evaluate", "digits"], 1, "There is no corpus at"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["ingest", "", "--corpus", "x"], 1, "a source is empty; name a folder"),
        (["ingest", ".", "--corpus", "bad name"], 1, "error: 'bad name' cannot name a corpus"),
        (["ingest", ".", "--corpus", "x", "--size", "9000"], 2, "--size"),
        (["ingest", "."], 2, "Missing option '--corpus'"),
        (["ingest", ".", "--corpus", "x", "--labels", "folder"], 2, "'folder' is not one of 'parent'"),
    ],
)
def test_a_mistake_is_answered_by_one_sentence_and_an_exit_code(
    pretext: Pretext, arguments: list[str], code: int, sentence: str
) -> None:
    done = pretext(*arguments)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def _failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes `pretext tasks` raise the error."""

    def show(as_json: bool) -> None:
        raise error

    monkeypatch.setattr("pipelines.catalogue.show_tasks", show)


def test_a_value_error_of_torch_is_reported_as_a_bug_with_its_trace_in_a_file(
    pretext: Pretext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def show(as_json: bool) -> None:
        torch.nn.functional.dropout(torch.zeros(1), p=2.0)

    monkeypatch.setattr("pipelines.catalogue.show_tasks", show)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = pretext("tasks")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert re.match(r"error: unexpected ValueError in pipelines/cli.py:\d+: dropout probability", done.stderr)
    assert "this is a bug in pretext, not in your input" in done.stderr
    trace = Path(done.stderr.rpartition("its trace is in ")[2].strip())
    assert trace.parent == tmp_path
    kept = trace.read_text()
    assert kept.startswith("Traceback") and "functional.py" in kept and "ValueError: dropout probability" in kept


def test_where_no_trace_can_be_kept_it_is_shown(pretext: Pretext, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _failing(monkeypatch, KeyError("loss"))
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    done = pretext("tasks")
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert "unexpected KeyError" in done.stderr and "its trace is in the lines above" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(StorageError("s3://b/c: the bucket is away"), 1), (RecipeError("a.yaml:3: no such key"), 2)]
)
def test_an_error_for_the_user_shows_its_message_alone_and_has_its_own_exit_status(
    pretext: Pretext, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    _failing(monkeypatch, error)
    done = pretext("tasks")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"error: {error}\n")


def test_a_full_disk_is_reported_with_its_path_and_not_as_a_bug(
    pretext: Pretext, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/shard-1"))
    done = pretext("tasks")
    assert done.returncode == 1
    assert done.stderr == "error: /data/shard-1: no space left on the device; free some\n"


def test_a_home_that_is_a_file_is_not_reported_as_a_bug(pretext: Pretext, home: Path) -> None:
    home.touch()
    done = pretext("samples", "digits")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {home}/samples") and "is a file, not a folder" in done.stderr


def test_debugging_shows_the_trace(pretext: Pretext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEXT_DEBUG", "1")
    _failing(monkeypatch, StorageError("away"))
    done = pretext("tasks")
    assert done.returncode == 1 and "Traceback" in done.stderr and "error: away" in done.stderr


def test_an_empty_source_is_nothing_to_do_and_exits_with_3(pretext: Pretext, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert pretext("ingest", str(tmp_path / "empty"), "--corpus", "c", "--size", "8").returncode == 3


def test_embedding_without_media_is_nothing_to_do_and_without_a_usable_file_a_failure(
    pretext: Pretext, tmp_path: Path
) -> None:
    task, spec = Rotation(canvas=8), EncoderSpec(name="resnet18", width=0.25, stem="cifar")
    save_model(tmp_path / "model", task, spec, task.build(spec.build).state_dict())
    out, empty = tmp_path / "out.parquet", tmp_path / "empty"
    empty.mkdir()
    rest = ["--model", str(tmp_path / "model"), "-o", str(out)]
    done = pretext("embed", str(empty), *rest)
    assert done.returncode == 3 and f"{empty} holds no media, so nothing was written" in done.stderr
    assert json.loads(pretext("embed", str(empty), *rest, "--json").stdout)["rows"] == 0
    (empty / "1.png").write_bytes(b"")
    done = pretext("embed", str(empty), *rest)
    assert done.returncode == 1 and "error: no file of" in done.stderr and "(empty 1)" in done.stderr
    assert done.stdout == "" and not out.exists()


def test_the_column_to_embed_is_the_one_that_was_named(pretext: Pretext, tmp_path: Path) -> None:
    task, spec = Rotation(canvas=8), EncoderSpec(name="resnet18", width=0.25, stem="cifar")
    save_model(tmp_path / "model", task, spec, task.build(spec.build).state_dict())
    coded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(coded, "PNG")
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"picture": [coded.getvalue()], "mask": [b"none"]}), source)
    rest = ["--model", str(tmp_path / "model"), "-o", str(out)]
    undecided = pretext("embed", str(source), *rest)
    assert undecided.returncode == 1 and "choose one of picture, mask with --column" in undecided.stderr
    assert pretext("embed", str(source), *rest, "--column", "picture").returncode == 0
    assert pq.read_table(out).num_rows == 1


def test_schema_is_json_that_names_every_task(pretext: Pretext) -> None:
    schema = json.loads(pretext("schema").stdout)
    assert set(schema["else"]["properties"]["task"]["discriminator"]["mapping"]) == set(TASKS)


def test_the_module_runs_like_the_script() -> None:
    done = subprocess.run([sys.executable, "-m", "pipelines", "--help"], capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_shell_closed_is_done_without(closed: str) -> None:
    script = f"""{sys.executable} -m pipelines tasks {closed}; test $? = 0 || exit 1
    {sys.executable} -m pipelines validate none {closed}; test $? = 2 || exit 1"""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


WORK = """
import sys
from components.steps.progress import Advance
from pipelines import console
with console.Terminal() as terminal:
    terminal.say("begun")
    terminal.advance(Advance("first", 1, 2))
    sys.stdin.readline()
    for step in ("first", "second"):
        terminal.advance(Advance(step, 2, 2))
        terminal.say("more")
    terminal.advance(Advance("third", 1, 2))
console.complain("at the end")
print("done")
"""


def test_work_goes_on_where_the_terminal_was_closed() -> None:
    master, slave = os.openpty()
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", WORK], stdin=pipe, stdout=pipe, stderr=slave, text=True)
    os.close(slave)
    while b"begun" not in os.read(master, 4096):
        pass
    os.close(master)
    assert process.communicate("\n")[0] == "done\n"
