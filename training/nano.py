"""nano: Qwen2.5-VL's model class with a tiny text side and a convolutional vision side.

A thin subclass: only `visual` is swapped, so transformers' position code, `generate` and trainers work as for any
Qwen2.5-VL. Patch 16 and merge 4 make one token of 64 x 64 px, which holds 2x2 cells of 32 px.
"""

from typing import Final

import torch
import vocabulary as words
from defects import PHOTOS, Domain
from nano_spec import MERGE, PATCH_PX
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from visual import LEVELS, NUMBER_BINS, PROPOSALS, NanoVisual, bumps, slots_of

from qcheck import prompt

NUMBER_SCALE: Final = 0.75  # a number's bump then has the length of a slot's name
WORD_SCALE: Final = 0.3
# Halfway between what 0.9.1 does on 108 images of 27 untouched sources with bars of .6 and 0: F1 .522 and .514, IoU
# .449 and .463, and a defect in .03 and .15 of clean images. 0.9.2 has .551, .470 and .03 at it.
CLEAN_BAR: Final = 0.3


def config(tokenizer: Tokenizer, hidden: int = 320, layers: int = 6, domain: Domain = PHOTOS) -> Qwen2_5_VLConfig:
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
        defect_kinds=len(domain.kinds),
        attributes=len(domain.attributes),
    )


class Nano(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with `visual` swapped."""

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__(config)
        self.model.visual = NanoVisual(config.text_config.hidden_size, config.defect_kinds, config.attributes)


@torch.no_grad()
def write_numbers(model: Nano, tokenizer: Tokenizer) -> None:
    """Starts a model with one code for numbers, whether they are said (coordinate and score tokens) or seen (what the
    projector reads): neighbours are alike, and to repeat a number is to pass it on. Learned from nothing, each of the
    142 tokens would have to be met many times before it is read."""
    embeddings = model.get_input_embeddings().weight
    code = torch.randn(NUMBER_BINS, embeddings.shape[1])
    for tokens in (words.COORDINATE_TOKENS, words.SCORE_TOKENS):
        ids = torch.tensor([tokenizer.token_to_id(text) for text in tokens])
        said = bumps(torch.linspace(0, 1, len(tokens)), NUMBER_BINS) @ code
        about = torch.randn(embeddings.shape[1])  # a coordinate is no score
        both = said / said.std() + about
        embeddings[ids] = model.config.text_config.initializer_range * both / both.std()
    projector = model.model.visual.projector
    reading, view = projector.from_reading.weight, projector.from_view.weight
    # What a token says of the view, and which it is, must not drown in what all of them know.
    reading[:, -NUMBER_BINS:] = NUMBER_SCALE * code.T
    slots = slots_of(model.config.attributes)
    reading[:, -NUMBER_BINS - slots : -NUMBER_BINS] = torch.randn(reading.shape[0], slots)
    spoken = PROPOSALS * (1 + model.config.defect_kinds + LEVELS)
    view[:, -spoken:] = WORD_SCALE * torch.randn(view.shape[0], spoken)


def raise_bar(model: Nano, tokenizer: Tokenizer) -> None:
    """Sets how much likelier than nothing a defect has to be before a trained model reports it: by CLEAN_BAR in log
    odds, wherever it may say that there is none."""
    bias = torch.zeros(tokenizer.get_vocab_size())
    bias[[tokenizer.token_to_id(text) for text in (prompt.THINK_CLEAN, prompt.DEFECTS_CLOSE)]] = CLEAN_BAR
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)


def view_pixels_to_patches(planar: Tensor) -> tuple[Tensor, list[int]]:
    """(3, h, w) -> Qwen's packed patches (rows*cols, 3*16*16) in merge-block order and the grid [1, rows, cols]."""
    rows, cols = planar.shape[1] // PATCH_PX, planar.shape[2] // PATCH_PX
    x = planar.reshape(3, rows // MERGE, MERGE, PATCH_PX, cols // MERGE, MERGE, PATCH_PX).permute(1, 4, 2, 5, 0, 3, 6)
    return x.reshape(rows * cols, 3 * PATCH_PX**2), [1, rows, cols]
