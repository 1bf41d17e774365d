"""A tokenizer like Qwen2.5's, but small: the same splits, bytes and added tokens; and contracts of its dialects."""

from dataclasses import replace
from functools import cache
from typing import Any

from fake_model import plain_contract, script

from qcheck.contract import Contract, LanguageSpec
from qcheck.dialects import chat

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
