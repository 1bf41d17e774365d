"""A small random nano from PyTorch to a bundle: transformers, the exported graphs and the runtime agree.

Random weights, but livened up, so that what the model says depends on every part of what it sees.
"""

import logging
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from fake_model import library, script, spelled_conversation, tokenizer
from small_networks import shallow_teacher

from qcheck import tiles
from qcheck.bundle import Bundle, BundleError
from qcheck.checker import Checker
from qcheck.contract import CONTRACT_FILE, GLANCED, IMAGE_TOKENS, JUDGED, KNOWN, PIXELS, SURVEY, Contract
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import Box, View
from qcheck.verdict import Verdict

torch = library("torch")
onnx = library("onnx")
library("transformers")
nano = script("nano")
export_nano = script("export_nano")
words = script("vocabulary")
vision_side = script("visual")
torch_backend = script("torch_backend")
sft = script("sft")
shipped = script("shipped")
recover = script("recover")
runs = script("runs")
cells = script("cells")
defects = script("defects")

# What float32 leaves over when the same sums are made in another order: logits here are about 1 to 5 in size.
SAME_SUMS = 1e-4
SAME_GRAPH = 1e-3
HIDDEN, LAYERS = 128, 2
Step = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass
class Made:
    model: Any
    checkpoint: Path
    card: Path
    fp32: Bundle
    int8: Bundle
    int4: Bundle


