"""What the model may say at each point, as llguidance grammars: no output is ever unparsable."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcheck.contract import Contract
from qcheck.dialects import dialect_of, lark
from qcheck.errors import BundleError
from qcheck.prompt import TURN_END


class Grammar:
    """The compiled vocabulary and the grammars of a bundle; shared by all conversations."""

    def __init__(self, contract: Contract, tokenizer: Any) -> None:
        """`tokenizer`: a `tokenizers.Tokenizer`. Raises BundleError if a chunk that must be one token of it is not, or
        if its tokens are not made of bytes."""
        import llguidance

        dialect, find = dialect_of(contract), tokenizer.token_to_id
        lark.token(find, TURN_END)
        # After a crop, and with a probe left: of a dialect without crops neither.
        turns = list(product((False, True), repeat=2)) if contract.language.zooms else [(False, False)]
        self._grammars = {
            (after_crop, may_call): llguidance.grammar_from(
                "lark", dialect.rules(find, after_crop=after_crop, may_call=may_call)
            )
            for after_crop, may_call in turns
        }
        try:
            self._vocabulary = llguidance.LLTokenizer(tokenizer.to_str(), eos_token=find(TURN_END))
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"the tokenizer cannot be held to a grammar ({reason}); it must be byte-level") from None

    def matcher(self, *, after_crop: bool, may_call: bool) -> "Matcher":
        """A fresh matcher for one turn."""
        return Matcher(self._vocabulary, self._grammars[after_crop, may_call])


class Matcher:
    """Where one turn stands in its grammar."""

    def __init__(self, vocabulary: Any, grammar: str) -> None:
        import llguidance

        self._matcher = llguidance.LLMatcher(vocabulary, grammar)
        if error := self._matcher.get_error():
            raise AssertionError(f"our own grammar does not compile: {error}")

    def forced(self) -> list[int]:
        """Tokens that can only come next, taken at once: no decision, so no decoder step of their own."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self.take(tokens)
        return tokens

    def allowed(self, size: int) -> NDArray[np.intp]:
        """Ids of the tokens that may come next, of a vocabulary of `size`."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.flatnonzero(np.unpackbits(bits, bitorder="little")[:size])

    def take(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not self._matcher.consume_token(token):
                raise AssertionError(f"token {token} is outside the grammar: {self._matcher.get_error()}")

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())
