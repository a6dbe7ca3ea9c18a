"""What the ranks of a run exchange besides gradients: flags, sums, and the state to start from.

All of it goes over CPU tensors (gloo), so that it never waits for a GPU's queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]
"""A checkpoint's content: tensors on the CPU by name, and JSON."""


@dataclass(frozen=True)
class Ranks:
    """One rank's view of the group; with world 1 nothing is sent.

    Attributes:
        rank: this process, from 0.
        world: number of processes.
        device: where this rank computes.
        group: gloo group for these exchanges; None with world 1.
    """

    rank: int
    world: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, rank: int, world: int, device: str | torch.device = "cpu") -> Ranks:
        """Opens the gloo group; all ranks call it.

        Raises:
            RuntimeError: more than one rank without an initialised torch.distributed.
        """
        place = torch.device(device)
        if world == 1:
            return cls(rank, world, place)
        if not dist.is_initialized():
            raise RuntimeError(f"{world} ranks need torch.distributed; call init_process_group first.")
        group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return cls(rank, world, place, group)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on some rank; the same answer on all."""
        if self.world == 1:
            return flag
        raised = torch.tensor([int(flag)])
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return bool(raised.item())

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a CPU tensor over ranks."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, item: Any) -> list[Any]:
        """Every rank's small object, by rank, on all ranks."""
        items = [item] * self.world
        if self.world > 1:
            dist.all_gather_object(items, item, group=self.group)
        return items

    def share(self, item: Any) -> Any:
        """Rank 0's small object, on all ranks."""
        box = [item]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def share_state(self, state: Checkpoint | None) -> Checkpoint | None:
        """Rank 0's checkpoint on all ranks: it is read from storage once, so that ranks cannot differ."""
        if self.world == 1:
            return state
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in state[0].items()} if state else {}
        found, meta, layout = self.share((state is not None, state[1] if state else None, layout))
        if not found:
            return None
        tensors = state[0] if state else {name: torch.empty(*spec[:1], dtype=spec[1]) for name, spec in layout.items()}
        for name in layout:
            dist.broadcast(tensors[name], src=0, group=self.group)
        return tensors, meta


ALONE = Ranks(0, 1, torch.device("cpu"))
"""One process on the CPU."""
