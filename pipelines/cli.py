"""`pretext`: the commands. Results go to stdout, progress and errors to stderr.

Exit status: 0 done; 1 failed; 2 wrong use or recipe; 3 nothing to do; 4 the version did not become champion;
129, 129, 130, 143 stopped by a signal.
Imports that take seconds (torch, Ray, MLflow) are inside the commands that need them.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from components.cluster.stopping import Stopped
from pipelines import console
from ssl_core.errors import PretextError, bug_message, trace_of, user_message

app = typer.Typer(
    help="Unlabelled images, video and audio in; a registered, evaluated encoder out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
corpus_app = typer.Typer(help="Look at corpora.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(corpus_app, name="corpus")

FAILED, BAD_USE, NOTHING_TO_DO, GATE_REFUSED = 1, 2, 3, 4


class Output(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a built-in recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the recipe.")]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Print a table or JSON.")]
CorpusArgument = Annotated[str, typer.Argument(metavar="CORPUS", help="Corpus name, path or URI.")]


@app.command()
def quickstart(output: OutputOption = Output.table) -> None:
    """Write the digits, pretrain on them, evaluate and register the encoder."""
    from components.samples.digits import write_digits
    from components.storage.home import pretext_home

    folder = pretext_home() / "samples" / "digits"
    counts = write_digits(folder)
    here = console.short_path(folder)
    console.say(f"digits: {counts['unlabelled']} unlabelled, {counts['test']} to test with, as PNG files in {here}")
    _run("digits", None, output)


@app.command()
def samples(
    name: Annotated[
        Literal["digits", "shapes", "photos"],
        typer.Argument(help="Handwriting; figures with known factors; crops of two photographs."),
    ],
    output: OutputOption = Output.table,
) -> None:
    """Write a sample corpus as PNG files into the pretext home, where recipes find it."""
    from components.samples.digits import write_digits
    from components.samples.photos import write_photos
    from components.samples.shapes import write_shapes
    from components.storage.home import pretext_home
    from pipelines.summary import show_samples

    folder = pretext_home() / "samples" / name
    writers: dict[str, Callable[[Path], dict[str, int]]]
    writers = {"digits": write_digits, "shapes": write_shapes, "photos": write_photos}
    show_samples(folder, writers[name](folder), as_json=output is Output.json)


@app.command()
def run(recipe: RecipeArgument, set_: SetOption = None, output: OutputOption = Output.table) -> None:
    """Ingest, pretrain, evaluate and register; a stopped run resumes."""
    _run(recipe, set_, output)


def _run(recipe: str, set_: list[str] | None, output: Output) -> None:
    from pipelines.loading import load_recipe
    from pipelines.local import run_pipeline
    from pipelines.summary import show_summary

    summary = run_pipeline(load_recipe(recipe, set_ or ()))
    show_summary(summary, as_json=output is Output.json)


@app.command()
def ingest(
    sources: Annotated[list[str], typer.Argument(help="Folder, glob, tar, Parquet file, or a URI of one.")],
    corpus: Annotated[str, typer.Option("--corpus", help="Corpus name, path or URI; created if missing.")],
    size: Annotated[
        int | None, typer.Option(min=1, max=8192, help="Short side of the stored images, pixels [256].")
    ] = None,
    payload: Annotated[
        Literal["raw", "jpeg"] | None, typer.Option(help="raw (fastest) or jpeg (a fifth of the bytes) [raw].")
    ] = None,
    labels: Annotated[
        Literal["parent"] | None, typer.Option(help="`parent`: label = name of the folder that holds the file.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of image bytes in Parquet sources.")] = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try quarantined files again.")] = False,
    max_bytes: Annotated[int | None, typer.Option(help="Largest file, bytes [64 MiB].")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture, pixels [50 million].")] = None,
    max_aspect: Annotated[float | None, typer.Option(help="Largest ratio of long to short side [8].")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="CPU time to decode a file [10].")] = None,
    max_memory: Annotated[int | None, typer.Option(help="Memory to decode a file, bytes [1 GiB].")] = None,
    output: OutputOption = Output.table,
) -> None:
    """Add what is new in the sources to a corpus; known files are not read again."""
    from pipelines.local import ingest_alone
    from pipelines.summary import show_ingest

    limits: dict[str, float | None] = {"max_bytes": max_bytes, "max_pixels": max_pixels, "max_aspect": max_aspect}
    limits |= {"max_seconds": max_seconds, "max_memory": max_memory}
    options: dict[str, Any] = {"labels": labels, "column": column, "retry_quarantined": retry_quarantined}
    report = ingest_alone(sources, corpus, {"size": size, "payload": payload}, limits, **options)
    show_ingest(corpus, report, as_json=output is Output.json)
    if not report.added + report.quarantined:
        raise typer.Exit(NOTHING_TO_DO)


@app.command()
def artefacts(recipe: RecipeArgument, set_: SetOption = None, output: OutputOption = Output.table) -> None:
    """Make what the task of a recipe needs before it trains, such as a vocabulary; `run` and `pretrain` do this too."""
    from pipelines.loading import load_recipe
    from pipelines.local import artefacts_alone
    from pipelines.summary import show_artefacts

    digests, context = artefacts_alone(load_recipe(recipe, set_ or ()))
    show_artefacts(digests, context, as_json=output is Output.json)
    if not digests:
        raise typer.Exit(NOTHING_TO_DO)


@app.command()
def pretrain(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Train the encoder of a recipe on its corpus as it is, without ingesting."""
    from pipelines.loading import load_recipe
    from pipelines.local import pretrain_alone

    context = pretrain_alone(load_recipe(recipe, set_ or ()))
    console.say(f"trained {context.name}; next: pretext evaluate {recipe}")


