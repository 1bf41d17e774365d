"""The degradation bank: KADID-10k's 25 distortions and what cameras and codecs do, each at five levels.

Every one takes (h, w, 3) uint8 sRGB of any size, a level 1..5 and a seed, and gives pixels of the same size: the same
for the same three, and farther from the original at each level (tests/test_degradations.py measures it by SSIMULACRA2).
It may leave pixels as they are where they hold nothing to lose, as blur does a flat patch.

KADID-10k (Lin, Hosu and Saupe, 2019): the levels are those of ARNIQA's port of its MATLAB code, as far as they grow;
where they do not (its mean shift goes up and down) or hardly differ from one to the next, ours are said to be ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from distortions import blur, camera, codecs, color, light, noise, spatial
from pixels import Pixels

KADID: Final = "KADID-10k"
OURS: Final = "set by eye: level 1 just visible at full resolution, level 5 unmistakable"


@dataclass(frozen=True, slots=True)
class Degradation:
    """`levels`: the parameter of `apply` at each level, in `unit`. `kind`: which of the kinds that a model reports (see
    defects.py) it looks like. `detail`: it changes texture and leaves the large structure alone. `everywhere`: it
    spoils a photo as a whole and never a place of it, as an exposure does."""

    name: str
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    levels: tuple[float, float, float, float, float]
    unit: str
    source: str
    kind: str
    detail: bool = True
    everywhere: bool = False

    def __call__(self, pixels: Pixels, level: int, seed: int) -> Pixels:
        if not 1 <= level <= 5:
            raise ValueError(f"level must be 1..5, got {level}")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"pixels must be (h, w, 3) uint8 and not empty, got {pixels.dtype} {pixels.shape}")
        # The seed alone draws, so that a level differs from the next by its strength only.
        return self.apply(pixels, self.levels[level - 1], np.random.default_rng(seed))


_ALL: Final = (
    # KADID-10k's 25, in its order
    Degradation("gaussian_blur", blur.gaussian, (0.6, 1.0, 1.6, 2.6, 5.0), "px, sigma", OURS, "defocus"),
    Degradation("lens_blur", blur.lens, (1, 2, 4, 6, 8), "px, radius", KADID, "defocus"),
    Degradation("motion_blur", blur.motion, (3, 5, 9, 13, 21), "px, length", OURS, "motion_blur"),
    Degradation(
        "color_diffusion", color.diffusion, (1, 3, 6, 8, 12), "amount: 2 + 1.5 of it px", KADID, "color", False
    ),
    Degradation("color_shift", color.shift, (1, 3, 6, 8, 12), "px, of green", KADID, "color"),
    Degradation("color_quantization", color.quantization, (32, 22, 15, 10, 6), "colours", OURS, "banding", False),
    Degradation("saturation_hsv", color.saturation_hsv, (0.75, 0.5, 0.3, 0.12, 0.0), "factor", OURS, "color", False),
    Degradation("saturation_lab", color.saturation_lab, (1.5, 2, 3, 6, 9), "factor", OURS, "color", False),
    Degradation("jpeg2000", codecs.jpeg2000, (16, 32, 45, 120, 170), "compression ratio", KADID, "compression"),
    Degradation("jpeg", codecs.jpeg, (43, 36, 24, 7, 4), "quality", KADID, "compression"),
    Degradation("white_noise", noise.white, (0.001, 0.002, 0.003, 0.005, 0.01), "variance of 0..1", KADID, "noise"),
    Degradation("chroma_noise", noise.in_ycbcr, (0.0014, 0.0025, 0.005, 0.01, 0.02), "variance of 0..1", OURS, "noise"),
    Degradation("impulse_noise", noise.impulse, (0.001, 0.005, 0.01, 0.02, 0.03), "share of samples", KADID, "noise"),
    Degradation("multiplicative_noise", noise.speckle, (0.001, 0.005, 0.01, 0.02, 0.05), "variance", KADID, "noise"),
    Degradation("denoise", noise.denoised, (6, 10, 16, 26, 42), "of 255, noise removed again", OURS, "defocus"),
    Degradation(
        "brighten", light.brighten, (0.1, 0.2, 0.4, 0.7, 1.1), "rise of mid-grey x 2", KADID, "overexposure", False
    ),
    Degradation(
        "darken", light.darken, (0.05, 0.1, 0.2, 0.4, 0.8), "fall of mid-grey x 2", KADID, "underexposure", False
    ),
    Degradation(
        "mean_shift", light.mean_shift, (0.04, 0.08, 0.15, 0.22, 0.3), "of 0..1, up or down", OURS, "color", False
    ),
    Degradation("jitter", spatial.jitter, (0.25, 0.5, 0.9, 1.5, 2.5), "px, deviation", OURS, "pixelation"),
    Degradation("patches", spatial.patches, (20, 40, 60, 80, 100), "patches a 512 x 384 px", KADID, "corruption"),
    Degradation("pixelate", spatial.pixelate, (2, 3, 4, 6, 9), "px, block", OURS, "pixelation"),
    Degradation("quantization", color.tone_steps, (20, 16, 13, 10, 7), "steps a channel", KADID, "banding"),
    Degradation(
        "color_blocks", spatial.color_blocks, (2, 4, 6, 8, 10), "blocks a 512 x 384 px", KADID, "corruption", False
    ),
    Degradation("high_sharpen", light.sharpen, (1, 2, 3, 6, 12), "gain", KADID, "oversharpen"),
    Degradation(
        "contrast", light.contrast, (0.85, 0.7, 0.55, 0.4, 0.25), "factor, down or its inverse", OURS, "color", False
    ),
    # of cameras
    Degradation("sensor_noise", camera.sensor_noise, (2000, 700, 250, 90, 30), "electrons at white", OURS, "noise"),
    Degradation("defocus", camera.aperture, (1.5, 2.5, 4, 6.5, 10), "px, radius", OURS, "defocus"),
    Degradation("camera_shake", camera.shake, (4, 8, 14, 22, 36), "px, path", OURS, "motion_blur"),
    Degradation(
        "rolling_banding",
        camera.banding,
        (0.04, 0.08, 0.14, 0.22, 0.34),
        "depth in linear light",
        OURS,
        "banding",
        False,
    ),
    Degradation(
        "demosaic", camera.demosaic, (0.25, 0.45, 0.65, 0.85, 1.0), "share of a bilinear demosaic", OURS, "moire"
    ),
    Degradation("moire", camera.moire, (0.05, 0.1, 0.17, 0.27, 0.4), "depth", OURS, "moire", False),
    Degradation("halos", camera.halos, (0.5, 0.9, 1.5, 2.4, 3.8), "gain, wide radius", OURS, "oversharpen"),
    Degradation("dust_and_scratches", camera.dust, (2, 5, 9, 16, 28), "marks a 512 x 384 px", OURS, "dirt", False),
    Degradation("chroma_bleed", camera.chroma_bleed, (2, 4, 7, 12, 20), "px, sideways", OURS, "color"),
    Degradation(
        "too_little_light",
        camera.darker,
        (0.4, 0.8, 1.4, 2.2, 3.5),
        "stops",
        OURS,
        "underexposure",
        detail=False,
        everywhere=True,
    ),
    Degradation(
        "too_much_light",
        camera.brighter,
        (0.3, 0.6, 1, 1.6, 2.5),
        "stops",
        OURS,
        "overexposure",
        detail=False,
        everywhere=True,
    ),
    Degradation(
        "white_balance",
        camera.cast,
        (0.25, 0.5, 0.8, 1.2, 1.8),
        "stops, of red over blue",
        OURS,
        "color",
        detail=False,
        everywhere=True,
    ),
    # of codecs
    Degradation("double_jpeg", codecs.double_jpeg, (50, 36, 26, 17, 10), "quality, of both", OURS, "compression"),
    Degradation("webp", codecs.webp, (40, 22, 12, 5, 0), "quality", OURS, "compression"),
    Degradation("avif", codecs.avif, (40, 28, 18, 9, 1), "quality", OURS, "compression"),
)
BANK: Final = {degradation.name: degradation for degradation in _ALL}
LARGE_WEIGHT: Final = 0.25  # of a degradation that is seen from afar, against one of texture


def chances(of_places: bool) -> dict[str, float]:
    """How often each of the bank is drawn, against the others. `of_places`: of those that can spoil one."""
    drawn = [each for each in _ALL if not (of_places and each.everywhere)]
    return {each.name: 1.0 if each.detail else LARGE_WEIGHT for each in drawn}
