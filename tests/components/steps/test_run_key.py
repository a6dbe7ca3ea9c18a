"""The run key changes with all that decides the weights, and with nothing else."""

from __future__ import annotations

import ast
import copy
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_tasks import SMALL

from components.steps.run_key import ROOT, code_digest, code_of, import_closure, learning, run_key
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.nn.encoders.architectures import ARCHITECTURES
from ssl_core.tasks import TASKS
from ssl_core.train.run import Run, Runtime

TRIED = {
    "simclr": "resnet18",
    "jigsaw": "resnet50",
    "rotation": "resnet18",
    "bag_of_words": "resnet18",
    "online_bag_of_words": "resnet18",
    "masked_autoencoder": "vit_tiny",
    "context_encoder": "resnet18",
}
"""Task -> encoder."""
MODULES = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "ssl_core").rglob("*.py"))


def run_of(task: str, encoder: str = "", **fields: Any) -> Run:
    return Run(TASKS[task](**SMALL[task].fields | fields), EncoderSpec(encoder or TRIED[task]))  # type: ignore[arg-type]


def key_of(run: Run, **parts: Any) -> str:
    given = {"workers": 1, "gpus": False, "corpus": "corpus", "code": "code", "parent": None} | parts
    return run_key(learning(run, given.pop("workers"), given.pop("gpus")), **given)


def all_digests(root: Path) -> dict[str, str]:
    return {task: code_digest(code_of(run_of(task)), root) for task in TRIED}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, as another installation has one."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "ssl_core", folder / "ssl_core", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def before(elsewhere: Path) -> Iterator[dict[str, str]]:
    """The digests of the unchanged code; changes are undone afterwards."""
    yield all_digests(elsewhere)
    shutil.copytree(ROOT / "ssl_core", elsewhere / "ssl_core", dirs_exist_ok=True)


def test_an_installation_elsewhere_has_the_same_digests_and_each_task_its_own(before: dict[str, str]) -> None:
    assert before == all_digests(ROOT)
    assert len(set(before.values())) == len(TRIED)


def test_docstrings_comments_and_blank_lines_are_no_part_of_any_key(before: dict[str, str], elsewhere: Path) -> None:
    for module in MODULES:
        file = elsewhere / module
        file.write_bytes(other_words(file.read_bytes()))
        assert file.read_bytes() != (ROOT / module).read_bytes()
    assert all_digests(elsewhere) == before


def other_words(source: bytes) -> bytes:
    """The code with other docstrings (a module's, a function's, a constant's), comments and blank lines."""
    lines = source.splitlines(keepends=True)
    strings = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for node in sorted(strings, key=lambda node: node.lineno, reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or 0) - 1
        kept = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + b"'Other words.'" + kept.rstrip() + b"  # why\n"]
    return b"# a remark\n\n\n" + b"".join(lines) + b"\n\n# the end\n"


@pytest.mark.parametrize("task", TRIED)
def test_a_statement_more_in_a_module_changes_the_key_of_exactly_those_tasks_that_import_it(
    before: dict[str, str], elsewhere: Path, task: str
) -> None:
    run = run_of(task)
    changing = set()
    for module in MODULES:
        source = (elsewhere / module).read_bytes()
        (elsewhere / module).write_bytes(source + b"\nMORE = 1\n")
        if code_digest(code_of(run), elsewhere) != before[task]:
            changing.add(module)
        (elsewhere / module).write_bytes(source)
    encoder = ARCHITECTURES[run.encoder.name].__module__.replace(".", "/") + ".py"
    assert {f"ssl_core/tasks/{task}.py", encoder, "ssl_core/task.py", "ssl_core/ops/images.py"} <= changing
    assert {"ssl_core/train/loop.py", "ssl_core/train/train_state.py", "ssl_core/train/optim.py"} <= changing
    assert {"ssl_core/data/reader.py", "ssl_core/data/sampler.py", "ssl_core/data/images.py"} <= changing
    assert {module for module in changing if module.startswith("ssl_core/tasks/")} == {f"ssl_core/tasks/{task}.py"}
    assert not {"ssl_core/data/decode.py", "ssl_core/probes/knn.py", "ssl_core/train/saved_model.py"} & changing
    families = {f"ssl_core/nn/encoders/{name}.py" for name in ("resnet", "vit")}
    decoders = {"ssl_core/nn/encoders/vit.py"} if "ssl_core/nn/decoders.py" in changing else set()
    assert families & changing == {encoder} | decoders


