"""The loop: it learns, resumes bit for bit, averages over micro-batches, and knows when to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny import ENCODER, TinyModel, Upside, tiny_run, tiny_shards, weights_of

from ssl_core.data.shards import Shards
from ssl_core.train import checkpoint
from ssl_core.train.loop import Folder, Outcome, Point, pretrain
from ssl_core.train.ranks import Ranks
from ssl_core.train.run import Run, Runtime
from ssl_core.train.saved_model import load_model
from ssl_core.train.train_state import TrainState


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return tiny_shards(tmp_path / "corpus")


def train(
    run: Run, shards: Shards, folder: Path, stop: Callable[[], str] = str, digest: str = "d1"
) -> tuple[Outcome, list[Point]]:
    points: list[Point] = []
    outcome = pretrain(run, shards, digest, Folder(folder, run.runtime.keep), on_point=points.append, stop=stop)
    return outcome, points


def stop_after(steps: int) -> Callable[[], str]:
    calls = iter(range(1, 10**9))
    return lambda: "asked to" if next(calls) == steps else ""


def test_learns_the_task_and_leaves_a_model_that_answers_like_the_checkpoint(shards: Shards, tmp_path: Path) -> None:
    outcome, points = train(tiny_run(steps=60, log_every=2), shards, tmp_path / "run")
    assert outcome == Outcome("FINISHED", 60, 60)
    assert points[-1].metrics["accuracy"] > 0.9 > points[0].metrics["accuracy"]
    task, model = load_model(tmp_path / "run" / "model", tasks={"Upside": Upside})
    assert task == Upside() and not model.training
    tensors, _ = checkpoint.load(tmp_path / "run" / "checkpoint_00000060")
    assert all(torch.equal(tensor, tensors[f"model/{name}"]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_stopped_run_resumes_to_the_same_bits(shards: Shards, tmp_path: Path, optimizer: str) -> None:
    run = tiny_run(optim={"name": optimizer, "clip": 1.0}, ema=0.9, accumulate=2)
    _, straight = train(run, shards, tmp_path / "straight")
    outcome, first = train(run, shards, tmp_path / "broken", stop_after(7))
    assert outcome == Outcome("KILLED", 7, 12, "asked to")
    outcome, second = train(run, shards, tmp_path / "broken")
    assert outcome.status == "FINISHED"

    ours, meta = checkpoint.load(tmp_path / "broken" / "checkpoint_00000012")
    theirs, expected = checkpoint.load(tmp_path / "straight" / "checkpoint_00000012")
    assert meta.pop("compute_seconds") > 0 and expected.pop("compute_seconds") > 0
    assert meta == expected and meta["ids_digests"][0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert _curve(first + second) == _curve(straight)


def _curve(points: list[Point]) -> dict[int, tuple[float, float]]:
    return {point.step: (point.metrics["loss"], point.metrics["grad_norm"]) for point in points}


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(shards: Shards, tmp_path: Path) -> None:
    run = tiny_run(steps=12)
    train(run, shards, tmp_path / "straight")
    train(run, shards, tmp_path / "broken", stop_after(11))
    newest = tmp_path / "broken" / "checkpoint_00000011" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    train(run, shards, tmp_path / "broken")
    ours, _ = checkpoint.load(tmp_path / "broken" / "checkpoint_00000012")
    theirs, _ = checkpoint.load(tmp_path / "straight" / "checkpoint_00000012")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_accumulation_takes_the_mean_over_all_micro_batches(shards: Shards, tmp_path: Path) -> None:
    """Without batch norm and dropout, four micro-batches of 4 move the weights as one batch of 16."""

    def after_one_step(accumulate: int) -> dict[str, torch.Tensor]:
        run = replace(
            tiny_run(_ByContent(dropout=0.0), {"momentum": 0.0, "nesterov": False}, steps=1, accumulate=accumulate),
            encoder=replace(ENCODER, norm="group"),
        )
        train(run, shards, tmp_path / str(accumulate))
        return weights_of(checkpoint.load(tmp_path / str(accumulate) / "checkpoint_00000001")[0])

    whole, pieces = after_one_step(1), after_one_step(4)
    torch.manual_seed(tiny_run().train.seed)
    start = _ByContent(dropout=0.0).build(replace(ENCODER, norm="group").build).state_dict()
    assert not torch.allclose(whole["model/head.weight"], start["head.weight"], atol=1e-4), "the weights have moved"
    assert all(torch.allclose(whole[name], pieces[name], atol=1e-6) for name in whole)


class _ByContent(Upside):
    """Targets from the image alone, so that they do not depend on the micro-batch's generator."""

    def make_batch(self, raw, rng):  # type: ignore[no-untyped-def]
        images = raw["image"].float() / 255 - 0.5
        return {"image": images}, (raw["image"].int().sum((1, 2, 3)) % 2).long()


def test_what_watches_and_keeps_a_training_changes_no_bit_of_it(shards: Shards, tmp_path: Path) -> None:
    """So it is no part of the run key; see tests/components/steps/test_run_key.py."""
    run = tiny_run(ema=0.9)
    others = Runtime(2, 1, 1, 2, collapse_std=1e-9, collapse_rank=1e-9, collapse_checks=99, reader_threads=1)
    changed = {
        field.name for field in fields(Runtime) if getattr(others, field.name) != getattr(run.runtime, field.name)
    }
    assert changed == {field.name for field in fields(Runtime)}
    train(run, shards, tmp_path / "one")
    train(replace(run, runtime=others), shards, tmp_path / "other")
    one, other = (checkpoint.load(tmp_path / name / "checkpoint_00000012") for name in ("one", "other"))
    assert one[1]["ids_digests"] == other[1]["ids_digests"]
    weights = weights_of(one[0])
    assert weights.keys() == weights_of(other[0]).keys()
    assert all(torch.equal(weights[name], other[0][name]) for name in weights)


