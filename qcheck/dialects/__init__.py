"""How models speak: for each dialect, what may be said in a turn, and what was meant by it.

A contract names its dialect. `probe-json` is nano's, of tokens that are whole chunks. The others are those of
Qwen2.5-VL-class checkpoints, spelled in the letters of the checkpoint's own tokenizer: first a thought in <think> tags,
then a tool call or an answer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from qcheck.contract import Contract
from qcheck.prompt import Said, Turn

FindToken = Callable[[str], int | None]  # the id of a text that is a token of its own


class Dialect(Protocol):
    """One way to speak."""

    numbers: tuple[str, ...]  # texts of tokens whose value is read out where nothing else may be said

    def rules(self, find: FindToken, *, after_crop: bool, may_call: bool) -> str:
        """The grammar of one turn in llguidance's Lark dialect. `after_crop`: it is about a crop that was asked for;
        `may_call`: a probe is left. Raises BundleError if the vocabulary lacks a token that must be one."""
        ...

    def read(self, said: Sequence[Said]) -> Turn:
        """The turn that the tokens spell, which follow the grammar; anything else is our own error."""
        ...


def dialect_of(contract: Contract) -> Dialect:
    """The dialect that a contract names."""
    from qcheck.dialects.chat import Chat
    from qcheck.dialects.probe_json import ProbeJson
    from qcheck.dialects.single_pass import SinglePass

    name = contract.language.dialect
    if name == "probe-json":
        return ProbeJson(contract)
    return Chat(contract) if name == "qwen-chat" else SinglePass(contract)
