"""The same photo, worse: what Q-Hawkeye's implicit perception loss compares a photo with."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from degradations import BANK
from numpy.typing import NDArray

# Q-Hawkeye degrades the photo by one of noise, blur, JPEG and darkening, and half of the time by a second.
DEGRADED_BY: Final = ("white_noise", "gaussian_blur", "jpeg", "darken")
SECOND_SHARE: Final = 0.5
LEVELS: Final = (3, 6)  # of 1 to 5, the last excluded; ours


@dataclass(frozen=True, slots=True)
class Worse:
    """What is done to a photo: names of BANK, levels and seeds, one after the other."""

    steps: tuple[tuple[str, int, int], ...]

    @staticmethod
    def drawn(rng: np.random.Generator) -> "Worse":
        names = rng.choice(DEGRADED_BY, 2 if rng.random() < SECOND_SHARE else 1, replace=False)
        return Worse(tuple((str(name), int(rng.integers(*LEVELS)), int(rng.integers(2**31))) for name in names))

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(h, w, 3) sRGB, degraded."""
        for name, level, seed in self.steps:
            pixels = BANK[name](pixels, level, seed)
        return pixels
