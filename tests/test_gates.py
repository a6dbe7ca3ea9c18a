"""Gates: sizes that keep a file readable in one sitting, and a test beside every module.

Each gate has a list of exceptions with their reasons. The lists only shrink: one that is no longer needed fails, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ("ssl_core", "components", "pipelines")
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 60, 9

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {}
OPTIONS_ARE_PARAMETERS = "pipelines/cli.py"
"""Commands of the CLI: each option is a parameter, so their number is the user's surface, not a function's."""

WITHOUT_TEST = {
    "components/cluster/connect.py": "the fixture ray_cluster and all tests of components run through it",
    "components/corpus/delta.py": "the table under Corpus, covered by test_corpus.py and test_ingest.py",
    "components/decoding/child.py": "the other end of the sandbox's pipe, covered by test_sandbox.py",
    "components/embed/output.py": "covered by test_embed.py",
    "components/embed/pictures.py": "covered by test_embed.py",
    "components/evaluation/features.py": "covered by test_evaluate.py, which counts its passes",
    "components/evaluation/notes.py": "covered by test_evaluate.py through what an evaluation says",
    "components/evaluation/references.py": "covered by test_evaluate.py and test_metrics.py",
    "components/evaluation/result.py": "the data of an evaluation, covered by test_evaluate.py and test_report.py",
    "components/ingest/commits.py": "covered by test_ingest.py, with kills by test_ingest_faults.py",
    "components/ingest/containers.py": "tars and Parquet columns, covered by test_sources.py",
    "components/ingest/listing.py": "covered by test_sources.py",
    "components/ingest/precheck.py": "covered by test_ingest.py",
    "components/ingest/stages.py": "what Ray Data maps, covered by test_ingest.py",
    "components/ingest/vacuum.py": "covered by test_ingest.py",
    "components/registry/export.py": "covered by test_register.py, which loads what it writes in three ways",
    "components/registry/fetch.py": "covered by test_register.py and test_embed.py",
    "components/reports/tables.py": "covered by test_report.py, test_summary.py and test_compare.py",
    "components/samples/digits.py": "writes scikit-learn's digits; make quickstart and test_local.py train on them",
    "components/samples/png.py": "covered by test_shapes.py",
    "components/steps/artefacts.py": "covered by test_local.py and test_artefacts.py",
    "components/steps/evaluate.py": "covered by test_local.py and test_one_home.py",
    "components/steps/evaluation_data.py": "covered by test_local.py",
    "components/steps/ingest.py": "covered by test_local.py",
    "components/steps/pretrain.py": "covered by test_local.py and test_one_home.py",
    "components/steps/publish_comparison.py": "covered by test_compare.py",
    "components/steps/register.py": "covered by test_local.py and test_one_home.py",
    "components/storage/home.py": "one line; the fixture home sets it in every test",
    "components/tracking/delivery.py": "covered by test_tracker.py and test_journal.py, with outages",
    "components/tracking/provenance.py": "covered by test_local.py through a run's tags",
    "components/tracking/store.py": "covered by test_tracker.py",
    "components/tracking/system_metrics.py": "covered by test_tracker.py",
    "pipelines/catalogue.py": "prints what the tasks say of themselves, covered by test_cli.py",
    "pipelines/comparison_file.py": "covered by test_compare.py",
    "pipelines/console.py": "covered by test_cli.py and test_local.py through what they print",
    "pipelines/explain.py": "covered by test_config.py: a recipe is tested from its file to the complaint",
    "pipelines/loading.py": "covered by test_config.py: a recipe is tested from its file to the complaint",
    "pipelines/side_by_side.py": "covered by test_compare.py",
    "pipelines/source_map.py": "covered by test_config.py: every complaint there names file and line",
    "ssl_core/data/buffers.py": "covered by test_reader.py",
    "ssl_core/data/images.py": "covered by test_reader.py",
    "ssl_core/data/labels.py": "covered by test_reader.py",
    "ssl_core/data/layout.py": "covered by test_shards.py",
    "ssl_core/data/mapping.py": "covered by test_shards.py and test_reader.py",
    "ssl_core/data/numbers.py": "covered by test_reader.py",
    "ssl_core/data/sampler.py": "covered by test_reader.py",
    "ssl_core/nn/encoders/architectures.py": "covered by test_encoders.py",
    "ssl_core/nn/encoders/spec.py": "covered by test_encoders.py",
    "ssl_core/nn/encoders/encoder.py": "the protocol that test_encoders.py holds every encoder to",
    "ssl_core/nn/encoders/resnet.py": "covered by test_encoders.py",
    "ssl_core/nn/encoders/vit.py": "covered by test_encoders.py",
    "ssl_core/probes/logistic.py": "covered by test_linear.py against scikit-learn",
    "ssl_core/task.py": "the protocol; test_task_contract.py holds every task to it",
    "ssl_core/tasks/spatial_bag_of_words.py": "covered by test_bag_of_words.py",
    "ssl_core/train/memory.py": "one switch of the C library's allocator; without effect elsewhere",
    "ssl_core/train/meter.py": "covered by test_loop.py",
    "ssl_core/train/ranks.py": "covered by test_loop_ranks.py with two processes",
    "ssl_core/train/saved_model.py": "covered by test_checkpoint.py",
    "ssl_core/train/train_state.py": "covered by test_loop.py and test_checkpoint.py",
    "ssl_core/types.py": "plain data",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> Iterator[tuple[str, Path]]:
    """Path as seen from the root, and the file."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path


