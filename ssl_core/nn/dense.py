"""A head that predicts for each cell of a grid, not for the whole picture."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.nn.convolution import Conv2d


class DenseHead(nn.Module):
    """Feature maps [n, dim, h, w] -> [n, out, side, side]: a 3x3 convolution, enlarged to the grid, another, a 1x1.

    As Zhang et al. 2016 (https://arxiv.org/abs/1603.08511) do on their features, which they enlarge twofold.
    """

    def __init__(self, dim: int, hidden: int, out: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.coarse = nn.Sequential(
            Conv2d(dim, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(True)
        )
        self.fine = nn.Sequential(
            Conv2d(hidden, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(True)
        )
        self.last = nn.Conv2d(hidden, out, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        x = self.coarse(maps)
        if x.shape[-1] != self.side or x.shape[-2] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        out: Tensor = self.last(self.fine(x))
        return out
