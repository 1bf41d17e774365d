"""How a checkpoint is spoken to: the turns of Qwen's chat template around what each dialect asks.

`qwen-chat` is Qwen's tool protocol, which the template that Qwen2.5-VL ships with does not know and that of later ones
does; its words are those that training/large teaches. The other two are asked in the words that they were trained on
(arXiv 2505.14460, table 1; the published code of arXiv 2503.22679).
"""

import json
from collections.abc import Sequence
from typing import Final

from qcheck.contract import IMAGE_SLOT, Dialect, LanguageSpec
from qcheck.dialects import chat

PICTURE: Final = f"<|vision_start|>{IMAGE_SLOT}<|vision_end|>"
MARKERS: Final = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
REQUEST: Final = "Rate this photo."
NO_MORE: Final = "No more crops; answer now."
# What Qwen2.5-VL's template says where nobody says anything else.
STOCK_SYSTEM: Final = "You are a helpful assistant."
THINKING_SYSTEM: Final = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant"
    " first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning"
    " process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think>"
    " reasoning process here </think><answer> answer here </answer>"
)
RATING: Final = (
    "What is your overall rating on the quality of this picture? The rating should be a float between 1 and 5, rounded"
    " to two decimal places, with 1 representing very poor quality and 5 representing excellent quality."
)
SINGLE_PASS: Final[dict[str, tuple[str, str]]] = {
    "visualquality-r1": (
        STOCK_SYSTEM,
        f"You are doing the image quality assessment task. Here is the question: {RATING} First output the thinking"
        " process in <think> </think> tags and then output the final answer with only one score in <answer> </answer>"
        " tags.",
    ),
    "q-insight": (
        THINKING_SYSTEM,
        f'{RATING} Return the final answer in JSON format with the following keys: "rating": The score.',
    ),
}


def language_of(
    dialect: Dialect, kinds: Sequence[str], attributes: Sequence[str], think_tokens: int, request: str = REQUEST
) -> LanguageSpec:
    """The prompts of a dialect. `kinds` and `attributes` are asked for where the dialect reports any."""
    if dialect in SINGLE_PASS:
        first = _first(*SINGLE_PASS[dialect])
        return LanguageSpec(dialect, first, first, "", "", (), (), think_tokens)
    asked = chat.question(request, kinds, attributes)
    return LanguageSpec(
        dialect,
        first=_first(chat.SYSTEM + _tools(), asked),
        first_final=_first(chat.SYSTEM, f"{asked} {NO_MORE}"),
        crop=_response(""),
        crop_final=_response(NO_MORE),
        score_tokens=(),
        coordinate_tokens=(),
        think_tokens=think_tokens,
    )


def _turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def _answered(text: str) -> str:
    """A turn of the user's, after which it is the model's."""
    return f"{_turn('user', text)}<|im_start|>assistant\n"


def _first(system: str, asked: str) -> str:
    return _turn("system", system) + _answered(PICTURE + asked)


def _response(more: str) -> str:
    """What the tool gives back; the line break ends the model's own turn."""
    return "\n" + _answered(f"<tool_response>\n{PICTURE}{more}\n</tool_response>")


def _tools() -> str:
    """What Qwen's template adds to the system's words where there is a tool."""
    return (
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with"
        f" function signatures within <tools></tools> XML tags:\n<tools>\n{json.dumps(chat.TOOL_SCHEMA)}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call>"
        ' XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
