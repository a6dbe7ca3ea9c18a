"""Every file of the packages is written through `ssl_core.atomic`, or stands below with the reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ssl_core", "components", "pipelines")

RENAMES = {"rename", "renames", "link", "symlink", "fsync", "fdatasync", "NamedTemporaryFile", "mkstemp"}
WRITES = {"write_text", "write_bytes", "write_table", "ParquetWriter", "save_file", "savetxt", "to_parquet", "to_csv"}

ALLOWED = {
    ("ssl_core/atomic.py", "replacing"): "the writer itself",
    ("ssl_core/atomic.py", "sweep"): "the writer itself",
    ("ssl_core/atomic.py", "_rename"): "the writer itself",
    ("ssl_core/atomic.py", "_sync"): "the writer itself",
    ("ssl_core/data/shards.py", "_write_parquet"): "write_shard hands it the temporary",
    ("components/decoding/child.py", "_prefer_as_oom_victim"): "a file of the kernel's",
    ("components/embed/output.py", "_write"): "the temporary of a `replacing` that ends with the output",
    ("components/registry/export.py", "write_artifact"): "a new folder, which MLflow uploads as a whole",
    ("components/registry/export.py", "_write_mlmodel"): "the same folder",
    ("components/registry/export.py", "_write_environment"): "the same folder",
    ("components/training/artefacts.py", "_with_models"): "a temporary folder that one fit reads",
    ("components/tracking/journal.py", "refuse"): "appends",
    ("components/tracking/journal.py", "sync"): "a file that is only appended to",
    ("ssl_core/folder.py", "_save"): "into a folder that write_folder publishes whole",
    ("pipelines/cli.py", "_kept"): "a stack trace in the folder for temporary files",
    ("pipelines/doctor.py", "_home"): "tries whether the home can be written to, and keeps nothing",
}
"""(file, function) -> reason."""


def found(source: str) -> Iterator[tuple[str, str]]:
    """(function, what it calls) for every call that renames, syncs or writes a file outside a `with replacing(...)`."""

    def walk(node: ast.AST, function: str, published: bool) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef):
            function, published = node.name, False
        if isinstance(node, ast.With):
            published |= any(called(item.context_expr) == "replacing" for item in node.items)
        if isinstance(node, ast.Call):
            name = called(node)
            if name in RENAMES or moves(node) or ((name in WRITES or opens(node)) and not published):
                yield function, name
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, published)

    yield from walk(ast.parse(source), "", False)


def called(node: ast.expr) -> str:
    """The last part of what a call calls; empty for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def moves(node: ast.Call) -> bool:
    """os.replace(a, b) and path.replace(b); not text.replace(a, b), nor dataclasses.replace(a, b=c)."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "replace" or node.keywords:
        return False
    of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    return of_os or len(node.args) == 1


def opens(node: ast.Call) -> bool:
    """open(…, "w") and path.open("w"), by any mode that writes."""
    modes = [*node.args, *(keyword.value for keyword in node.keywords)]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return called(node) == "open" and any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts)


def test_nothing_is_written_past_the_one_writer() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    calls = {
        (str(path.relative_to(ROOT)), function): call for path in files for function, call in found(path.read_text())
    }
    unknown = {place: call for place, call in calls.items() if place not in ALLOWED}
    assert not unknown, f"write with ssl_core.atomic.replacing, or say in ALLOWED why not: {unknown}"
    assert ALLOWED.keys() <= calls.keys(), f"no longer needed: {sorted(ALLOWED.keys() - calls.keys())}"
    assert all(ALLOWED.values())


@pytest.mark.parametrize(
    "call",
    [
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "os.replace(a, b)",
        "part.replace(path)",
        "os.rename(a, b)",
        "part.rename(path)",
        "os.fsync(file)",
        "open(path, 'wb')",
        "open(path, mode='a')",
        "path.open('x')",
        "pq.write_table(table, path)",
        "with open(path, 'w') as file: pass",
    ],
)
def test_a_write_past_it_is_seen(call: str) -> None:
    assert [function for function, _ in found(f"def f():\n    {call}")] == ["f"]


@pytest.mark.parametrize(
    "call",
    [
        "text.replace('a', 'b')",
        "replace(task, field=1)",
        "value.replace(tzinfo=UTC)",
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "with replacing(path) as part: part.write_text('x')",
        "with storage_errors(uri), atomic.replacing(path) as part: pq.write_table(table, part)",
    ],
)
def test_what_writes_nothing_or_through_it_is_let_pass(call: str) -> None:
    assert not list(found(f"def f():\n    {call}"))
