"""The same clean photo as another camera might have given it: what is clean stays clean, but cannot be learned by
heart, and what no photo lacks (faint grain, a file's compression) cannot be taken for damage."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from distortions.codecs import through
from PIL import Image, ImageEnhance, ImageFilter
from pixels import Pixels
from scipy.ndimage import gaussian_filter

# Of photos, those that stay as they came: what a camera and its file left in them is seen only there.
KEPT_SHARE: Final = 0.35
GRAIN_SHARE: Final = 0.5
GRAIN: Final = (0.4, 4.0)  # least and greatest standard deviation, codes: seen in flat places at most
GRAIN_SOFTNESS: Final = 1.2  # most, px: sensors' noise is smoothed where colours are made of a mosaic, and by resizing
GRAIN_COLOUR: Final = 0.6  # most, of the grain that differs between channels
GRAIN_IN_LIGHT: Final = 0.7  # most, of the grain that is missing in white
GRAIN_TILE_PX: Final = 512  # a normal number a pixel would take longer than all the rest
SAVED_SHARE: Final = 0.7
QUALITIES: Final = (85, 98)  # of JPEGs straight from cameras and web sites


def varied(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Another size, tone, colour, softness, grain."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:
        scale = rng.uniform(0.65, 1.0)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.3))
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9)))
    if rng.random() < 0.2:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pixels = np.array(image)
    if rng.random() < 0.7:
        gamma, gains = math.exp(rng.normal(0, 0.15)), rng.uniform(0.88, 1.1) * rng.uniform(0.95, 1.05, 3)
        steps = 255 * (np.arange(256)[:, None] / 255) ** gamma * gains
        table = np.clip(np.rint(steps), 0, 255).astype(np.uint8)
        pixels = np.stack([table[:, c][pixels[:, :, c]] for c in range(3)], 2)
    return grained(pixels, rng) if rng.random() < GRAIN_SHARE else pixels


def grained(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """With the grain that a sensor gives all of a photo."""
    sigma = math.exp(rng.uniform(*(math.log(bound) for bound in GRAIN)))
    softness, colour, in_light = (rng.uniform(0, most) for most in (GRAIN_SOFTNESS, GRAIN_COLOUR, GRAIN_IN_LIGHT))
    luma, chroma = (rng.standard_normal((GRAIN_TILE_PX, GRAIN_TILE_PX, n), dtype=np.float32) for n in (1, 3))
    grain = gaussian_filter(
        math.sqrt(1 - colour) * luma + math.sqrt(colour) * chroma, (softness, softness, 0), mode="wrap"
    )
    grain *= sigma / grain.std()
    height, width = pixels.shape[:2]
    out = np.empty_like(pixels)
    for top in range(0, height, GRAIN_TILE_PX):
        rows = pixels[top : top + GRAIN_TILE_PX].astype(np.float32)
        tiled = np.tile(grain, (1, -(-width // GRAIN_TILE_PX), 1))[: len(rows), :width]
        rows += tiled * (1 - in_light / 255 * rows)
        out[top : top + GRAIN_TILE_PX] = np.clip(np.rint(rows), 0, 255)
    return out


@dataclass(frozen=True, slots=True)
class Saving:
    """How a photo becomes a file. `quality` None: without loss."""

    quality: int | None
    subsampling: int  # Pillow's: 0 keeps the colours' resolution, 2 halves it

    @staticmethod
    def drawn(rng: np.random.Generator) -> "Saving":
        kept = rng.random() >= SAVED_SHARE
        return Saving(None if kept else int(rng.integers(*QUALITIES)), int(rng.choice((0, 2))))

    def of(self, pixels: Pixels) -> Pixels:
        """The photo as it is read again."""
        if self.quality is None:
            return pixels
        return through(pixels, "JPEG", quality=self.quality, subsampling=self.subsampling)
