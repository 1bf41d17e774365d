"""Every format, mode, orientation and profile that is served, pixel by pixel; and every way in which a file fails."""

import errno
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from qcheck import photo as photo_module
from qcheck import strips
from qcheck.errors import PhotoError, PhotoErrorKind, UsageError
from qcheck.photo import Photo

ORIENTATION = 0x0112
H, W = 37, 53  # odd, prime, not square: a wrong turn cannot go unseen
LIBTIFF = r"tempfile\.tif: |\w+: .* at scanline"
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Reading a photo never warns, prints (also from C, but for libtiff), or leaves Pillow's settings changed."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if not re.match(LIBTIFF, line)] == []
    assert limit == Image.MAX_IMAGE_PIXELS


def scene(height: int = H, width: int = W, channels: int = 3) -> Pixels:
    """Smooth colour with some texture: different everywhere, and not flattened by JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / width, y * 255 / height, (x * 5 + y * 3) % 256, 255 - x * y * 255 / (width * height)]
    noise = np.random.default_rng(0).integers(-9, 10, (height, width, channels))
    return np.clip(np.stack(planes[:channels], axis=-1) + noise, 0, 255).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def shown(path: Path) -> Pixels:
    photo = Photo.open(path)
    assert photo.path == str(path)
    assert (photo.height, photo.width, 3) == photo.pixels.shape
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.flags.c_contiguous
    assert not photo.pixels.flags.writeable
    assert photo.decode_scale == 1
    with pytest.MonkeyPatch.context() as patch:  # a large photo is converted in strips; these are of nine rows or one
        patch.setattr(strips, "_STRIP_PIXELS", 9 * W)
        np.testing.assert_array_equal(Photo.open(path).pixels, photo.pixels)
        patch.setattr(strips, "_MOST_HELD_TWICE", 0)  # and by way of a temporary file
        np.testing.assert_array_equal(Photo.open(path).pixels, photo.pixels)
    return photo.pixels


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """The definition: round((colour * alpha + 255 * (255 - alpha)) / 255)."""
    mixed = colour.astype(np.float64) * alpha[..., None] + 255.0 * (255 - alpha[..., None].astype(np.float64))
    return np.floor(mixed / 255 + 0.5).astype(np.uint8)


def failure(path: str | Path, **options: Any) -> PhotoError:
    with pytest.raises(PhotoError) as caught:
        Photo.open(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") or not str(path).isprintable()
    assert message.isprintable()  # one line
    assert "Error" not in message
    assert "Warning" not in message
    return caught.value


def kind_of(path: str | Path, **options: Any) -> PhotoErrorKind:
    return failure(path, **options).kind


# --- formats


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp"])
def test_lossless_formats_give_back_the_pixels(tmp_path: Path, suffix: str) -> None:
    pixels = scene()
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(pixels), **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(shown(path), pixels)


@pytest.mark.parametrize("room", [None, 0, 2])
def test_large_photos_wait_on_the_disk_where_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    """`room`: strips until the disk is full; None: no temporary file can be made."""
    pixels = scene()
    path = save(tmp_path / "a.png", Image.fromarray(pixels))

    class Full(BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() >= (room or 0) * 27 * W:
                raise OSError(errno.ENOSPC, "no space left on device")
            return super().write(data)

    def temporary() -> BytesIO:
        if room is None:
            raise FileNotFoundError(errno.ENOENT, "no usable temporary directory")
        return Full()

    monkeypatch.setattr(strips, "TemporaryFile", temporary)
    monkeypatch.setattr(strips, "_STRIP_PIXELS", 9 * W)
    monkeypatch.setattr(strips, "_MOST_HELD_TWICE", 0)
    np.testing.assert_array_equal(Photo.open(path).pixels, pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_jpeg"])
def test_tiff_compressions(tmp_path: Path, compression: str) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(scene()), compression=compression)
    with Image.open(path) as image:
        np.testing.assert_array_equal(shown(path), np.asarray(image.convert("RGB")))


def test_lossy_webp_as_pillow_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.webp", Image.fromarray(scene()), quality=80)
    with Image.open(path) as image:
        np.testing.assert_array_equal(shown(path), np.asarray(image))


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp"])
def test_of_several_pictures_the_first(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (W, H), colour) for colour in ((200, 30, 40), (10, 220, 30))]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(shown(path), np.full((H, W, 3), (200, 30, 40)))


def test_of_an_mpo_the_first(tmp_path: Path) -> None:
    frames = [Image.fromarray(scene()), Image.new("RGB", (W, H))]
    path = save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.format == "MPO"
        np.testing.assert_array_equal(shown(path), np.asarray(image))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene()), format="PNG")
    np.testing.assert_array_equal(shown(path), scene())


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "gif", "webp", "jpg"])
def test_one_pixel(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (1, 1), (255, 255, 255)))
    np.testing.assert_array_equal(shown(path), np.full((1, 1, 3), 255))


# --- JPEG: the fast path is Pillow, bit for bit

JPEG_OPTIONS: dict[str, dict[str, Any]] = {
    "444": {"subsampling": "4:4:4"},
    "422": {"subsampling": "4:2:2"},
    "420": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True, "quality": 30},
    "rgb inside": {"keep_rgb": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("size", [(H, W), (8, 8), (16, 16), (1, 17), (131, 257)])
@pytest.mark.parametrize("options", JPEG_OPTIONS.values(), ids=JPEG_OPTIONS.keys())
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pillow(tmp_path: Path, mode: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    options = {key: value for key, value in options.items() if mode == "RGB" or key in ("progressive", "quality")}
    path = save(tmp_path / "a.jpg", Image.fromarray(scene(*size)).convert(mode), **options)
    with Image.open(path) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(shown(path), np.asarray(image.convert("RGB")))


def test_jpeg_takes_the_fast_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene()))
    monkeypatch.setattr(photo_module, "_load", lambda image: pytest.fail("Pillow decoded a plain JPEG"))
    shown(path)


def test_what_simplejpeg_refuses_pillow_decodes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene(64, 64)), quality=95)
    data = bytearray(path.read_bytes())
    start = data.rindex(b"\xff\xda") + 400
    data[start : start + 2] = b"\xff\xd0"  # a stray restart marker in the entropy-coded data: forgivable
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"\w"):
        simplejpeg.decode_jpeg(bytes(data))
    with Image.open(path) as image:
        np.testing.assert_array_equal(shown(path), np.asarray(image))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene()).convert("CMYK"), quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(shown(path), np.asarray(image.convert("RGB")))


def test_ycck_jpeg_is_not_read_as_cmyk(tmp_path: Path) -> None:
    """An Adobe marker with transform 2 says that the same four planes are YCC + K."""
    path = save(tmp_path / "a.jpg", Image.fromarray(scene()).convert("CMYK"), quality=95)
    plain = shown(path)
    data = path.read_bytes()
    at = data.index(b"Adobe") + 11  # name (5), version (2), flags (4), then the transform
    assert data[at] == 0
    path.write_bytes(data[:at] + b"\2" + data[at + 1 :])
    with Image.open(path) as image:
        np.testing.assert_array_equal(shown(path), np.asarray(image.convert("RGB")))
    assert (shown(path) != plain).any()


# --- smaller than it is stored


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("wanted", "scale"), [(1, 8), (42, 8), (43, 4), (84, 4), (85, 2), (167, 2), (168, 1), (1000, 1)]
)
def test_a_jpeg_is_decoded_no_larger_than_is_enough(tmp_path: Path, orientation: int, wanted: int, scale: int) -> None:
    """With 333 x 501 pixels stored; Pillow's draft mode decodes the same eighths."""
    path = save(tmp_path / "a.jpg", Image.fromarray(scene(501, 333)), exif=exif(orientation), quality=90)
    asked = []

    def enough(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return (1, wanted) if orientation == 6 else (wanted, 1)

    photo = Photo.open(path, enough=enough)
    with Image.open(path) as drafted:
        drafted.draft("RGB", (333 // scale, 501 // scale))
        stored = np.asarray(drafted)
    assert photo.decode_scale == scale
    assert (photo.width, photo.height) == ((501, 333) if orientation == 6 else (333, 501))
    assert asked == [(photo.width, photo.height)]
    np.testing.assert_array_equal(photo.pixels, TURNED[orientation](stored))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_other_formats_are_decoded_whole(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene(80, 100)))
    photo = Photo.open(path, enough=lambda width, height: (1, 1))
    assert (photo.decode_scale, photo.pixels.shape, photo.width, photo.height) == (1, (80, 100, 3), 100, 80)


def test_what_pillow_has_to_decode_is_decoded_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene(80, 100)).convert("CMYK"))
    photo = Photo.open(path, enough=lambda width, height: (1, 1))
    assert (photo.decode_scale, photo.pixels.shape, photo.width) == (1, (80, 100, 3), 100)


