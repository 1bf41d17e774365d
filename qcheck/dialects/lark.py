"""Pieces of grammars in llguidance's Lark dialect that dialects share."""

import json
from typing import Final

from qcheck.dialects import FindToken
from qcheck.errors import BundleError
from qcheck.prompt import TURN_END

DIGITS: Final = tuple("0123456789")
THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"


def token(find: FindToken, *texts: str) -> str:
    """Any one of these tokens. Raises BundleError for a text that is not a token."""
    return f"<[{','.join(map(str, _ids(find, texts)))}]>"


def _ids(find: FindToken, texts: tuple[str, ...]) -> list[int]:
    found = []
    for text in texts:
        number = find(text)
        if number is None:
            raise BundleError(f"the tokenizer has no token {text!r}, which this bundle's dialect needs")
        found.append(number)
    return found


def words(text: str) -> str:
    """These letters, in whatever tokens."""
    return json.dumps(text, ensure_ascii=False)


def tag(find: FindToken, text: str) -> str:
    """A tag: its own token where the vocabulary has one, as checkpoints were taught; otherwise its letters."""
    return words(text) if find(text) is None else token(find, text)


def score(find: FindToken) -> str:
    """1.00 to 5.00, each digit a token of its own, so that what the model thinks of each is known."""
    dot, digit, zero = token(find, "."), token(find, *DIGITS), token(find, "0")
    return f"{token(find, *'1234')} {dot} {digit} {digit} | {token(find, '5')} {dot} {zero} {zero}"


def turn(find: FindToken, think_tokens: int, then: str) -> dict[str, str]:
    """Rules of a turn that thinks first. A thought holds no `<`, so nothing in it can be taken for the end of it, and
    after `think_tokens` tokens nothing but the end may follow, even within a character."""
    return {
        "start": f"{tag(find, THINK_OPEN)} thought {tag(find, THINK_CLOSE)} {then} {token(find, TURN_END)}",
        f"thought[max_tokens={think_tokens}]": "/[^<]*/",
    }


def written(rules: dict[str, str]) -> str:
    """The grammar."""
    return "\n".join(f"{name}: {body}" for name, body in rules.items())
