"""What a worker tells the driver of an error."""

from __future__ import annotations

from pathlib import Path

from components.training.pretrain import sentence
from components.training.run_folder import RunFolder
from components.training.worker import FINAL, TRACE, Training, _fault
from ssl_core.data.layout import ShardError
from ssl_core.errors import InputError, PretextError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.rotation import Rotation
from ssl_core.train.run import Run


def _training(storage: Path) -> Training:
    return Training(
        Run(Rotation(), EncoderSpec("resnet18")), "corpus", 0, RunFolder(str(storage), "run"), "lease", "home", None
    )


def _caught() -> Exception:
    try:
        raise ValueError("shapes do not fit")
    except ValueError as error:
        return error


def test_a_fault_of_ours_leaves_its_trace_in_the_runs_folder(tmp_path: Path) -> None:
    told = _fault(_caught(), _training(tmp_path))
    trace = tmp_path / "run" / TRACE
    assert "unexpected ValueError" in told and told.endswith(f"its trace is in {trace}")
    assert "shapes do not fit" in trace.read_text() and trace.read_text().startswith("Traceback")


def test_a_fault_is_told_where_its_trace_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert "unexpected ValueError" in _fault(_caught(), _training(tmp_path))


def test_errors_of_input_are_final() -> None:
    assert issubclass(InputError, FINAL) and issubclass(ShardError, FINAL)
    assert not issubclass(PretextError, FINAL)


def test_what_ended_all_restarts_is_told_by_what_it_is() -> None:
    assert sentence(InputError("lower the batch size")) == "lower the batch size"
    assert sentence(MemoryError("8 GiB")).startswith("out of memory (8 GiB); lower train.batch_size")
    assert sentence(RuntimeError("mat1\nmat2")) == "the workers failed, unexpectedly, with RuntimeError: mat1 mat2"
