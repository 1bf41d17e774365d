"""What a turn says in letters, and how sure the model was of each part of it.

**How a number is read out.** A model that writes 3.42 chose a 3, then, after it, a 4, then a 2; of each choice the
probabilities of all ten digits are known, in the one pass that wrote them. They are the first branches of a tree whose
leaves are all numbers. The leaf that was written has the product of its digits' probabilities. Where another digit
could have stood, what would have followed was never asked, so it is taken as spread evenly over what could have been
written there, up to the largest number. Score and spread are the mean and the standard deviation of that distribution:
nothing is sampled, and a second-best digit counts for as much as the model gave it.
"""

import codecs
import math
from collections.abc import Sequence
from typing import Final

from qcheck.prompt import Said

_PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
# How byte-level vocabularies write bytes: printable Latin-1 as itself, the others as the characters from U+0100 on.
_BYTES: Final = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTABLE)))
}


def bytes_of(text: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary. Added tokens are written as they are."""
    if all(char in _BYTES for char in text):
        return bytes(_BYTES[char] for char in text)
    return text.encode()


class Spelled:
    """The text of a turn, every character of which knows the token that it came from. A character that the end of a
    thought cuts is left out."""

    def __init__(self, said: Sequence[Said]) -> None:
        decoder, self._said, self._owners = codecs.getincrementaldecoder("utf-8")("ignore"), said, list[int]()
        pieces = list[str]()
        for index, token in enumerate(said):
            pieces.append(decoder.decode(bytes_of(token.text)))
            self._owners += [index] * len(pieces[-1])
        self.text = "".join(pieces)

    def _tokens(self, span: tuple[int, int]) -> Sequence[Said]:
        first, end = span
        return self._said[self._owners[first] : self._owners[end - 1] + 1]

    def probability(self, span: tuple[int, int]) -> float:
        """Of the tokens that the characters of `span` are in, among what the grammar allowed, 0..1."""
        return math.prod(token.probability for token in self._tokens(span))

    def number(self, span: tuple[int, int], most: float) -> tuple[float, float]:
        """Mean and standard deviation of the number there, each of whose digits is a token; see above. `most`: the
        largest that could have been written."""
        digits = [token for token in self._tokens(span) if token.text != "."]
        step = 10.0 ** (1 - len(digits))
        reached, known, unit, mean, square = 1.0, 0.0, 1.0, 0.0, 0.0
        for token in digits:
            for digit, probability in token.options or ((float(token.text), 1.0),):
                if digit != float(token.text):
                    low = known + digit * unit
                    room = max(0.0, min(unit - step, most - low))
                    middle, count = low + room / 2, room / step + 1
                    mean += reached * probability * middle
                    square += reached * probability * (middle**2 + (count**2 - 1) / 12 * step**2)
            known += unit * float(token.text)
            unit /= 10
            reached *= token.probability
        mean += reached * known
        square += reached * known**2
        return mean, math.sqrt(max(0.0, square - mean**2))
