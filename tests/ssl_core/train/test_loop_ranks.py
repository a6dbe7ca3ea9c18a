"""The loop over several processes (gloo): equal to one process, exact resume, one voice."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import ENCODER, Upside, tiny_run, tiny_shards, weights_of

from ssl_core.train import checkpoint
from ssl_core.train.loop import Folder, Outcome, pretrain
from ssl_core.train.ranks import Ranks
from ssl_core.train.run import Run

WORLD = 3


class ByContent(Upside):
    """Targets from the image alone, so that they do not depend on the rank's generator."""

    make_batch: Callable[..., Any]

    def make_batch(self, raw, rng):  # type: ignore[no-untyped-def,no-redef]
        images = raw["image"].float() / 255 - 0.5
        return {"image": images}, (raw["image"].int().sum((1, 2, 3)) % 2).long()


RESUMED = tiny_run(batch_size=24, steps=8, ema=0.9, accumulate=2)
PLAIN = replace(
    tiny_run(ByContent(dropout=0.0), {"momentum": 0.0, "nesterov": False}, batch_size=24, steps=1),
    encoder=replace(ENCODER, norm="group"),
)


def _rank(rank: int, port: int, folder: Path) -> None:
    """One process; each call of `go` is a run of all ranks from a fresh start, as after a restart."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    shards = tiny_shards(folder / f"corpus{rank}")

    def go(run: Run, name: str, stop: Callable[[], str] = str) -> Outcome:
        return pretrain(run, shards, "d1", Folder(folder / name, 2, rank), ranks=Ranks.join(rank, WORLD), stop=stop)

    def stop() -> str:
        return "asked to" if next(calls) == 3 and rank == WORLD - 1 else ""

    calls = itertools.count(1)
    assert go(RESUMED, "straight").status == "FINISHED"
    assert go(RESUMED, "broken", stop) == Outcome("KILLED", 3, 8, "asked to")
    assert go(RESUMED, "broken").status == "FINISHED"
    assert go(PLAIN, "plain").status == "FINISHED"
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, folder), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return folder


def test_a_run_that_one_rank_stopped_resumes_to_the_same_bits(ranks: Path) -> None:
    ours, meta = checkpoint.load(ranks / "broken" / "checkpoint_00000008")
    theirs, expected = checkpoint.load(ranks / "straight" / "checkpoint_00000008")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert meta["ids_digests"] == expected["ids_digests"] and len(set(meta["ids_digests"])) == WORLD


def test_three_ranks_move_the_weights_as_one_does(ranks: Path, tmp_path: Path) -> None:
    pretrain(PLAIN, tiny_shards(tmp_path / "corpus"), "d1", Folder(tmp_path / "one", 2))
    one = weights_of(checkpoint.load(tmp_path / "one" / "checkpoint_00000001")[0])
    three = weights_of(checkpoint.load(ranks / "plain" / "checkpoint_00000001")[0])
    assert max((one[name] - three[name]).abs().max().item() for name in one) < 1e-5


def test_more_ranks_than_processes_are_told_to_initialise() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        Ranks.join(0, 2)
