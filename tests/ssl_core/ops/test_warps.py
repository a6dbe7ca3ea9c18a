import numpy as np
import pytest
import torch
from scipy import ndimage

from ssl_core.ops import warps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(height: int = 25, width: int = 31) -> torch.Tensor:
    noise = np.random.default_rng(0).random((3, 1, height, width))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5))).float()


@pytest.mark.parametrize(
    ("fill", "mode"), [("zeros", "grid-constant"), ("border", "nearest"), ("reflection", "reflect")]
)
def test_a_warp_equals_scipys(fill, mode):
    x = fields()
    angle, shear = torch.tensor([0.3, -0.2, 0.0]), torch.tensor([0.1, 0.0, -0.3])
    scale, shift = torch.tensor([1.0, 1.2, 0.9]), torch.tensor([[0.0, 0.0], [3.5, -2.0], [-1.0, 4.25]])
    matrices = warps.affine_matrices(angle, shear, scale, shift)
    ours = warps.warp(x, matrices, fill)
    for picture, matrix, got in zip(x, matrices.double().numpy(), ours, strict=True):
        # scipy wants the inverse map in (row, column) coordinates from the corner
        swap = np.array([[0, 1], [1, 0]])
        inverse = swap @ np.linalg.inv(matrix[:, :2]) @ swap
        centre = (np.array(picture.shape[1:]) - 1) / 2
        offset = centre - inverse @ (centre + swap @ matrix[:, 2])
        theirs = ndimage.affine_transform(picture[0].numpy(), inverse, offset, order=1, mode=mode)
        assert np.abs(got[0].numpy() - theirs).max() < 1e-4


def test_a_quarter_turn_is_rot90():
    x = fields(20, 20)
    quarter = torch.full((3,), -torch.pi / 2)  # anticlockwise on the screen
    none = torch.zeros(3)
    turned = warps.warp(x, warps.affine_matrices(quarter, none, none + 1, torch.zeros(3, 2)), "border")
    assert torch.allclose(turned, x.rot90(1, (2, 3)), atol=1e-5)


def test_no_strength_is_the_identity_and_each_strength_moves_pixels():
    x = fields(20, 20)
    assert torch.allclose(warps.random_affine(x, generator()), x, atol=1e-5)
    for strength in ({"degrees": 10.0}, {"shear": 10.0}, {"translate": 0.2}, {"zoom": 1.2}, {"elastic": 0.1}):
        assert (warps.random_affine(x, generator(), **strength) - x).abs().max() > 0.01
