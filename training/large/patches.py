"""Pictures as Qwen's processor hands them to the model, and back: to change a picture that is in a batch already."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Patches:
    """The layout of a processor's patches. `images`: Qwen's image processor, whose sizes and statistics count."""

    def __init__(self, images: Any) -> None:
        self.patch, self.times, self.merge = images.patch_size, images.temporal_patch_size, images.merge_size
        self.mean, self.std = (np.array(part, np.float32) for part in (images.image_mean, images.image_std))

    def picture(self, patches: Tensor, rows: int, cols: int) -> NDArray[np.uint8]:
        """(rows * cols, 3 * times * patch^2) normalised patches of a still, in merge-block order -> (h, w, 3) sRGB."""
        m, p = self.merge, self.patch
        x = patches.float().cpu().reshape(rows // m, cols // m, m, m, 3, self.times, p, p)[..., 0, :, :]
        x = x.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * p, cols * p, 3)
        pixels = np.clip(np.rint(255 * (x.numpy() * self.std + self.mean)), 0, 255)
        return pixels.astype(np.uint8)

    def of(self, picture: NDArray[np.uint8]) -> Tensor:
        """What `picture` was made of, in fp32."""
        m, p = self.merge, self.patch
        rows, cols = picture.shape[0] // p, picture.shape[1] // p
        x = torch.from_numpy((picture.astype(np.float32) / 255 - self.mean) / self.std)
        x = x.reshape(rows // m, m, p, cols // m, m, p, 3).permute(0, 3, 1, 4, 6, 2, 5)
        x = x[..., None, :, :].expand(*x.shape[:5], self.times, p, p)
        return x.reshape(rows * cols, -1)