def test_a_small_decode_goes_through_its_profile_too(tmp_path: Path) -> None:
    image = Image.fromarray(scene(160, 240))
    plain, profiled = (
        Photo.open(save(tmp_path / name, image, icc_profile=profile), enough=lambda w, h: (w // 4, h // 4))
        for name, profile in (("a.jpg", None), ("b.jpg", swapped_profile()))
    )
    assert plain.pixels.shape == profiled.pixels.shape == (40, 60, 3)
    np.testing.assert_array_equal(profiled.pixels, through_cms(plain.pixels, swapped_profile()))


# --- orientation

TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.rot90(np.fliplr(a), 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.fliplr(a), -1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "lzw.tif"])
def test_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = Image.fromarray(scene())
    options: dict[str, Any] = {"exif": exif(orientation)}
    if suffix == "webp":
        options["lossless"] = True
    if suffix.endswith("tif"):
        options = {"tiffinfo": {ORIENTATION: orientation}, "compression": "tiff_lzw" if "lzw" in suffix else None}
    path = save(tmp_path / f"a.{suffix}", image, **options)
    stored = np.asarray(Image.open(save(tmp_path / "plain.jpg", image))) if suffix == "jpg" else scene()
    np.testing.assert_array_equal(shown(path), TURNED[orientation](stored))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(shown(path), np.asarray(ImageOps.exif_transpose(opened)))


def test_orientation_of_a_jpeg_that_pillow_decodes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene()).convert("CMYK"), exif=exif(6))
    with Image.open(path) as image:
        np.testing.assert_array_equal(shown(path), np.rot90(np.asarray(image.convert("RGB")), -1))


