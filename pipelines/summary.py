"""How results are shown: short tables for people, the same as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from components.steps.progress import duration
from components.training.run_folder import REPORT
from pipelines import console
from pipelines.console import program

if TYPE_CHECKING:
    from components.embed.embed import EmbedReport
    from components.evaluation.result import Evaluation
    from components.ingest.ingest import IngestReport
    from components.registry.register import Registered
    from components.reports.tables import Cell, Table
    from components.steps.context import RunContext
    from pipelines.doctor import Finding
    from pipelines.local import Summary


def show_summary(summary: Summary, as_json: bool) -> None:
    """A whole pipeline run: the table, the report, and how to go on."""
    registered = summary.registered
    if as_json:
        data: dict[str, Any] = {"run": summary.context.facts(), "evaluation": summary.evaluation.table()}
        data |= {"factors": summary.evaluation.factor_table()}
        data |= {"registered": dataclasses.asdict(registered) if registered else None, "seconds": summary.seconds}
        data |= {"ingested": {name: dataclasses.asdict(report) for name, report in summary.ingested.items()}}
        console.emit(data | {"report": summary.context.folder.uri_of(REPORT)})
        return
    evaluation_table(summary.evaluation)
    factor_table(summary.evaluation)
    if registered:
        console.OUT.print(Text(promotion_sentence(registered)))
    lines = {"report": console.short_path(summary.context.folder.uri_of(REPORT)), "MLflow UI": f"{program()} ui"}
    if registered:
        lines["embed"] = f"{program()} embed --model models:/{registered.name}@champion SOURCE -o out.parquet"
    console.pairs(f"{summary.context.name}: done in {duration(summary.seconds)}", lines)


def show_artefacts(digests: Mapping[str, str], context: RunContext, as_json: bool) -> None:
    """The artefacts that were made for the task."""
    if as_json:
        console.emit(digests)
    elif digests:
        console.pairs(f"artefacts of {context.name}", digests)
    else:
        console.OUT.print(f"{context.name}: its task needs no artefacts")


def show_evaluation(evaluation: Evaluation, context: RunContext, as_json: bool) -> None:
    """The evaluation's table."""
    if as_json:
        console.emit(evaluation.table())
        return
    evaluation_table(evaluation)
    factor_table(evaluation)
    report = console.short_path(context.folder.uri_of(REPORT))
    console.pairs(context.name, {"report": report, "next": f"{program()} register RECIPE"})


def evaluation_table(evaluation: Evaluation) -> None:
    """The best layer beside its references, with 95 % intervals; the pretext task's own metrics and notes below."""
    from components.evaluation.metrics import pretext_metric
    from components.reports.tables import scores

    show_table(scores(evaluation))
    for key, value in evaluation.pretext.items():
        metric = pretext_metric(key)
        chance = f", chance level {metric.text(value.chance)}" if value.chance is not None else ""
        what = f"pretext {metric.column} on {evaluation.pretext_samples}"
        console.OUT.print(Text(f"{what}: {metric.text(value.mean)}{chance}"))
    for note in (*evaluation.notes, *([evaluation.collapse] if evaluation.collapse else [])):
        console.OUT.print(Text(f"note: {note}", style="yellow"))


def factor_table(evaluation: Evaluation) -> None:
    """What the encoder knows of each factor beside its references; nothing where no factors are known."""
    from components.reports.tables import factors

    table = factors(evaluation)
    if table:
        show_table(table)


def show_table(table: Table, piped_width: int | None = None) -> None:
    """On stdout, with the standing of scores in colours; `piped_width`: see `console.table`."""
    cells = [[_coloured(cell) for cell in row] for row in table.rows]
    console.table(table.title, table.columns, cells, right=table.columns[1:], piped_width=piped_width)


def _coloured(cell: Cell) -> Text:
    return Text(cell.marked(), style={"below": "red", "above": "green"}.get(cell.standing, ""))


def promotion_sentence(registered: Registered) -> str:
    """Whether the version became champion, and why."""
    own = registered.champion == registered.version
    state = "champion" if own else f"not champion (that is version {registered.champion})"
    return f"registered {registered.name} version {registered.version}: {state}, {registered.promotion.reason}"


def show_registered(registered: Registered, as_json: bool) -> None:
    """The version and its standing."""
    if as_json:
        console.emit(dataclasses.asdict(registered))
    else:
        console.OUT.print(Text(promotion_sentence(registered)))


def show_samples(folder: Path, counts: Mapping[str, int], as_json: bool) -> None:
    """The sample corpus that was written."""
    if as_json:
        console.emit({"folder": str(folder), "pictures": counts})
        return
    console.pairs(str(folder), {part: f"{count:,} pictures" for part, count in counts.items()})