def functions(*folders: str) -> Iterator[tuple[str, Function]]:
    """ "file function" or "file Class.method", and its syntax tree."""
    for name, path in python_files(*folders):
        for node in ast.walk(ast.parse(path.read_text())):
            inside = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            for child in ast.iter_child_nodes(node):
                if isinstance(child, Function):
                    yield f"{name} {inside}{child.name}", child


def parameters(function: Function) -> int:
    """How many a caller may give; self and cls are none of them."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def held(found: dict[str, int], exceptions: dict[str, str], rule: str) -> None:
    """Nothing is found but the exceptions, and each of those still is."""
    new = [f"{name} has {size}" for name, size in found.items() if name not in exceptions]
    assert not new, f"{rule}: {'; '.join(new)}"
    mended = [name for name in exceptions if name not in found]
    assert not mended, f"these keep the rule by now, so delete their exceptions here: {', '.join(mended)}"


def test_a_file_is_read_in_one_sitting() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in python_files(*SOURCE, "tests")}
    rule = f"a file over {MOST_LINES} lines holds more than one idea: give each its own module"
    held({name: count for name, count in lines.items() if count > MOST_LINES}, LONG_FILES, rule)


def test_a_function_fits_on_a_screen() -> None:
    lines = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions(*SOURCE, "tests")}
    rule = f"a function over {MOST_FUNCTION_LINES} lines does several things: name them"
    held({name: count for name, count in lines.items() if count > MOST_FUNCTION_LINES}, LONG_FUNCTIONS, rule)


def test_a_call_can_be_read() -> None:
    counts = {name: parameters(node) for name, node in functions(*SOURCE, "tests")}
    many = {name: count for name, count in counts.items() if count > MOST_PARAMETERS}
    many = {name: count for name, count in many.items() if not name.startswith(OPTIONS_ARE_PARAMETERS)}
    rule = f"with more than {MOST_PARAMETERS} parameters nobody knows which belong together: gather them in a dataclass"
    held(many, MANY_PARAMETERS, rule)


def twins(module: str) -> tuple[str, str]:
    """Where the tests of a module may stand; the second where another folder has a test file of the first name."""
    path = Path(module)
    whole = path.with_name(f"test_{path.name}")
    return f"tests/{whole.as_posix()}", f"tests/{whole.with_name(f'test_{path.parent.name}_{path.name}').as_posix()}"


def test_every_module_has_its_test_or_a_reason() -> None:
    modules = [name for name, path in python_files(*SOURCE) if not path.name.startswith("__")]
    untested = {name: 0 for name in modules if not any((ROOT / twin).exists() for twin in twins(name))}
    held(untested, WITHOUT_TEST, "a module's test stands at its path below tests/, so that both are found; no test")


def test_the_tests_that_cover_others_exist() -> None:
    tests = {path.name for _, path in python_files("tests")}
    for module, reason in WITHOUT_TEST.items():
        named = [word.strip(",.:;") for word in reason.split() if word.startswith("test_")]
        gone = [name for name in named if name not in tests]
        assert not gone, f"{module} is said to be covered by {', '.join(gone)}, which is gone"


def test_every_test_says_by_its_path_what_it_tests() -> None:
    """test_loop_ranks.py stands for loop.py, test_encoders.py for the package encoders."""
    for name, path in python_files(*(f"tests/{folder}" for folder in SOURCE)):
        if path.name.startswith("test_") and path.stem != "test_public_surface":
            folder = ROOT / Path(name).parent.relative_to("tests")
            name_of = path.stem.removeprefix("test_")
            stems = [one.stem for one in folder.iterdir() if one.suffix == ".py" or (one / "__init__.py").exists()]
            tested = (name_of, name_of.removeprefix(f"{folder.name}_"))
            assert any(f"{words}_".startswith(f"{stem}_") for stem in stems for words in tested), (
                f"{name} mirrors no module of {folder.relative_to(ROOT)}: what it tests has moved, so move it along"
            )


def test_the_hooks_before_a_commit_run_what_make_check_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    checked = [line.removeprefix("\t$(BIN)/").removesuffix(" .") for line in recipe.splitlines()[1:]]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    assert hooks == checked, "a commit that the hooks let pass must pass in CI, so both run the same tools"