def test_orientation_of_a_png_that_names_it_after_its_pixels(tmp_path: Path) -> None:
    data = save(tmp_path / "a.png", Image.fromarray(scene())).read_bytes()
    body = exif(8).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    end = data.rindex(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:end] + chunk + data[end:])
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), np.rot90(scene(), 1))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()), exif=exif(orientation))
    np.testing.assert_array_equal(shown(path), scene())


@pytest.mark.parametrize("block", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\xff"])
def test_a_broken_exif_block_is_ignored(tmp_path: Path, block: bytes) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()), exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(shown(path), scene())


# --- modes


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_alpha_lies_over_white(tmp_path: Path, suffix: str) -> None:
    rgba = scene(channels=4)
    rgba[:3, :, 3] = 0
    rgba[3:6, :, 3] = 255
    # exact: keep the colours also where they are invisible
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(rgba), **options)
    np.testing.assert_array_equal(shown(path), over_white(rgba[..., :3], rgba[..., 3]))
    assert (shown(path)[:3] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_with_alpha(tmp_path: Path, suffix: str) -> None:
    both = scene(channels=2)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(both, "LA"))
    np.testing.assert_array_equal(shown(path), over_white(np.repeat(both[..., :1], 3, -1), both[..., 1]))


def palette_picture() -> tuple[Image.Image, Pixels, Pixels]:
    """A palette image, its indices and its palette (256, 3)."""
    indices = scene()[..., 0]
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    return image, indices, palette


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "gif"])
def test_palette(tmp_path: Path, suffix: str) -> None:
    image, indices, palette = palette_picture()
    np.testing.assert_array_equal(shown(save(tmp_path / f"a.{suffix}", image)), palette[indices])


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_one_clear_colour(tmp_path: Path, suffix: str) -> None:
    image, indices, palette = palette_picture()
    clear = int(indices[5, 5])
    path = save(tmp_path / f"a.{suffix}", image, transparency=clear, optimize=False)
    want = palette[indices]
    want[indices == clear] = 255
    np.testing.assert_array_equal(shown(path), want)


