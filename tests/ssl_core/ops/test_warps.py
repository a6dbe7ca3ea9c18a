import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import ProjectiveTransform

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


def corners(n: int = 5) -> torch.Tensor:
    """Quadrilaterals near the unit square."""
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    return square + torch.empty(n, 4, 2).uniform_(-0.15, 0.15, generator=generator())


def test_homographies_take_the_square_to_its_corners_and_back():
    ends = corners()
    maps = warps.homographies(ends)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    for one, back, end in zip(maps.numpy(), warps.inverse(maps).numpy(), ends.numpy(), strict=True):
        assert np.abs(one - ProjectiveTransform.from_estimate(square, end).params).max() < 1e-4
        assert np.abs(back - ProjectiveTransform.from_estimate(end, square).params).max() < 1e-4


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "grid-constant"), ("reflection", "reflect")])
@pytest.mark.parametrize("size", [30, 20])
def test_a_projection_equals_scipys(fill, mode, size):
    x, reads = fields(30, 30), warps.inverse(warps.homographies(corners(3)))
    ours = warps.project(x, reads, size, fill)
    for picture, read, got in zip(x.numpy(), reads.double().numpy(), ours.numpy(), strict=True):

        def place(row_column, read=read):
            u, v, w = read @ [(row_column[1] + 0.5) / size, (row_column[0] + 0.5) / size, 1]
            edge = (30 - size) / 2
            return v / w * size + edge - 0.5, u / w * size + edge - 0.5

        theirs = ndimage.geometric_transform(picture[0], place, (size, size), order=1, mode=mode)
        assert np.abs(got[0] - theirs).max() < 1e-4
