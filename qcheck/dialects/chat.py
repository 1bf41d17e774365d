"""`qwen-chat`: a stock Qwen's tool protocol, and the words in which it is asked.

A turn is `<think>...</think>`, then a call of the zoom tool or an answer in JSON:

    <tool_call>
    {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [12, 34, 256, 178], "label": "noise in the sky"}}
    </tool_call>

    <answer>{"score": 2.35, "defects": [{"kind": "noise", "level": "obvious", "bbox_2d": [12, 34, 256, 178]}],
    "attributes": {"sharpness": 4.10, "noise": 2.20}}</answer>

without the line breaks within an answer; those of a call may be left out. Boxes are about the first picture.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from qcheck.contract import Contract
from qcheck.dialects import FindToken, lark
from qcheck.dialects.spelled import Spelled
from qcheck.prompt import Answer, Call, Said, Sighting, Turn
from qcheck.verdict import DEFECT_LEVELS, MAX_DEFECTS, SCORE_MAX

TOOL: Final = "image_zoom_in_tool"
SYSTEM: Final = (
    "You judge the quality of photos. Look at the whole photo first. Where something is suspicious, zoom in with the"
    " tool; a crop may also show that all is well, or blur that the photographer wanted. Think in <think></think>, then"
    " answer in <answer></answer>."
)
# As transformers describes a Python function to a model.
TOOL_SCHEMA: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": TOOL,
        "description": "Shows a part of the photo at full resolution.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": "The part, [x1, y1, x2, y2] in pixels of the first picture.",
                },
                "label": {"type": "string", "description": "What is suspected there."},
            },
            "required": ["bbox_2d"],
        },
        "return": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": {}},
            "description": "The part, with some of its surroundings.",
        },
    },
}

CALL_OPEN: Final = "<tool_call>"
CALL_CLOSE: Final = "</tool_call>"
_CALL: Final = f'{{"name": "{TOOL}", "arguments": {{"bbox_2d": ['
_LABEL: Final = '], "label": "'
_CALL_END: Final = '"}}'
_ANSWER: Final = '<answer>{"score": '
_DEFECTS: Final = ', "defects": ['
_ATTRIBUTES: Final = ', "attributes": {'
_ANSWER_END: Final = "}</answer>"
_KIND: Final = '{"kind": "'
_LEVEL: Final = '", "level": "'
_BOX: Final = '", "bbox_2d": ['

_BOX_RULE: Final = 'NUMBER ", " NUMBER ", " NUMBER ", " NUMBER'
_LABEL_RULE: Final = r'/[^"\\<\x00-\x1f]{1,48}/'
_TURN: Final = re.compile(
    r"<think>(?P<thought>.*?)</think>"
    r'(\n?<tool_call>\n?\{"name": "\w+", "arguments": \{"bbox_2d": \[(?P<box>[\d, ]+)\], "label": "(?P<label>[^"]+)"'
    r'|<answer>\{"score": (?P<score>[\d.]+), "defects": \[(?P<defects>.*?)\]'
    r'(, "attributes": \{(?P<attributes>[^}]*)\})?\}</answer>)',
    re.DOTALL,
)
_DEFECT: Final = re.compile(
    r'\{"kind": "(?P<kind>[^"]+)", "level": "(?P<level>\w+)", "bbox_2d": \[(?P<box>[\d, ]+)\]\}'
)
_ATTRIBUTE: Final = re.compile(r'"(?P<name>[^"]+)": (?P<score>[\d.]+)')


def question(request: str, kinds: Sequence[str], attributes: Sequence[str]) -> str:
    """What is asked beside the photo."""
    level, named = f"one of {', '.join(DEFECT_LEVELS)}", ", ".join(kinds)
    parts = [
        '"score": 1.00 to 5.00 with two decimals',
        f'"defects": [{{"kind": one of {named}, "level": {level}, "bbox_2d": [x1, y1, x2, y2]}}]',
    ]
    if attributes:
        parts.append(f'"attributes": a score each for {", ".join(attributes)}')
    return f"{request} Answer as JSON with {'; '.join(parts)}."


class Chat:
    """Serves `Dialect`."""

    numbers = lark.DIGITS

    def __init__(self, contract: Contract) -> None:
        self._kinds, self._attributes = contract.kinds, contract.attributes
        self._think_tokens = contract.language.think_tokens

    def rules(self, find: FindToken, *, after_crop: bool, may_call: bool) -> str:
        words, line = lark.words, f"{lark.words(chr(10))}?"
        call = f"{line} {lark.tag(find, CALL_OPEN)} {line} {words(_CALL)} box {words(_LABEL)} LABEL {words(_CALL_END)}"
        scores = [f"{words(name)} score" for name in self._names()]
        attributes = f"{words(_ATTRIBUTES)} {' '.join(scores)} {words('}')}" if scores else ""
        parts = (words(_ANSWER), "score", words(_DEFECTS), "defects", words("]"), attributes, words(_ANSWER_END))
        rules = {
            **lark.turn(find, self._think_tokens, "(call | answer)" if may_call else "answer"),
            "answer": " ".join(parts),
            "defects": f"(defect ({words(', ')} defect){{0,{MAX_DEFECTS - 1}}})?",
            "defect": f"{words(_KIND)} KIND {words(_LEVEL)} LEVEL {words(_BOX)} box {words(']}')}",
            "box": _BOX_RULE,
            "score": lark.score(find),
            "NUMBER": "/0|[1-9][0-9]{0,4}/",
            "KIND": " | ".join(map(words, self._kinds)),
            "LEVEL": " | ".join(map(words, DEFECT_LEVELS)),
        }
        if may_call:
            rules |= {"call": f"{call} {line} {lark.tag(find, CALL_CLOSE)}", "LABEL": _LABEL_RULE}
        return lark.written(rules)

    def _names(self) -> list[str]:
        """What stands before the score of each attribute."""
        return [f'{", " if index else ""}"{name}": ' for index, name in enumerate(self._attributes)]

    def read(self, said: Sequence[Said]) -> Turn:
        spelled = Spelled(said)
        found = _TURN.match(spelled.text)
        assert found is not None, f"the grammar let {spelled.text!r} through"
        thought = found["thought"].strip()
        if found["box"] is not None:
            return Turn(False, None, Call(_coords(found["box"]), found["label"]), thought)
        first, last = found.span("attributes")
        attributes = {
            one["name"]: spelled.number(one.span("score"), SCORE_MAX)[0]
            for one in _ATTRIBUTE.finditer(spelled.text, max(0, first), max(0, last))
        }
        defects = tuple(_sighting(spelled, one) for one in _DEFECT.finditer(spelled.text, *found.span("defects")))
        score = spelled.number(found.span("score"), SCORE_MAX)
        return Turn(False, None, Answer(*score, float(found["score"]), defects, attributes), thought)


def _coords(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _sighting(spelled: Spelled, found: re.Match[str]) -> Sighting:
    # How sure the model is: that it named one more defect, which the token of the bracket or comma before it decided,
    # times that it is of this kind.
    before = spelled.text.rfind(",", 0, found.start()) if spelled.text[found.start() - 1] == " " else found.start() - 1
    confidence = spelled.probability((before, found.end("kind")))
    return Sighting(found["kind"], found["level"], _coords(found["box"]), confidence)
