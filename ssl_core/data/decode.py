"""Turns the bytes of one image file into one sample of the corpus's sample format, or says in one sentence why not.

Checks run in a safe order: size in bytes, format by its magic bytes (never by a file's name), dimensions from the
header, and only then pixels. Only the formats in `_FORMATS` are opened: no EPS, PDF or other program runs.
`decode` enforces the limits on bytes, pixels and aspect; those on seconds and memory need the child process of
`components.decoding.sandbox`, which calls this function.

The result is RGB uint8 with short side exactly `SampleFormat.size`, aspect kept:
  antialiased bicubic down (JPEG by DCT scaling to no less than twice the size first), bicubic up; EXIF orientation
  applied; alpha and transparent colours composited over white; 16-bit greys scaled from [0, 65535], float and 32-bit
  greys from [0, 1] (float only), [0, 255] or [0, 65535], the first that holds all values, else from their own minimum
  and maximum; CMYK by (1 - c)(1 - k), Adobe's inverted CMYK included; the first frame of a GIF, APNG, WebP or TIFF.
ICC profiles are ignored: the values of a wide-gamut photo stay as they are.

Nothing here imports torch, so that the child starts in a fifth of a second. Pillow's warnings about metadata pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ssl_core.errors import InputError

_FORMATS: dict[str, tuple[tuple[bytes, ...], Callable[[BytesIO], ImageFile]]] = {
    "JPEG": ((b"\xff\xd8\xff",), JpegImageFile),
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    "WebP": ((b"RIFF",), WebPImageFile),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImageFile),
    "BMP": ((b"BM",), BmpImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
}
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG file"),
    (b"%pdf", "a PDF"),
    (b"%!ps", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8bps", "a Photoshop document"),
    (b"\0\0\0\x0cjp  ", "JPEG 2000"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class Reason(StrEnum):
    """Why a file cannot be used: the code in the quarantine table."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too_many_pixels"
    ASPECT = "aspect"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASHED = "crashed"


class Rejected(Exception):
    """The file cannot be used; `reason` is for counting, `message` is one sentence for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Limits:
    """What one file may cost before it goes to the quarantine.

    Attributes:
        max_bytes: size of the file in bytes.
        max_pixels: largest width times height in the header.
        max_seconds: CPU seconds for decoding the file; three times as much by the clock.
        max_memory: bytes of memory for decoding the file, beyond what the decoder itself needs.
        max_aspect: long side over short side.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_seconds: float = 10.0
    max_memory: int = 2**30
    max_aspect: float = 8.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_seconds", "max_memory"):
            if not getattr(self, name) > 0:
                raise InputError(f"limits.{name} must be above 0, got {getattr(self, name)}.")
        if not self.max_aspect >= 1:
            raise InputError(f"limits.max_aspect must be at least 1 (a square), got {self.max_aspect}.")


@dataclass(frozen=True)
class SampleFormat:
    """The format in which a corpus stores its images.

    Attributes:
        size: short side in pixels; the long side follows the picture's aspect.
        payload: "raw" stores uint8 RGB (fastest to read), "jpeg" about a fifth of the bytes.
        quality: JPEG quality, 1 to 100; only for payload "jpeg".
    """

    size: int
    payload: Literal["raw", "jpeg"] = "raw"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 8192:
            raise InputError(f"sample_format.size must be between 1 and 8192 pixels, got {self.size}.")
        if self.payload not in ("raw", "jpeg"):
            raise InputError(f'sample_format.payload must be "raw" or "jpeg", got {self.payload!r}.')
        if not 1 <= self.quality <= 100:
            raise InputError(f"sample_format.quality must be between 1 and 100, got {self.quality}.")


@dataclass(frozen=True)
class Image:
    """One sample: `payload` is H*W*3 bytes of RGB row by row (codec "raw") or a JPEG file (codec "jpeg")."""

    payload: bytes
    codec: str
    height: int
    width: int


