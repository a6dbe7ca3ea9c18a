"""The run key: a hash of what decides the weights, and of nothing else.

    task, encoder, optim, train, workers, GPUs    learning(run, workers, gpus)
    the code that a run executes                  code_digest(code_of(run))        ->  run_key(...)
    the corpus version, the parent encoder        digests of their content

Same key, same weights: so a run with the same key is resumed, or done already, and another task, corpus or code is
another run. Not in the key, since no bit of the weights depends on them: the recipe's name, `runtime`, evaluation,
registration, tracking, and where the cluster and its storage are. The machine and the versions of libraries are not in
it either, though they may change the last bits: no recipe chooses them, and a run must resume after a move to another
node.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, cast

import ssl_core
from ssl_core import artefact
from ssl_core.nn.encoders.architectures import ARCHITECTURES
from ssl_core.train.checkpoint import task_name
from ssl_core.train.run import Run

PACKAGE = "ssl_core"
ROOT = Path(ssl_core.__file__).parents[1]
"""The folder that holds the package, in any checkout or installation."""

TRAINING = (f"{PACKAGE}.train.loop", f"{PACKAGE}.data.reader")
"""Modules that every training executes, with all that they import."""

REGISTRIES = (PACKAGE, f"{PACKAGE}.tasks", f"{PACKAGE}.nn.encoders.architectures")
"""Modules that only list what can be chosen: public names, tasks, encoders. An import of one task or encoder executes
them, and with them all the others, which do not affect the run. So they are not followed: `code_of` names what the run
has chosen."""


def learning(run: Run, workers: int, gpus: bool) -> dict[str, Any]:
    """The part of a run that decides its weights, as plain values.

    The number of workers counts, since each normalises and contrasts its own part of a batch; so does the use of GPUs,
    whose kernels add in another order and precision: a run that switched half-way would match neither.
    """
    return {
        "task": {"name": task_name(run.task), **asdict(cast(Any, run.task))},
        "encoder": asdict(run.encoder),
        "optim": asdict(run.optim),
        "train": asdict(run.train),
        "workers": workers,
        "gpus": gpus,
    }


def run_key(learning: Mapping[str, Any], *, corpus: str, code: str, parent: str | None = None) -> str:
    """32 hex digits.

    Args:
        learning: see `learning`.
        corpus: digest of the corpus version.
        code: see `code_digest`.
        parent: digest of the encoder that training starts from; None for random weights.
    """
    parts = {"learning": learning, "corpus": corpus, "code": code, "parent": parent}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def code_of(run: Run) -> tuple[str, ...]:
    """The modules that a run executes; `code_digest` adds what they import.

    A task that names a saved model may load any encoder from it.
    """
    own = (ARCHITECTURES[run.encoder.name],)
    encoders = ARCHITECTURES.values() if any(artefact.saved_models(run.task).values()) else own
    return (type(run.task).__module__, *sorted({kind.__module__ for kind in encoders}), *TRAINING)


def code_digest(modules: Iterable[str], root: Path = ROOT) -> str:
    """16 hex digits of the syntax of these modules and of all of the package that they import.

    Comments, docstrings and layout do not count, nor does where `root` lies.

    Raises:
        ValueError: one of the modules is not below `root`.
    """
    digest = hashlib.sha256()
    for name, file in sorted(import_closure(modules, root).items()):
        digest.update(f"{name} {_syntax(file.read_bytes())}\n".encode())
    return digest.hexdigest()[:16]


def import_closure(modules: Iterable[str], root: Path = ROOT) -> dict[str, Path]:
    """Name -> file of the modules, of all of the package that they import, and of the packages around them.

    Read from the import statements, wherever they stand; registries are left out.

    Raises:
        ValueError: one of the modules is not below `root`.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    for name in waiting:
        if _file(name, root) is None:
            raise ValueError(f"{name} is no module below {root}, so its part in the weights cannot be hashed.")
    while waiting:
        name = waiting.pop()
        file = None if name in found or name in REGISTRIES else _file(name, root)
        if file is not None:
            found[name] = file
            above = name.rpartition(".")[0]
            waiting += [above, *_imported(file.read_bytes(), name if file.name == "__init__.py" else above)]
    return found


def _file(module: str, root: Path) -> Path | None:
    """The module's file; None for a name that is no module of the package, such as a class in one."""
    if module.partition(".")[0] != PACKAGE:
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def _parsed(source: bytes) -> ast.Module:
    return ast.parse(source)


def _imported(source: bytes, package: str) -> Iterator[str]:
    """What the statements of a module in `package` import: modules, and names that may be modules."""
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@functools.cache
def _syntax(source: bytes) -> str:
    return json.dumps(_plain(_parsed(source)))


def _plain(node: Any) -> Any:
    """A syntax tree as lists, without line numbers, bare strings and empty fields: later versions of Python have more
    of these fields."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_bare_string(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value is not None)
    return [type(node).__name__, *(field for field in fields if field[1] != [])]


def _is_bare_string(node: Any) -> bool:
    """Whether it is a string on its own, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
