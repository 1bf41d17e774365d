"""A classical measure of the photos named on standard input, a number a line, more is better; `nan` where it fails.

    python peer_scores.py brisque|niqe|piqe|image-quality-ai

They need an environment of their own, because they do not run on numpy 2.4:

    python -m venv peers
    peers/bin/pip install brisque pypiqe image-quality-ai scikit-video opencv-python-headless 'numpy<2.4'
"""

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def brisque() -> Callable[[NDArray[np.uint8]], float]:
    from brisque import BRISQUE

    metric = BRISQUE(url=False)
    return lambda pixels: -metric.score(pixels)  # it counts distortion, and so does PIQE


def niqe() -> Callable[[NDArray[np.uint8]], float]:
    import scipy.ndimage
    import scipy.stats

    # scikit-video was written for names that numpy and scipy have taken back since.
    np.int, np.float, scipy.misc = int, float, ModuleType("scipy.misc")
    scipy.misc.imresize = resized
    sys.modules["scipy.misc"] = scipy.misc
    from skvideo.measure import niqe as measure

    return lambda pixels: -measure(np.asarray(Image.fromarray(pixels).convert("L")))[0]


def resized(pixels: NDArray[np.float32], scale: float, interp: str, mode: str) -> NDArray[np.float32]:
    """As scipy.misc.imresize did it in mode F."""
    assert (interp, mode) == ("bicubic", "F")
    height, width = (int(scale * side) for side in pixels.shape)
    return np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))


def piqe() -> Callable[[NDArray[np.uint8]], float]:
    from pypiqe import piqe as measure

    return lambda pixels: -measure(pixels)[0]


def image_quality_ai() -> Callable[[NDArray[np.uint8]], float]:
    from image_quality_ai import assess

    return lambda pixels: assess(pixels).score


score = {"brisque": brisque, "niqe": niqe, "piqe": piqe, "image-quality-ai": image_quality_ai}[sys.argv[1]]()
for line in sys.stdin:
    try:
        print(float(score(np.asarray(Image.open(line.rstrip("\n")).convert("RGB")))), flush=True)
    except Exception:  # they raise many things on flat photos
        print("nan", flush=True)
