"""What a Qwen2.5-VL-class model says in a talk of three probes, and in how many decoder steps the runtime lets it.

The words are made up and as short as they may be: a sentence of thought, a call with a box and a label, and an answer
with one defect and five attributes. What the grammar of the `qwen-chat` dialect leaves no choice in, the runtime takes
without a step of its own (qcheck.engine); a model that is asked freely decides on each token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from qcheck.bundle import Bundle
from qcheck.dialects.chat import TOOL
from qcheck.grammar import Grammar, Matcher

THOUGHTS: Final = (
    "The shadows on the left look noisy; a closer look will tell.",
    "There is coloured grain in them, and the wall beside it may be blurred.",
    "The wall is sharp. The sky behind the roof seems to have bands.",
    "The sky is smooth, so the noise in the shadows is what is wrong.",
)
CALLS: Final = (((96, 412, 388, 640), "noise"), ((402, 280, 655, 512), "defocus"), ((120, 14, 880, 196), "banding"))
ANSWER: Final = (
    '<answer>{"score": 2.85, "defects": [{"kind": "noise", "level": "obvious", "bbox_2d": [102, 430, 371, 622]}],'
    ' "attributes": {"sharpness": 4.10, "noise": 2.40, "color": 4.00, "exposure": 3.70, "compression": 4.30}}</answer>'
)
END: Final = "<|im_end|>"
THINK_TOKENS: Final = 128


@dataclass(frozen=True, slots=True)
class Turn:
    """`steps`: of the decoder, with how many tokens each; `left`: tokens that no more step follows, and that are read
    before what is shown next."""

    steps: tuple[int, ...]
    left: int

    @property
    def tokens(self) -> int:
        return sum(self.steps) + self.left


def texts() -> list[str]:
    """What is said in each turn."""
    calls = [
        f'<think>{thought}</think>\n<tool_call>\n{{"name": "{TOOL}", "arguments": {{"bbox_2d": {list(box)}, "label":'
        f' "{label}"}}}}\n</tool_call>{END}'
        for thought, (box, label) in zip(THOUGHTS, CALLS, strict=False)
    ]
    return [*calls, f"<think>{THOUGHTS[-1]}</think>{ANSWER}{END}"]


def turns(tokenizer: Any) -> list[Turn]:
    """Of the talk. `tokenizer`: a byte-level `tokenizers.Tokenizer`."""
    plain = Bundle.open(None).contract
    language = replace(
        plain.language, dialect="qwen-chat", score_tokens=(), coordinate_tokens=(), think_tokens=THINK_TOKENS
    )
    grammar = Grammar(replace(plain, language=language), tokenizer)
    vocabulary = [tokenizer.decode([token], skip_special_tokens=False) for token in range(tokenizer.get_vocab_size())]
    spoken = texts()
    return [
        turn_of(text, grammar.matcher(after_crop=index > 0, may_call=index + 1 < len(spoken)), vocabulary)
        for index, text in enumerate(spoken)
    ]


def turn_of(text: str, matcher: Matcher, vocabulary: Sequence[str]) -> Turn:
    """How the runtime lets a text be said, the longest token that fits wherever there is a choice."""
    steps, pending, at = list[int](), 0, 0
    while True:
        forced = matcher.forced()
        for token in forced:
            assert text.startswith(vocabulary[token], at), f"the grammar wants {vocabulary[token]!r} at {text[at:]!r}"
            at += len(vocabulary[token])
        pending += len(forced)
        if matcher.done:
            assert at == len(text), f"{text[at:]!r} was not said"
            return Turn(tuple(steps), pending)
        fit = [i for i in matcher.allowed(len(vocabulary)) if vocabulary[i] and text.startswith(vocabulary[i], at)]
        assert fit, f"the grammar does not allow {text[at:]!r}"
        token = max(fit, key=lambda i: len(vocabulary[i]))
        if pending:
            steps.append(pending)
        matcher.take([int(token)])
        at, pending = at + len(vocabulary[token]), 1
