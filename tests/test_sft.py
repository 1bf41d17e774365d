"""Teaching the decoder: how it starts, what teaches it, and how its reading is measured."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script, tokenizer

from qcheck import prompt

torch = library("torch")
library("transformers")
nano, sft, visual, words = (script(name) for name in ("nano", "sft", "visual", "vocabulary"))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return nano.Nano(nano.config(tokenizer(), hidden=128, layers=2))


def ids(texts: tuple[str, ...]) -> list[int]:
    return [tokenizer().token_to_id(text) for text in texts]


def cosine(a: Any, b: Any) -> Any:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_numbers_start_with_one_code(model: Any) -> None:
    nano.write_numbers(model, tokenizer())
    embeddings = model.get_input_embeddings().weight.detach()
    assert embeddings is model.lm_head.weight or torch.equal(embeddings, model.lm_head.weight)
    coordinates = embeddings[ids(words.COORDINATE_TOKENS)]
    assert cosine(coordinates[:-1], coordinates[1:]).min() > 0.95
    assert cosine(coordinates[:-20], coordinates[20:]).max() < 0.8
    assert embeddings.std() == pytest.approx(0.02, rel=0.2)
    # What a token shows of a number points where the number that is said does, apart from what all numbers share.
    weight = model.model.visual.projector.from_reading.weight.detach()[:, -visual.NUMBER_BINS :]
    shown = visual.bumps(torch.linspace(0, 1, 101), visual.NUMBER_BINS) @ weight.T
    said, seen = coordinates - coordinates.mean(0), shown - shown.mean(0)
    assert cosine(said, seen).min() > 0.9
    assert (cosine(said[:, None], seen[None]).argmax(1) - torch.arange(101)).abs().max() <= 2


def test_the_bar_is_where_nothing_may_be_said(model: Any) -> None:
    plain = copy.deepcopy(model)
    nano.raise_bar(model, tokenizer())
    hidden = torch.randn(3, 128)
    raised = (model.lm_head(hidden) - plain.lm_head(hidden)).detach()
    clean = ids((prompt.THINK_CLEAN, prompt.DEFECTS_CLOSE))
    assert_allclose(raised[:, clean], nano.CLEAN_BAR, atol=1e-5)
    raised[:, clean] = 0
    assert raised.abs().max() < 1e-5
    model.lm_head.bias = None


def test_every_weight_is_taught_by_one_optimizer(model: Any) -> None:
    muon, adam = sft.optimizers_of(model, 1e-3, 0.1)
    of_muon, of_adam = ([p for group in optimizer.param_groups for p in group["params"]] for optimizer in (muon, adam))
    assert sorted(map(id, of_muon + of_adam)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    layers = {id(p) for p in model.model.language_model.layers.parameters()}
    assert all(id(p) in layers and p.ndim == 2 for p in of_muon)
    assert all(p.ndim == 1 for p in of_adam if id(p) in layers)
    assert {group["weight_decay"] for group in adam.param_groups if group["params"][0].ndim == 1} == {0.0}


@pytest.mark.parametrize("off", [0, 7])
def test_what_is_misread_is_counted_in_hundredths(off: int) -> None:
    """Two drills of a call and a finding each; findings are read right, calls `off` places too far."""
    coordinates, size = ids(words.COORDINATE_TOKENS), tokenizer().get_vocab_size()
    truth, rows = [[10, 20, 30, 40, 5, 6, 7, 8], [0, 90, 50, 60, 1, 2, 3, 4]], []
    logits = torch.zeros(2, 20, size)
    for row, numbers in enumerate(truth):
        said = [0, 0]
        for place, number in enumerate(numbers):
            said += [coordinates[number], 0]
            guess = number + off if place < 4 else number
            logits[row, 2 + 2 * place - 1, coordinates[guess]] = 9.0
        rows.append(said + [0] * (20 - len(said)))
    trainer = sft.Trainer(SimpleNamespace(lm_head=lambda hidden: hidden), sft.Targets(tokenizer()), image_id=-1)
    trainer.hidden = lambda _: (logits, torch.tensor(rows), None)
    assert_allclose(trainer.misread([]), np.full((2, 2), [off, 0]))


def test_scenes_that_are_bad_all_over_come_more_often() -> None:
    """And their twins; what is broken in places does not."""
    whole, place = ({"box": box} for box in ([0, 0, 9, 9], [0, 0, 4, 9]))
    photo = {"width": 9, "height": 9}
    samples = [
        {**photo, "name": "whole", "defects": [whole]},
        {**photo, "name": "whole twin", "defects": [], "twin": True},
        {**photo, "name": "place", "defects": [place]},
        {**photo, "name": "place twin", "defects": [], "twin": True},
        {**photo, "name": "clean", "defects": []},
    ]
    names = [item.sample["name"] for item in sft.stressed([SimpleNamespace(sample=one) for one in samples])]
    assert {name: names.count(name) for name in names} == {
        "whole": sft.SPOILT_TIMES,
        "whole twin": sft.SPOILT_TIMES,
        "place": 1,
        "place twin": 1,
        "clean": 1,
    }


def test_what_was_known_is_taught_by_what_knew_it(model: Any) -> None:
    """Of two conversations, one with a score: that is as wanted, the rest as the model of before would say it."""
    size, length = tokenizer().get_vocab_size(), 5
    before = sft.Trainer(SimpleNamespace(lm_head=lambda hidden: hidden), sft.Targets(tokenizer()), image_id=-1)
    hidden = torch.randn(2, length, size)
    before.hidden = lambda _: (hidden, None, None)
    rows, cols = torch.tensor([0, 0, 1]), torch.tensor([2, 4, 3])
    examples = [SimpleNamespace(exact_scores={4: 3.2}), SimpleNamespace(exact_scores={})]
    wanted = torch.rand(3, size)
    found = before.unless_scored(examples, rows, cols, wanted)
    assert torch.equal(found[1], wanted[1])
    assert_allclose(found[0], hidden[0, 1].softmax(-1), atol=1e-6)
    assert_allclose(found[2], hidden[1, 2].softmax(-1), atol=1e-6)


def test_scores_alone_need_a_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a start"):
        sft.Config(tmp_path, tmp_path, tmp_path, scores_alone=True)
