"""What lenses, sensors, shutters and raw converters do, and those who set them."""

import math

import numpy as np
from numpy.typing import NDArray
from pixels import LINEAR, Kernel, Pixels, filtered, from_linear, luma, to_u8
from scipy.ndimage import convolve, gaussian_filter, gaussian_filter1d

from distortions.light import raised
from distortions.spatial import KADID_AREA_PX

READ_NOISE_ELECTRONS = 2.5  # of a small sensor of today; see Foi et al. (2008) for the Poisson-Gaussian model
REC709 = np.array([0.2126, 0.7152, 0.0722])  # luma of linear light
BAYER = ((0, 1), (1, 2))  # which channel each of 2 x 2 sites measures


def sensor_noise(pixels: Pixels, electrons: float, rng: np.random.Generator) -> Pixels:
    """Photon and read noise in linear light: Poisson of the light, and Gaussian. `electrons`: at white, before they are
    multiplied to it, so fewer is a higher ISO."""
    light = LINEAR[pixels] * electrons
    # Poisson by its normal of the same variance: below five electrons the read noise hides the difference.
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.sqrt(light + READ_NOISE_ELECTRONS**2)
    return from_linear((light + noise) / electrons)


def aperture(pixels: Pixels, radius_px: float, rng: np.random.Generator) -> Pixels:
    """Defocus through an iris of five to nine blades, brighter at its rim, as spherical aberration makes it."""
    blades, turn = int(rng.integers(5, 10)), rng.uniform(0, math.tau)
    half = math.ceil(radius_px) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    sector = (np.arctan2(y, x) + turn) % (math.tau / blades) - math.pi / blades
    distance = np.hypot(x, y) * np.cos(sector) / math.cos(math.pi / blades / 2)
    kernel: Kernel = np.clip(radius_px + 0.5 - distance, 0, 1) * (0.7 + 0.6 * (distance / radius_px) ** 2)
    return filtered(pixels, kernel / kernel.sum())


def shake(pixels: Pixels, path_px: float, rng: np.random.Generator) -> Pixels:
    """A hand-held exposure: the path of a point that is pushed at random and drifts on (Boracchi and Foi, 2012)."""
    steps = 256
    velocity = np.cumsum(rng.standard_normal((steps, 2)), 0) * 0.12 + rng.standard_normal(2)
    path = np.cumsum(velocity, 0)
    path *= path_px / np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    path -= (path.max(0) + path.min(0)) / 2
    half = math.ceil(np.abs(path).max()) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    for offset in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each point shared by the four pixels around it
        cell = np.floor(path).astype(int) + offset
        share = np.prod(1 - np.abs(path - cell), 1)
        np.add.at(kernel, (cell[:, 0] + half, cell[:, 1] + half), share)
    return filtered(pixels, kernel / kernel.sum())


def banding(pixels: Pixels, depth: float, rng: np.random.Generator) -> Pixels:
    """A rolling shutter under a flickering lamp: rows lit by turns, sin^2 of the mains."""
    period, phase = rng.uniform(60, 220), rng.uniform(0, math.tau)
    rows = 1 - depth * (1 + np.sin(math.tau * np.arange(pixels.shape[0]) / period + phase)) / 2
    return from_linear(LINEAR[pixels] * rows[:, None, None])


