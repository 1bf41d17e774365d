"""How likely a suspicious place is a damage: by its strength alone, and so the same for all who read it."""

import math
from typing import Final

# By what became of the places that the eyes of 0.8.2 proposed on the photos of MORE/dev, which they had not seen
# (README.md): of those in crops with a strength of 2 to 3 one in ten had an IoU of half with a damage, of 3 to 4 seven
# in ten, of more nine in ten; of those in whole views one in four, seven in eight and all 13.
BAR: Final = 2.75  # log odds, as of regions.Proposals
UNIT: Final = 0.5


def believed(strength: float) -> float:
    """The chance, 0..1, that a place of such a strength is a damage whose box is a fair one."""
    return 1 / (1 + math.exp(-(strength - BAR) / UNIT))
