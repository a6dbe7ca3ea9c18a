"""A new task is one file, and an entry each in the list of tasks, the tests and the benchmark, and a recipe.

The toy task of quarters.py moves into a copy of the project, which is then asked what it holds any task to.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import test_task_contract

ROOT = Path(__file__).parents[1]
FOLDERS = ("ssl_core", "components", "pipelines", "tests")
ENTRIES = {
    "ssl_core/tasks/__init__.py": {
        "from ssl_core.task import PretextTask\n": "from ssl_core.tasks.quarters import Quarters\n",
        "TASKS: Mapping[str, type[PretextTask]] = {\n": '    "quarters": Quarters,\n',
    },
    "tests/small_tasks.py": {
        "SMALL: dict[str, Form] = {\n": '    "quarters": Form({"canvas": 32, "patch": 12, "jitter": 2}, '
        'audits={"luminance": (lit_texture, {})}),\n',
    },
    "tests/benchmarks/bench_tasks.py": {
        "CASES: Mapping[str, Case] = {\n": '    "quarters": Case({"canvas": 64, "patch": 24, "jitter": 4}, '
        'EncoderSpec("resnet18", width=0.25), 8),\n',
    },
}
"""File -> the line after which something is added, and what."""
RECIPE = """\
# Quarters on the quickstart's digits.
#
#   pretext samples digits && pretext run digits-quarters
#
# Expected time: never run.
# Expected score: none.
base: digits
name: digits-quarters
task: {name: quarters, canvas: 16, patch: 7, jitter: 1}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the new task in it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.move(folder / "tests/quarters.py", folder / "ssl_core/tasks/quarters.py")
    for name, entries in ENTRIES.items():
        text = (folder / name).read_text()
        for line, entry in entries.items():
            assert text.count(line) == 1, f"{name} has no one place for {entry}"
            text = text.replace(line, line + entry)
        (folder / name).write_text(text)
    (folder / "pipelines/recipes/digits-quarters.yaml").write_text(RECIPE)
    return folder


def python(project: Path, *arguments: str, may_fail: bool = False) -> str:
    """What a Python in the copy prints."""
    paths = os.pathsep.join(map(str, (project, project / "tests")))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert may_fail or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_touches_its_own_file_the_list_the_tests_the_benchmark_and_a_recipe(project: Path) -> None:
    new = [path.relative_to(project) for name in FOLDERS for path in (project / name).rglob("*") if path.is_file()]
    touched = {str(path) for path in new if not same(ROOT / path, project / path)}
    assert touched == {*ENTRIES, "ssl_core/tasks/quarters.py", "pipelines/recipes/digits-quarters.yaml"}


def same(old: Path, new: Path) -> bool:
    return old.exists() and old.read_bytes() == new.read_bytes()


def test_it_passes_the_whole_contract_and_the_audit(project: Path) -> None:
    places = ["tests/test_task_contract.py", "tests/ssl_core/probes/test_audit.py", "tests/pipelines/test_config.py"]
    chosen = ["-k", "quarters or every_task or every_shortcut", "-p", "no:cacheprovider", "--junitxml=results.xml"]
    python(project, "-m", "pytest", *places, *chosen)
    results = ElementTree.parse(project / "results.xml").iter("testcase")
    passed = {str(case.get("name")) for case in results if case.find("skipped") is None}
    contract = {name for name, test in vars(test_task_contract).items() if name.startswith("test_") and of_a_task(test)}
    assert len(contract) > 20
    assert {f"{name}[quarters]" for name in contract} <= passed
    assert "test_a_countermeasure_closes_its_shortcut[quarters-luminance]" in passed
    assert {"test_every_task_is_tried_at_test_size", "test_every_shortcut_of_every_task_is_audited"} <= passed
    assert any("digits-quarters" in name for name in passed)


def of_a_task(test: object) -> bool:
    """Whether a test of the contract tries a task, and can do so here."""
    needs_gpu = any(mark.name == "skipif" and mark.args[0] for mark in getattr(test, "pytestmark", ()))
    return callable(test) and "task" in inspect.signature(test).parameters and not needs_gpu


def test_it_has_its_place_in_the_catalogue_and_its_recipe_is_valid(project: Path) -> None:
    assert "luminance" in python(project, "-m", "pipelines", "tasks", "quarters")
    python(project, "-m", "pipelines", "validate", "digits-quarters")


def test_its_step_is_timed_beside_a_supervised_one(project: Path) -> None:
    timed = python(project, "tests/benchmarks/bench_tasks.py", "quarters", "--repetitions", "1", may_fail=True)
    assert re.search(r"^quarters +\d+\.\d +\d+\.\d +\d+\.\d\d +\d+% +4 x 24 px$", timed, re.MULTILINE), timed