@app.command()
def evaluate(recipe: RecipeArgument, set_: SetOption = None, output: OutputOption = Output.table) -> None:
    """Evaluate the trained encoder of a recipe: probes, figures, report."""
    from pipelines.loading import load_recipe
    from pipelines.local import evaluate_alone
    from pipelines.summary import show_evaluation

    evaluation, context = evaluate_alone(load_recipe(recipe, set_ or ()))
    show_evaluation(evaluation, context, as_json=output is Output.json)


@app.command()
def register(recipe: RecipeArgument, set_: SetOption = None, output: OutputOption = Output.table) -> None:
    """Register the evaluated encoder of a recipe; it becomes champion only if it is significantly better."""
    from pipelines.loading import load_recipe
    from pipelines.local import register_alone
    from pipelines.summary import show_registered

    registered = register_alone(load_recipe(recipe, set_ or ()))
    show_registered(registered, as_json=output is Output.json)
    if registered.champion != registered.version:
        raise typer.Exit(GATE_REFUSED)


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Recipes, or a comparison that lists them.")],
    budget: Annotated[
        str | None, typer.Option(help="Computing time for each recipe: 100s, 10m, 2h; by default its own length.")
    ] = None,
    set_: SetOption = None,
    output: OutputOption = Output.table,
) -> None:
    """Train and evaluate several recipes on one corpus, and show them side by side; a stopped comparison resumes."""
    from pipelines.compare import compare
    from pipelines.comparison_file import load
    from pipelines.side_by_side import show_compared

    compared = compare(load(recipes, budget, set_ or ()))
    show_compared(compared, as_json=output is Output.json)
    if any(one.failure for one in compared.comparison.contenders):
        raise typer.Exit(FAILED)


