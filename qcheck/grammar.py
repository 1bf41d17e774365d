"""What the model may say at each point, as a llguidance grammar: no output is ever unparsable.

Every chunk, kind, level and number is one token of the bundle's vocabulary, so the grammar is written over token ids
and a text has exactly one spelling.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcheck import prompt
from qcheck.contract import Contract
from qcheck.errors import BundleError
from qcheck.verdict import DEFECT_LEVELS, MAX_DEFECTS


def lark_grammar(contract: Contract, token_id: Callable[[str], int], *, after_crop: bool, may_call: bool) -> str:
    """The grammar of one turn in llguidance's Lark dialect.

    `after_crop`: the turn starts with what the crop shows; `may_call`: a probe is left, so a tool call is allowed.
    """

    def one(text: str) -> str:
        return f"<[{token_id(text)}]>"

    def any_of(texts: Iterable[str]) -> str:
        return f"<[{','.join(str(token_id(text)) for text in texts)}]>"

    attributes: list[str] = []
    for index, name in enumerate(contract.attributes):
        attributes += ([one(prompt.COMMA)] if index else []) + [one(prompt.attribute_chunk(name)), "score"]
    moves = ["call"] if may_call else []
    rules = {
        "start": f"{'look ' if after_crop else ''}({' | '.join([*moves, 'answer'])}) {one(prompt.TURN_END)}",
        "call": f"{one(prompt.CALL_OPEN)} box {one(prompt.CALL_LABEL)} kind {one(prompt.CALL_CLOSE)}",
        "look": f"{one(prompt.THINK_OPEN)} ({one(prompt.THINK_CLEAN)} | finding) {one(prompt.THINK_CLOSE)}",
        "finding": f"kind {one(prompt.COMMA)} level {one(prompt.FINDING_BOX)} box {one(prompt.FINDING_CLOSE)}",
        "answer": f"{one(prompt.ANSWER_OPEN)} score {one(prompt.DEFECTS_OPEN)} defects "
        f"{one(prompt.DEFECTS_CLOSE)} {' '.join(attributes)} {one(prompt.ANSWER_CLOSE)}",
        "defects": f"(defect ({one(prompt.COMMA)} defect){{0,{MAX_DEFECTS - 1}}})?",
        "defect": f"{one(prompt.DEFECT_OPEN)} kind {one(prompt.DEFECT_LEVEL)} level {one(prompt.DEFECT_BOX)} box "
        f"{one(prompt.DEFECT_CLOSE)}",
        "box": f"{f' {one(prompt.COMMA)} '.join(['coordinate'] * 4)}",
        "kind": any_of(contract.kinds),
        "level": any_of(DEFECT_LEVELS),
        "score": any_of(contract.language.score_tokens),
        "coordinate": any_of(contract.language.coordinate_tokens),
    }
    return "\n".join(f"{name}: {body}" for name, body in rules.items())


class Grammar:
    """The compiled vocabulary and the grammars of a bundle; shared by all conversations."""

    def __init__(self, contract: Contract, tokenizer: Any) -> None:
        """`tokenizer`: a `tokenizers.Tokenizer`. Raises BundleError if a chunk is not one token of it."""
        import llguidance

        def token_id(text: str) -> int:
            found: int | None = tokenizer.token_to_id(text)
            if found is None:
                raise BundleError(f"the tokenizer has no token {text!r}, which this bundle's dialect needs")
            return found

        end = token_id(prompt.TURN_END)
        self._vocabulary = llguidance.LLTokenizer(tokenizer.to_str(), eos_token=end)
        self._grammars = {
            (after_crop, may_call): llguidance.grammar_from(
                "lark", lark_grammar(contract, token_id, after_crop=after_crop, may_call=may_call)
            )
            for after_crop in (False, True)
            for may_call in (False, True)
        }

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