def demosaic(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Measured through a Bayer mosaic and filled in bilinearly: zips along edges, false colours in fine texture."""
    height, width = pixels.shape[:2]
    light = LINEAR[pixels].astype(np.float32)
    near = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32)
    rows, columns = np.arange(height)[:, None] % 2, np.arange(width)[None] % 2
    site = np.array(BAYER)[rows, columns]
    filled = np.empty_like(light)
    for channel in range(3):
        there = (site == channel).astype(np.float32)
        weight = convolve(there, near, mode="nearest")
        total = convolve(light[..., channel] * there, near, mode="nearest")
        filled[..., channel] = np.where(weight > 0, total / np.maximum(weight, 1e-6), light[..., channel])
    return from_linear(light + share * (filled - light))


def moire(pixels: Pixels, depth: float, rng: np.random.Generator) -> Pixels:
    """Coloured fringes where the photo is textured: a fine screen beating with the sensor's."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period, bend = rng.uniform(0, math.pi), rng.uniform(7, 22), rng.uniform(0.5, 2)
    wave = math.tau * (x * math.cos(angle) + y * math.sin(angle)) / period
    wave = wave + bend * np.sin(math.tau * (y * math.cos(angle) - x * math.sin(angle)) / (6 * period))
    grey = luma(pixels)
    texture = np.abs(grey - gaussian_filter(grey, 2))
    amount = gaussian_filter(np.minimum(texture / 6, 1), 8)[..., None]
    fringes = np.stack([np.sin(wave + shift) for shift in (0, math.tau / 3, 2 * math.tau / 3)], 2)
    return to_u8(pixels * (1 + depth * amount * fringes))


def halos(pixels: Pixels, gain: float, rng: np.random.Generator) -> Pixels:
    """Light and dark seams along edges, from sharpening with a wide radius."""
    return raised(pixels, gain, rng.uniform(2.5, 5))


def dust(pixels: Pixels, number: float, rng: np.random.Generator) -> Pixels:
    """Soft dark spots on the sensor, and fine bright scratches as of film."""
    height, width = pixels.shape[:2]
    count = max(1, round(number * height * width / KADID_AREA_PX))
    marks: NDArray[np.float32] = np.zeros((height, width), np.float32)
    for mark in rng.spawn(count):  # of any number the first are always the same
        y, x = mark.uniform(0, height), mark.uniform(0, width)
        if mark.random() < 0.6:
            _spot(marks, y, x, mark.uniform(3, 9), -mark.uniform(0.35, 0.7))
        else:
            _scratch(marks, y, x, mark.uniform(0, math.pi), mark.uniform(30, 160), mark.uniform(0.4, 0.8))
    light = LINEAR[pixels]
    kept, added = np.minimum(marks, 0)[..., None], np.maximum(marks, 0)[..., None]
    return from_linear(light * (1 + kept) + (1 - light) * gaussian_filter(added, (0.6, 0.6, 0)))


def _spot(marks: NDArray[np.float32], y: float, x: float, radius: float, depth: float) -> None:
    top, left = max(0, int(y - 2 * radius)), max(0, int(x - 2 * radius))
    part = marks[top : int(y + 2 * radius) + 1, left : int(x + 2 * radius) + 1]
    down, across = np.mgrid[: part.shape[0], : part.shape[1]]
    away = np.hypot(down + top - y, across + left - x) / radius
    np.minimum(part, depth * np.exp(-(away**4)), out=part)


def _scratch(marks: NDArray[np.float32], y: float, x: float, angle: float, length: float, gain: float) -> None:
    along = np.arange(0, length, 0.5)
    bent = angle + 0.3 * np.sin(along / 25)
    rows, columns = (np.rint(start + along * step(bent)).astype(int) for start, step in ((y, np.sin), (x, np.cos)))
    inside = (rows >= 0) & (rows < marks.shape[0]) & (columns >= 0) & (columns < marks.shape[1])
    marks[rows[inside], columns[inside]] = gain


def chroma_bleed(pixels: Pixels, sigma_px: float, rng: np.random.Generator) -> Pixels:
    """Colour that runs sideways over edges, the light staying sharp: narrow-band chroma, as of video."""
    grey = luma(pixels)[..., None]
    return to_u8(grey + gaussian_filter1d(pixels - grey, sigma_px, axis=1, mode="nearest"))


def darker(pixels: Pixels, stops: float, rng: np.random.Generator) -> Pixels:
    """Too little light: what is lost in the eight bits stays lost."""
    return from_linear(LINEAR[pixels] / 2**stops)


def brighter(pixels: Pixels, stops: float, rng: np.random.Generator) -> Pixels:
    """Too much light: each channel is clipped for itself, as a sensor's is, so that bright colours turn to white."""
    return from_linear(LINEAR[pixels] * 2**stops)


def cast(pixels: Pixels, stops: float, rng: np.random.Generator) -> Pixels:
    """The wrong white balance: too warm or too cold, and as much as a third of that green or magenta. White keeps its
    luma."""
    warm = stops if rng.random() < 0.5 else -stops
    gains = 2 ** np.array([warm / 2, warm * rng.uniform(-1, 1) / 3, -warm / 2])
    return from_linear(LINEAR[pixels] * (gains / (gains @ REC709)))
