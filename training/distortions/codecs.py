"""What lossy codecs leave. HEIC's intra frames are HEVC's; AV1's, which AVIF holds, stand for both."""

import io
from typing import Any

import numpy as np
from PIL import Image
from pixels import Pixels


def through(pixels: Pixels, codec: str, **options: Any) -> Pixels:
    """As they are read again from a file. `codec`, `options`: Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def jpeg2000(pixels: Pixels, ratio: float, rng: np.random.Generator) -> Pixels:
    # The codec's default of five halvings needs 32 px; below, as many as there are.
    halvings = min(5, min(pixels.shape[:2]).bit_length() - 1)
    options = {
        "quality_mode": "rates",
        "quality_layers": [ratio],
        "irreversible": True,
        "num_resolutions": halvings + 1,
    }
    return through(pixels, "JPEG2000", **options)


def jpeg(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    return through(pixels, "JPEG", quality=round(quality))


def double_jpeg(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """Saved twice, the second time with the 8 x 8 grid elsewhere, as when a cut photo is shared again."""
    down, across = (int(o) for o in rng.integers(1, 8, 2))
    wide = np.pad(pixels, ((down, 0), (across, 0), (0, 0)), mode="edge")
    first = through(wide, "JPEG", quality=round(quality))[down:, across:]
    return through(np.ascontiguousarray(first), "JPEG", quality=round(quality) + 2)


def webp(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    return through(pixels, "WEBP", quality=round(quality))


def avif(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    # One thread and the fastest setting: the same bytes on every machine with the same library, soon.
    return through(pixels, "AVIF", quality=round(quality), speed=10, max_threads=1)
