"""What is wrong with a recipe, as one sentence for each problem: where, what, and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from pipelines.config import Recipe, keys_of
from pipelines.source_map import SourceMap
from ssl_core.tasks import TASKS

WRITTEN = {
    "tuple_type": "write a list, [a, b]",
    "model_type": "write its keys below it, indented",
    "model_attributes_type": "write its keys below it, indented",
    "string_type": "write text, in quotes where YAML would read something else",
    "int_parsing": "write a whole number, such as 100",
    "int_from_float": "write a whole number, such as 100",
    "float_parsing": "write a number, such as 0.1",
}
"""How a value of the wrong type should have been written, by pydantic's name for the error."""
WATCHING = ("checkpoint_every", "keep", "log_every", "check_every", "collapse_std", "collapse_rank", "collapse_checks")
MOVED = {f"train.{name}": f"runtime.{name}" for name in (*WATCHING, "reader_threads")}
"""Keys of earlier recipes -> their new names."""


def explain(error: ValidationError, source: SourceMap) -> Iterator[str]:
    """One sentence for each problem: where, what, and the nearest right key."""
    for problem in error.errors():
        path = tuple(part for i, part in enumerate(problem["loc"]) if not _is_union_tag(problem["loc"], i))
        if problem["type"].startswith("union_tag"):
            path = (*path, "name")
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "value_error":  # raised by a dataclass, whose sentence names the key
            yield f"{source.where(_named_in(message, path, source))}: {message}"
        else:
            yield f"{source.where(path)}: {_sentence(problem, '.'.join(map(str, path)), source.data)}"


def _named_in(message: str, section: tuple[str | int, ...], source: SourceMap) -> tuple[str | int, ...]:
    """Path of the first key that the message names, as `section.key` or, within the section, as `key`."""
    for first, second in re.findall(r"\b([a-z_]+)(?:\.([a-z_]+))?", message):
        for path in ((first, second), (*section, second), (*section, first)):
            if path in source.origins:
                return path
    return section


def _is_union_tag(loc: tuple[str | int, ...], i: int) -> bool:
    # pydantic puts the chosen task's name between `task` and the key
    return i == 1 and loc[0] == "task" and loc[1] in TASKS


def _sentence(problem: Any, dotted: str, data: dict[str, Any]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden" and dotted in MOVED:
        return f"`{dotted}` is now `{MOVED[dotted]}`"
    if kind == "extra_forbidden":
        return f"`{dotted}` is not a key of a recipe; {_nearest_key(dotted, data)}"
    if kind == "missing":
        return f"`{dotted}` is missing; add it"
    if kind in WRITTEN:
        shown = "empty" if given is None else repr(given)
        return f"`{dotted}` is {shown}: {WRITTEN[kind]}"
    if kind == "union_tag_not_found":
        return f"`{dotted}` is missing; one of {', '.join(TASKS)}"
    if kind == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        return f"`{dotted}` is {tag!r}; {_nearest(tag, list(TASKS))}"
    message = str(problem["msg"])
    return f"`{dotted}` is {given!r}: {message[0].lower()}{message[1:]}"


def _nearest_key(dotted: str, data: dict[str, Any]) -> str:
    """The nearest key of the same section, else of another section, else the keys of the section."""
    chosen = data.get("task")
    known = ["base", *keys_of(Recipe, task=chosen.get("name") if isinstance(chosen, dict) else None)]
    section, _, word = dotted.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    near = difflib.get_close_matches(word, siblings, 1, cutoff=0.6)
    if near:
        return f"did you mean `{siblings[near[0]]}`?"
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = difflib.get_close_matches(word, elsewhere, 1, cutoff=0.75)
    if near:
        return f"did you mean `{elsewhere[near[0]]}`?"
    return f"`{section}` takes {', '.join(siblings)}" if section else f"the sections are {', '.join(siblings)}"


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(choices)}"
