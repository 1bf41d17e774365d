"""The dialects of checkpoints that look once, think, and answer with a score alone: no crops, no defects.

- `visualquality-r1`: `<think>...</think><answer>3.42</answer>` (Wu et al. 2025, arXiv 2505.14460)
- `q-insight`: `<think>...</think><answer>{"rating": 3.42}</answer>` (Li et al. 2025, arXiv 2503.22679)
"""

import re
from collections.abc import Sequence
from typing import Final

from qcheck.contract import Contract
from qcheck.dialects import FindToken, lark
from qcheck.dialects.spelled import Spelled
from qcheck.prompt import Answer, Said, Turn
from qcheck.verdict import SCORE_MAX

# What stands around the score.
AROUND: Final = {
    "visualquality-r1": ("<answer>", "</answer>"),
    "q-insight": ('<answer>{"rating": ', "}</answer>"),
}


class SinglePass:
    """Serves `Dialect`."""

    numbers = lark.DIGITS

    def __init__(self, contract: Contract) -> None:
        language = contract.language
        self._before, self._after = AROUND[language.dialect]
        self._think_tokens = language.think_tokens
        around = map(re.escape, (lark.THINK_CLOSE + self._before, self._after))
        self._turn = re.compile(f"{lark.THINK_OPEN}(.*?){next(around)}(.*?){next(around)}", re.DOTALL)

    def rules(self, find: FindToken, *, after_crop: bool, may_call: bool) -> str:
        then = f"{lark.words(self._before)} score {lark.words(self._after)}"
        return lark.written({**lark.turn(find, self._think_tokens, then), "score": lark.score(find)})

    def read(self, said: Sequence[Said]) -> Turn:
        spelled = Spelled(said)
        found = self._turn.match(spelled.text)
        assert found is not None, f"the grammar let {spelled.text!r} through"
        answer = Answer(*spelled.number(found.span(2), SCORE_MAX), float(found[2]), (), {})
        return Turn(False, None, answer, found[1].strip())