def texture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """A synthetic photo: a gradient, some shapes with sharp edges, and grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 150 / width, y * 150 / height, 40 + 60 * np.sin(x / 9.0) * np.sin(y / (5.0 + seed))], 2)
    for _ in range(12):
        left, top = rng.integers(0, width), rng.integers(0, height)
        pixels[top : top + height // 4, left : left + width // 5] += rng.uniform(-90, 90, 3)
    return np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


def survey_of(pixels: NDArray[np.uint8]) -> Any:
    """Of a whole photo, as the vision side takes it."""
    return torch.from_numpy(oracle.survey(pixels))[None]


def lively(model: Any) -> Any:
    """Random weights whose activations neither die nor blow up."""
    torch.manual_seed(1)
    visual = model.model.visual
    encoder = visual.encoder
    for module in (*encoder.modules(), *visual.glance.modules()):
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    for part in (visual.perception, visual.projector, model.model.language_model.layers):
        for weight in (p for p in part.parameters() if p.dim() == 2):
            torch.nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.15)
    model.eval()
    photo = texture(512, 448, 9)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 128 - 1
    with torch.inference_mode():
        cells = encoder(pixels, survey_of(photo))
        quarters = cells[0].unflatten(0, (2, -1)).unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)
        shown = pixels[0].unflatten(1, (2, -1)).unflatten(3, (2, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        summaries = vision_side.summary_of(quarters, visual.glance(shown[:, :, :192, :256]))
    visual.perception.damage.std.copy_(cells.flatten(0, 2).std(0) + 1e-3)
    visual.perception.quality.mean.copy_(summaries.mean(0))
    visual.perception.quality.std.copy_(summaries.std(0) + 1e-3)
    tone = visual.perception.tone
    tone.share.fill_(0.5)
    tone.middle.fill_(3.0)
    with torch.inference_mode():
        tone.mean.copy_(visual.light(pixels)[0])
    # Norms, biases and measures that nobody taught are all alike, and an exporter keeps only one of those.
    for part in (model.model.language_model, visual.perception):
        for vector in (p for p in part.parameters() if p.dim() == 1):
            torch.nn.init.normal_(vector, float(vector.detach().mean()), 0.001)
    for measure in visual.perception.buffers():
        measure += 0.001 * torch.rand_like(measure)
    return model


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Makes the export's own loader build a small nano, and keeps the exporters quiet: they log thousands of lines."""
    logging.disable(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        shallow_teacher(patch)  # which alone would take as long to export as all the rest
        patch.setattr(sft, "config", partial(nano.config, hidden=HIDDEN, layers=LAYERS))
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def made(small: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("nano")
    checkpoint, card = folder / "random.pt", folder / "card.md"
    card.write_text("# random\n")
    torch.manual_seed(SEED)  # before the model is built: `lively` draws only some of its weights anew
    fresh = lively(nano.Nano(nano.config(tokenizer(), hidden=HIDDEN, layers=LAYERS)))
    torch.save({"model": fresh.state_dict(), "domain": asdict(defects.PHOTOS)}, checkpoint)
    fp32 = export_nano.export(checkpoint, card, folder / "fp32", "fp32")
    with pytest.MonkeyPatch.context() as patch:
        reuse_graphs(fp32, patch)
        int8, int4 = (export_nano.export(checkpoint, card, folder / name, name) for name in ("int8", "int4"))
    model, _, _ = export_nano.load(checkpoint)
    return Made(model, checkpoint, card, fp32, int8, int4)


def reuse_graphs(made: Bundle, patch: pytest.MonkeyPatch) -> None:
    """Graphs that were exported before stand in for new ones, which take half a minute."""
    for part in ("vision", "decoder"):
        data = made.path(part).read_bytes()
        patch.setattr(export_nano, f"export_{part}", lambda *args, data=data: args[-1].write_bytes(data))


# transformers


class Talk:
    """Two pictures of different size and words after each, in transformers' form and in the runtime's."""

    def __init__(self, model: Any) -> None:
        self.model = model
        table = tiles.normalise_table((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        views = [(texture(320, 192, 1), 5, 3), (texture(128, 256, 2), 2, 4)]
        planar = [tiles.planar(p, [View(Box(0, 0, 64 * w, 64 * h), 64 * w, 64 * h)], table)[0] for p, w, h in views]
        self.surveys = [survey_of(pixels) for pixels, _, _ in views]
        self.tokens, self.positions = spelled_conversation([(rows, cols) for _, cols, rows in views])
        packed = [nano.view_pixels_to_patches(torch.from_numpy(pixels)) for pixels in planar]
        self.ids = torch.tensor([self.tokens])
        self.images = self.ids == model.config.image_token_id
        self.qwen = {
            "pixel_values": torch.cat([patches for patches, _ in packed]),
            "image_grid_thw": torch.tensor([grid for _, grid in packed]),
            "surveys": self.surveys,
            "known": torch.zeros(1, 1),
        }
        with torch.inference_mode():
            seen, known = list[Any](), self.qwen["known"]
            for one, survey in zip(planar, self.surveys, strict=True):
                pixels = torch.from_numpy(one[None])
                tokens, known = model.model.visual.image_tokens(pixels, survey, pixels, known)
                seen.append(tokens)
            self.embeds = model.get_input_embeddings()(self.ids).clone()
            self.embeds[self.images] = torch.cat(seen)

    def qwen_logits(self, ids: Any) -> Any:
        """(tokens, vocabulary) logits of a plain transformers forward; `ids` may go on after the talk."""
        kinds = torch.nn.functional.pad(self.images.int(), (0, ids.shape[1] - self.ids.shape[1]))
        with torch.inference_mode():
            return self.model(input_ids=ids, mm_token_type_ids=kinds, **self.qwen).logits[0]

    def steps(self, *cuts: int) -> list[Step]:
        """The talk's embeddings and positions, cut in front of these tokens."""
        bounds = [0, *cuts, len(self.tokens)]
        embeds = self.embeds.numpy()
        return [(embeds[:, a:b], self.positions[:, None, a:b]) for a, b in pairwise(bounds)]


@pytest.fixture(scope="module")
def talk(made: Made) -> Talk:
    return Talk(made.model)


def test_what_the_model_says_depends_on_what_it_sees(talk: Talk) -> None:
    """Else every agreement below would mean little."""
    logits = talk.qwen_logits(talk.ids)
    assert 0.5 < logits.std() < 20
    for changed in (
        {"pixel_values": talk.qwen["pixel_values"].flip(0)},
        {"surveys": [survey.flip(1) for survey in talk.surveys]},
    ):
        other = talk.model(input_ids=talk.ids, mm_token_type_ids=talk.images.int(), **{**talk.qwen, **changed}).logits
        assert (logits[-1] - other[0, -1]).abs().max() > 100 * SAME_GRAPH, list(changed)


def test_transformers_and_the_runtime_see_the_same(made: Made, talk: Talk) -> None:
    with torch.inference_mode():
        hidden = made.model.model.language_model(
            inputs_embeds=talk.embeds, position_ids=torch.from_numpy(talk.positions[:, None])
        ).last_hidden_state
        ours = made.model.lm_head(hidden)[0]
    assert_allclose(ours.numpy(), talk.qwen_logits(talk.ids).numpy(), atol=SAME_SUMS, rtol=0)


def test_patches_and_planes_are_the_same_picture() -> None:
    planar = torch.arange(3 * 128 * 192, dtype=torch.float32).reshape(3, 128, 192)
    patches, grid = nano.view_pixels_to_patches(planar)
    assert grid == [1, 8, 12]
    assert patches.shape == (96, 3 * 16 * 16)
    # Qwen's order: the 4 x 4 patches of one token lie together, then the next token to the right.
    assert_array_equal(patches[0].reshape(3, 16, 16), planar[:, :16, :16])
    assert_array_equal(patches[5].reshape(3, 16, 16), planar[:, 16:32, 16:32])
    assert_array_equal(patches[16].reshape(3, 16, 16), planar[:, :16, 64:80])
    assert_array_equal(patches[48].reshape(3, 16, 16), planar[:, 64:80, :16])


def test_generate_works_with_its_cache(made: Made, talk: Talk) -> None:
    """Given what the vision side sees, for it would refuse `surveys`."""
    with torch.inference_mode():
        seen = made.model.get_image_features(**talk.qwen, return_dict=True)
    said = made.model.generate(
        input_ids=talk.ids,
        mm_encoder_outputs={"image": seen},
        mm_token_type_ids=talk.images.int(),
        attention_mask=torch.ones_like(talk.ids),
        image_grid_thw=talk.qwen["image_grid_thw"],
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = talk.ids
    for step in range(6):
        logits = talk.qwen_logits(ids)[-1]
        assert_allclose(said.logits[step][0].numpy(), logits.numpy(), atol=SAME_SUMS, rtol=0)
        ids = torch.cat((ids, logits.argmax()[None, None]), 1)
    assert_array_equal(said.sequences.numpy(), ids.numpy())


# The exported graphs


class Traced:
    """Keeps the logits of every step of a backend."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.info, self.trace = inner, inner.info, list[NDArray[np.float32]]()
        self.new_cache, self.encode = inner.new_cache, inner.encode

    def step(self, *arguments: Any) -> NDArray[np.float32]:
        self.trace.append(self.inner.step(*arguments))
        return self.trace[-1]


SEED = 5
PHOTOS = [texture(400, 300, 1), texture(640, 480, 2), texture(90, 700, 3), texture(1200, 900, 4)]


@pytest.fixture(scope="module")
def engines(made: Made) -> tuple[Engine, Engine]:
    """The fp32 bundle on ONNX Runtime, and PyTorch, both traced."""
    onnx = Engine.open(made.fp32, threads=1)
    onnx.backend = Traced(onnx.backend)
    reference = Traced(torch_backend.TorchBackend(made.model, onnx.contract.decoder.max_tokens))
    return onnx, Engine(onnx.contract, onnx.model, reference, tokenizer(), onnx.embeddings)


@pytest.mark.parametrize("probes", [0, 1, 2, 3])
def test_whole_conversations_equal_pytorch(engines: tuple[Engine, Engine], probes: int) -> None:
    used = 0
    for pixels in PHOTOS:
        photo = Photo.from_pixels(pixels)
        for engine in engines:
            engine.backend.trace.clear()  # type: ignore[attr-defined]
        ours, theirs = (Prober(engine).judge(photo, Limits(probes)) for engine in engines)
        assert ours.probes == theirs.probes
        assert [(d.kind, d.level, d.box) for d in ours.defects] == [(d.kind, d.level, d.box) for d in theirs.defects]
        assert [d.confidence for d in ours.defects] == pytest.approx([d.confidence for d in theirs.defects], abs=1e-3)
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
        assert ours.score_std == pytest.approx(theirs.score_std, abs=1e-3)
        assert ours.attributes == pytest.approx(theirs.attributes, abs=1e-3)
        assert ours.reasoning == theirs.reasoning
        a, b = (np.stack(engine.backend.trace) for engine in engines)  # type: ignore[attr-defined]
        assert a.shape == b.shape
        assert np.ptp(b, axis=0).max() > 0.5, "the same logits at every step"
        assert_allclose(a, b, atol=SAME_GRAPH, rtol=0)
        used += len(ours.probes)
    assert (used > 0) == (probes > 0), "no photo was probed, so probing was not compared"


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 640), (1024, 768), (448, 448)])
def test_the_vision_graph_takes_every_shape(made: Made, width: int, height: int) -> None:
    backend = Engine.open(made.fp32, threads=1).backend
    photo = texture(width, height, 5)
    pixels = photo.transpose(2, 0, 1)[None].astype(np.float32) / 128 - 1
    # What is seen may be shown larger or smaller than it is, so that the survey's grid is of any size as well.
    survey = survey_of(texture(width + 70, height // 2 + 7, 6))
    # What is glanced at may be of any other size, and tells nothing where the score is known.
    glanced = texture(192, 64, 7).transpose(2, 0, 1)[None].astype(np.float32) / 128 - 1
    scores = []
    for known in (0.0, 2.5):
        given = {PIXELS: pixels, SURVEY: survey.numpy(), GLANCED: glanced, KNOWN: np.full((1, 1), known, np.float32)}
        with torch.inference_mode():
            expected, score = made.model.model.visual.image_tokens(*map(torch.from_numpy, given.values()))
        seen = backend.encode(given)
        tokens = seen[IMAGE_TOKENS]
        assert tokens.shape == (width * height // 64**2, HIDDEN)
        assert_allclose(tokens, expected, atol=SAME_GRAPH, rtol=0)
        assert_allclose(seen[JUDGED], score, atol=SAME_GRAPH, rtol=0)
        scores.append(float(seen[JUDGED][0, 0]))
        assert len(tokens) == 1 or np.ptp(tokens, axis=0).max() > 0.5
    assert 1 <= scores[0] <= 5
    assert scores[1] == 2.5


def shown(engine: Engine, pixels: NDArray[np.uint8], view: View) -> NDArray[np.float32]:
    """The image tokens that the runtime makes of a view."""
    return engine.sight().tokens(pixels, view)


def overview_of(contract: Contract, width: int, height: int) -> View:
    """The view by which a photo is judged as a whole, and at which it is also looked at."""
    assert contract.pixels.overview is not None
    return tiles.view_of(Box(0, 0, width, height), contract.pixels.overview)


def tokens_of(model: Any, planar: NDArray[np.float32], survey: Any) -> NDArray[np.float32]:
    """Of a view (3, h, w) of all of a photo that is judged by it."""
    pixels = torch.from_numpy(planar[None])
    tokens, _ = model.model.visual.image_tokens(pixels, survey, pixels, torch.zeros(1, 1))
    found: NDArray[np.float32] = tokens.numpy()
    return found


def test_the_vision_graph_is_given_the_survey(made: Made) -> None:
    """Of all that the view shows, at the photo's own resolution."""
    assert made.fp32.contract.pixels.survey
    pixels, contract = texture(200, 100, 5), made.fp32.contract
    view = overview_of(contract, 200, 100)
    planar = tiles.planar(pixels, [view], tiles.normalise_table(contract.pixels.mean, contract.pixels.std))[0]
    with torch.inference_mode():
        expected, blind = (
            tokens_of(made.model, planar, survey) for survey in (survey_of(pixels), torch.zeros(1, 1, 1, 8))
        )
    tokens = shown(Engine.open(made.fp32, threads=1), pixels, view)
    assert_allclose(tokens, expected, atol=SAME_GRAPH, rtol=0)
    assert np.abs(tokens - blind).max() > 100 * SAME_GRAPH


def test_a_vision_graph_need_not_take_the_survey(made: Made, tmp_path: Path) -> None:
    """A graph in which one survey stands for all."""
    folder = tmp_path / "bundle"
    shutil.copytree(made.fp32.directory, folder)
    graph = onnx.load(folder / "vision.onnx")
    (given,) = (i for i in graph.graph.input if i.name == SURVEY)
    graph.graph.input.remove(given)
    # Always the same one: with others, what a model that nothing has taught makes of a view hangs on last bits, or it
    # takes fright at the smaller picture.
    blind = torch.rand(1, 2, 3, 8, generator=torch.Generator().manual_seed(4))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(blind.numpy(), SURVEY))
    onnx.save(graph, folder / "vision.onnx")
    entry = export_nano.entry(folder / "vision.onnx")
    contract = made.fp32.contract
    contract = replace(
        contract, pixels=replace(contract.pixels, survey=False), files={**contract.files, "vision": entry}
    )
    (folder / CONTRACT_FILE).write_text(contract.to_json())
    pixels, view = texture(200, 100, 5), overview_of(contract, 200, 100)
    planar = tiles.planar(pixels, [view], tiles.normalise_table(contract.pixels.mean, contract.pixels.std))[0]
    with torch.inference_mode():
        expected = tokens_of(made.model, planar, blind)
    assert_allclose(shown(Engine.open(Bundle.open(folder), threads=1), pixels, view), expected, atol=SAME_GRAPH, rtol=0)
    # What looks at no more than the view can be given a smaller picture.
    large = Image.fromarray(texture(400, 300, 2)).resize((3400, 2550))
    large.save(tmp_path / "large.jpg", quality=92)
    whole, fast = (
        Checker.open(folder, limits=Limits(0), threads=1, fast_decode=fast).check_one(str(tmp_path / "large.jpg"))
        for fast in (False, True)
    )
    assert isinstance(whole, Verdict)
    assert isinstance(fast, Verdict)
    assert (whole.decode_scale, fast.decode_scale) == (1, 2)
    assert (fast.width, fast.height) == (3400, 2550)
    assert fast.score == pytest.approx(whole.score, abs=0.5)


# The cut right after an image, in its middle, single words, and a cut into the second image.
CUTS = (21, 30, 31, 32, 60)


def test_appended_turns_equal_one_prefill(made: Made, talk: Talk) -> None:
    backend = Engine.open(made.fp32, threads=1).backend
    cache, length = backend.new_cache(), 0
    for embeds, positions in talk.steps(*(cut for cut in CUTS if cut < len(talk.tokens))):
        logits = backend.step(embeds, positions, cache)
        length += embeds.shape[1]
        assert cache.length == length
        whole = backend.step(talk.embeds.numpy()[:, :length], talk.positions[:, None, :length], backend.new_cache())
        assert logits.shape == (tokenizer().get_vocab_size(),)
        assert_allclose(logits, whole, atol=SAME_SUMS, rtol=0)
    assert length == len(talk.tokens)
    assert_allclose(whole, talk.qwen_logits(talk.ids)[-1].numpy(), atol=SAME_GRAPH, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rewind_and_fork_go_on_as_if_nothing_had_been(made: Made, talk: Talk, precision: str) -> None:
    backend = Engine.open(getattr(made, precision), threads=1).backend
    first, second = talk.steps(31)
    cache = backend.new_cache()
    backend.step(*first, cache)
    expected = backend.step(*second, cache)
    cache.rewind(31)
    wrong = (second[0][:, ::-1], second[1])
    astray = backend.step(*wrong, cache)
    assert np.abs(astray - expected).max() > 0.1
    cache.rewind(31)
    assert_array_equal(backend.step(*second, cache), expected)
    cache.rewind(31)
    fork = cache.fork()
    assert_array_equal(backend.step(*wrong, fork), astray)
    assert_array_equal(backend.step(*second, cache), expected)
    assert (cache.length, fork.length) == (len(talk.tokens), len(talk.tokens))


# 16 steps tell little of weights that were drawn at random; other weights would not correlate at all.
@pytest.mark.parametrize(("precision", "most_share", "correlation"), [("int8", 0.45, 0.99), ("int4", 0.35, 0.75)])
def test_rounded_ones_are_smaller_and_nearly_the_same(
    made: Made, talk: Talk, precision: str, most_share: float, correlation: float
) -> None:
    rounded: Bundle = getattr(made, precision)
    sizes = [made.fp32.contract.files["decoder"].bytes, rounded.contract.files["decoder"].bytes]
    assert sizes[1] < most_share * sizes[0]
    assert (made.fp32.contract.precision, rounded.contract.precision) == ("fp32", precision)
    for part in ("embeddings", "tokenizer"):
        assert rounded.contract.files[part] == made.fp32.contract.files[part], "these are not quantised"
    vision = [bundle.contract.files["vision"].bytes for bundle in (made.fp32, rounded)]
    assert vision[1] < 0.75 * vision[0]
    runs = []
    for bundle in (made.fp32, rounded):
        engine = Engine.open(bundle, threads=1)
        assert engine.info.precision == bundle.contract.precision
        cache = engine.backend.new_cache()
        runs.append(np.stack([engine.backend.step(*step, cache) for step in talk.steps(21, 30, 31, 32)]))
    exact, near = runs
    assert not np.array_equal(exact, near), "nothing was quantised"
    for a, b in zip(exact, near, strict=True):
        assert np.corrcoef(a, b)[0, 1] > correlation


# The files


def test_an_export_is_a_bundle_and_leaves_nothing_else(made: Made) -> None:
    folder = made.checkpoint.parent
    assert {path.name for path in folder.iterdir()} == {"random.pt", "card.md", "fp32", "int8", "int4"}
    for bundle in (made.fp32, made.int8, made.int4):
        assert Bundle.open(bundle.directory).sha256 == bundle.sha256
        assert len(list(bundle.directory.iterdir())) == 6
        assert bundle.card() == "# random\n"
        weights = made.model.get_input_embeddings().weight.detach().numpy()
        assert_array_equal(bundle.embeddings()[:], weights)
        decoder = bundle.contract.decoder
        assert (decoder.layers, decoder.hidden, decoder.kv_heads, decoder.head_dim) == (LAYERS, HIDDEN, 1, 64)


@pytest.fixture
def quick(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    reuse_graphs(made.fp32, monkeypatch)


@pytest.mark.parametrize("fails", ["export_decoder", "write_safetensor", "entry"])
def test_a_failed_export_leaves_the_old_bundle(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    out = tmp_path / "bundle"
    before = export_nano.export(made.checkpoint, made.card, out, "fp32")

    def broken(*_: Any) -> None:
        raise RuntimeError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(export_nano, fails, broken)
        with pytest.raises(RuntimeError, match="no space left"):
            export_nano.export(made.checkpoint, made.card, out, "fp32")
    assert Bundle.open(out).sha256 == before.sha256

    # And what the failed one left behind does not get into the next.
    (tmp_path / "bundle.partial").mkdir(exist_ok=True)
    (tmp_path / "bundle.partial" / "stale.bin").write_bytes(b"x")
    made.card.with_name("other.md").write_text("# other\n")
    after = export_nano.export(made.checkpoint, made.card.with_name("other.md"), out, "fp32")
    made.card.with_name("other.md").unlink()
    assert after.card() == "# other\n"
    assert after.sha256 != before.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert not (out / "stale.bin").exists()


def test_a_step_copies_nothing_of_the_cache(made: Made) -> None:
    """Of the graph's outputs only the logits leave it; numpy tells of whatever it allocates."""
    backend, hidden = Engine.open(made.int8, threads=1).backend, made.int8.contract.decoder.hidden
    cache = backend.new_cache()
    embeds, positions = np.zeros((1, 1, hidden), np.float32), np.zeros((3, 1, 1), np.int64)
    backend.step(embeds, positions, cache)
    tracemalloc.start()
    try:
        logits = backend.step(embeds, positions + 1, cache)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (*_, one) = cache.buffers.values()
    assert logits.nbytes <= peak < one.numpy().nbytes / 10
    assert cache.length == 2


def test_what_glances_is_stored_in_half(made: Made) -> None:
    """Of the small bundle alone, and all of it."""
    weights = {k.removeprefix("model."): v for k, v in made.model.state_dict().items() if ".visual.glance." in k}
    held = {}
    for bundle in (made.fp32, made.int8):
        stored = onnx.load(bundle.path("vision")).graph.initializer
        held[bundle.contract.precision] = {one.name: onnx.numpy_helper.to_array(one) for one in stored}
    assert len(weights) > 40
    for name, weight in weights.items():
        assert_array_equal(held["fp32"][name], weight)
        half = held["int8"][f"{name}.half"]
        assert half.dtype == np.float16
        assert_array_equal(half, weight.numpy().astype(np.float16))
        assert name not in held["int8"]


# Back again: where a checkpoint is gone, its bundle is what a next model starts from.


def taught_by(model: Any) -> dict[str, Any]:
    """What a bundle is to give back: all weights of the model but those of the glance, which nobody taught."""
    parts = ("visual.encoder.features.", "visual.perception.", "visual.projector.", "language_model.")
    return {k.removeprefix("model."): v for k, v in model.state_dict().items() if any(p in k for p in parts)}


def given_back(bundle: Bundle) -> dict[str, Any]:
    held = shipped.Shipped(bundle.directory)
    vision = {"encoder": held.encoder(), "perception": held.eyes(), "projector": held.projector()}
    parts = {"language_model": held.text(), **{f"visual.{part}": state for part, state in vision.items()}}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


def test_a_bundle_gives_back_what_it_was_made_of(made: Made) -> None:
    weights, exact, rounded = taught_by(made.model), given_back(made.fp32), given_back(made.int8)
    assert set(weights) == set(exact) == set(rounded)
    for name, weight in weights.items():
        # The measure of tokens stands in the graph as a tenth of itself.
        assert torch.equal(exact[name], weight) or name.endswith("damage.std"), name
        assert_allclose(exact[name], weight, rtol=1e-6)
        # A step of 8 bits is at most the 127th part of the greatest weight; half of it is what rounding costs.
        assert (rounded[name] - weight).abs().max() <= weight.abs().max() / 127, name
    assert any(not torch.equal(rounded[name], weights[name]) for name in weights)


def fresh_nano(seed: int) -> Any:
    torch.manual_seed(seed)
    return nano.Nano(nano.config(tokenizer(), hidden=HIDDEN, layers=LAYERS))


def test_a_model_goes_on_from_a_bundle_and_keeps_its_eyes(made: Made) -> None:
    model = fresh_nano(5)
    eyes = {k: v.clone() for k, v in model.state_dict().items() if ".perception." in k}
    sft.take_over(model, shipped.Shipped(made.fp32.directory), tokenizer())
    after, weights = model.state_dict(), made.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in eyes.items())
    taken = [name for name in weights if ".projector." in name or "language_model" in name]
    assert taken
    assert all(torch.equal(after[name], weights[name]) for name in taken)
    assert torch.equal(model.lm_head.weight, weights["model.language_model.embed_tokens.weight"])


def test_slots_that_came_after_a_bundle_stay_fresh(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nano 0.4.0 had a slot for the score, and none yet for the toll and the attributes."""
    held, since = shipped.Shipped(made.fp32.directory), 6
    state, bins = held.projector(), vision_side.NUMBER_BINS
    reading, view = state["from_reading.weight"], state["from_view.weight"]
    slots = vision_side.slots_of() - since
    own = reading.shape[1] - bins - vision_side.slots_of()
    narrow = state | {
        "from_reading.weight": torch.cat((reading[:, : own + slots], reading[:, -bins:]), 1),
        "from_view.weight": torch.cat((view[:, : slots * bins], view[:, vision_side.slots_of() * bins :]), 1),
    }
    monkeypatch.setattr(held, "projector", lambda: narrow)
    model = fresh_nano(6)
    before = {k: v.clone() for k, v in model.model.visual.projector.state_dict().items()}
    sft.take_over(model, held, tokenizer())
    after = model.model.visual.projector.state_dict()
    new = torch.zeros(reading.shape[1], dtype=torch.bool)
    new[own + slots : own + slots + since] = True
    assert torch.equal(after["from_reading.weight"], torch.where(new, before["from_reading.weight"], reading))
    new = torch.zeros(view.shape[1], dtype=torch.bool)
    new[slots * bins : (slots + since) * bins] = True
    assert torch.equal(after["from_view.weight"], torch.where(new, before["from_view.weight"], view))


def test_what_does_not_fit_a_model_is_refused(made: Made) -> None:
    held = shipped.Shipped(made.fp32.directory)
    with pytest.raises(runs.RunError, match="of another size"):
        sft.take_over(nano.Nano(nano.config(tokenizer(), hidden=192, layers=LAYERS)), held, tokenizer())
    scratches = defects.Domain({"scratch": "gloss"}, ("gloss",))
    words_of_it = words.build(scratches)
    with pytest.raises(runs.RunError, match="not this domain's"):
        sft.take_over(nano.Nano(nano.config(words_of_it, HIDDEN, LAYERS, scratches)), held, words_of_it)


@pytest.fixture
def same_glance(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The glance of a model that is put together anew is that of `made`, in place of ImageNet's."""
    monkeypatch.setattr(sft.Glance, "pretrained", lambda: made.model.model.visual.glance)


@pytest.mark.usefixtures("same_glance")
def test_a_checkpoint_is_made_of_a_bundle_again(made: Made, tmp_path: Path) -> None:
    """As exact as the bundle: what the fp32 one's graphs hold is all there is."""
    again = tmp_path / "again.pt"
    torch.save(recover.recovered(made.fp32.directory, None), again)
    model, _, domain = export_nano.load(again)
    assert domain == defects.PHOTOS
    photo = texture(320, 256, 3)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 128 - 1
    with torch.inference_mode():
        told, truth = (tokens_of(one, pixels[0].numpy(), survey_of(photo)) for one in (model, made.model))
    assert_allclose(told, truth, atol=SAME_SUMS)


@pytest.mark.usefixtures("same_glance")
def test_other_eyes_can_take_the_place_of_a_bundles(made: Made, tmp_path: Path) -> None:
    eyes = vision_side.Perception()
    file = tmp_path / "eyes.pt"
    torch.save({"eyes": eyes.state_dict(), "domain": asdict(defects.PHOTOS)}, file)
    model = recover.recovered(made.fp32.directory, file)["model"]
    held = {k.split(".perception.")[1]: v for k, v in model.items() if ".perception." in k}
    assert all(torch.equal(held[name], value) for name, value in eyes.state_dict().items())


def test_eyes_of_other_code_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    held = shipped.Shipped(made.fp32.directory)
    state = held.eyes()
    del state["toll.slope"]
    monkeypatch.setattr(held, "eyes", lambda: state)
    with pytest.raises(runs.RunError, match=r"do not fit this code.*toll\.slope"):
        recover.eyes_of_bundle(held)


def test_a_graph_that_does_not_tell_its_weights_apart_is_refused(made: Made, tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    shutil.copytree(made.fp32.directory, directory)
    held = shipped.Shipped(directory)
    model = onnx.load(held.bundle.path("vision"))
    std = next(i for i in model.graph.initializer if "." not in i.name and list(i.dims) == [cells.CELL_CHANNELS])
    std.name = "named.now"
    onnx.save(model, held.bundle.path("vision"))
    with pytest.raises(BundleError, match="does not tell"):
        held.eyes()


def test_the_convolutions_of_a_bundle_look_as_they_did(made: Made) -> None:
    again = cells.CellEncoder.tuned(made.int8.directory)
    pixels = texture(128, 64, 4)
    shown, known = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 128 - 1, survey_of(pixels)
    with torch.inference_mode():
        assert torch.equal(again(shown, known), made.model.model.visual.encoder(shown, known))