def test_palette_with_an_alpha_for_each_colour(tmp_path: Path) -> None:
    image, indices, palette = palette_picture()
    alphas = np.arange(256, dtype=np.uint8)[::-1]
    path = save(tmp_path / "a.png", image, transparency=alphas.tobytes())
    np.testing.assert_array_equal(shown(path), over_white(palette[indices], alphas[indices]))


def test_clear_colour_of_an_rgb_png(tmp_path: Path) -> None:
    pixels = scene()
    clear = tuple(int(v) for v in pixels[7, 9])
    want = pixels.copy()
    want[(pixels == clear).all(axis=-1)] = 255
    np.testing.assert_array_equal(shown(save(tmp_path / "a.png", Image.fromarray(pixels), transparency=clear)), want)


def test_clear_level_of_a_grey_png(tmp_path: Path) -> None:
    grey = scene()[..., 0]
    clear = int(grey[7, 9])
    path = save(tmp_path / "a.png", Image.fromarray(grey), transparency=clear)
    want = np.where(grey == clear, 255, grey)
    np.testing.assert_array_equal(shown(path), np.repeat(want[..., None], 3, -1))


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_one_bit(tmp_path: Path, suffix: str) -> None:
    bits = scene()[..., 0] > 100
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(bits))
    np.testing.assert_array_equal(shown(path), np.repeat(bits[..., None] * np.uint8(255), 3, -1))


def raw_png(rows: np.ndarray[Any, Any], colour_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG from (height, width, samples) values, which Pillow cannot write for every colour type."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    clear = chunk(b"tRNS", extra) if extra else b""
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep(samples: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    values = np.random.default_rng(3).integers(0, 65536, (H, W, samples)).astype(np.uint16)
    values[0, :8] = np.array([0, 128, 129, 385, 386, 65406, 65407, 65535], np.uint16)[:, None]
    return values


def test_16bit_grey_png_is_rounded(tmp_path: Path) -> None:
    values = deep(1)
    (tmp_path / "a.png").write_bytes(raw_png(values, 0))
    out = shown(tmp_path / "a.png")
    np.testing.assert_array_equal(out, np.repeat(np.floor(values / 257 + 0.5), 3, -1))
    assert out[0, :8, 0].tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


def test_16bit_grey_png_with_a_clear_level(tmp_path: Path) -> None:
    values = deep(1)
    clear = int(values[9, 9, 0])
    (tmp_path / "a.png").write_bytes(raw_png(values, 0, struct.pack(">H", clear)))
    want = np.where(values == clear, 255, np.floor(values / 257 + 0.5))
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), np.repeat(want, 3, -1))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16bit_grey_tiff_in_both_byte_orders(tmp_path: Path, order: str) -> None:
    values = deep(1)[..., 0]
    mode = "I;16" if order == "<u2" else "I;16B"
    image = Image.frombytes(mode, (W, H), values.astype(order).tobytes())
    want = np.floor(values[..., None].repeat(3, -1) / 257 + 0.5)
    np.testing.assert_array_equal(shown(save(tmp_path / "a.tif", image)), want)


def test_32bit_grey_that_holds_16_bits(tmp_path: Path) -> None:
    values = deep(1)[..., 0]
    path = save(tmp_path / "a.tif", Image.fromarray(values.astype(np.int32)))
    np.testing.assert_array_equal(shown(path), np.floor(values[..., None].repeat(3, -1) / 257 + 0.5))


@pytest.mark.parametrize("value", [-1, 65536])
def test_other_32bit_grey_is_unsupported(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.full((H, W), value, np.int32)))
    assert kind_of(path) == "unsupported"


def test_16bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    values = deep(3)
    (tmp_path / "a.png").write_bytes(raw_png(values, 2))
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), values >> 8)


def test_16bit_colour_with_a_clear_colour(tmp_path: Path) -> None:
    values = deep(3)
    values[9, 9] = (51234, 4321, 60000)
    (tmp_path / "a.png").write_bytes(raw_png(values, 2, struct.pack(">HHH", 51234, 4321, 60000)))
    want = values >> 8
    want[9, 9] = 255
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), want)


