"""What `ssl_core` offers to a user of the library, exactly; and that asking for nothing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from small_tasks import small

import ssl_core

EXPORTED = {
    *("TASKS", "PretextTask", "TaskModel", "EncoderSpec"),
    *("Run", "Optim", "Train", "Runtime", "Shards", "Folder", "write_shard", "pretrain"),
    *("load_model", "save_model", "knn", "linear_probe", "rank_me"),
}


def test_the_public_names_are_these() -> None:
    assert set(ssl_core.PUBLIC) == EXPORTED, (
        "a public name came or went: users' imports depend on them, so change this list and the changelog with it"
    )


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(ssl_core, name)
    assert found is getattr(import_module(ssl_core.PUBLIC[name]), name)
    assert getattr(found, "__module__", ssl_core.PUBLIC[name]) == ssl_core.PUBLIC[name], "name its home, no detour"
    assert name in dir(ssl_core)


def test_type_checkers_are_told_the_same_names() -> None:
    stub = ast.parse(Path(ssl_core.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == ssl_core.PUBLIC


def test_any_other_name_is_refused_with_the_public_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'load_modle'; public names: .*load_model"):
        ssl_core.load_modle  # noqa: B018
    assert not hasattr(ssl_core, "import_everything")


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import ssl_core, sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'PIL')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "the decoder's child process imports ssl_core and must start at once"


def test_a_saved_encoder_embeds_and_is_probed_through_public_names_alone(tmp_path: Path) -> None:
    task, spec = small("rotation"), ssl_core.EncoderSpec("resnet18", width=0.125, stem="cifar")
    ssl_core.save_model(tmp_path / "model", task, spec, task.build(spec.build).state_dict())
    loaded, model = ssl_core.load_model(tmp_path / "model")
    assert loaded == task
    (field,) = task.sample.values()
    labels = torch.arange(24) % 2
    images = (labels * 200)[:, None, None, None].expand(-1, *field.shape).to(torch.uint8)
    images = images + torch.randint(0, 20, images.shape, dtype=torch.uint8)
    with torch.no_grad():
        features = list(model.represent({"image": images}).values())[-1]
    assert ssl_core.knn(features[:16], labels[:16], features[16:], classes=2, k=3).tolist() == labels[16:].tolist()
    predicted = ssl_core.linear_probe(features[:16], labels[:16], features[16:], classes=2).predictions
    assert predicted.tolist() == labels[16:].tolist()
    assert 1 <= ssl_core.rank_me(features) <= 24
