"""Vision Transformer: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929; sizes Ti and S from DeiT.

Twists: fixed sine-cosine positions as in MAE (https://arxiv.org/abs/2111.06377) or none at all, for tasks whose
answer is the position; a mean over patches instead of the class token; drop path.

    tokens(x) -> [n, t, d]     embedded patches with their positions: drop, mask or permute them here
    encode(tokens) -> [n, t', d]   class token in front where there is one, blocks, final norm
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.errors import InputError
from ssl_core.nn.encoders.encoder import Encoder

SIZES = {"vit_tiny": (12, 3), "vit_small": (12, 6), "vit_base": (12, 12)}
"""Name -> (blocks, heads); a head has 64 channels at width 1."""


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, seen: int | None = None) -> Tensor:
        """All rows of x [n, t, d] attend to the first `seen` of them, or to all."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key[:, :, :seen], value[:, :, :seen])
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class DropPath(nn.Module):
    """Skips a residual branch for whole samples while training (Huang et al. 2016); keeps the expectation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP four times as wide."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, seen: int | None = None) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), seen))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


def sincos_positions(dim: int, rows: int, columns: int) -> Tensor:
    """[rows * columns, dim]: sines and cosines of the row in half of the channels, of the column in the other half."""
    omega = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = torch.stack([axis.reshape(-1, 1) * omega for axis in (y, x)], 1)
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1).float()


class ViT(Encoder):
    """`blocks` over patches; `positions` is [1, t, d], preceded by a row for the class token if there is one."""

    options: ClassVar[tuple[str, ...]] = ("patch", "positions", "pool", "drop_path")
    positions: Tensor | None

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        head_dim: int,
        *,
        patch: int,
        positions: str,
        pool: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        channels, rows, columns = shape
        if rows % patch or columns % patch:
            raise InputError(
                f"encoder.patch is {patch}, which does not divide the {rows}x{columns} px of the input; "
                "change the patch or the task's input size."
            )
        depth, heads = SIZES[name]
        self.dim = heads * head_dim
        self.dims = {f"block{i + 1}": self.dim for i in range(depth)}
        self.grid = (rows // patch, columns // patch)
        self.patches = nn.Conv2d(channels, self.dim, patch, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, self.dim)) if pool == "cls" else None
        self._make_positions(positions)
        self.blocks = nn.ModuleList(Block(self.dim, heads, drop_path * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        _initialise(self)

    def _make_positions(self, kind: str) -> None:
        leading = 0 if self.cls is None else 1
        if kind == "learned":
            rows = leading + self.grid[0] * self.grid[1]
            self.positions = nn.Parameter(torch.empty(1, rows, self.dim))
        elif kind == "sincos":
            table = F.pad(sincos_positions(self.dim, *self.grid), (0, 0, leading, 0))
            self.register_buffer("positions", table[None], persistent=False)
        else:
            self.positions = None

    def tokens(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, t, d]: patches in row-major order, positions added, no class token yet."""
        _check_divisible(x.shape[2:], self.patches.kernel_size)
        maps = self.patches(x)
        tokens: Tensor = maps.flatten(2).transpose(1, 2)
        if self.positions is None:
            return tokens
        return tokens + self._positions_at((maps.shape[2], maps.shape[3])).to(tokens.dtype)

    def _positions_at(self, grid: tuple[int, int]) -> Tensor:
        """[1, t, d] of the patches; bicubic between the trained positions where the input has another size."""
        assert self.positions is not None
        table = self.positions if self.cls is None else self.positions[:, 1:]
        if grid == self.grid:
            return table
        maps = table.transpose(1, 2).reshape(1, self.dim, *self.grid)
        maps = F.interpolate(maps.float(), grid, mode="bicubic", antialias=True)
        return maps.flatten(2).transpose(1, 2)

    def encode(self, tokens: Tensor, seen: int | None = None) -> Tensor:
        """[n, t, d] of any subset of `tokens` -> [n, t (+1), d] after the blocks and the final norm.

        seen: all attend to the first so many of the tokens (and the class token), or to all of them.
        """
        front = 0 if self.cls is None else 1
        *_, last = self._run(self._with_cls(tokens), None if seen is None else front + seen)
        out: Tensor = self.norm(last)
        return out

    def _with_cls(self, tokens: Tensor) -> Tensor:
        if self.cls is None:
            return tokens
        cls = self.cls if self.positions is None else self.cls + self.positions[:, :1]
        return torch.cat([cls.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], 1)

    def _run(self, tokens: Tensor, seen: int | None = None) -> Iterator[Tensor]:
        for block in self.blocks:
            tokens = block(tokens, seen)
            yield tokens

    def _pool(self, encoded: Tensor) -> Tensor:
        return encoded.mean(1) if self.cls is None else encoded[:, 0]

    def _maps(self, tokens: Tensor, size: torch.Size) -> Tensor:
        height, width = (side // kernel for side, kernel in zip(size, self.patches.kernel_size))
        spatial = tokens if self.cls is None else tokens[:, 1:]
        return spatial.transpose(1, 2).reshape(-1, self.dim, height, width)

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Patch tokens after each block as maps [n, dim, h / patch, w / patch], before the final norm."""
        states = self._run(self._with_cls(self.tokens(x)))
        return {name: self._maps(state, x.shape[2:]) for name, state in zip(self.dims, states)}

    def forward(self, x: Tensor) -> Tensor:
        return self._pool(self.encode(self.tokens(x)))

    def layers(self, x: Tensor) -> dict[str, Tensor]:
        """Mean over patches after each block, then `output`: what `forward` returns, after the final norm."""
        states = dict(zip(self.dims, self._run(self._with_cls(self.tokens(x)))))
        first = 0 if self.cls is None else 1
        means = {name: state[:, first:].float().mean(1) for name, state in states.items()}
        return means | {"output": self._pool(self.norm(states[next(reversed(states))])).float()}


def _check_divisible(size: torch.Size, patch: tuple[int, ...]) -> None:
    if any(side % kernel for side, kernel in zip(size, patch)):
        raise InputError(
            f"A ViT with {patch[0]} px patches got an input of {size[0]}x{size[1]} px; "
            f"each side must be a multiple of {patch[0]}: change the input size or encoder.patch."
        )


def _initialise(model: ViT) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    # Initialised as a linear layer, as in MAE; PyTorch's default for convolutions is narrower.
    nn.init.xavier_uniform_(model.patches.weight.flatten(1))
    if model.patches.bias is not None:
        nn.init.zeros_(model.patches.bias)
    for embedding in (model.cls, model.positions):
        if isinstance(embedding, nn.Parameter):
            nn.init.trunc_normal_(embedding, std=0.02)