def test_16bit_colour_with_alpha(tmp_path: Path) -> None:
    values = deep(4)
    (tmp_path / "a.png").write_bytes(raw_png(values, 6))
    high = (values >> 8).astype(np.uint8)
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), over_white(high[..., :3], high[..., 3]))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_tiff_in_other_colours(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(scene())
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(image)
    else:
        image = image.convert(mode)
    path = save(tmp_path / "a.tif", image)
    with Image.open(path) as opened:
        assert opened.mode == mode
        np.testing.assert_array_equal(shown(path), np.asarray(opened.convert("RGB")))
    assert np.abs(shown(path).astype(int) - scene()).mean() < 4  # it is still that picture


@pytest.mark.parametrize("mode", ["HSV", "RGBX", "PA", "La", "RGBa"])
def test_modes_that_no_file_of_ours_brings(mode: str) -> None:
    """A future Pillow may decode to them; the conversion is ready."""
    image = Image.fromarray(scene())
    via = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    out = np.asarray(photo_module._over_white(image.convert(via).convert(mode)))
    want = image.convert("HSV") if mode == "HSV" else image.convert(via)  # HSV has its own rounding
    np.testing.assert_array_equal(out, np.asarray(want.convert("RGB")))


def test_float_is_unsupported(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.zeros((H, W), np.float32)))
    error = failure(path)
    assert error.kind == "unsupported"
    assert "save it with 8 or 16 bits" in str(error)


# --- ICC profiles


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged: no conversion could be overlooked."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    at = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def grey_profile(gamma: float) -> bytes:
    """A minimal ICC v2 profile of a grey display with a plain gamma."""
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)  # D50 in 16.16 fixed point
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(79)
    bodies = [(b"wtpt", white), (b"kTRC", curve), (b"desc", text)]
    table, payload, offset = struct.pack(">I", len(bodies)), b"", 132 + 12 * len(bodies)
    for tag, body in bodies:
        body += bytes(-len(body) % 4)
        table += tag + struct.pack(">II", offset + len(payload), len(body))
        payload += body
    size = 128 + len(table) + len(payload)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"", 0x02100000, b"mntr", b"GRAY", b"XYZ ", bytes(12), b"acsp")
    header += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + payload


def through_cms(pixels: Pixels, profile: bytes) -> Pixels:
    mode = "L" if pixels.ndim == 2 else "RGB"
    out = ImageCms.profileToProfile(
        Image.fromarray(pixels, mode), BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert out is not None
    return np.asarray(out)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_profile_is_applied(tmp_path: Path, suffix: str) -> None:
    pixels, profile = scene(), swapped_profile()
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(pixels), icc_profile=profile, **options)
    with Image.open(path) as image:
        stored = np.asarray(image)
    out = shown(path)
    np.testing.assert_array_equal(out, through_cms(stored, profile))
    np.testing.assert_allclose(out[..., [1, 0, 2]].astype(int), stored, atol=2)


def test_profile_then_orientation_then_white(tmp_path: Path) -> None:
    rgba, profile = scene(channels=4), swapped_profile()
    path = save(tmp_path / "a.png", Image.fromarray(rgba), icc_profile=profile, exif=exif(6))
    colour = through_cms(np.ascontiguousarray(rgba[..., :3]), profile)
    np.testing.assert_array_equal(shown(path), np.rot90(over_white(colour, rgba[..., 3]), -1))


def test_srgb_profile_leaves_the_pixels_alone(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "a.png", Image.fromarray(scene()), icc_profile=profile)
    np.testing.assert_array_equal(shown(path), scene())


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_grey_with_a_grey_profile(tmp_path: Path, suffix: str) -> None:
    profile = grey_profile(1.0)  # linear light: mid-grey becomes much lighter
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene()[..., 0]), icc_profile=profile)
    with Image.open(path) as image:
        stored = np.asarray(image)
    np.testing.assert_array_equal(shown(path), through_cms(stored, profile))
    assert shown(path).mean() > stored.mean() + 20


def test_grey_with_an_rgb_profile(tmp_path: Path) -> None:
    grey, profile = scene()[..., 0], swapped_profile()
    path = save(tmp_path / "a.png", Image.fromarray(grey), icc_profile=profile)
    np.testing.assert_array_equal(shown(path), through_cms(np.repeat(grey[..., None], 3, -1), profile))


