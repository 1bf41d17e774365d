"""The tokenizer of a checkpoint, and what its dialect needs of it."""

from pathlib import Path
from typing import Any, Final

from errors import ExportError
from templates import MARKERS
from tokenizers import Tokenizer

from qcheck.contract import IMAGE_SLOT, Contract
from qcheck.grammar import Grammar

TOKENIZER_FILE: Final = "tokenizer.json"
ANSWER_TOKENS: Final = 300  # a long answer in JSON, with four defects


def tokenizer_of(checkpoint: Path, vocabulary: int) -> Any:
    """A `tokenizers.Tokenizer` whose every token has an embedding, of `vocabulary` of them. Raises ExportError."""
    path = checkpoint / TOKENIZER_FILE
    if not path.is_file():
        raise ExportError(f"{checkpoint} has no {TOKENIZER_FILE}; save the checkpoint's fast tokenizer there")
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ExportError(f"{path} is not a tokenizer ({error})") from None
    for marker in MARKERS:
        if made.token_to_id(marker) is None:
            raise ExportError(f"{path} has no token {marker}, which Qwen's chat template needs")
    largest = max(made.get_vocab(with_added_tokens=True).values())
    if largest >= vocabulary:
        raise ExportError(f"{path} has a token of number {largest} and the checkpoint {vocabulary} embeddings")
    return made


def check_speech(contract: Contract, tokenizer: Any) -> None:
    """That the dialect's grammars compile over the tokenizer, and that the cache holds a first look and its answer.
    Raises BundleError or ExportError."""
    grammar, language = Grammar(contract, tokenizer), contract.language
    grammar.matcher(after_crop=False, may_call=language.zooms)
    view = contract.global_view
    prompt = len(tokenizer.encode(language.first.replace(IMAGE_SLOT, "")).ids)
    needed = prompt + view.max_pixels // view.token_px**2 + language.think_tokens + ANSWER_TOKENS
    if needed > contract.decoder.max_tokens:
        raise ExportError(
            f"--max-tokens {contract.decoder.max_tokens}: one look at a photo and its answer may need {needed} tokens;"
            " raise it, or lower --global-pixels or --think-tokens"
        )
