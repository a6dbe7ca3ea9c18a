"""How results are shown: short tables for people, the same as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from components.steps.progress import duration
from components.training.run_folder import REPORT
from pipelines import console
from pipelines.console import program

if TYPE_CHECKING:
    from components.embed.embed import EmbedReport
    from components.evaluation.result import Evaluation, Known, Row
    from components.ingest.ingest import IngestReport
    from components.registry.register import Registered
    from components.steps.context import RunContext
    from pipelines.doctor import Finding
    from pipelines.local import Summary
    from ssl_core.probes.intervals import Interval

PROBES = ("linear", "knn", "1-shot", "5-shot")


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
    lines = {"report": console.near(summary.context.folder.uri_of(REPORT)), "MLflow UI": f"{program()} ui"}
    if registered:
        lines["embed"] = f"{program()} embed --model models:/{registered.name}@champion SOURCE -o out.parquet"
    console.pairs(f"{summary.context.name}: done in {duration(summary.seconds)}", lines)


def show_artefacts(digests: Mapping[str, str], context: RunContext, as_json: bool) -> None:
    """What was made for the task before it trains."""
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
    report = console.near(context.folder.uri_of(REPORT))
    console.pairs(context.name, {"report": report, "next": f"{program()} register RECIPE"})


def evaluation_table(evaluation: Evaluation) -> None:
    """The best layer beside its untrained self and raw pixels, with 95 % intervals; notes below."""
    rows = evaluation.headline()
    probes = [name for name in PROBES if any(name in row.scores for row in rows)]
    measures = [name for name in ("rank_me",) if any(name in row.measures for row in rows)]
    columns = ["representation", *probes, *(name.replace("rank_me", "RankMe") for name in measures)]
    cells = [[row.name, *(_score(row, name) for name in probes), *(_measure(row, m) for m in measures)] for row in rows]
    samples = evaluation.samples
    title = f"Evaluated on {samples['test']:,} images by probes on {samples['train']:,} (accuracy in %, 95 % interval)"
    console.table(title if probes else "Evaluated without labels", columns, cells, right=columns[1:])
    where = "held-out" if probes else "training"
    for name, value in evaluation.pretext.items():
        chance = f", chance {_pretext_value(name, value.chance)}" if value.chance is not None else ""
        console.OUT.print(Text(f"pretext {name} on {where} images: {_pretext_value(name, value.mean)}{chance}"))
    for note in (*evaluation.notes, *([evaluation.collapse] if evaluation.collapse else [])):
        console.OUT.print(Text(f"note: {note}", style="yellow"))


def factor_table(evaluation: Evaluation) -> None:
    """What the encoder knows of each factor beside its rivals; nothing where no factors are known."""
    if evaluation.factors:
        columns, cells = _factor_cells(evaluation)
        title = "What the encoder knows (accuracy of names, R² of quantities, in %, 95 % interval)"
        console.table(title, columns, cells, right=columns[1:])


def _factor_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each factor."""
    sources = list(next(iter(evaluation.factors.values())).known)
    rows = [
        [name, *(_known(factor.known[source]) for source in sources), f"{100 * factor.chance:.1f}"]
        for name, factor in evaluation.factors.items()
    ]
    return ["factor", *sources, "chance"], rows


def _known(known: Known) -> str:
    return " ".join(filter(None, (_interval(known.score), known.layer)))


def markdown(evaluation: Evaluation) -> str:
    """The evaluation's tables as Markdown, for the run's description in MLflow."""
    rows = evaluation.headline()
    probes = [name for name in PROBES if any(name in row.scores for row in rows)]
    cells = [[row.name, *(_score(row, name) for name in probes), _measure(row, "rank_me")] for row in rows]
    tables = [markdown_table(["representation", *probes, "RankMe"], cells)]
    if evaluation.factors:
        tables.append(markdown_table(*_factor_cells(evaluation)))
    return "\n".join(tables) + "\nThe figures are in report.html.\n"


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of texts; all columns but the first are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _pretext_value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.3f}"


def _score(row: Row, probe: str) -> str:
    score = row.scores.get(probe)
    return "" if score is None else _interval(score)


def _interval(score: Interval) -> str:
    return f"{100 * score.mean:z.1f} [{100 * score.low:z.1f}, {100 * score.high:z.1f}]"


def _measure(row: Row, name: str) -> str:
    return f"{row.measures[name]:.1f}" if name in row.measures else ""


def promotion_sentence(registered: Registered) -> str:
    """What became of the version."""
    state = "champion" if registered.champion == registered.version else f"not champion (that is {registered.champion})"
    return f"registered {registered.name} version {registered.version}: {state}, {registered.promotion.reason}"


def show_registered(registered: Registered, as_json: bool) -> None:
    """The version and its standing."""
    if as_json:
        console.emit(dataclasses.asdict(registered))
    else:
        console.OUT.print(Text(promotion_sentence(registered)))


def show_samples(folder: Path, counts: Mapping[str, int], as_json: bool) -> None:
    """A sample corpus that was written."""
    if as_json:
        console.emit({"folder": str(folder), "pictures": counts})
        return
    console.pairs(str(folder), {part: f"{count:,} pictures" for part, count in counts.items()})


def show_ingest(corpus: str, report: IngestReport, as_json: bool) -> None:
    """What an ingest did."""
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
        console.say(f"{source} holds no media, so nothing was written; files such as .txt and .json are not looked at")
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
    """One that cannot be read must not hide the others."""
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
