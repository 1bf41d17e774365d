"""How a checkpoint's photos are cut and normalised, with explicit budgets of pixels where Qwen's own is silent."""

import json
from pathlib import Path
from typing import Any, Final

from architecture import VisionArchitecture
from errors import ExportError

from qcheck.contract import PatchSpec, PixelSpec
from qcheck.tiles import CropSpec, ViewSpec

# Newer checkpoints nest the first into the second.
PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
# CLIP's, which Qwen2.5-VL was trained with.
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
LEAST_TOKENS: Final = 4  # of a view, as Qwen's processor has it
MOST_UPSCALE: Final = 4.0
MARGIN: Final = 0.1  # of a crop's side on each side, as public tools pad


def pixels_of(checkpoint: Path, vision: VisionArchitecture) -> PixelSpec:
    """Raises ExportError."""
    if vision.channels != len(MEAN):
        raise ExportError(f"the vision tower takes {vision.channels} channels; photos have {len(MEAN)}")
    patches = PatchSpec(vision.patch_px, vision.merge, vision.window_px)
    mean, std = (_numbers(checkpoint, *default) for default in (("image_mean", MEAN), ("image_std", STD)))
    return PixelSpec("patches", mean, std, survey=False, patches=patches)


def view_of_budget(option: str, max_pixels: int, token_px: int) -> ViewSpec:
    """Views of at most so many pixels. Raises ExportError naming the option."""
    least = LEAST_TOKENS * token_px**2
    if max_pixels < least:
        raise ExportError(f"{option} {max_pixels}: must be {least} or more, {LEAST_TOKENS} tokens")
    return ViewSpec(token_px, least, max_pixels, MOST_UPSCALE)


def crop_of(token_px: int) -> CropSpec:
    return CropSpec(MARGIN, token_px)


def _numbers(checkpoint: Path, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Three numbers of the processor's settings, if it has any."""
    for name in PROCESSOR_FILES:
        settings = _settings(checkpoint / name)
        found = settings.get("image_processor", settings).get(key)
        if found is not None:
            good = isinstance(found, list) and len(found) == len(default)
            if not (good and all(isinstance(value, int | float) for value in found)):
                raise ExportError(f"{checkpoint / name}: {key} must be {len(default)} numbers")
            return tuple(float(value) for value in found)
    return default


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("image_processor", {}), dict):
        raise ExportError(f"{path} holds no object")
    return settings
