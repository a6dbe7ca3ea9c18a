"""What the READMEs say can be typed: their commands, options, recipes, files and links exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipelines.cli import app
from pipelines.comparison_file import load
from pipelines.loading import load_recipe

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ssl_core", "components", "pipelines", "tests", "k8s", ".github")
READMES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
]
OF_THE_USER = {"my.yaml", "mine.yaml", "path/to/mine.yaml", "recipe.schema.json", "out.parquet", "report.html"}
"""Files that a README names as ones that the user has or gets."""
OF_A_RUN = re.compile(r"\.pretext/.*|about\.json|evaluation\.json|config\.json|comparison\.(html|json|md)|\w+\.parquet")
"""Files that commands write."""

Commands = Mapping[str, Any]


def commands() -> dict[str, Any]:
    """ "run", "corpus ls" -> the command as Typer made it."""
    whole: Any = typer.main.get_command(app)
    found = {}
    for name, command in whole.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {word}": one for word, one in inner.items()} if inner else {name: command}
    return found


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }


def code(text: str) -> tuple[list[str], list[str]]:
    """Command lines of the fenced blocks ("$ …", or all of a block of sh), and what stands between backticks."""
    lines, spans, fence = [], [], None
    for line in text.splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() or "text" if fence is None else None
        elif fence is None:
            spans += re.findall(r"`([^`]+)`", line)
        elif line.startswith("$ "):
            lines.append(line[2:])
        elif fence == "sh":
            lines.append(line)
    return lines, spans


def typed(readme: str) -> Iterator[list[str]]:
    """Words of every `pretext …` command of a README."""
    lines, spans = code((ROOT / readme).read_text())
    for text in (*lines, *spans):
        for part in re.split(r"&&|;|\||\s>\s", text.partition(" #")[0]):
            words = (
                shlex.split(part, posix=True) if part.count("'") % 2 == 0 and part.count('"') % 2 == 0 else part.split()
            )
            if len(words) > 1 and words[0] in ("pretext", ".venv/bin/pretext"):
                yield words[1:]


def wrong_in(words: list[str], known: Commands) -> str:
    """What is wrong with a command, in words; empty if nothing."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
    if name in ("{", "X") or name.startswith("-"):
        return ""
    if name not in known:
        group = {command for command in known if command.startswith(f"{name} ")}
        return "" if group and len(words) == 1 else f"there is no command `pretext {' '.join(words[:2])}`"
    given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    alien = [option for option in given if option not in options(known[name])]
    return f"`pretext {name}` has no option {', '.join(alien)}" if alien else ""


@pytest.mark.parametrize("readme", READMES)
def test_commands_and_their_options_exist(readme: str) -> None:
    known = commands()
    wrong = [f"{' '.join(words)}: {why}" for words in typed(readme) if (why := wrong_in(words, known))]
    assert not wrong, f"{readme} names what cannot be typed: {'; '.join(wrong)}"


def test_the_readme_is_read() -> None:
    """Guards the gates above: the README at the top names most of the commands, and the gate sees a wrong one."""
    seen, known = {words[0] for words in typed("README.md")}, commands()
    assert {"run", "ingest", "compare", "embed", "validate", "doctor", "corpus", "samples"} <= seen
    assert wrong_in(["train", "digits"], known) and wrong_in(["run", "digits", "--steps", "3"], known)
    assert not wrong_in(["corpus", "show", "photos", "--version", "1"], known)


@pytest.mark.parametrize("readme", READMES)
def test_an_option_named_alone_is_one_of_a_command(readme: str) -> None:
    _, spans = code((ROOT / readme).read_text())
    known = {option for command in commands().values() for option in options(command)}
    known |= {"-n", "-m", "-W", "-o"}  # pytest's
    alone = {word for span in spans if span.startswith("--") for word in span.split() if word.startswith("--")}
    in_benchmarks = "".join(path.read_text() for path in (ROOT / "tests/benchmarks").glob("*.py"))
    alien = sorted(option for option in alone - known if f'"{option}"' not in in_benchmarks)
    assert not alien, f"{readme} names options that no command and no benchmark has: {', '.join(alien)}"


def built_in(words: list[str]) -> tuple[str, list[str]] | None:
    """Recipe or comparison that a command names, and what it sets; None for a placeholder or a file."""
    names = [word for word in words[1:] if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", word)]
    if words[0] not in ("run", "pretrain", "artefacts", "evaluate", "register", "compare", "validate") or not names:
        return None
    return names[0], [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]


@pytest.mark.parametrize("readme", READMES)
def test_recipes_and_their_overrides_are_valid(readme: str) -> None:
    for words in typed(readme):
        if named := built_in(words):
            name, overrides = named
            if words[0] in ("compare", "validate"):
                load([name], None, overrides)
            else:
                load_recipe(name, overrides)


def named_files(text: str) -> Iterator[str]:
    """Targets of links, and words that look like a file of a repository."""
    yield from (target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target)
    yield from re.findall(r"(?<![\w/~.:{}-])[\w.-]+(?:/[\w.-]+)*\.(?:py|ya?ml|md|toml|txt|json|html)\b(?!\()", text)


def exists(name: str, readme: str) -> bool:
    places = ((ROOT / readme).parent, ROOT, ROOT / "tests/benchmarks", *(ROOT / folder for folder in FOLDERS))
    beside = list((ROOT / readme).parent.rglob(Path(name).name)) if "/" not in name else []
    return bool(beside) or any((place / name).exists() for place in places)


@pytest.mark.parametrize("readme", READMES)
def test_files_and_links_lead_somewhere(readme: str) -> None:
    named = {name for name in named_files((ROOT / readme).read_text()) if name and "NAME" not in name}
    gone = sorted(
        name for name in named if name not in OF_THE_USER and not OF_A_RUN.fullmatch(name) and not exists(name, readme)
    )
    assert not gone, f"{readme} names files that are not there: {', '.join(gone)}"


@pytest.mark.parametrize("readme", READMES)
def test_benchmarks_and_their_options_exist(readme: str) -> None:
    for script, rest in re.findall(r"\b(bench_[a-z_]+\.py)([^`\n]*)", (ROOT / readme).read_text()):
        path = ROOT / "tests/benchmarks" / script
        assert path.exists(), f"{readme} names {script}, which is not in tests/benchmarks"
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option == "--help" or f'"{option}"' in path.read_text(), f"{readme}: {script} has no {option}"


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for readme in READMES:
        lines, spans = code((ROOT / readme).read_text())
        asked = {word for text in (*lines, *spans) for word in re.findall(r"^make ([a-z-]+)", text)}
        assert asked <= targets, f"{readme} names targets that the Makefile lacks: {', '.join(sorted(asked - targets))}"
