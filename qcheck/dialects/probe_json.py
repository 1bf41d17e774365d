"""nano's dialect. Every chunk, kind, level and number is one token of the bundle's vocabulary, so the grammar is
written over token ids and a text has exactly one spelling; see prompt.py for the words."""

from collections.abc import Iterable, Sequence

from qcheck import prompt
from qcheck.contract import Contract
from qcheck.dialects import FindToken, lark
from qcheck.prompt import Said, Turn, parse_turn
from qcheck.verdict import DEFECT_LEVELS, MAX_DEFECTS


class ProbeJson:
    """Serves `Dialect`."""

    def __init__(self, contract: Contract) -> None:
        self._contract, self.numbers = contract, contract.language.score_tokens

    def rules(self, find: FindToken, *, after_crop: bool, may_call: bool) -> str:
        contract = self._contract

        def one(text: str) -> str:
            return lark.token(find, text)

        def any_of(texts: Iterable[str]) -> str:
            return lark.token(find, *texts)

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
        return lark.written(rules)

    def read(self, said: Sequence[Said]) -> Turn:
        return parse_turn(said, self._contract.attributes)