def decode(data: bytes, limits: Limits, sample_format: SampleFormat) -> Image:
    """The sample of an image file, in the sample format; raises only `Rejected`, whatever the bytes are.

    Two exceptions to this: KeyboardInterrupt and its like, and ImportError, which is a bug of ours.
    """
    check_size(len(data), limits)
    name, plugin = _recognise(data)
    try:
        return _decode(data, name, plugin, limits, sample_format)
    except (Rejected, ImportError):
        raise
    except MemoryError as error:
        raise Rejected(Reason.MEMORY, f"Decoding the {name} needs more memory than is available.") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise Rejected(
            Reason.TOO_MANY_PIXELS, f"Pillow refuses the {name} as a decompression bomb ({error})."
        ) from error
    except Exception as error:
        raise _rejected(name, error) from error


def check_size(length: int, limits: Limits) -> None:
    """Checks the number of bytes alone; raises `Rejected`."""
    if length == 0:
        raise Rejected(Reason.EMPTY, "The file has no bytes.")
    if length > limits.max_bytes:
        raise Rejected(Reason.TOO_LARGE, f"The file is over max_bytes = {limits.max_bytes:,} bytes.")


def _decode(
    data: bytes, name: str, plugin: Callable[[BytesIO], ImageFile], limits: Limits, sample_format: SampleFormat
) -> Image:
    if announced := _announced(name, data):
        _check_pixels(name, announced, limits)
    if name == "WebP" and len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise Rejected(Reason.TRUNCATED, "The WebP is shorter than its header says.")
    with plugin(BytesIO(data)) as image:
        _check_pixels(name, image.size, limits)
        size = _canonical_size(image.size, sample_format.size)
        if isinstance(image, JpegImageFile):
            image.draft(image.mode, (2 * size[0], 2 * size[1]))
        image.load()
        pixels = _oriented(image, _resized(image, size))
    return _pack(pixels, sample_format)


def _recognise(data: bytes) -> tuple[str, Callable[[BytesIO], ImageFile]]:
    for name, (magics, plugin) in _FORMATS.items():
        if data.startswith(magics) and (name != "WebP" or data[8:12] == b"WEBP"):
            return name, plugin
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((kind for magic, kind in _STRANGERS if start.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        kind = "an ISO media file (MP4, HEIC or AVIF)"
    first = f'"{data[:12].decode()}"' if data[:12].isascii() and data[:12].decode().isprintable() else data[:8].hex(" ")
    looks = f"looks like {kind}" if kind else f"starts with {first}"
    raise Rejected(Reason.UNSUPPORTED, f"The file {looks}; JPEG, PNG, WebP, GIF, BMP and TIFF can be read.")


def _announced(name: str, data: bytes) -> tuple[int, int] | None:
    """(width, height) where opening may allocate the canvas already; None where it reads the header only."""

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], "little")

    if name == "GIF":
        return number(6, 2), number(8, 2)
    if name == "WebP" and data[12:16] == b"VP8X":
        return number(24, 3) + 1, number(27, 3) + 1
    if name == "WebP" and data[12:16] == b"VP8L":
        return (number(21, 4) & 0x3FFF) + 1, (number(21, 4) >> 14 & 0x3FFF) + 1
    if name == "WebP" and data[12:16] == b"VP8 ":
        return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    return None


