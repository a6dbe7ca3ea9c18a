"""Decoders: from an encoder's features back to pixels."""

from __future__ import annotations

from math import ceil, log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.nn.encoders import Encoder
from ssl_core.nn.encoders.vit import Block, sincos_positions


def last_map(encoder: Encoder, shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels and side of the last stage's feature map, for square pictures of that shape (channels, side, side)."""
    training = encoder.training
    with torch.no_grad():
        *_, maps = encoder.eval().stages(torch.zeros(1, *shape)).values()
    encoder.train(training)
    return maps.shape[1], maps.shape[2]


class ChannelwiseLinear(nn.Module):
    """A linear layer over the places of each channel, with a s^2 x s^2 matrix per channel: [n, c, s, s] -> the same.

    Pathak et al. 2016: every place reaches all others, with a c-th of the weights of a fully connected layer.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, side**2, side**2).normal_(0, 1 / side))
        self.bias = nn.Parameter(torch.zeros(channels, side**2))

    def forward(self, maps: Tensor) -> Tensor:
        moved = torch.einsum("ncp,cpq->ncq", maps.flatten(2), self.weight) + self.bias
        return moved.view(maps.shape)


class PixelDecoder(nn.Module):
    """Feature maps [n, dim, side, side] -> pictures [n, out, size, size]: the side is doubled until it reaches `size`.

    Each doubling is a transposed convolution, norm and ReLU, with half the channels of the one before, at least 16:
    the up-convolutions of Pathak et al. 2016 (https://arxiv.org/abs/1604.07379). The last has neither norm nor ReLU.
    """

    def __init__(self, dim: int, side: int, size: int, out: int = 3) -> None:
        super().__init__()
        self.size = size
        doublings = max(0, ceil(log2(size / side)))
        layers: list[nn.Module] = []
        for _ in range(doublings - 1):
            before, dim = dim, max(16, dim // 2)
            layers += [nn.ConvTranspose2d(before, dim, 4, 2, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(True)]
        layers.append(nn.ConvTranspose2d(dim, out, 4, 2, 1) if doublings else nn.Conv2d(dim, out, 3, 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        x: Tensor = self.layers(maps)
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        return x


class PatchDecoder(nn.Module):
    """The masked autoencoder's decoder (https://arxiv.org/abs/2111.06377): a shallow, narrow transformer.

    Patches that the encoder did not see are one learnt vector; sine-cosine positions are added to all.
    """

    positions: Tensor

    def __init__(self, dim: int, grid: tuple[int, int], out: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.hidden = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", sincos_positions(width, *grid)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, drop_path=0.0) for _ in range(depth)))
        self.predict = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out))
        nn.init.normal_(self.hidden, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, encoded: Tensor, seen: Tensor) -> Tensor:
        """encoded [n, k, dim], preceded by a class token if there is one; seen [n, k], their places -> [n, t, out]."""
        x = self.embed(encoded)
        n, t, width = len(x), self.positions.shape[1], x.shape[2]
        front = x.shape[1] - seen.shape[1]
        places = seen.unsqueeze(2).expand(-1, -1, width)
        patches = self.hidden.to(x.dtype).expand(n, t, width).scatter(1, places, x[:, front:])
        x = torch.cat([x[:, :front], patches + self.positions.to(x.dtype)], 1)
        out: Tensor = self.predict(self.blocks(x)[:, front:])
        return out