@pytest.mark.parametrize(
    ("module", "old", "new", "changed"),
    [
        ("tasks/simclr.py", "temperature: float = 0.1", "temperature: float = 0.2", {"simclr"}),
        ("nn/contrast.py", "1e-12", "1e-11", {"simclr", "bag_of_words", "online_bag_of_words"}),
        ("nn/encoders/resnet.py", "(3, 4, 6, 3)", "(3, 4, 5, 3)", {*TRIED} - {"masked_autoencoder"}),
        ("nn/encoders/vit.py", "eps=1e-6", "eps=1e-5", {"masked_autoencoder", "context_encoder"}),
        ("ops/images.py", "clamp_min_(1e-3)", "clamp_min_(1e-4)", {*TRIED}),
        ("train/ema.py", "(10 + step)", "(11 + step)", {*TRIED}),
        ("data/shuffle.py", "ROUNDS = 8", "ROUNDS = 9", {*TRIED}),
        ("data/reader.py", "> self._prefetch:", ">= self._prefetch:", {*TRIED}),
    ],
)
def test_other_code_gives_another_key_to_who_executes_it(
    before: dict[str, str], elsewhere: Path, module: str, old: str, new: str, changed: set[str]
) -> None:
    file = elsewhere / "ssl_core" / module
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    now = all_digests(elsewhere)
    assert {task for task in TRIED if now[task] != before[task]} == changed


def test_a_teacher_that_an_earlier_run_saved_may_be_any_encoder() -> None:
    own = import_closure(code_of(run_of("bag_of_words", teacher="")))
    named = import_closure(code_of(run_of("bag_of_words", teacher="models:/digits-encoder/3")))
    assert named.keys() - own.keys() == {"ssl_core.nn.encoders.vit"}


IMPORTING = """
import importlib, sys, types

roots = sys.argv[1:]
import ssl_core, ssl_core.nn

package = types.ModuleType("ssl_core.tasks")
package.__path__ = [ssl_core.__path__[0] + "/tasks"]
sys.modules["ssl_core.tasks"] = package
registry = types.ModuleType("ssl_core.nn.encoders.architectures")
registry.ARCHITECTURES = {}
sys.modules[registry.__name__] = registry
for root in roots:
    importlib.import_module(root)
print(*(name for name, module in sys.modules.items() if name.split(".")[0] == "ssl_core" and module.__spec__))
"""


@pytest.mark.parametrize("task", ["simclr", "bag_of_words"])
def test_what_is_hashed_is_what_python_imports_with_empty_registries(task: str) -> None:
    modules = code_of(run_of(task))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, *modules],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert set(done.stdout.split()) - {"ssl_core"} == import_closure(modules).keys(), "it lists public names, no more"


def test_no_module_is_imported_by_a_name_that_is_made_up_at_run_time() -> None:
    """The closure is read from the import statements, so there must be no other way."""
    for module in set(MODULES) - {"ssl_core/__init__.py"}:  # a list of public names, which is not followed
        text = (ROOT / module).read_text()
        assert "importlib" not in text and "__import__" not in text, module


def test_imports_are_followed_wherever_they_stand_and_however_they_are_written(tmp_path: Path) -> None:
    package = tmp_path / "ssl_core"
    files = {
        "__init__": "",
        "a": "from . import b\nfrom .deep.c import value\nimport torch",
        "b": "def late():\n    import ssl_core.d as renamed",
        "d": "from ssl_core.deep import e",
        "deep/__init__": "from ..f import x",
        "deep/c": "from .. import absent_attribute",
        "deep/e": "",
        "f": "import ssl_core.a",
        "unused": "",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / f"{name}.py").write_text(text)
    found = {
        file.relative_to(package).with_suffix("").as_posix()
        for file in import_closure(["ssl_core.a"], tmp_path).values()
    }
    assert found == files.keys() - {"unused", "__init__"}


def test_code_that_lies_outside_of_the_package_is_refused() -> None:
    for module in ("tiny", "ssl_core.tasks.absent"):
        with pytest.raises(ValueError, match=f"{module} is no module below"):
            code_digest([module])


@pytest.mark.parametrize("section", ["task", "encoder", "optim", "train"])
@pytest.mark.parametrize("task", TRIED)
def test_every_field_of_what_learns_is_part_of_the_key(task: str, section: str) -> None:
    run = run_of(task)
    names = [field.name for field in dataclasses.fields(getattr(run, section))]
    keys = {key_of(dataclasses.replace(run, **{section: changed(getattr(run, section), name)})) for name in names}
    assert len(keys) == len(names) > 0 and key_of(run) not in keys


def changed(section: Any, name: str) -> Any:
    """A copy with another value in that field, whether or not it makes sense."""
    other = copy.copy(section)
    object.__setattr__(other, name, [getattr(section, name), "another"])
    return other


def test_the_settings_that_look_after_a_training_are_no_part_of_the_key() -> None:
    run = run_of("simclr")
    names = [field.name for field in dataclasses.fields(Runtime)]
    assert {key_of(dataclasses.replace(run, runtime=changed(run.runtime, name))) for name in names} == {key_of(run)}


def test_task_workers_gpus_corpus_code_and_parent_are_parts_of_the_key() -> None:
    run = run_of("simclr")
    parts: list[dict[str, Any]] = [{"workers": 2}, {"gpus": True}, {"corpus": "x"}, {"code": "x"}, {"parent": "x"}]
    keys = [key_of(run), *(key_of(run, **part) for part in parts), key_of(run_of("rotation"))]
    assert len(set(keys)) == len(keys)
    assert key_of(run) == key_of(run_of("simclr"))
