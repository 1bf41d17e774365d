"""nano: Qwen2.5-VL's model class with a tiny text side and a convolutional vision side.

A thin subclass: only `visual` is swapped, so transformers' position code, `generate` and trainers work as for any
Qwen2.5-VL. Patch 16 and merge 4 make one token of 64 x 64 px, which holds 2x2 cells of 32 px.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import vocabulary as words
from cells import CELL_CHANNELS, CELL_PX, CellEncoder
from nano_spec import CELLS_PER_SIDE, MERGE, PATCH_PX
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

CELLS_PER_TOKEN: Final = CELLS_PER_SIDE**2
POSITION_FREQUENCIES: Final = 6
POSITION_CHANNELS: Final = 4 * POSITION_FREQUENCIES + 4
CLIP: Final = 8.0  # standard deviations
NOISE: Final = 0.1  # standard deviations, in training
TOKEN_DROP: Final = 0.1


def config(tokenizer: Tokenizer, hidden: int = 320, layers: int = 6) -> Qwen2_5_VLConfig:
    heads, kv_heads, head_dim = hidden // 64, 1, 64
    text = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id(words.PAD),
    }
    vision = {
        "depth": 1,  # built and thrown away: NanoVisual takes its place
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 1,
        "out_hidden_size": hidden,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 1,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.token_to_id(words.IMAGE),
        vision_start_token_id=tokenizer.token_to_id(words.VISION_START),
        vision_end_token_id=tokenizer.token_to_id(words.VISION_END),
        tie_word_embeddings=True,
    )


class NanoVisual(nn.Module):
    """Pixels to tokens. A token sees its four cells, the whole view's mean and spread, and where in the view it is."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.spatial_merge_size = MERGE
        self.encoder = CellEncoder()
        self.register_buffer("cell_mean", torch.zeros(CELL_CHANNELS))
        self.register_buffer("cell_std", torch.ones(CELL_CHANNELS))
        self.from_cells = nn.Linear(CELLS_PER_TOKEN * CELL_CHANNELS, hidden)
        self.from_summary = nn.Linear(2 * CELL_CHANNELS, hidden, bias=False)
        self.from_position = nn.Linear(POSITION_CHANNELS, hidden, bias=False)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden))
        self.norm = nn.LayerNorm(hidden)

    @property
    def dtype(self) -> torch.dtype:
        return self.from_cells.weight.dtype

    def tokens(self, views: Sequence[Tensor]) -> Tensor:
        """Cells of views, (rows, cols, CELL_CHANNELS) each -> (sum of rows/2 * cols/2, hidden), raster order a view."""
        parts = [self.gathered(cells) for cells in views]
        cells, summaries, places = (torch.cat(part) for part in zip(*parts, strict=True))
        x = self.from_cells(cells) + self.from_summary(summaries) + self.from_position(places)
        x = self.norm(x + self.mix(x))
        if self.training:
            x = x * (torch.rand(x.shape[0], 1, device=x.device) >= TOKEN_DROP)
        return x

    def gathered(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A view's tokens before any weight: their four cells, the view's mean and spread, their places."""
        x = ((cells - self.cell_mean) / self.cell_std).clamp(-CLIP, CLIP)
        rows, cols = x.shape[0] // CELLS_PER_SIDE, x.shape[1] // CELLS_PER_SIDE
        flat = x.flatten(0, 1)
        mean = flat.mean(0)
        summary = torch.cat((mean, torch.sqrt(((flat - mean) ** 2).mean(0) + 1e-6)))
        if self.training:
            x = x + NOISE * torch.randn_like(x)
        x = x.reshape(rows, CELLS_PER_SIDE, cols, CELLS_PER_SIDE, CELL_CHANNELS).permute(0, 2, 1, 3, 4)
        x = x.reshape(rows * cols, CELLS_PER_TOKEN * CELL_CHANNELS)
        return x, summary.expand(x.shape[0], 2 * CELL_CHANNELS), positions(rows, cols, x)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(1, 3, h, w) normalised pixels -> (h/64 * w/64, hidden)."""
        return self.tokens([self.encoder(pixels)])

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Qwen's call. `hidden_states`: all patches, (n, 3*16*16), in merge-block order; `grid_thw`: (images, 3)."""
        views, start = [], 0
        for _, rows, cols in grid_thw.tolist():
            patches = hidden_states[start : start + rows * cols]
            start += rows * cols
            x = patches.reshape(rows // MERGE, cols // MERGE, MERGE, MERGE, 3, PATCH_PX, PATCH_PX)
            x = x.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * PATCH_PX, cols * PATCH_PX)
            views.append(self.image_tokens(x))
        tokens = torch.cat(views)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens)


def positions(rows: int, cols: int, like: Tensor) -> Tensor:
    """(rows * cols, POSITION_CHANNELS): sines and cosines of each token's place in its view, and the view's size."""
    y = (torch.arange(rows, device=like.device, dtype=torch.float32) + 0.5) / rows
    x = (torch.arange(cols, device=like.device, dtype=torch.float32) + 0.5) / cols
    place = torch.stack((y[:, None] + 0 * x, x + 0 * y[:, None]), -1).reshape(-1, 2, 1)
    octaves = math.pi * 2.0 ** torch.arange(POSITION_FREQUENCIES, device=like.device, dtype=torch.float32)
    waves = torch.cat((torch.sin(place * octaves), torch.cos(place * octaves)), -1).flatten(1)
    size = torch.stack((torch.log(0 * y[0] + rows), torch.log(0 * x[0] + cols))) / 3
    return torch.cat((waves, place[:, :, 0], size.expand(waves.shape[0], 2)), -1)


class Nano(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with `visual` swapped."""

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__(config)
        self.model.visual = NanoVisual(config.text_config.hidden_size)


def view_pixels_to_patches(planar: Tensor) -> tuple[Tensor, list[int]]:
    """(3, h, w) -> Qwen's packed patches (rows*cols, 3*16*16) in merge-block order and the grid [1, rows, cols]."""
    rows, cols = planar.shape[1] // PATCH_PX, planar.shape[2] // PATCH_PX
    x = planar.reshape(3, rows // MERGE, MERGE, PATCH_PX, cols // MERGE, MERGE, PATCH_PX).permute(1, 4, 2, 5, 0, 3, 6)
    return x.reshape(rows * cols, 3 * PATCH_PX**2), [1, rows, cols]


__all__: Sequence[str] = ("CELL_PX", "Nano", "NanoVisual", "config", "view_pixels_to_patches")
