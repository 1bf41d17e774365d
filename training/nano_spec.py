"""What nano looks at, and how: shared by its caches, its training and its bundle."""

from typing import Final

from qcheck.tiles import CropSpec, ViewSpec

PATCH_PX: Final = 16
MERGE: Final = 4
TOKEN_PX: Final = PATCH_PX * MERGE  # one token sees 64 x 64 px of its view: 2x2 cells of 32 px
CELLS_PER_SIDE: Final = 2
SCORE_CENTRE: Final = 3.0  # of 1..5
LEAST_UNIT: Final = 0.1  # of a channel's usual spread: what a token is told in, however flat its view
COUNT_UNIT: Final = 144.0  # tokens: a view of as many has size 0
GLOBAL_VIEW: Final = ViewSpec(token_px=TOKEN_PX, min_pixels=256 * 256, max_pixels=1536 * 1152, max_upscale=2.0)
# The size at which a photo is judged as a whole, whatever its own.
OVERVIEW: Final = ViewSpec(token_px=TOKEN_PX, min_pixels=256 * 256, max_pixels=512 * 512, max_upscale=2.0)
CROP_VIEW: Final = ViewSpec(token_px=TOKEN_PX, min_pixels=TOKEN_PX**2, max_pixels=896 * 896, max_upscale=1.0)
CROP: Final = CropSpec(margin=0.3, min_side_px=704)
