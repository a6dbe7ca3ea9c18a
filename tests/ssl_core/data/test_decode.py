"""Every kind of image comes out as the right RGB; every other kind of bytes is refused in one sentence."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import simplejpeg
from hostile import deflated_zeros, encoded, good_files, hostile_files, picture, png, png_chunk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_core.data.decode import Image, Limits, Reason, Rejected, SampleFormat, decode

Pixels = npt.NDArray[np.uint8]
SIZE = 48
WANTED = picture(SIZE, 64)
STORED_AS = {  # EXIF orientation -> the stored array that a viewer turns back into the wanted picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def pixels_of(data: bytes, size: int = SIZE, limits: Limits | None = None) -> Pixels:
    image = decode(data, limits or Limits(), SampleFormat(size))
    return np.frombuffer(image.payload, np.uint8).reshape(image.height, image.width, 3)


def saved(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def over_white(colour: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> npt.NDArray[Any]:
    part = alpha[..., None] / 255
    return np.rint(colour * part + 255 * (1 - part))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"optimize": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_files_come_out_pixel_for_pixel(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(pixels_of(saved(PIL.Image.fromarray(WANTED), kind, **options)), WANTED)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpegs_come_out_as_an_independent_decoder_reads_them(options: dict[str, Any]) -> None:
    data = saved(PIL.Image.fromarray(WANTED), "JPEG", quality=95, **options)
    assert distance(pixels_of(data), simplejpeg.decode_jpeg(data)) <= 1
    assert np.abs(pixels_of(data).astype(int) - WANTED).mean() < 3


def test_grey_comes_out_with_three_equal_channels() -> None:
    grey = WANTED[..., 0]
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(pixels_of(saved(PIL.Image.fromarray(grey), kind)), np.repeat(grey[..., None], 3, 2))


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = np.linspace(0, 65535, SIZE * 64).astype(np.uint16).reshape(SIZE, 64)
    expected = np.repeat(np.rint(deep / 257)[..., None], 3, 2)
    files = {kind: saved(PIL.Image.fromarray(deep), kind) for kind in ("PNG", "TIFF")}
    files["big-endian TIFF"] = saved(PIL.Image.frombytes("I;16B", (64, SIZE), deep.astype(">u2").tobytes()), "TIFF")
    for data in files.values():
        assert np.array_equal(pixels_of(data), expected)


def test_a_dark_sixteen_bit_picture_stays_dark() -> None:
    dark = np.full((SIZE, 64), 200 * 3, np.uint16)
    assert (pixels_of(saved(PIL.Image.fromarray(dark), "PNG")) == 2).all()
    assert (pixels_of(saved(PIL.Image.fromarray(dark // 3), "PNG")) == 1).all()


def test_the_transparent_grey_of_a_sixteen_bit_png_is_white() -> None:
    deep = np.full((SIZE, 64), 1000, ">u2")
    deep[:, :20] = 30000
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in deep))
    out = pixels_of(png(64, SIZE, 16, 0, rows, png_chunk(b"tRNS", struct.pack(">H", 30000))))
    assert (out[:, :20] == 255).all() and (out[:, 20:] == 4).all()


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colour_is_scaled(colour: int, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (SIZE, 64, channels)).astype(">u2")
    if channels == 4:
        deep[..., 3] = 65535
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in deep))
    assert distance(pixels_of(png(64, SIZE, 16, colour, rows)), np.rint(deep[..., :3] / 257)) <= 1


def test_the_transparent_colour_of_a_sixteen_bit_png_is_white() -> None:
    deep = np.full((SIZE, 64, 3), 0x1234, ">u2")
    deep[:, :20] = 0xABCD
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in deep))
    out = pixels_of(png(64, SIZE, 16, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", *[0xABCD] * 3))))
    assert (out[:, :20] == 255).all() and (out[:, 20:] == 0x12).all()


def test_palettes_are_looked_up() -> None:
    palette = PIL.Image.fromarray(WANTED).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(pixels_of(saved(palette, kind)), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str) -> None:
    palette = PIL.Image.fromarray(WANTED).quantize(16)
    index = np.asarray(palette)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[index == 3] = 255
    assert np.array_equal(pixels_of(saved(palette, kind, transparency=3)), expected)


def test_a_palette_with_partial_transparency_is_composited() -> None:
    palette = PIL.Image.fromarray(WANTED).quantize(16)
    alphas = bytes(range(0, 256, 16))
    alpha = np.frombuffer(alphas, np.uint8)[np.asarray(palette)]
    out = pixels_of(saved(palette, "PNG", transparency=alphas))
    assert distance(out, over_white(np.asarray(palette.convert("RGB")), alpha)) <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(kind: str) -> None:
    alpha = np.linspace(0, 255, SIZE * 64).astype(np.uint8).reshape(SIZE, 64)
    data = saved(PIL.Image.fromarray(np.dstack([WANTED, alpha])), kind, lossless=True)
    assert distance(pixels_of(data), over_white(WANTED, alpha)) <= 1


def test_grey_with_alpha_is_composited_over_white() -> None:
    alpha = np.linspace(0, 255, SIZE * 64).astype(np.uint8).reshape(SIZE, 64)
    data = saved(PIL.Image.fromarray(np.dstack([WANTED[..., 0], alpha])), "PNG")
    assert distance(pixels_of(data), over_white(np.repeat(WANTED[..., :1], 3, 2), alpha)) <= 1


def test_colours_hidden_behind_alpha_do_not_bleed_when_shrunk() -> None:
    pixels = np.zeros((200, 200, 4), np.uint8)
    pixels[:, :101] = (255, 0, 0, 0)  # red that nobody sees
    pixels[:, 101:] = (0, 0, 255, 255)
    out = pixels_of(encoded(pixels, "png"), 40).astype(int)
    assert (out[..., 0] <= out[..., 1] + 1).all()  # between white and blue, red never exceeds green


def test_cmyk_is_converted_also_when_adobe_inverts_it() -> None:
    inks = np.dstack([WANTED, np.roll(WANTED[..., 0], 9) // 3])
    expected = np.rint((255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255)
    image = PIL.Image.fromarray(inks, "CMYK")
    assert distance(pixels_of(saved(image, "TIFF")), expected) <= 1
    adobe = saved(image, "JPEG", quality=95)
    assert b"Adobe" in adobe
    assert np.abs(pixels_of(adobe) - expected).mean() < 4


def test_one_bit_is_black_and_white() -> None:
    bits = WANTED[..., 0] > 100
    expected = np.repeat(bits[..., None] * np.uint8(255), 3, 2)
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(pixels_of(saved(PIL.Image.fromarray(bits), kind)), expected)
    fax = saved(PIL.Image.fromarray(bits), "TIFF", compression="group4")
    assert np.array_equal(pixels_of(fax), expected)


@pytest.mark.parametrize(("low", "high", "from_", "to"), [(0, 1, 0, 1), (0, 255, 0, 255), (-3, 7, -3, 7)])
def test_float_tiffs_are_scaled_from_their_range(low: float, high: float, from_: float, to: float) -> None:
    values = np.linspace(low, high, SIZE * 64, dtype=np.float32).reshape(SIZE, 64)
    expected = np.repeat(((values - from_) / (to - from_) * 255)[..., None], 3, 2)
    assert distance(pixels_of(saved(PIL.Image.fromarray(values), "TIFF")), np.rint(expected)) <= 1


def test_a_float_tiff_with_holes_is_black_there() -> None:
    values = np.full((SIZE, 64), 0.5, np.float32)
    values[0, 0], values[20:30, 20:30] = np.nan, np.inf
    out = pixels_of(saved(PIL.Image.fromarray(values), "TIFF"))
    assert (out[20:30, 20:30] == 0).all() and out[40, 40, 0] == 128


def test_wide_integers_are_scaled_from_their_range() -> None:
    values = np.linspace(-100_000, 900_000, SIZE * 64).astype(np.int32).reshape(SIZE, 64)
    expected = np.repeat(((values + 100_000) / 1_000_000 * 255)[..., None], 3, 2)
    assert distance(pixels_of(saved(PIL.Image.fromarray(values), "TIFF")), np.rint(expected)) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = PIL.Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](WANTED)))
    out = pixels_of(saved(stored, kind, exif=exif, quality=95, lossless=True))
    assert out.shape == WANTED.shape
    assert np.abs(out.astype(int) - WANTED).mean() < (3 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    first, second = PIL.Image.fromarray(WANTED), PIL.Image.fromarray(255 - WANTED)
    data = saved(first, kind, save_all=True, append_images=[second], lossless=True)
    assert np.abs(pixels_of(data).astype(int) - WANTED).mean() < (12 if kind == "GIF" else 0.01)


def test_icc_profiles_are_ignored() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert np.array_equal(pixels_of(saved(PIL.Image.fromarray(WANTED), "PNG", icc_profile=profile)), WANTED)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64))
def test_the_short_side_is_exact_and_the_aspect_kept(height: int, width: int, size: int) -> None:
    out = pixels_of(encoded(picture(height, width), "png"), size, Limits(max_aspect=90))
    assert min(out.shape[:2]) == size
    assert abs(max(out.shape[:2]) - size * max(height, width) / min(height, width)) <= 0.5


def test_shrinking_averages_and_does_not_alias() -> None:
    board = np.indices((512, 512)).sum(0) % 2 * np.uint8(255)
    out = pixels_of(encoded(np.repeat(board.astype(np.uint8)[..., None], 3, 2), "png"), 100)
    assert np.abs(out[4:-4, 4:-4].astype(int) - 128).max() <= 2


def test_a_large_jpeg_keeps_its_detail_though_decoded_scaled() -> None:
    large = np.asarray(
        PIL.Image.fromarray(picture(150, 200, seed=2)).resize((2000, 1500), PIL.Image.Resampling.BICUBIC)
    )
    data = encoded(large, "jpg", quality=95)
    reference = PIL.Image.open(io.BytesIO(data)).resize((213, 160), PIL.Image.Resampling.LANCZOS)
    assert np.abs(pixels_of(data, 160).astype(int) - np.asarray(reference)).mean() < 1


def test_enlarging_is_bicubic() -> None:
    small = picture(8, 8)
    reference = PIL.Image.fromarray(small).resize((32, 32), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(pixels_of(encoded(small, "png"), 32), np.asarray(reference))


def test_the_jpeg_payload_is_the_raw_one_in_a_fraction_of_the_bytes() -> None:
    data = encoded(picture(400, 500), "png")
    raw, packed = (decode(data, Limits(), SampleFormat(256, payload)) for payload in ("raw", "jpeg"))  # type: ignore[arg-type]
    assert (packed.codec, packed.height, packed.width) == ("jpeg", raw.height, raw.width) == ("jpeg", 256, 320)
    assert len(packed.payload) < len(raw.payload) / 4
    unpacked = simplejpeg.decode_jpeg(packed.payload)
    assert np.abs(unpacked.astype(int) - np.frombuffer(raw.payload, np.uint8).reshape(256, 320, 3)).mean() < 3


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    return hostile_files()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_hostile_files_are_refused_in_one_sentence(hostile: dict[str, bytes]) -> None:
    assert len(hostile) >= 40
    for name, data in hostile.items():
        with pytest.raises(Rejected) as refusal:
            decode(data, Limits(), SampleFormat(32))
        message = str(refusal.value)
        assert message.endswith(".") and "\n" not in message and 20 < len(message) < 320, (name, message)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.jpg", Reason.EMPTY),
        ("not-found.jpg", Reason.UNSUPPORTED),
        ("postscript.jpg", Reason.UNSUPPORTED),
        ("cut-at-40.jpg", Reason.TRUNCATED),
        ("cut-at-40.png", Reason.TRUNCATED),
        ("cut-at-40.webp", Reason.TRUNCATED),
        ("cut-at-40.gif", Reason.TRUNCATED),
        ("wrong-checksum.png", Reason.CORRUPT),
        ("bomb-507-MB-in-21-kB.png", Reason.TOO_MANY_PIXELS),
        ("bomb-65500.jpg", Reason.TOO_MANY_PIXELS),
        ("bomb-canvas.webp", Reason.TOO_MANY_PIXELS),
        ("bomb-lossless.webp", Reason.TOO_MANY_PIXELS),
        ("bomb-frame.gif", Reason.TOO_MANY_PIXELS),
        ("bomb-deflate.tif", Reason.TOO_MANY_PIXELS),
        ("text-of-100-MB.png", Reason.TOO_LARGE),
        ("strip.png", Reason.ASPECT),
        ("complex-numbers.tif", Reason.UNSUPPORTED),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_reason_is_the_right_one(hostile: dict[str, bytes], name: str, reason: Reason) -> None:
    with pytest.raises(Rejected) as refusal:
        decode(hostile[name], Limits(), SampleFormat(32))
    assert refusal.value.reason is reason


def test_pixels_behind_a_modest_header_are_not_inflated() -> None:
    data = png(64, 48, 8, 0, deflated_zeros(200 * 2**20))
    assert (pixels_of(data) == 0).all()


def test_limits_are_named_in_the_refusal() -> None:
    data = encoded(WANTED, "png")
    for limits, word in ((Limits(max_bytes=100), "max_bytes = 100"), (Limits(max_pixels=99), "max_pixels is 99")):
        with pytest.raises(Rejected, match=word):
            decode(data, limits, SampleFormat(8))


GOOD = list(good_files().values())


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_bytes_never_raise_anything_but_a_refusal(source: st.DataObject) -> None:
    data = bytearray(source.draw(st.sampled_from(GOOD)))
    for _ in range(source.draw(st.integers(1, 6))):
        place = source.draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        data[place : place + source.draw(st.integers(0, 4))] = source.draw(st.binary(max_size=8))
    if source.draw(st.booleans()):
        del data[source.draw(st.integers(0, len(data))) :]
    check_any(bytes(data))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from([data[:12] for data in GOOD] + [b"II+\0", b"MM\0*", b"MM\0+"]), st.binary(max_size=300))
def test_noise_behind_a_magic_never_raises_anything_but_a_refusal(magic: bytes, noise: bytes) -> None:
    check_any(magic + noise)


def check_any(data: bytes) -> None:
    try:
        image = decode(data, Limits(max_pixels=500_000), SampleFormat(16))
    except Rejected:
        return
    assert min(image.height, image.width) == 16 and len(image.payload) == image.height * image.width * 3


def test_a_refusal_travels_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(Rejected(Reason.ASPECT, "Too long.")))  # noqa: S301
    assert (copy.reason, copy.message, str(copy)) == (Reason.ASPECT, "Too long.", "Too long.")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Limits(max_pixels=0), "limits.max_pixels must be above 0"),
        (lambda: Limits(max_seconds=-1), "limits.max_seconds must be above 0"),
        (lambda: Limits(max_aspect=0.5), "limits.max_aspect must be at least 1"),
        (lambda: SampleFormat(0), "sample_format.size must be between"),
        (lambda: SampleFormat(32, "png"), "sample_format.payload must be"),  # type: ignore[arg-type]
        (lambda: SampleFormat(32, "jpeg", 0), "sample_format.quality must be between"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_the_decoder_starts_without_torch_and_ray() -> None:
    program = (
        "import sys, components.decoding.child; print([m for m in ('torch', 'ray', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_image_is_plain_data() -> None:
    assert decode(encoded(WANTED, "png"), Limits(), SampleFormat(SIZE)) == Image(WANTED.tobytes(), "raw", SIZE, 64)