def test_16bit_grey_with_a_grey_profile(tmp_path: Path) -> None:
    values, profile = deep(1)[..., 0], grey_profile(1.0)
    path = save(tmp_path / "a.tif", Image.fromarray(values), icc_profile=profile)
    np.testing.assert_array_equal(shown(path), through_cms(np.floor(values / 257 + 0.5).astype(np.uint8), profile))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("broken", [b"not a profile", swapped_profile()[:200], grey_profile(1.0)])
def test_a_profile_that_does_not_fit_is_ignored(tmp_path: Path, suffix: str, broken: bytes) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene()), icc_profile=broken)
    with Image.open(path) as image:
        np.testing.assert_array_equal(shown(path), np.asarray(image))


def test_cmyk_ignores_an_rgb_profile(tmp_path: Path) -> None:
    image = Image.fromarray(scene()).convert("CMYK")
    path = save(tmp_path / "a.tif", image, icc_profile=swapped_profile())
    np.testing.assert_array_equal(shown(path), np.asarray(image.convert("RGB")))


# --- failures


def test_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path / "a" / "none.jpg", "a\0b.jpg"):
        assert kind_of(path) == "not_found"


def test_a_file_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    assert kind_of(tmp_path / "a.jpg" / "b.jpg") == "not_found"


def test_a_directory(tmp_path: Path) -> None:
    error = failure(tmp_path)
    assert error.kind == "unreadable"
    assert "is a directory" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert kind_of(tmp_path / "pipe.jpg") == "unreadable"


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert kind_of(tmp_path / ("x" * 5000)) == "unreadable"


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the system call, because root may read everything."""
    path = save(tmp_path / "a.png", Image.fromarray(scene()))

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "stat", denied)
    error = failure(path)
    assert error.kind == "unreadable"
    assert "permission denied" in str(error)


class Failing(BytesIO):
    """A file on a disk that fails in the file's second half."""

    def read(self, size: int | None = -1) -> bytes:
        total = len(self.getbuffer())
        if self.tell() + (total if size is None or size < 0 else min(size, total)) > total // 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp", "gif", "webp"])
def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene(100, 100)))
    data = path.read_bytes()
    monkeypatch.setattr(photo_module, "_open_regular", lambda _: Failing(data))
    error = failure(path)
    assert error.kind == "unreadable"
    assert "input/output error" in str(error)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"Dear diary", b"BMW and others\n" * 9, b"RIFF1234WAVEfmt ", bytes(100), b"GIF"]
)
def test_not_an_image(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    assert kind_of(tmp_path / "a.jpg") == "not_an_image"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"8BPS\0\1", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "raw"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"P6\n4 4\n255\n" + bytes(48), "Netpbm"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    error = failure(tmp_path / "a.jpg")
    assert error.kind == "unsupported"
    assert what in str(error)
    assert "JPEG, PNG, WebP, TIFF, BMP and GIF" in str(error)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "lzw.tiff", "bmp", "gif", "webp"])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    options = {"compression": "tiff_lzw"} if suffix.startswith("lzw") else {}
    path = save(tmp_path / f"a.{suffix}", image, **options)
    data = path.read_bytes()
    path.write_bytes(data[: max(60, int(len(data) * share))])
    error = failure(path)
    assert error.kind == "truncated"
    assert "cut short or damaged" in str(error)


def test_truncated_progressive_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene(200, 300)), progressive=True)
    path.write_bytes(path.read_bytes()[:-2000])
    assert kind_of(path) == "truncated"


def test_damaged_png(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(data)
    assert kind_of(path) == "truncated"


def bomb(suffix: str, side: int) -> bytes:
    """A tiny file whose header claims side x side pixels."""
    if suffix == "png":
        data = raw_png(np.zeros((1, 1, 1), np.uint16), 0)
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    out = BytesIO()
    small = Image.new("RGB", (8, 8))
    if suffix == "jpg":
        small.save(out, "JPEG")
        data = out.getvalue()
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]
    if suffix == "bmp":
        small.save(out, "BMP")
        data = out.getvalue()
        return data[:18] + struct.pack("<ii", side, side) + data[26:]
    if suffix == "gif":
        small.save(out, "GIF")
        data = out.getvalue()
        return data[:6] + struct.pack("<HH", side, side) + data[10:]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    # Width, height, bits, compression, black is zero, offset, samples, rows and bytes of the one strip.
    grey = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: side * side}
    for tag, value in grey.items():
        tags[tag] = value
    out.write(b"II*\0\x08\0\0\0")
    tags.save(out)
    return out.getvalue()


