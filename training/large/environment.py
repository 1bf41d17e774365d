"""What a large model acts in while it is rolled out: a photo that it can zoom into. One instance a rollout."""

from typing import Any, ClassVar

from large.views import global_view, shown, zoomed
from qcheck.photo import Photo


class PhotoEnvironment:
    """TRL calls `reset` with the columns of a task, and the tool for each call that the model makes."""

    global_pixels: ClassVar[int]
    crop_pixels: ClassVar[int]
    max_probes: ClassVar[int]

    def __init__(self) -> None:
        self.photo: Photo | None = None
        self.probes = 0

    def reset(self, path: str, **_: Any) -> None:
        self.photo = Photo.open(path)
        self.view = global_view(self.photo, self.global_pixels)
        self.probes = 0

    def image_zoom_in_tool(self, bbox_2d: list[int], label: str = "") -> list[dict[str, Any]]:
        """
        Shows a part of the photo at full resolution.

        Args:
            bbox_2d: The part, [x1, y1, x2, y2] in pixels of the first picture.
            label: What is suspected there.

        Returns:
            The part, with some of its surroundings.
        """
        assert self.photo is not None
        if self.probes >= self.max_probes:
            raise ValueError("no more crops; answer now")
        view = zoomed(self.photo, self.view, bbox_2d, self.crop_pixels)
        self.probes += 1
        return [{"type": "image", "image": shown(self.photo, view)}]
