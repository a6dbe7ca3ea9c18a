"""Files that must not become samples, written byte by byte: bombs, truncations, wrong names, fuzz.

`hostile_files()` are refused under `Limits(max_pixels=50_000_000)` each within a second; `slow_jpeg` needs the clock.
`good_files()` stand between them in the tests: what the bad ones must not disturb.
"""

from __future__ import annotations

import functools
import gzip
import io
import random
import struct
import zipfile
import zlib

import numpy as np
import numpy.typing as npt
import PIL.Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PLUGINS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}


def picture(height: int = 48, width: int = 64, seed: int = 0) -> npt.NDArray[np.uint8]:
    """[height, width, 3] smooth colours with a grid of its own for every seed."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / width, y * 255 / height, 127 + 90 * np.sin((x + y * (seed + 1)) / 9 + seed)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(pixels: npt.NDArray[np.generic], extension: str, **options: object) -> bytes:
    """The pixels as a file; options go to Pillow."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, _PLUGINS[extension], **options)
    return buffer.getvalue()


def good_files() -> dict[str, bytes]:
    """One sound file of each format, file name -> bytes."""
    return {f"good-{ext}.{ext}": encoded(picture(seed=seed), ext) for seed, ext in enumerate(_PLUGINS)}


def hostile_files() -> dict[str, bytes]:
    """File name -> bytes, at least 40, none of which is a usable picture; about 1 MB together."""
    return {
        **_strangers(),
        **_truncations(),
        **_fuzzed(),
        **_png_bombs(),
        **_jpegs(),
        **_webps(),
        **_gifs_and_bmps(),
        **_tiffs(),
        "strip.png": encoded(picture(8, 4000), "png"),
    }