def _check_pixels(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise Rejected(Reason.CORRUPT, f"The {name} header gives {width} x {height} pixels.")
    if width * height > limits.max_pixels:
        raise Rejected(
            Reason.TOO_MANY_PIXELS,
            f"The {name} header gives {width} x {height} = {width * height:,} pixels; "
            f"max_pixels is {limits.max_pixels:,}.",
        )
    if max(size) > limits.max_aspect * min(size):
        raise Rejected(
            Reason.ASPECT, f"The {name} is {width} x {height}: longer than max_aspect = {limits.max_aspect:g} allows."
        )


def _canonical_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(width, height) with the short side exactly `short`; the other rounded."""
    width, height = size
    if width <= height:
        return short, max(short, round(height * short / width))
    return max(short, round(width * short / height)), short


def _resized(image: ImageFile, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """[h, w, 3] RGB. Converted as little as possible before the resize; the rest on the fewer pixels after it."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _deep_grey(image, size)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        return _over_white(_shrunk(_with_alpha(image), size))
    source: PIL.Image.Image = image
    if image.mode == "1":
        source = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        source = image.convert("RGB")
    return np.asarray(_shrunk(source, size).convert("RGB"))


def _shrunk(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    if image.size == size:
        return image
    return image.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=2.0)


def _with_alpha(image: ImageFile) -> PIL.Image.Image:
    """Premultiplied, so that colours under alpha 0 cannot bleed in during the resize."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # A 16-bit PNG: Pillow keeps the high byte of the pixels but both bytes of the transparent colour.
        image.info["transparency"] = tuple(part >> 8 for part in key)
    return image.convert("RGBA").convert("RGBa")


def _over_white(image: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image).astype(np.uint16)
    over: npt.NDArray[np.uint16] = np.minimum(pixels[:, :, :3] + (255 - pixels[:, :, 3:]), 255)
    return over.astype(np.uint8)


def _deep_grey(image: ImageFile, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """[h, w] from 16-bit, 32-bit or float grey, resized at full depth."""
    source: PIL.Image.Image = image.convert("I") if image.mode.startswith("I;16") else image
    if source.mode == "F" and not np.isfinite(source.getextrema()).all():
        source = PIL.Image.fromarray(np.nan_to_num(np.asarray(source), posinf=0.0, neginf=0.0))
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _value_range(source)
    key = image.info.get("transparency")
    if isinstance(key, int):
        pixels = np.array(source)
        pixels[pixels == key] = high
        source = PIL.Image.fromarray(pixels)
    values = np.asarray(_shrunk(source, size), dtype=np.float64)
    scaled = np.nan_to_num((values - low) * (255.0 / (high - low)))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _value_range(image: PIL.Image.Image) -> tuple[float, float]:
    extrema = image.getextrema()
    low, high = float(extrema[0]), float(extrema[1])  # type: ignore[arg-type]
    for full in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= full:
            return 0.0, full
    return low, high if high > low else low + 1.0


def _oriented(image: ImageFile, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Applies EXIF orientation (Pillow turns a TIFF itself and removes the tag)."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata of a good picture: it has no orientation
        return pixels
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).transpose(method))


def _pack(pixels: npt.NDArray[np.uint8], sample_format: SampleFormat) -> Image:
    height, width = pixels.shape[:2]
    if sample_format.payload == "raw":
        return Image(pixels.tobytes(), "raw", height, width)
    payload = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=sample_format.quality, colorspace="RGB", colorsubsampling="420"
    )
    return Image(payload, "jpeg", height, width)


def _rejected(name: str, error: Exception) -> Rejected:
    """The reason for what Pillow raised; only its messages distinguish the kinds of damage."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    lower = text.lower()
    if isinstance(error, EOFError) or any(hint in lower for hint in ("truncat", "end of", "requires a buffer")):
        return Rejected(Reason.TRUNCATED, f"The {name} ends before its picture does ({text}).")
    if "decompressed data too large" in lower or "too much memory used" in lower:
        return Rejected(Reason.TOO_LARGE, f"The {name} holds far more text than picture ({text}).")
    if any(hint in lower for hint in ("unknown pixel mode", "unsupported", "illegal conversion", "no decoder")):
        return Rejected(Reason.UNSUPPORTED, f"The {name} is of a variant that is not supported ({text}).")
    return Rejected(Reason.CORRUPT, f"The {name} is damaged ({text or type(error).__name__}).")
