"""A photo as pixels: opened, checked, decoded once at full resolution, upright, in sRGB.

Pillow reads the headers and every format but plain JPEG, which libjpeg-turbo decodes through simplejpeg to the same
bits. What a file can do wrong ends in a `PhotoError`; nothing here prints or warns. (Except
libtiff, which may say on stderr what is wrong with a damaged compressed TIFF, and gives Python no way to stop it.)
"""

import logging
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from qcheck.errors import PhotoError, UsageError
from qcheck.strips import gathered, strip_rows

# Pillow logs what it makes of damaged files; where nobody has set logging up, that would end on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

DEFAULT_MAX_PIXELS: Final = 200_000_000
SERVED: Final = "JPEG, PNG, WebP, TIFF, BMP and GIF"

_HEAD_BYTES: Final = 32  # as much as any signature below looks at
_Reader = Callable[[BinaryIO], ImageFile.ImageFile]
Enough = Callable[[int, int], tuple[int, int]]
_SCALES: Final = (8, 4, 2)  # that a JPEG's blocks can be decoded at
_FIRST_TURNED: Final = 5  # EXIF orientations from here on swap width and height

# The readers are called directly, not through Image.open: it would try every format it knows, and checks a limit that
# is not ours. An MPO (two JPEGs in one file) is its first picture, as is a GIF, an APNG or a TIFF of many pages.
_READERS: Final[tuple[tuple[re.Pattern[bytes], _Reader], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    # Two letters would be a weak signature; the size of the header that follows is one of seven.
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), BmpImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
)
_FOREIGN: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "an AVIF picture"),
    (re.compile(rb"....ftypcrx ", re.DOTALL), "a camera raw file"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "a HEIF picture"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video"),
    (re.compile(rb"FUJIFILMCCD-RAW|IIU\0|IIR[OS]"), "a camera raw file"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL picture"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "), "a JPEG 2000 picture"),
    (re.compile(rb"8BP[SB]"), "a Photoshop document"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript document"),
    (re.compile(rb"P[1-7]\s"), "a Netpbm picture"),
    (re.compile(rb"\0\0[\1\2]\0"), "an icon"),
    (re.compile(rb"icns"), "an icon"),
    (re.compile(rb"DDS "), "a DDS texture"),
    (re.compile(rb"\x76\x2f\x31\x01"), "an OpenEXR picture"),
    (re.compile(rb"\s*<svg"), "an SVG drawing"),
)