@app.command()
def embed(
    source: Annotated[str, typer.Argument(help="Folder, glob, tar, Parquet file, a URI of one, or a corpus.")],
    model: Annotated[str, typer.Option("--model", help="models:/NAME@champion, models:/NAME/3, or a model folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Parquet file to write: uri, hash, embedding.")],
    layer: Annotated[str | None, typer.Option(help="Layer to read; by default the one that scored best.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    column: Annotated[str | None, typer.Option(help="Column of image bytes in Parquet sources.")] = None,
    tracking: Annotated[str | None, typer.Option(help="MLflow server; the default is that of a recipe.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Embed images with a registered or saved encoder."""
    from pipelines.local import embed_alone
    from pipelines.summary import show_embedded

    options: dict[str, Any] = {"layer": layer, "batch_size": batch_size, "column": column, "uri": tracking}
    report = embed_alone(model, source, out, **options)
    show_embedded(source, report, as_json=json_)
    if not report.rows:
        raise typer.Exit(NOTHING_TO_DO)


@corpus_app.command("ls")
def corpus_ls(output: OutputOption = Output.table) -> None:
    """The corpora below the pretext home."""
    from pipelines.summary import show_corpora

    show_corpora(as_json=output is Output.json)


@corpus_app.command("show")
def corpus_show(
    corpus: CorpusArgument,
    version: Annotated[int | None, typer.Option(help="Version to show; the newest by default.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """What a corpus holds, and its versions."""
    from pipelines.summary import show_corpus

    show_corpus(corpus, version, as_json=output is Output.json)


@corpus_app.command("quarantine")
def corpus_quarantine(corpus: CorpusArgument, output: OutputOption = Output.table) -> None:
    """Files that could not be used, and why."""
    from pipelines.summary import show_quarantine

    show_quarantine(corpus, as_json=output is Output.json)


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task, to see its fields.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """The pretext tasks; with a name: its fields, shortcuts and search domains."""
    from pipelines.catalogue import show_task, show_tasks

    if name is None:
        show_tasks(as_json=output is Output.json)
    else:
        show_task(name, as_json=output is Output.json)


@app.command()
def validate(recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...")], set_: SetOption = None) -> None:
    """Check recipes, or comparisons of recipes, without running them."""
    from pipelines.comparison_file import load
    from pipelines.loading import RecipeError

    bad = 0
    for recipe in recipes:
        try:
            load([recipe], overrides=set_ or ())
            console.OUT.print(f"{recipe}: valid")
        except RecipeError as error:
            bad += 1
            console.complain(str(error))
    if bad:
        raise typer.Exit(BAD_USE)


@app.command()
def schema() -> None:
    """JSON Schema of a recipe, for editors."""
    from pipelines.config import json_schema

    console.emit(json_schema())


@app.command()
def doctor(output: OutputOption = Output.table) -> None:
    """Check everything that a run needs on this machine, and say how to mend what is missing."""
    from pipelines.doctor import examine
    from pipelines.summary import show_findings

    if not show_findings(examine(), as_json=output is Output.json):
        raise typer.Exit(FAILED)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Serve the MLflow UI on the runs of this pretext home."""
    from components.tracking.store import ui_command

    command = ui_command(port)
    console.say(f"MLflow UI: http://127.0.0.1:{port}  (stop with Ctrl-C)")
    os.execv(command[0], command)


def main() -> NoReturn:
    """Entry point: every failure becomes one sentence and an exit status; PRETEXT_DEBUG=1 shows the trace."""
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except TyperException as error:  # wrong use: Typer has the sentence
        getattr(error, "show", traceback.print_exc)()
        code = BAD_USE
    except Stopped as stop:
        console.complain(str(stop))
        code = stop.exit_status
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except Exception as error:
        code = _failed(error)
    sys.exit(code)


def _failed(error: Exception) -> int:
    """Print what the user can mend, in a sentence; for a bug of ours, say where its trace is."""
    if os.environ.get("PRETEXT_DEBUG"):
        traceback.print_exception(error)
    console.complain(user_message(error) or bug_message(error, _kept(trace_of(error))))
    return error.exit_status if isinstance(error, PretextError) else FAILED


def _kept(trace: str) -> str:
    """Writes the trace to a new file, or to stderr if no file can be written; returns where it is, in words."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pretext-", suffix=".txt", delete=False) as file:
            file.write(trace)
        return file.name
    except OSError:
        sys.stderr.write(trace)
        return "the lines above"
