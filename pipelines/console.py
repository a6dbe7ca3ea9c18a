"""What a person sees: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from components.steps.progress import Advance, duration


def _open_missing_streams() -> None:
    """A shell's `>&-` closes a stream; the next file to be opened would then get its descriptor and our output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


_open_missing_streams()
OUT = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)
UNREAD = suppress(OSError)
"""Around what is written to stderr: a terminal that has been closed, or a full disk, must stop no work."""


def say(sentence: str) -> None:
    """A line of progress, on stderr."""
    with UNREAD:
        ERR.print(Text(sentence))


def complain(sentence: str) -> None:
    """What went wrong, on stderr."""
    with UNREAD:
        ERR.print(Text("error: ", style="bold red") + Text(sentence))


def emit(data: Any) -> None:
    """Machine-readable result, on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    right: Sequence[str] = (),
    piped_width: int | None = None,
) -> None:
    """A table on stdout; `right`: columns of numbers; `piped_width`: its width where stdout is not a terminal."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for name in columns:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    wide = piped_width and not OUT.is_terminal
    (Console(soft_wrap=True, highlight=False, width=piped_width) if wide else OUT).print(drawn)


def pairs(title: str, values: Mapping[str, Any]) -> None:
    """Names and values, one per line, on stdout."""
    OUT.print(Text(title, style="bold"))
    width = max(map(len, values), default=0)
    for name, value in values.items():
        OUT.print(Text(f"  {name:<{width}}  {value}"))


class Bar:
    """Progress of one step on stderr: a bar on a terminal, else a line every few seconds."""

    def __init__(self, title: str, quiet_seconds: float = 10.0) -> None:
        self.title, self.quiet_seconds = title, quiet_seconds
        self._last = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=ERR, transient=True) if ERR.is_terminal else None
        self._task = self._bar.add_task(title, total=None, note="") if self._bar else None

    def __enter__(self) -> Bar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: float, total: float | None, note: str) -> None:
        """Shows how far the step has come.

        Args:
            done: of `total`, in any unit.
            total: None where it is not known.
            note: rate, time left, latest figures.
        """
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._last >= self.quiet_seconds:
            self._last = time.monotonic()
            share = f" {done / total:4.0%}" if total else ""
            say(f"{self.title}{share}  {note}")


class Terminal:
    """The progress of steps on stderr: a bar for each, with sentences between them."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._turn = threading.RLock()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def say(self, sentence: str) -> None:
        with self._turn:
            self._end_bar()
            say(sentence)

    def advance(self, now: Advance) -> None:
        with self._turn, UNREAD:
            if self._bar is None or self._bar.title != now.step:
                self._end_bar()
                self._bar = Bar(now.step).__enter__()
            self._bar.update(now.done, now.total, ", ".join(_in_words(now)))

    def _end_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with UNREAD:
                bar.__exit__(None, None, None)


FIGURES: Mapping[str, Callable[[float], str]] = {
    "loss": "loss {:.3f}".format,
    "accuracy": "accuracy {:.2f}".format,
    "samples_per_s": "{:,.0f} samples/s".format,
    "seconds_left": lambda seconds: f"{duration(seconds)} left",
    "added": "{:,.0f} added".format,
    "embedded": "{:,.0f} embedded".format,
    "quarantined": "{:,.0f} quarantined".format,
    "files_per_s": "{:,.0f}/s".format,
    "samples_read": "{:,.0f} samples read".format,
}
"""How the figures of a step's progress are written, in this order; other figures are not shown."""


def _in_words(now: Advance) -> Iterator[str]:
    if now.total is not None:
        yield f"step {now.done:,.0f}/{now.total:,.0f}"
    yield from (write(now.figures[name]) for name, write in FIGURES.items() if name in now.figures)


def program() -> str:
    """What the user can type to call this program: `pretext`, or the script's path where it is not on the PATH."""
    called = Path(sys.argv[0])
    if called.name != "pretext" or shutil.which("pretext") == str(called.absolute()):
        return "pretext"
    return shlex.quote(short_path(called))


def short_path(path: str | Path) -> str:
    """A local path relative to the current folder if it lies in it, else absolute; a URI as it is."""
    if "://" in str(path):
        return str(path)
    here = Path(path).absolute()
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
