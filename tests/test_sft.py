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
    read: list[Any] = []
    before.hidden = lambda examples: read.extend(examples) or (hidden, None, None)
    rows, cols = torch.tensor([0, 0, 1]), torch.tensor([2, 4, 3])
    examples = [SimpleNamespace(exact_scores={4: 3.2}, before=None), SimpleNamespace(exact_scores={}, before="other")]
    wanted = torch.rand(3, size)
    found = before.unless_scored(examples, rows, cols, wanted)
    assert torch.equal(found[1], wanted[1])
    assert_allclose(found[0], hidden[0, 1].softmax(-1), atol=1e-6)
    assert_allclose(found[2], hidden[1, 2].softmax(-1), atol=1e-6)
    assert read == [examples[0], "other"]  # what the teacher's own eyes saw, where they were others


def test_what_is_doubtful_is_taught_as_likely_as_it_is() -> None:
    """Both what was said and what might have been; everything else as it was said."""
    targets = sft.Targets(tokenizer())
    trainer = sft.Trainer(SimpleNamespace(), targets, image_id=-1)
    clean, kind, score = (tokenizer().token_to_id(text) for text in (prompt.THINK_CLEAN, "noise", "3.2"))
    ids = torch.tensor([[0, clean, score], [0, 0, kind]])
    rows, cols = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    examples = [SimpleNamespace(doubts={1: (kind, 0.25)}), SimpleNamespace(doubts={})]
    wanted = trainer.wanted(examples, ids, rows, cols)
    assert wanted[0, [clean, kind]].tolist() == [0.75, 0.25]
    assert torch.equal(wanted[1], targets.table[score])
    assert wanted[2, kind] == 1
    assert_allclose(wanted.sum(1), np.ones(3), atol=1e-6)
    assert targets.table[clean, clean] == 1, "the table is left as it was"


def test_a_decoder_is_as_far_off_as_it_doubts_otherwise() -> None:
    trainer = sft.Trainer(SimpleNamespace(lm_head=lambda hidden: hidden), sft.Targets(tokenizer()), image_id=-1)
    hidden = torch.zeros(2, 4, tokenizer().get_vocab_size())
    hidden[0, 1, 7] = np.log(3)  # three times as likely as what was said
    trainer.hidden = lambda examples: (hidden, None, None)
    examples = [SimpleNamespace(doubts={2: (7, 0.5)}, tokens=[0, 0, 5, 0]), SimpleNamespace(doubts={}, tokens=[0] * 4)]
    assert trainer.doubt_errors(examples) == pytest.approx([0.25])
    assert trainer.doubt_errors(examples[1:]) == []


def test_scores_alone_need_a_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a start"):
        sft.Config(tmp_path, tmp_path, tmp_path, scores_alone=True)


def test_what_a_teacher_reads_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="what the teacher of scores_alone reads"):
        sft.Config(tmp_path, tmp_path, tmp_path, before=tmp_path)


def looks(folder: Path, score: float, crops: int = 2) -> Path:
    """Of six photos of a kind; `score`: what the eyes read of each."""
    look = script("look")
    for kind in ("rated", "local"):
        writer = look.SeenStore(folder, f"{kind}-0").writer()
        for index in range(6):
            roles = ("global", "window") if kind == "rated" else ("global", *(f"truth{i}" for i in range(crops)))
            about = {"box": [0, 0, 900, 600], "suspicions": [[0.1, 0.2, 0.5, 0.6, "noise", 2]] * 3}
            about |= {"score": score, "toll": 3.0 + index / 4, "attributes": [score] * 5, "places": [[0.1] * 25] * 3}
            views = [({**about, "role": role}, np.zeros((6, 9, look.seen_channels()), np.float16)) for role in roles]
            sample = {"split": "train", "name": f"{index}.jpg", "width": 900, "height": 600, "score": 3.0}
            writer.add({**sample, "defects": []}, iter(views))
        writer.close()
    items = sft.lessons_in(folder, look.seen_channels())
    assert {kind: len(found) for kind, found in items.items() if found} == {"rated": 6, "local": 6}
    return folder


def test_a_teacher_reads_the_same_conversations_with_its_own_eyes(tmp_path: Path) -> None:
    channels, rng = script("look").seen_channels(), np.random.default_rng(3)
    (tmp_path / "now").mkdir()
    (tmp_path / "then").mkdir()
    now, then = (
        sft.lessons_in(looks(tmp_path / name, score), channels) for name, score in (("now", 2.0), ("then", 4.0))
    )
    narration = script("narrator")
    narrator = narration.Narrator(narration.Speller(tokenizer(), rng), rng)
    counts = dict.fromkeys(now, 8)
    for part in ("short", "long", "review"):
        examples = sft.lessons(part, narrator, now, rng, counts, then)
        assert len(examples) >= 2
        for example in examples:
            before = example.before
            assert {shown.score for shown in example.views} == {2.0}
            assert {shown.score for shown in before.views} == {4.0}
            assert [(s.role, s.toll) for s in before.views] == [(s.role, s.toll) for s in example.views]
            assert all(np.array_equal(a, b) for a, b in zip(before.kept, example.kept, strict=True))
            assert before.weights == example.weights
            scores = set(example.exact_scores)
            assert set(before.exact_scores) == scores
            of_attributes = {place for place, token in enumerate(example.tokens) if token != before.tokens[place]}
            assert of_attributes <= scores | set(attribute_places(example))
    assert all(example.before is None for example in sft.lessons("long", narrator, now, rng, counts))


def attribute_places(example: Any) -> list[int]:
    """Where attributes are said."""
    opened = {tokenizer().token_to_id(prompt.attribute_chunk(name)) for name in script("defects").PHOTOS.attributes}
    return [place + 1 for place, token in enumerate(example.tokens) if token in opened]


def test_other_samples_are_no_looks_of_before(tmp_path: Path) -> None:
    channels = script("look").seen_channels()
    for name, crops in (("now", 2), ("then", 1)):
        (tmp_path / name).mkdir()
        looks(tmp_path / name, 3.0, crops)
    now, then = (sft.lessons_in(tmp_path / name, channels)["local"] for name in ("now", "then"))
    assert sft.names_of(now) == sft.names_of(now)
    assert sft.names_of(now) != sft.names_of(then)
