"""nano's own vocabulary: the chunks of the dialect, kinds, levels and numbers as single tokens, and a small byte-level
BPE for the words of the prompt."""

from typing import Final

from defects import PHOTOS, Domain
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from qcheck import prompt
from qcheck.contract import IMAGE_SLOT, LanguageSpec
from qcheck.verdict import DEFECT_LEVELS

PAD: Final = "<|endoftext|>"
IMAGE: Final = "<|image_pad|>"
VISION_START: Final = "<|vision_start|>"
VISION_END: Final = "<|vision_end|>"
CONTROL: Final = (PAD, "<|im_start|>", VISION_START, VISION_END, IMAGE, "<tool_response>", "</tool_response>")
SCORE_TOKENS: Final = tuple(f"{tenths / 10:.1f}" for tenths in range(10, 51))
COORDINATE_STEP: Final = 10
COORDINATE_TOKENS: Final = tuple(str(value) for value in range(0, 1001, COORDINATE_STEP))

_ASSISTANT: Final = "<|im_end|>\n<|im_start|>assistant\n"
_PICTURE: Final = f"{VISION_START}{IMAGE_SLOT}{VISION_END}"


def language(domain: Domain = PHOTOS) -> LanguageSpec:
    """A domain's prompts, and the tokens that are numbers."""
    first = f"<|im_start|>user\n{_PICTURE}{domain.request} "
    crop = f"\n<|im_start|>user\n<tool_response>{_PICTURE}</tool_response>"
    prompts = [start + how + _ASSISTANT for start in (first, crop) for how in (domain.may_zoom, domain.must_answer)]
    return LanguageSpec("probe-json", *prompts, SCORE_TOKENS, COORDINATE_TOKENS)


def build(domain: Domain = PHOTOS) -> Tokenizer:
    """A domain's `tokenizers` tokenizer; the same ids every time."""
    tokenizer = Tokenizer(models.BPE())
    # ByteLevel, because llguidance takes no other kind.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    singles = [
        *CONTROL,
        *prompt.CHUNKS,
        *map(prompt.attribute_chunk, domain.attributes),
        *domain.kinds,
        *DEFECT_LEVELS,
        *SCORE_TOKENS,
        *COORDINATE_TOKENS,
    ]
    spoken = language(domain)
    texts = [
        text.replace(IMAGE_SLOT, "") for text in (spoken.first, spoken.first_final, spoken.crop, spoken.crop_final)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=len(singles) + 256 + 64,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in singles],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 4, trainer)
    return tokenizer