def show_ingest(corpus: str, report: IngestReport, as_json: bool) -> None:
    """What the ingest did."""
    if as_json:
        console.emit({"corpus": corpus} | dataclasses.asdict(report))
        return
    values = {
        name: f"{value:,}" for name, value in dataclasses.asdict(report).items() if name not in ("seconds", "version")
    }
    rate = report.added / report.seconds if report.seconds else 0
    console.pairs(
        f"{corpus} version {report.version}", values | {"took": f"{duration(report.seconds)}, {rate:,.0f} added/s"}
    )
    if report.quarantined:
        console.OUT.print(Text(f"why: {program()} corpus quarantine {corpus}"))


def show_embedded(source: str, report: EmbedReport, as_json: bool) -> None:
    """What was embedded."""
    if not report.rows:
        console.say(f"{source} holds no media, so nothing was written; files such as .txt and .json are skipped")
    if as_json:
        console.emit(dataclasses.asdict(report))
    if as_json or not report.rows:
        return
    rate = report.rows / report.seconds if report.seconds else 0
    what = f"{report.rows:,} embeddings of {report.dim} numbers (layer {report.layer})"
    console.OUT.print(Text(f"{what} in {report.out}, {rate:,.0f}/s"))
    if report.refused:
        console.OUT.print(Text(f"{report.refused:,} files could not be used; why: {report.quarantine}"))


def show_corpora(as_json: bool) -> None:
    """All corpora below the pretext home."""
    from components.corpus.corpus import corpora
    from components.storage.home import pretext_home

    rows = [_corpus_line(name) for name in corpora()]
    if as_json:
        console.emit(rows)
        return
    columns = ("corpus", "version", "samples", "stored as")
    cells = [[row[column] for column in columns] for row in rows]
    console.table(str(pretext_home() / "corpora"), columns, cells, right=("version", "samples"))


def _corpus_line(name: str) -> dict[str, Any]:
    """A corpus that cannot be read must not hide the others."""
    from components.corpus.corpus import Corpus, CorpusError
    from components.storage.files import StorageError

    try:
        return _corpus_facts(name, Corpus.open(name))
    except (CorpusError, StorageError) as error:
        return {"corpus": name, "version": "", "samples": "", "stored as": f"cannot be read: {error}"}


def _corpus_facts(name: str, corpus: Any) -> dict[str, Any]:
    stored = f"{corpus.modality}, {corpus.payload}, short side {corpus.size}"
    return {"corpus": name, "version": corpus.version, "samples": corpus.count(), "stored as": stored}


def show_corpus(name: str, version: int | None, as_json: bool) -> None:
    """One corpus and its history."""
    from components.corpus.corpus import Corpus

    corpus = Corpus.open(name, version)
    history = corpus.history()
    files, quarantined = corpus.files(), len(corpus.quarantine())
    facts = _corpus_facts(name, corpus) | {
        "digest": corpus.digest(),
        "where": corpus.uri,
        "shards": len(files),
        "bytes": sum(file.size for file in files),
        "quarantined": quarantined,
    }
    if as_json:
        console.emit(facts | {"history": [dataclasses.asdict(commit) for commit in history]})
        return
    console.pairs(
        name,
        {key: f"{value:,}" if isinstance(value, int) else value for key, value in facts.items() if key != "corpus"},
    )
    rows = [[c.version, f"{c.time:%Y-%m-%d %H:%M:%S} UTC", f"{c.added:,}", ", ".join(c.sources)] for c in history]
    console.table("History", ("version", "time", "added", "sources"), rows, right=("version", "added"))


def show_quarantine(name: str, as_json: bool) -> None:
    """Files that could not be used, with the reasons counted."""
    from components.corpus.corpus import Corpus

    rows = Corpus.open(name).quarantine().to_pylist()
    if as_json:
        console.emit(rows)
        return
    counted = ", ".join(f"{reason} {n}" for reason, n in Counter(row["reason"] for row in rows).most_common())
    if not rows:
        console.OUT.print(f"{name}: nothing in quarantine")
        return
    title = f"{len(rows):,} files of {name} could not be used: {counted}"
    console.table(title, ("reason", "file", "message"), [[r["reason"], r["uri"], r["message"]] for r in rows])


def show_findings(findings: Iterable[Finding], as_json: bool) -> bool:
    """The doctor's report, each finding as it is made; True if nothing failed."""
    styles: Mapping[str, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            mark = Text(f"{finding.state:<5}", style=styles[finding.state])
            console.OUT.print(mark + Text(f" {finding.subject:<14} {finding.detail}"))
    if as_json:
        console.emit([dataclasses.asdict(finding) for finding in found])
    return all(finding.state != "fail" for finding in found)
