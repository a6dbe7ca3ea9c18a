"""`pretext tasks`: the tasks that can be trained, with their fields, shortcuts and search domains."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import typing
from typing import Any

from pipelines import console
from pipelines.config import field_docs
from ssl_core.artefact import fit_functions
from ssl_core.errors import InputError
from ssl_core.task import PretextTask
from ssl_core.tasks import TASKS


class UnknownTaskError(InputError):
    """There is no such task."""

    exit_status = 2


def show_tasks(as_json: bool) -> None:
    """All tasks, a row each."""
    rows = [describe(name, cls) for name, cls in TASKS.items()]
    if as_json:
        console.emit(rows)
        return
    columns = ("task", "what it asks", "paper", "shortcuts closed", "artefacts")
    table = [
        (
            f"{r['task']} (reference)" if r["reference"] else r["task"],
            r["summary"],
            r["paper"],
            ", ".join(s["cue"] for s in r["shortcuts"]),
            ", ".join(r["artefacts"]),
        )
        for r in rows
    ]
    console.table("Pretext tasks (pretext tasks NAME shows one)", columns, table)


def show_task(name: str, as_json: bool) -> None:
    """One task: its fields, its shortcuts, what a search tries.

    Raises:
        UnknownTaskError: there is no such task; the message suggests the nearest name.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}"
        raise UnknownTaskError(f"no task is named {name!r}; {hint}")
    about = describe(name, TASKS[name])
    if as_json:
        console.emit(about)
        return
    console.OUT.print(f"{name}: {about['summary']}\n{about['paper']}\n", markup=False)
    console.table(
        "Fields", ("field", "default", "meaning"), [(f["field"], f["default"], f["doc"]) for f in about["fields"]]
    )
    rows = [
        (s["cue"], s["countermeasure"], ", ".join(f"{k}={v}" for k, v in s["off"].items())) for s in about["shortcuts"]
    ]
    console.table("Shortcuts", ("cue", "countermeasure", "switched off by"), rows)
    console.table("Search", ("field", "domain"), list(about["search"].items()))
    if about["artefacts"]:
        title = "Artefacts, made before training (pretext artefacts RECIPE makes only these)"
        console.table(title, ("field", "what"), list(about["artefacts"].items()))


def describe(name: str, cls: type[PretextTask]) -> dict[str, Any]:
    """A task as JSON data; "reference" is true where it learns from labels and so is not a pretext task."""
    docs, hints = field_docs(cls), typing.get_type_hints(cls)
    fields = [
        {"field": f.name, "type": str(hints[f.name]), "default": f.default, "doc": docs.get(f.name, "")}
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
    ]
    return {
        "task": name,
        "reference": any(field.modality == "label" for field in cls().sample.values()),
        "summary": (inspect.getdoc(cls) or "").split("\n")[0],
        "paper": cls.paper,
        "fields": fields,
        "shortcuts": [dataclasses.asdict(s) for s in cls.shortcuts],
        "search": {field: str(domain) for field, domain in cls.search.items()},
        "artefacts": {field: (inspect.getdoc(fit) or "").split("\n")[0] for field, fit in fit_functions(cls).items()},
    }
