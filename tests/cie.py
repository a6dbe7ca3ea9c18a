"""sRGB and Lab written plainly in float64 numpy, from IEC 61966-2-1 and CIE 15: what ours is held against."""

import numpy as np

PRIMARIES = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def light(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab_of_light(linear: np.ndarray) -> np.ndarray:
    """[..., 3] linear RGB -> L, a, b."""
    xyz = linear @ PRIMARIES.T / PRIMARIES.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), (29 / 6) ** 2 * xyz / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab(rgb: np.ndarray) -> np.ndarray:
    """[..., 3] sRGB in [0, 1] -> L, a, b."""
    return lab_of_light(light(rgb))


def lab_of_cells(pictures: np.ndarray, stride: int) -> np.ndarray:
    """Bytes [n, 3, s, s] -> Lab [n, 3, s / stride, s / stride] of each cell's mean light."""
    n, _, side, _ = pictures.shape
    linear = light(pictures.transpose(0, 2, 3, 1) / 255)
    cells = linear.reshape(n, side // stride, stride, side // stride, stride, 3).mean((2, 4))
    return lab_of_light(cells).transpose(0, 3, 1, 2)
