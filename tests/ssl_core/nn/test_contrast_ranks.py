"""NT-Xent over real gloo processes under DDP: the loss and gradient of one process that sees the whole batch."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core.nn.contrast import gather, info_nce, nt_xent_and_top1

SAMPLES, WORLDS, TEMPERATURE = 12, (4, 2, 1), 0.1


def _views() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    first = torch.randn(SAMPLES, 16, generator=rng)
    return first, first + 0.5 * torch.randn(SAMPLES, 16, generator=rng)


def _model() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(16, 8)


def _naive(z1: Tensor, z2: Tensor) -> Tensor:
    """[n]: cross-entropy over the whole matrix of scores, self-similarity masked, mean of both directions."""
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.arange(2 * n).roll(n), reduction="none").view(2, n).mean(0)


def _rank(rank: int, folder: Path) -> None:
    """Each world size in turn, so that the processes start once; ranks beyond the world sit it out."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            return
        dist.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
        torch.save(_nt_xent_of(rank, world) | _info_nce_of(rank, world), folder / f"{world}-{rank}.pt")
        dist.destroy_process_group()


def _nt_xent_of(rank: int, world: int) -> dict[str, Tensor]:
    model = DistributedDataParallel(_model())
    own = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    first, second = (view[own] for view in _views())
    z1, z2 = model(torch.cat([first, second])).chunk(2)
    loss, top1 = nt_xent_and_top1(z1, z2, TEMPERATURE)
    loss.mean().backward()
    return {"loss": loss.detach(), "top1": top1, "weight": model.module.weight.grad, "bias": model.module.bias.grad}


def _info_nce_of(rank: int, world: int) -> dict[str, Tensor]:
    """Queries from the first view against the second view of all ranks, as CPC and MoCo v3 have it."""
    model = DistributedDataParallel(_model())
    own = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    query, keys = model(torch.cat([view[own] for view in _views()])).chunk(2)
    everyone, offset = gather(keys)
    loss = info_nce(query, everyone, torch.arange(offset, offset + len(query)), TEMPERATURE)
    loss.mean().backward()
    return {"one_way": loss.detach(), "one_way_weight": model.module.weight.grad}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["pytest", "torch.nn.parallel"])  # imported once, not once per rank
    mp.start_processes(_rank, (folder,), nprocs=max(WORLDS), start_method="forkserver")
    return {world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)] for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_nt_xent_and_its_gradient_are_those_of_the_whole_batch(results, world):
    model, (first, second) = _model(), _views()
    expected = _naive(model(first), model(second))
    expected.mean().backward()
    ranks = results[world]
    torch.testing.assert_close(torch.cat([r["loss"] for r in ranks]), expected.detach(), atol=1e-5, rtol=1e-5)
    for each in ranks:
        torch.testing.assert_close(each["weight"], model.weight.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(each["bias"], model.bias.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_info_nce_over_gathered_keys_and_its_gradient_are_those_of_the_whole_batch(results, world):
    model, (first, second) = _model(), _views()
    scores = model(first) @ model(second).T / TEMPERATURE
    expected = F.cross_entropy(scores, torch.arange(SAMPLES), reduction="none")
    expected.mean().backward()
    ranks = results[world]
    torch.testing.assert_close(torch.cat([r["one_way"] for r in ranks]), expected.detach(), atol=1e-5, rtol=1e-5)
    for each in ranks:
        torch.testing.assert_close(each["one_way_weight"], model.weight.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_top1_ranks_the_partner_among_the_vectors_of_all_ranks(results, world):
    with torch.no_grad():
        _, expected = nt_xent_and_top1(*(_model()(view) for view in _views()), TEMPERATURE)
    assert torch.cat([r["top1"] for r in results[world]]).equal(expected)