@pytest.mark.parametrize("side", [9000, 15_000, 60_000])  # Pillow itself warns above 9459 and refuses above 13377
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff"])
def test_a_bomb_is_seen_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, side: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(bomb(suffix, side))
    assert path.stat().st_size < 2000
    monkeypatch.setattr(photo_module, "_load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr(photo_module, "_fast_jpeg", lambda image, file: pytest.fail("decoded"))
    error = failure(path, max_pixels=80_000_000)
    assert error.kind == "too_large"
    assert f"{side} x {side}" in str(error)
    assert "raise --max-pixels" in str(error)


def test_the_limit_is_the_last_that_passes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))
    assert Photo.open(path, max_pixels=H * W).width == W
    assert kind_of(path, max_pixels=H * W - 1) == "too_large"


def test_a_large_photo_within_our_limit_is_not_pillows_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in ("png", "jpg", "tiff", "bmp", "gif", "webp"):
        assert Photo.open(save(tmp_path / f"a.{suffix}", Image.fromarray(scene()))).height == H


@pytest.mark.parametrize("where", ["_load", "_over_white"])
def test_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))

    def full(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(photo_module, where, full)
    error = failure(path)
    assert error.kind == "too_large"
    assert "memory" in str(error)


def test_a_path_stays_on_one_line(tmp_path: Path) -> None:
    error = failure(tmp_path / "two\nlines \udcff.jpg")
    assert error.kind == "not_found"
    assert r"two\nlines \xff.jpg" in str(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "lzw.tiff", "bmp", "gif", "webp"])
def test_any_damage_is_a_photo_or_a_photo_error(tmp_path: Path, suffix: str) -> None:
    """Random bytes changed all over a file: nothing but PhotoError escapes, and nothing is said aloud."""
    options = {"compression": "tiff_lzw"} if suffix.startswith("lzw") else {}
    tagged = Image.fromarray(scene())
    profile = {} if suffix in ("bmp", "gif") else {"icc_profile": swapped_profile()}
    path = save(tmp_path / f"a.{suffix}", tagged, **options, **profile)
    data = path.read_bytes()
    rng = np.random.default_rng(11)
    for trial in range(150):
        broken = np.frombuffer(data, np.uint8).copy()
        reach = len(broken) if trial % 2 else min(len(broken), 300)  # half of them in the header
        broken[rng.integers(4, reach, rng.integers(1, 8))] = rng.integers(0, 256)
        path.write_bytes(broken.tobytes())
        with suppress(PhotoError):
            assert Photo.open(path, max_pixels=1_000_000).pixels.size


# --- threads, and pixels from memory


def test_threads_read_alike_and_restore_pillow(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.{suffix}", Image.fromarray(scene())) for i in range(8) for suffix in ("png", "tiff")]
    before = list(warnings.filters)
    barrier = threading.Barrier(4)

    def read(path: Path) -> Pixels:
        barrier.wait(timeout=30)
        return Photo.open(path).pixels

    with ThreadPoolExecutor(4) as pool:
        for pixels in pool.map(read, paths):
            np.testing.assert_array_equal(pixels, scene())
    assert warnings.filters == before


def test_from_pixels_copies_and_freezes() -> None:
    pixels = scene()
    photo = Photo.from_pixels(pixels[::-1], path="memory")
    want = pixels[::-1].copy()
    pixels[:] = 0
    np.testing.assert_array_equal(photo.pixels, want)
    assert photo.pixels.flags.c_contiguous
    assert not photo.pixels.flags.writeable
    assert (photo.path, photo.width, photo.height, photo.decode_scale) == ("memory", W, H, 1)


@pytest.mark.parametrize(
    "bad",
    [
        scene().astype(np.float32),
        scene()[..., 0],
        scene(channels=4),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        [[[0, 0, 0]]],
    ],
)
def test_from_pixels_refuses(bad: Any) -> None:
    with pytest.raises(UsageError, match="pixels must be"):
        Photo.from_pixels(bad)


def test_photos_compare_by_identity() -> None:
    a, b = Photo.from_pixels(scene()), Photo.from_pixels(scene())
    assert a != b
    assert len({a, b}) == 2
