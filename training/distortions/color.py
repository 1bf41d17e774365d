"""KADID-10k's changes of colour."""

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pixels import Pixels, luma, to_u8
from scipy.ndimage import gaussian_filter, sobel
from skimage.color import hsv2rgb, lab2rgb, rgb2hsv, rgb2lab


def _from_lab(lab: NDArray[np.floating]) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # colours that no screen shows are meant here, and clipped
        return to_u8(255 * lab2rgb(lab, illuminant="D65"))


def diffusion(pixels: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Lab's a and b blurred, and as much stronger; at 1 blurred alone."""
    lab = rgb2lab(pixels)
    sigma = 1.5 * amount + 2
    lab[..., 1:] = amount * gaussian_filter(lab[..., 1:], (sigma, sigma, 0), mode="nearest")
    return _from_lab(lab)


def shift(pixels: Pixels, distance_px: float, rng: np.random.Generator) -> Pixels:
    """The green channel moved, where the photo is not smooth."""
    angle = rng.uniform(0, math.pi / 2)
    across, down = round(distance_px * math.cos(angle)), round(distance_px * math.sin(angle))
    if not across and not down:
        across = 1
    height, width = pixels.shape[:2]
    rows, columns = np.clip(np.arange(height) - down, 0, None), np.clip(np.arange(width) - across, 0, None)
    grey = luma(pixels)
    edges = gaussian_filter(np.hypot(sobel(grey, 0), sobel(grey, 1)), 4)
    low, high = np.percentile(edges, (1, 99))
    share = np.clip((edges - low) / max(high - low, 1e-6), 0, 1)
    out = pixels.copy()
    moved = pixels[rows][:, columns, 1].astype(np.float32)
    out[..., 1] = to_u8(pixels[..., 1] + share * (moved - pixels[..., 1]))
    return out


def quantization(pixels: Pixels, colors: float, rng: np.random.Generator) -> Pixels:
    """The photo's own best few colours, dithered."""
    few = Image.fromarray(pixels).quantize(round(colors), Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(few.convert("RGB"))


def saturation_hsv(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """HSV's saturation scaled."""
    hsv = rgb2hsv(pixels)
    hsv[..., 1] *= factor
    return to_u8(255 * hsv2rgb(hsv))


def saturation_lab(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    lab = rgb2lab(pixels)
    lab[..., 1:] *= factor
    return _from_lab(lab)


def tone_steps(pixels: Pixels, steps: float, rng: np.random.Generator) -> Pixels:
    """Each channel in a few even steps: bands where the photo was smooth."""
    most = round(steps) - 1
    return to_u8(np.rint(pixels / 255 * most) * 255 / most)