def test_points_are_means_over_the_window_with_rate_and_time_left(shards: Shards, tmp_path: Path) -> None:
    _, every = train(tiny_run(log_every=1), shards, tmp_path / "every")
    _, points = train(tiny_run(log_every=4), shards, tmp_path / "fourth")
    assert [point.step for point in points] == [4, 8, 12]
    window = [point.metrics["loss"] for point in every[4:8]]
    assert points[1].metrics["loss"] == pytest.approx(sum(window) / 4)
    assert points[-1].metrics["seconds_left"] == 0 < points[0].metrics["seconds_left"]
    assert points[0].metrics["samples_per_s"] > 0
    assert points[0].metrics["epoch"] == pytest.approx(4 / 3)
    assert {"accuracy", "lr", "grad_norm"} <= points[0].metrics.keys()
    assert 0 < points[0].metrics["compute_seconds"] < points[-1].metrics["compute_seconds"]
    assert points[0].metrics["peak_memory_mib"] > 50


def test_nan_stops_the_run_and_never_reaches_a_checkpoint(shards: Shards, tmp_path: Path) -> None:
    outcome, _ = train(tiny_run(Upside(nan=True), log_every=100), shards, tmp_path / "run")
    assert outcome.status == "FAILED" and "NaN" in outcome.reason and "optim.lr" in outcome.reason
    assert checkpoint.complete(tmp_path / "run") == []
    outcome, _ = train(tiny_run(Upside(nan=True), log_every=1), shards, tmp_path / "run")
    assert outcome == Outcome("FAILED", 1, 12, outcome.reason)


def test_a_collapsed_representation_stops_the_run_with_the_reason(shards: Shards, tmp_path: Path) -> None:
    run = tiny_run(Upside(collapse=True), steps=200, check_every=5, collapse_std=0.02)
    run = replace(run, encoder=replace(ENCODER, norm="none"), optim=replace(run.optim, weight_decay=0.3))
    outcome, points = train(run, shards, tmp_path / "run")
    assert outcome.status == "FAILED" and "collapsed" in outcome.reason
    assert outcome.step < 200
    assert any("spread" in point.metrics for point in points)


def test_a_healthy_run_is_not_taken_for_collapsed(shards: Shards, tmp_path: Path) -> None:
    outcome, points = train(tiny_run(steps=20, check_every=2, log_every=2), shards, tmp_path / "run")
    assert outcome.status == "FINISHED"
    assert min(point.metrics["spread"] for point in points) > 0.01


def test_the_average_of_the_weights_is_what_the_model_holds(shards: Shards, tmp_path: Path) -> None:
    train(tiny_run(ema=0.9), shards, tmp_path / "run")
    _, model = load_model(tmp_path / "run" / "model", tasks={"Upside": Upside})
    tensors, _ = checkpoint.load(tmp_path / "run" / "checkpoint_00000012")
    own = model.state_dict()
    assert all(torch.equal(own[name], tensors[f"ema/{name}"]) for name in own)
    assert not torch.equal(own["head.weight"], tensors["model/head.weight"])
    assert own["steps"] == 12


def test_bf16_computes_under_autocast_with_float32_weights(shards: Shards, tmp_path: Path) -> None:
    outcome, points = train(tiny_run(steps=60, log_every=20, precision="bf16"), shards, tmp_path / "run")
    assert outcome.status == "FINISHED" and points[-1].metrics["accuracy"] > 0.9
    _, model = load_model(tmp_path / "run" / "model", tasks={"Upside": Upside})
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_another_corpus_version_or_encoder_does_not_resume(shards: Shards, tmp_path: Path) -> None:
    run = tiny_run(steps=5)
    train(run, shards, tmp_path / "run")
    with pytest.raises(ValueError, match="another corpus version"):
        train(run, shards, tmp_path / "run", digest="d2")
    with pytest.raises(ValueError, match="another run"):
        train(replace(run, encoder=replace(ENCODER, width=0.25)), shards, tmp_path / "run")


def test_a_finished_run_only_writes_its_model_again(shards: Shards, tmp_path: Path) -> None:
    train(tiny_run(), shards, tmp_path / "run")
    checkpoint.remove(tmp_path / "run" / "model")
    outcome, points = train(tiny_run(), shards, tmp_path / "run")
    assert outcome == Outcome("FINISHED", 12, 12) and not points
    load_model(tmp_path / "run" / "model", tasks={"Upside": Upside})


def test_batches_that_cannot_be_shared_and_sync_bn_on_a_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 12"):
        TrainState(tiny_run(batch_size=16, accumulate=4), Ranks(0, 3, torch.device("cpu")))
    with pytest.raises(ValueError, match="sync_bn works on GPUs only"):
        TrainState(tiny_run(sync_bn=True), Ranks(0, 1, torch.device("cpu")))


def test_channels_last_reaches_kernels_and_inputs(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = [], TinyModel.forward

    def watched(model: TinyModel, image: torch.Tensor) -> torch.Tensor:
        kernels = [weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
        seen.append([value.is_contiguous(memory_format=torch.channels_last) for value in (image, *kernels)])
        return forward(model, image)

    monkeypatch.setattr(TinyModel, "forward", watched)
    train(tiny_run(steps=1), shards, tmp_path / "last")
    train(tiny_run(steps=1, channels_last=False), shards, tmp_path / "plain")
    (last, plain) = seen
    assert len(last) > 10 and all(last)
    assert not any(plain[1:])
