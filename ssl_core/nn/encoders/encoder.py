"""The interface of all encoders: feature maps from shallow to deep, and one pooled vector per sample."""

from __future__ import annotations

from torch import Tensor, nn


class Encoder(nn.Module):
    """A network from float input [n, c, h, w], already normalised by the task, to vectors [n, dim].

    `dims` maps the name of each stage to its channels, from shallow to deep; `dim` is the width of `forward`.
    """

    dim: int
    dims: dict[str, int]

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Stage name -> feature map [n, dims[name], h_i, w_i], in the order of `dims`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[n, dim], pooled over the last stage."""
        raise NotImplementedError

    def layers(self, x: Tensor) -> dict[str, Tensor]:
        """Layer name -> [n, d] float32, every stage averaged over space, in one pass; the last entry is `forward`."""
        return {name: maps.float().mean((2, 3)) for name, maps in self.stages(x).items()}
