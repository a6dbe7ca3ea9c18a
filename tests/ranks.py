"""Work done by several gloo processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def over_ranks(work: Callable[[int, int], Any], world: int, folder: Path) -> list[Any]:
    """What `work(rank, world)` returns on each of `world` ranks: tensors, in a structure that torch.load trusts.

    `work` is a function of a module; `folder` is empty.
    """
    multiprocessing.set_forkserver_preload(["pytest", "torch.nn.parallel"])  # imported once, not once per rank
    mp.start_processes(_rank, (work, world, folder), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _rank(rank: int, work: Callable[[int, int], Any], world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(work(rank, world), folder / f"{rank}.pt")
    dist.destroy_process_group()
