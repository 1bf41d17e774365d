"""Qwen2.5-VL, but small: a tokenizer with its splits and added tokens, contracts of its dialects, a checkpoint."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fake_model import library, plain_contract, script

from qcheck.contract import Contract, LanguageSpec
from qcheck.dialects import chat

# Not Qwen's, so that whoever does not read the checkpoint's is found out.
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.26, 0.27]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# In Qwen's vocabulary these are tokens too, but text: a decoder does not leave them out.
PLAIN = ("<tool_call>", "</tool_call>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LINES = (
    "<think>The sky is full of noise, the grain of it is coarse.</think>",
    '<answer>{"score": 2.35, "defects": [{"kind": "noise", "level": "obvious", "bbox_2d": [12, 34, 256, 178]}], '
    '"attributes": {"sharpness": 4.10, "noise": 2.20}}</answer>',
    '\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [12, 34, 256, 178], "label": "noise in the sky"}}\n',
    "<answer>3.42</answer>",
    '<answer>{"rating": 3.42}</answer>',
    chat.SYSTEM,
)


@cache
def tokenizer(size: int = 700) -> Any:
    """A `tokenizers.Tokenizer` of at most `size` tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL) - len(PLAIN),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(LINES * 4, trainer)
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN])
    return made


def contract_of(dialect: str, think_tokens: int = 12, attributes: bool = True) -> Contract:
    """A contract that speaks a dialect of Qwen's."""
    photos = script("defects").PHOTOS
    zooms = dialect == "qwen-chat"
    crop = "<{image}>?" if zooms else ""
    language: Any = LanguageSpec(dialect, "{image}?", "{image}!", crop, crop, (), (), think_tokens)  # type: ignore[arg-type]
    return replace(
        plain_contract(),
        kinds=photos.kinds if zooms else (),
        attributes=photos.attributes if zooms and attributes else (),
        coordinates="view_pixels",
        language=language,
    )


def random_model(config: Any, seed: int) -> Any:
    """Of transformers, eager, with weights large enough that every layer and bias shows in what it says."""
    torch, transformers = library("torch"), library("transformers")
    torch.manual_seed(seed)
    model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.4 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            else:
                parameter.uniform_(0.6, 1.4)
        model.get_input_embeddings().weight.normal_(std=0.4)
    return model


def save_checkpoint(folder: Path, seed: int = 11, dtype: str = "float32") -> Any:
    """A tiny random Qwen2.5-VL as transformers saves it, with what published ones have beside it; the model. What a
    random one wants is up to chance: with this seed it asks for crops of some photos and not of others."""
    torch, transformers = library("torch"), library("transformers")
    words = tokenizer()
    vocabulary = words.get_vocab_size() + 24  # as in Qwen's, more rows than tokens
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=words.token_to_id("<|image_pad|>"),
        vision_start_token_id=words.token_to_id("<|vision_start|>"),
        vision_end_token_id=words.token_to_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = random_model(config, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: other\nlicense_name: tiny-research\n---\n# Tiny\n")
    (folder / "LICENSE").write_text("Do as you like.\n")
    return model
