"""The typed run says what is wrong, where, and how to mend it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ssl_core.train.run import Optim, Runtime, Train


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "adam"}, r"optim.name is 'adam'; choose sgd, adamw or lars"),
        ({"schedule": "step"}, r"choose cosine or constant"),
        ({"lr": 0.0}, r"optim.lr is 0"),
        ({"lr": float("nan")}, r"optim.lr is nan"),
        ({"momentum": 1.5}, r"optim.momentum is 1.5; it must be at least 0 and at most 1"),
        ({"betas": (0.9, 1.0)}, r"optim.betas is \(0.9, 1.0\)"),
        ({"warmup_epochs": 1.0, "warmup_steps": 5}, r"keep one of them"),
        ({"momentum": 0.0}, r"optim.nesterov needs momentum"),
        ({"clip": -1.0}, r"optim.clip is -1.0"),
    ],
)
def test_a_wrong_optimizer_field_gets_its_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Optim(**wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"epochs": 0}, r"train.epochs is 0; it must be at least 1"),
        ({"steps": 0}, r"train.steps is 0"),
        ({"batch_size": 10, "accumulate": 3}, r"cannot be cut into train.accumulate 3"),
        ({"ema": 1.0}, r"train.ema is 1.0"),
        ({"precision": "fp16"}, r"choose fp32 or bf16"),
    ],
)
def test_a_wrong_training_field_gets_its_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Train(**wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"keep": 0}, r"runtime.keep is 0; it must be at least 1"),
        ({"check_every": -1}, r"runtime.check_every is -1; it must be at least 0"),
        ({"reader_threads": 0}, r"runtime.reader_threads is 0"),
    ],
)
def test_a_wrong_runtime_field_gets_its_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Runtime(**wrong)


@pytest.mark.parametrize("kind", [Optim, Train, Runtime])
def test_every_field_has_its_line_of_documentation(kind: type) -> None:
    documented = (kind.__doc__ or "").partition("Attributes:")[2]
    assert all(f"        {field.name}: " in documented for field in dataclasses.fields(kind))
