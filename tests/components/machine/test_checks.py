"""The probes behind `pretext doctor` do what they say, and fail where the thing fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from components.decoding import sandbox
from components.machine import checks
from components.tracking.errors import TrackingError
from ssl_core.data.decode import Reason, Rejected


def test_gpus_are_named_and_none_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert checks.accelerators() == ["card 0", "card 1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.accelerators() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there nccl is tried")
def test_a_tensor_is_summed_by_gloo_and_nothing_of_the_group_is_left() -> None:
    assert checks.collective_backend() == "gloo"
    assert not torch.distributed.is_initialized()
    assert checks.collective_backend() == "gloo", "it can be asked again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there nccl is tried")
def test_a_sum_that_fails_is_told_and_leaves_no_group_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tensor: torch.Tensor) -> None:
        raise RuntimeError("no route")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    with pytest.raises(RuntimeError, match="no route"):
        checks.collective_backend()
    assert not torch.distributed.is_initialized()


def test_every_kind_is_decoded_in_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = sandbox.Sandbox.decode

    def watched(self: sandbox.Sandbox, data: bytes) -> object:
        image = decode(self, data)
        decoded.append((data[:4], image.height, image.width))
        return image

    monkeypatch.setattr(sandbox.Sandbox, "decode", watched)
    assert checks.decode_in_sandbox() == "JPEG, PNG, WEBP, GIF, BMP, TIFF in a limited child process"
    assert len({magic for magic, *_ in decoded}) == 6
    assert all(min(height, width) == 8 for _, height, width in decoded)


def test_a_kind_that_cannot_be_decoded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = sandbox.Sandbox.decode

    def without_webp(self: sandbox.Sandbox, data: bytes) -> object:
        if data.startswith(b"RIFF"):
            raise Rejected(Reason.UNSUPPORTED, "no WebP here")
        return decode(self, data)

    monkeypatch.setattr(sandbox.Sandbox, "decode", without_webp)
    with pytest.raises(Rejected, match="no WebP here"):
        checks.decode_in_sandbox()


@pytest.mark.usefixtures("ray_cluster")
def test_ray_runs_a_task_and_says_what_it_has() -> None:
    assert re.fullmatch(r"1 node\(s\), \d+ CPUs, answered in \d+ s", checks.ray_answers())


def test_an_embedded_tracker_is_made_and_answers(home: Path) -> None:
    assert not (home / "mlflow.db").exists()
    assert checks.tracking_answers() == f"sqlite:///{home / 'mlflow.db'} answers"
    assert (home / "mlflow.db").stat().st_size > 0


def test_a_tracker_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:1 does not answer; start it"):
        checks.tracking_answers()
