"""Makes the example photos from their originals; the README beside this file says where those come from.

    python examples/make.py --skimage SITE_PACKAGES/skimage/data --mountains picosdeeuropa_by_Aitzol_Berasategi.jpg

The same originals and the same Pillow give the same bytes.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUT = Path(__file__).parent
MOUNTAINS_PX = (2400, 1600)  # (width, height)
NOISE_BOX = (1540, 20, 1990, 330)  # x1, y1, x2, y2: where the noise has at least half its strength
NOISE_SIGMA = 40.0  # of 255, in each channel
RIM = 0.12  # share of the box's half side over which the noise fades


def noise_mask(width: int, height: int, box: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """(height, width) float, 1 inside a rounded box, 0 outside, one half on its sides."""
    x1, y1, x2, y2 = box
    x = (np.arange(width) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    y = (np.arange(height) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    radius = (np.abs(x)[None, :] ** 6 + np.abs(y)[:, None] ** 6) ** (1 / 6)
    mask: NDArray[np.float64] = np.clip((1 - radius) / RIM + 0.5, 0, 1)
    return mask


def mountains(original: Path) -> Image.Image:
    """The landscape at MOUNTAINS_PX, cut evenly above and below, with strong Gaussian noise in NOISE_BOX."""
    width, height = MOUNTAINS_PX
    with Image.open(original) as image:
        full = image.convert("RGB")
    full = full.resize((width, round(full.height * width / full.width)), Image.Resampling.LANCZOS)
    top = (full.height - height) // 2
    pixels = np.asarray(full.crop((0, top, width, top + height))).astype(np.float64)
    noise = np.random.default_rng(20250101).normal(0, NOISE_SIGMA, pixels.shape)
    pixels += noise * noise_mask(width, height, NOISE_BOX)[..., None]
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the example photos from their originals.")
    parser.add_argument("--skimage", type=Path, required=True, help="scikit-image's data folder")
    parser.add_argument("--mountains", type=Path, required=True, help="the landscape to damage")
    args = parser.parse_args()
    for name in ("coffee", "chelsea"):
        with Image.open(args.skimage / f"{name}.png") as image:
            image.convert("RGB").save(OUT / f"{name}.jpg", quality=92)
    shutil.copyfile(args.skimage / "rocket.jpg", OUT / "rocket.jpg")
    mountains(args.mountains).save(OUT / "mountains-noise.jpg", quality=88)


if __name__ == "__main__":
    main()
