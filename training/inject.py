"""Local artifacts in the texture of a clean photo, with the truth kept."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from degradations import BANK
from importance import mean_inside
from numpy.typing import NDArray
from pixels import Pixels, to_u8
from vista_score import LOSSLESS, cost, likeness, window_around
from wavelets import texture_energy, with_texture_of

REGION_SHARE: Final = (0.05, 0.3)  # least and greatest side, of the photo's sides, log-uniform
LEAST_PX: Final = 64
MOST_PX: Final = 1400
CANDIDATES: Final = 48
TRIES: Final = 6
# 8-bit steps, see wavelets.texture_energy: below, blur and its like have nothing to take away.
LEAST_TEXTURE: Final = 1.5
CONTEXT_PX: Final = 24  # around a region, so that its edge is degraded as its middle is

BoxPx = tuple[int, int, int, int]  # x1, y1, x2, y2 in photo pixels, half-open


@dataclass(frozen=True, slots=True)
class Region:
    """One broken place. `name`: of the bank; `kind`: what a model should call it; `importance` 0..1; `texture` in 8-bit
    steps; `likeness`: SSIMULACRA2 to the clean photo there; `cost` 0..1, of vista_score.py."""

    box: BoxPx
    name: str
    kind: str
    level: int
    importance: float
    texture: float
    likeness: float
    cost: float
    seed: int


def inject(
    pixels: Pixels,
    name: str,
    level: int,
    map_: NDArray[np.float32],
    avoid: list[Region],
    rng: np.random.Generator,
    energy: NDArray[np.float32] | None = None,
    sides: tuple[float, float] = REGION_SHARE,
) -> Region | None:
    """Breaks one place of a photo (changed in place) that is textured and matters, or says that none suits: None.
    `map_`: its importance. Places of `avoid` and their surroundings stay as they are. `energy`: the photo's texture
    where it is known, for measuring it takes longer than all the rest. `sides`: least and greatest side of the place,
    of the photo's sides."""
    height, width = pixels.shape[:2]
    degradation = BANK[name]
    if energy is None:
        energy = texture_energy(pixels)
    for _ in range(TRIES):
        places = []
        for _ in range(CANDIDATES):
            box = _anywhere(width, height, sides, rng)
            texture = mean_inside(energy, box, width, height)
            if (texture >= LEAST_TEXTURE or not degradation.detail) and not any(_near(box, r.box) for r in avoid):
                places.append((box, texture, mean_inside(map_, box, width, height)))
        if not places:
            continue
        weights = np.array([min(texture, 20) * (0.25 + importance) for _, texture, importance in places]) + 1e-6
        box, texture, importance = places[int(rng.choice(len(places), p=weights / weights.sum()))]
        seed = int(rng.integers(2**31))
        x1, y1, x2, y2 = box
        rows, columns = window_around(box, width, height)
        before_window, before = pixels[rows, columns].copy(), pixels[y1:y2, x1:x2].copy()
        pixels[y1:y2, x1:x2] = _broken(pixels, name, level, seed, box, soft_mask(y2 - y1, x2 - x1, rng))
        alike = likeness(before_window, pixels[rows, columns])
        if alike >= LOSSLESS:  # nobody sees it
            pixels[y1:y2, x1:x2] = before
            continue
        share = (x2 - x1) * (y2 - y1) / (width * height)
        return Region(
            box, name, degradation.kind, level, importance, texture, alike, cost(alike, importance, share), seed
        )
    return None


def _anywhere(width: int, height: int, sides: tuple[float, float], rng: np.random.Generator) -> BoxPx:
    w, h = (
        min(side, MOST_PX, max(LEAST_PX, round(side * math.exp(rng.uniform(*np.log(sides))))))
        for side in (width, height)
    )
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return x, y, x + w, y + h


def soft_mask(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(height, width) float32 in 0..1: a superellipse that reaches its box at half strength, with a soft rim."""
    power = rng.uniform(2, 6)
    y = np.abs(np.linspace(-1, 1, height))[:, None] ** power
    x = np.abs(np.linspace(-1, 1, width))[None] ** power
    rim = rng.uniform(0.08, 0.3)
    distance = (x + y) ** (1 / power)  # 1 on the rim
    return np.clip((1 + rim / 2 - distance) / rim, 0, 1).astype(np.float32)


def _near(a: BoxPx, b: BoxPx) -> bool:
    gap = CONTEXT_PX
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _broken(pixels: Pixels, name: str, level: int, seed: int, box: BoxPx, mask: NDArray[np.float32]) -> Pixels:
    """The region's pixels, broken where its mask is 1."""
    x1, y1, x2, y2 = box
    top, left = max(0, y1 - CONTEXT_PX), max(0, x1 - CONTEXT_PX)
    around = np.ascontiguousarray(pixels[top : y2 + CONTEXT_PX, left : x2 + CONTEXT_PX])
    broken = BANK[name](around, level, seed)
    changed = with_texture_of(around, broken) if BANK[name].detail else broken.astype(np.float32)
    changed = changed[y1 - top : y2 - top, x1 - left : x2 - left]
    here = pixels[y1:y2, x1:x2].astype(np.float32)
    return to_u8(here + mask[..., None] * (changed - here))