def slow_jpeg(side: int = 7000, scans: int = 2000) -> bytes:
    """A small progressive JPEG whose every scan walks over all blocks of a large picture."""
    blocks = ((side + 7) // 8) ** 2
    parts = [b"\xff\xd8", _segment(0xDB, bytes([0] + [1] * 64)), _frame(0xC2, side, side, 1)]
    # One Huffman code, one bit long: at first "DC difference 0", later "end of band for 2^14 + r blocks".
    parts += [_huffman(0x00, 0), _segment(0xDA, b"\x01\x01\x00\x00\x00\x00"), bytes(blocks // 8 + 1)]
    parts.append(_huffman(0x10, 0xE0))
    runs = b"\0" * ((blocks // 2**14 + 1) * 15 // 8 + 1)
    scan = _segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + runs
    return b"".join(parts) + scan * scans + b"\xff\xd9"


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *extra: bytes) -> bytes:
    """A PNG with this header and whatever deflated pixels, and extra chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return PNG_MAGIC + b"".join(chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def deflated_zeros(count: int) -> bytes:
    """`count` zero bytes, a thousand times smaller, without holding them."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def tiff(*tags: tuple[int, int, int, int], after: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF with one directory at 8: (tag, type, count, value) each; `after` starts where it ends."""
    directory = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    count = struct.pack("<H", len(tags))
    return b"II*\0" + struct.pack("<I", 8) + count + directory + struct.pack("<I", following) + after


def _strangers() -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("picture.png", encoded(picture(), "png"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n(%pipe%id) (w) file\nshowpage\n"
    return {
        "empty.jpg": b"",
        "one-byte.png": b"\x89",
        "zeros.png": bytes(4096),
        "text.jpg": b"This is not a picture.\n" * 40,
        "not-found.jpg": b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n",
        "drawing.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "archive.jpg": archive.getvalue(),
        "packed.png": gzip.compress(encoded(picture(), "png"), mtime=0),
        "page.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "postscript.jpg": eps,
        "film.gif": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(64),
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "bm.bmp": b"BMW is a make of cars, and this is a text.\n" * 3,
    }


def _truncations() -> dict[str, bytes]:
    files = {}
    for extension in _PLUGINS:
        whole = encoded(picture(240, 320), extension)
        for part in (10, 40, 95):
            files[f"cut-at-{part}.{extension}"] = whole[: max(12, len(whole) * part // 100)]
        files[f"cut-to-12-bytes.{extension}"] = whole[:12]
    return files


def _fuzzed() -> dict[str, bytes]:
    """The first bytes after the magic are random, so no header survives."""
    files = {}
    for number, extension in enumerate(_PLUGINS):
        noise = random.Random(number).randbytes(240)
        whole = encoded(picture(), extension)
        files[f"fuzzed.{extension}"] = whole[:8] + noise + whole[248:]
    files["noise.jpg"] = random.Random(99).randbytes(5000)
    files["noise-with-magic.jpg"] = b"\xff\xd8\xff" + random.Random(98).randbytes(5000)
    return files


def _png_bombs() -> dict[str, bytes]:
    sound = zlib.compress(bytes(65 * 48))
    text = png_chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(100 * 2**20))
    international = png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + deflated_zeros(100 * 2**20))
    broken = bytearray(png(64, 48, 8, 0, sound))
    broken[20] ^= 0x55
    return {
        "bomb-507-MB-in-21-kB.png": png(13000, 13000, 1, 0, deflated_zeros(13000 * 1626)),
        "bomb-announced.png": png(2**31 - 1, 2**31 - 1, 8, 6, sound),
        "no-width.png": png(0, 48, 8, 0, sound),
        "text-of-100-MB.png": png(64, 48, 8, 0, sound, text),
        "international-text-of-100-MB.png": png(64, 48, 8, 0, sound, international),
        "wrong-checksum.png": bytes(broken),
        "no-pixels.png": PNG_MAGIC + png(64, 48, 8, 0, sound)[8:33] + png_chunk(b"IEND", b""),
        "pixels-not-deflated.png": png(64, 48, 8, 0, b"no zlib stream at all"),
        "wrong-depth.png": png(64, 48, 77, 9, sound),
    }


def _jpegs() -> dict[str, bytes]:
    tables = _segment(0xDB, bytes([0] + [1] * 64)) + _huffman(0x00, 0) + _huffman(0x10, 0)
    scan = _segment(0xDA, b"\x01\x01\x00\x00\x3f\x00")
    return {
        "bomb-65500.jpg": b"\xff\xd8" + tables + _frame(0xC0, 65500, 65500, 1) + scan + bytes(500) + b"\xff\xd9",
        "no-height.jpg": b"\xff\xd8" + tables + _frame(0xC0, 0, 64, 1) + scan + bytes(500) + b"\xff\xd9",
        "lossless.jpg": b"\xff\xd8" + tables + _frame(0xC3, 64, 64, 1) + scan + bytes(500) + b"\xff\xd9",
        "no-frame.jpg": b"\xff\xd8" + tables + scan + bytes(500) + b"\xff\xd9",
        "no-tables.jpg": b"\xff\xd8" + _frame(0xC0, 64, 64, 1) + scan + bytes(500) + b"\xff\xd9",
        "twelve-bits.jpg": b"\xff\xd8" + tables + _frame(0xC1, 64, 64, 1, depth=12) + scan + bytes(500) + b"\xff\xd9",
        "endless-comments.jpg": b"\xff\xd8" + _segment(0xFE, b"x" * 60000) * 4,
    }


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _frame(marker: int, height: int, width: int, components: int, depth: int = 8) -> bytes:
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    return _segment(marker, struct.pack(">BHHB", depth, height, width, components) + parts)


def _huffman(table: int, symbol: int) -> bytes:
    """A table with one code, the bit 0, meaning `symbol`."""
    return _segment(0xC4, bytes([table, 1] + [0] * 15 + [symbol]))


def _webps() -> dict[str, bytes]:
    def riff(kind: bytes, body: bytes) -> bytes:
        chunk = kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
        return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk

    lossless = struct.pack("<BI", 0x2F, 8999 | 8999 << 14)  # under Pillow's own limit
    lossy = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)
    canvas = bytes([0x12, 0, 0, 0]) + (2**24 - 1).to_bytes(3, "little") * 2
    return {
        "bomb-lossless.webp": riff(b"VP8L", lossless + bytes(100)),
        "bomb-lossy.webp": riff(b"VP8 ", lossy + bytes(100)),
        "bomb-canvas.webp": riff(b"VP8X", canvas),
        "unknown-chunk.webp": riff(b"ABCD", bytes(100)),
    }


def _gifs_and_bmps() -> dict[str, bytes]:
    palette = bytes([0, 0, 0, 255, 255, 255])
    data = b"\x02\x02\x44\x01\x00;"

    def gif(screen: int, frame: int) -> bytes:
        start = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + palette
        return start + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + data

    def bmp(width: int, height: int, bits: int = 24, packing: int = 0) -> bytes:
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + header + bytes(100)

    return {
        "bomb-screen.gif": gif(65535, 2),
        "bomb-frame.gif": gif(2, 65535),
        "no-frame.gif": b"GIF89a" + struct.pack("<HHBBB", 64, 48, 0x80, 0, 0) + palette + b";",
        "bomb-sides.bmp": bmp(2**31 - 1, 2**31 - 1),
        "bomb-run-length.bmp": bmp(60000, 60000, 8, 1),
        "no-width.bmp": bmp(0, 10),
        "wrong-bits.bmp": bmp(10, 10, 77),
    }


def _tiffs() -> dict[str, bytes]:
    def grey(width: int, height: int, packing: int, offset: int, length: int) -> list[tuple[int, int, int, int]]:
        sides = [(256, 4, 1, width), (257, 4, 1, height), (278, 4, 1, height)]
        return [*sides, (258, 3, 1, 8), (259, 3, 1, packing), (262, 3, 1, 1), (273, 4, 1, offset), (279, 4, 1, length)]

    tiled = [tag for tag in grey(64, 48, 1, 0, 0) if tag[0] not in (273, 278, 279)]
    tiles = [(322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 8), (325, 4, 1, 100)]
    zeros = deflated_zeros(30000 * 30000 // 8)
    floats = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 64), (259, 3, 1, 1), (262, 3, 1, 1), (339, 3, 1, 6)]
    return {
        "bomb-deflate.tif": tiff(*grey(30000, 30000, 8, 110, len(zeros)), after=zeros),
        "bomb-tile.tif": tiff(*tiled, *tiles, after=bytes(100)),
        "pixels-outside.tif": tiff(*grey(64, 48, 1, 2**31, 64 * 48)),
        "strip-shorter-than-said.tif": tiff(*grey(64, 48, 8, 110, 2**31), after=zlib.compress(b"short")),
        "directory-outside.tif": b"II*\0" + struct.pack("<I", 2**32 - 10) + bytes(100),
        "directory-of-itself.tif": tiff((330, 4, 1, 8), following=8),
        "directory-without-end.tif": b"II*\0" + struct.pack("<IH", 8, 65535) + b"\x01" * 2000,
        "count-of-4-billion.tif": tiff((256, 4, 2**32 - 1, 8), (257, 4, 2**32 - 1, 8), after=bytes(100)),
        "complex-numbers.tif": tiff(*floats, (273, 4, 1, 8), (279, 4, 1, 512), after=bytes(600)),
        "big.tif": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 2**62, 2**62),
    }