# A grey sample of 16 bits becomes round(value / 257), because 65535 / 257 = 255: white stays white.
_EIGHT_BITS: Final = ((np.arange(65536) + 128) // 257).astype(np.uint8)
_ICC_SPACE: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode -> the profile's colour space
# A profile that moves no colour by more than this many of 255 levels is sRGB in all but name.
_ICC_TOLERANCE: Final = 1

# EXIF orientation -> how stored pixels (H, W, 3) become upright ones.
_UPRIGHT: Final[dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A decoded photo.

    `pixels`: (height, width, 3) uint8, upright, sRGB, C-contiguous, read-only. `decode_scale`: 1 is full resolution; at
    n it was decoded at 1/n of its `full_size` (width, height). Photos compare by identity.
    """

    path: str
    pixels: NDArray[np.uint8]
    decode_scale: int = 1
    full_size: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        return self.full_size[0] if self.full_size else int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return self.full_size[1] if self.full_size else int(self.pixels.shape[0])

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        enough: Enough | None = None,
    ) -> "Photo":
        """The photo in a JPEG, PNG, WebP, TIFF, BMP or GIF file (of several pictures, the first).

        EXIF orientation is applied, an ICC profile is converted to sRGB (a broken one is ignored, as viewers do),
        transparency is laid over white, 16-bit grey becomes round(value / 257), 16-bit colour keeps its high byte.
        `enough`: from the upright width and height, the size of the only view that is wanted; a JPEG is then decoded at
        1/2, 1/4 or 1/8 of its size, if that is no smaller.

        Raises PhotoError: not_found, unreadable, not_an_image, truncated, too_large (more than `max_pixels`, seen in
        the header before anything is decoded; or more than memory holds), unsupported.
        """
        name = os.fspath(path)
        try:
            with _open_regular(name) as file:
                pixels, scale, full_size = _decode(file, max_pixels, enough)
        except PhotoError as error:
            raise PhotoError(error.kind, f"{name}: {error}") from error.__cause__
        except MemoryError as error:
            message = "needs more memory to decode than there is; free some, or judge a smaller copy"
            raise PhotoError("too_large", f"{name}: {message}") from error
        return cls(name, pixels, scale, full_size)

    @classmethod
    def from_pixels(cls, pixels: NDArray[np.uint8], path: str = "") -> "Photo":
        """A photo from upright sRGB pixels, (height, width, 3) uint8, which are copied.

        Raises UsageError for another dtype or shape, or no pixels at all.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            given = getattr(pixels, "dtype", type(pixels).__name__)
            raise UsageError(f"pixels must be a numpy array of uint8, got {given}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise UsageError(f"pixels must be (height, width, 3) and not empty, got {pixels.shape}")
        return cls(path, _frozen(pixels.copy(order="C")))


def _frozen(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return pixels


def _open_regular(path: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise PhotoError("unreadable", "is a directory; name the photos in it, for instance with DIR/*.jpg")
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            raise PhotoError("unreadable", "is not a regular file; save the photo to a file first")
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte in the path
        raise PhotoError("not_found", "no such file; check the path") from error
    except PermissionError as error:
        raise PhotoError("unreadable", "permission denied; make the file readable for this user") from error
    except OSError as error:
        raise PhotoError("unreadable", f"cannot be opened: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return (error.strerror or "input/output error").lower()


class _Quiet:
    """While any photo is being read, Pillow neither warns nor applies its own limit on pixels (ours came first).

    Both are settings of the whole process. The first thread to enter changes them and the last to leave restores
    them, so photos can be read in several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = None
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_quiet: Final = _Quiet()


def _decode(
    file: BinaryIO, max_pixels: int, enough: Enough | None
) -> tuple[NDArray[np.uint8], int, tuple[int, int] | None]:
    """(H, W, 3) uint8, upright sRGB; the scale it was decoded at, and if that is not 1 the upright width and height
    that were scaled. Raises PhotoError without the path."""
    try:
        reader = _reader_for(file.read(_HEAD_BYTES))
        file.seek(0)
        with _quiet:
            image = _header(reader, file)
            _check_size(image.size, max_pixels)
        scale, full_size = 1, image.size
        if enough is not None and isinstance(image, JpegImageFile):
            with _quiet:
                full_size = image.size[::-1] if _orientation(image) >= _FIRST_TURNED else image.size
            scale = _scale_for(full_size, enough)
        pixels = _fast_jpeg(image, file, scale)
        with _quiet:
            if pixels is None:
                scale = 1
                _load(image)
            orientation = _orientation(image)
            if pixels is None:
                pixels = _pixels_over_white(image)
        image.close()  # its pixels need not wait until ours are turned
        held = [pixels]
        del pixels
        return _frozen(_upright(held, orientation)), scale, full_size if scale > 1 else None
    except OSError as error:  # of reading: Pillow's own are dealt with where they arise
        raise PhotoError("unreadable", f"cannot be read: {_reason(error)}") from error


def _reader_for(head: bytes) -> _Reader:
    if not head:
        raise PhotoError("not_an_image", "is empty; get the file again from its source")
    for signature, reader in _READERS:
        if signature.match(head):
            return reader
    for signature, what in _FOREIGN:
        if signature.match(head):
            raise PhotoError("unsupported", f"is {what}; convert it to one of {SERVED}")
    raise PhotoError("not_an_image", f"is not an image; qcheck reads {SERVED}")


def _damaged() -> PhotoError:
    return PhotoError("truncated", "is cut short or damaged; get the file again from its source")


def _is_io(error: Exception) -> bool:
    """An error of the disk, not of a decoder (whose OSErrors carry no number)."""
    return isinstance(error, OSError) and error.errno is not None


def _header(reader: _Reader, file: BinaryIO) -> ImageFile.ImageFile:
    # Decoders meet hostile bytes here: whatever they raise, it says something about the file, not about us.
    try:
        return reader(file)
    except MemoryError:
        raise
    except Exception as error:
        if _is_io(error):
            raise
        # Pillow chains what it ran out of bytes with; otherwise it has read the header and refused what it says.
        ran_out = isinstance(error.__cause__, EOFError | IndexError | TypeError | struct.error)
        ran_out = ran_out or (isinstance(error, OSError) and not file.read(1))
        if reader in (JpegImageFile, TiffImageFile, BmpImageFile) and not ran_out:
            message = "is stored in a way that qcheck cannot read; save it again with 8 bits a sample"
            raise PhotoError("unsupported", message) from error
        raise _damaged() from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        message = f"has {width} x {height} = {width * height} pixels, over the limit of {max_pixels}"
        raise PhotoError("too_large", f"{message}; raise --max-pixels, or judge a smaller copy")


def _scale_for(size: tuple[int, int], enough: Enough) -> int:
    """The greatest divisor of a size that leaves what is enough."""
    wanted = enough(*size)
    fits = (s for s in _SCALES if all(-(-side // s) >= least for side, least in zip(size, wanted, strict=True)))
    return next(fits, 1)


def _load(image: ImageFile.ImageFile) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes again, see _header
        if _is_io(error):
            raise
        raise _damaged() from error


def _fast_jpeg(image: ImageFile.ImageFile, file: BinaryIO, scale: int) -> NDArray[np.uint8] | None:
    """A JPEG in RGB or grey by libjpeg-turbo, (H, W, 3) sRGB as stored, at 1/`scale` of its size; None if it is for
    Pillow to decode."""
    profile = image.info.get("icc_profile")
    if not isinstance(image, JpegImageFile) or not (image.mode == "RGB" or (image.mode == "L" and not profile)):
        return None
    file.seek(0)
    width, height = (-(-side // scale) for side in image.size)
    try:
        # Strict: what has recoverable errors goes to Pillow, which says which of them it forgives.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            file.read(),
            colorspace="RGB",
            fastdct=False,
            fastupsample=False,
            min_width=width,  # the least scale of eighths that leaves as much
            min_height=height,
            strict=True,
        )
    except ValueError:
        return None
    if pixels.shape != (height, width, 3):
        return None
    if _is_srgb(profile):
        return pixels
    for top in range(0, height, strip_rows(width)):
        strip = pixels[top : top + strip_rows(width)]
        strip[:] = np.asarray(_to_srgb(Image.fromarray(strip), profile))
    return pixels


def _pixels_over_white(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a loaded picture, which may be closed by it."""
    width, height = image.size
    if strip_rows(width) >= height:
        return np.asarray(_over_white(image))

    def cut(top: int, bottom: int) -> NDArray[np.uint8]:
        return np.asarray(_over_white(image.crop((0, top, width, bottom))))

    return gathered(width, height, cut, image.close)


def _upright(held: list[NDArray[np.uint8]], orientation: int) -> NDArray[np.uint8]:
    """The one array of `held`, turned; the list is all that holds it, so that it can be given up on the way."""
    turn = _UPRIGHT[orientation]
    if orientation == 1:
        return held[0]
    height, width, _ = turn(held[0]).shape
    return gathered(width, height, lambda top, bottom: turn(held[0])[top:bottom], held.clear)


def _orientation(image: ImageFile.ImageFile) -> int:
    """What is left to turn, 1..8; to be asked after load(), in which Pillow turns a TIFF itself."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block: viewers show the picture as it is stored
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _over_white(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as RGB in sRGB, its transparency laid over white."""
    profile = image.info.get("icc_profile")
    try:
        colour, alpha = _split(image)
    except ValueError as error:  # Pillow has no conversion
        message = f"has pixels of a kind that qcheck cannot read ({image.mode}); save it as 8-bit RGB"
        raise PhotoError("unsupported", message) from error
    rgb = _to_srgb(colour, profile)
    if alpha is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, (255, 255, 255))
    canvas.paste(rgb, mask=alpha)  # rounds (colour * alpha + 255 * (255 - alpha)) / 255 to the nearest
    return canvas


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB or CMYK, and alpha in mode L, if there is one."""
    if image.mode == "F":
        message = "holds floating-point samples, which have no fixed white; save it with 8 or 16 bits a sample"
        raise PhotoError("unsupported", message)
    if image.mode.startswith("I"):
        return _split_16bit(image)
    if image.has_transparency_data:
        if image.mode == "RGB" and max(image.info["transparency"]) > 255:
            # 16 bits a sample, of which Pillow has kept the high byte; the transparent colour has to follow.
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        both = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        return both.convert(both.mode[:-1]), both.getchannel("A")
    if image.mode in _ICC_SPACE:
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _split_16bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(image)  # (H, W) of 16 or 32 bits
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() >= len(_EIGHT_BITS)):
        raise PhotoError("unsupported", "holds 32-bit samples; save it with 8 or 16 bits a sample")
    colour = Image.fromarray(_EIGHT_BITS[values])
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return colour, None
    return colour, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))


def _to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB from L, RGB or CMYK, by the profile if it is a sound one for such pixels."""
    if profile is None or _is_srgb(profile):
        return colour.convert("RGB")
    space = _profile_space(profile)
    if colour.mode == "L" and space == "RGB":
        colour = colour.convert("RGB")
    by_profile = _through(profile, colour) if _ICC_SPACE[colour.mode] == space else None
    return by_profile or colour.convert("RGB")


def _profile_space(profile: bytes) -> str | None:
    try:
        return ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ValueError):  # ValueError: a name that is not ASCII
        return None


def _through(profile: bytes, colour: Image.Image) -> Image.Image | None:
    """RGB in sRGB, with perceptual intent; None if the profile is broken.

    The transform is made anew for each photo: nothing promises that two threads may use one at once.
    """
    try:
        transform = ImageCms.buildTransform(BytesIO(profile), ImageCms.createProfile("sRGB"), colour.mode, "RGB")
        return transform.apply(colour)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes | None) -> bool:
    """No profile, or one that leaves the colours of an RGB photo where they are; then its pixels need no pass."""
    if profile is None:
        return True
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    moved = _through(profile, Image.fromarray(grid)) if _profile_space(profile) == "RGB" else None
    return moved is not None and int(np.abs(np.asarray(moved).astype(np.int16) - grid).max()) <= _ICC_TOLERANCE
