"""What a large model is asked, and how its answers are read: Q-Probe's conversation in Qwen's tool protocol."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from defects import Domain

from qcheck.dialects import chat

_ANSWER: Final = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said: `boxes` in the numbers of the view that it speaks of; attributes left out are missing."""

    score: float
    boxes: tuple[tuple[float, ...], ...]
    attributes: dict[str, float]


def question(domain: Domain, attributes: bool) -> str:
    """What is asked beside the photo."""
    return chat.question(domain.request, domain.kinds, domain.attributes if attributes else ())


def spell(score: float, defects: Sequence[dict[str, Any]], attributes: dict[str, float]) -> str:
    """An answer to learn, with every decimal that is asked for. `defects`: kind, level and bbox_2d each."""
    parts = [f'"score": {score:.2f}', f'"defects": {json.dumps(list(defects))}']
    if attributes:
        scores = ", ".join(f'"{name}": {value:.2f}' for name, value in attributes.items())
        parts.append(f'"attributes": {{{scores}}}')
    return f"<answer>{{{', '.join(parts)}}}</answer>"


def parse(text: str) -> Answer | None:
    """The last answer in a text; None where there is none that could be read: it is never guessed."""
    found = _ANSWER.findall(text)
    if not found:
        return None
    try:
        said = json.loads(found[-1])
    except ValueError:
        return None
    if isinstance(said, int | float) and not isinstance(said, bool):  # VisualQuality-R1 answers with the number alone
        said = {"score": said}
    if not isinstance(said, dict):
        return None
    score = _number(said.get("score"))
    if score is None or not 1 <= score <= 5:
        return None
    boxes = tuple(box for defect in _list(said.get("defects")) if (box := _box(defect)))
    given = said.get("attributes")
    attributes = (
        {name: value for name, raw in given.items() if (value := _number(raw)) is not None}
        if isinstance(given, dict)
        else {}
    )
    return Answer(score, boxes, attributes)


def score_of(answer: Answer | None) -> float:
    """NaN where there is none."""
    return math.nan if answer is None else answer.score


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else None


def _box(defect: Any) -> tuple[float, ...] | None:
    corners = defect.get("bbox_2d") if isinstance(defect, dict) else None
    if not isinstance(corners, list) or len(corners) != 4:
        return None
    numbers = tuple(number for corner in corners if (number := _number(corner)) is not None)
    return numbers if len(numbers) == 4 else None
