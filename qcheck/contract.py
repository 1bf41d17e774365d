"""The contract of a bundle, `qcheck.json`: everything the runtime must know about a model, frozen and checked.

Unknown keys are refused: a key that this version does not understand could change what the numbers mean. A key that
came after the first bundles has a default here, and its absence means what every bundle meant before there was that
key: pixels in one plane a channel, a float32 cache, a model that does not think aloud, a spread reported as it is,
any score drawn in sampled runs, a photo that is judged by its global view.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Final, Literal

from qcheck.errors import BundleError
from qcheck.tiles import CoordinateSpace, CropSpec, ViewSpec

FORMAT: Final = "qcheck-bundle/1"
CONTRACT_FILE: Final = "qcheck.json"
IMAGE_SLOT: Final = "{image}"  # where a template takes its view

# How a model speaks; see dialects/. Those in ZOOMING may ask for crops, the others answer from one look.
Dialect = Literal["probe-json", "qwen-chat", "visualquality-r1", "q-insight"]
ZOOMING: Final = ("probe-json", "qwen-chat")

# Names of the tensors of both graphs. Those of patches and of where they lie are in windows.py.
PIXELS: Final = "pixels"  # (1, 3, height, width) float32, normalised
SURVEY: Final = "survey"  # (1, rows, columns, 8) float32: the cells under the view; see survey.py
GLANCED: Final = "glanced"  # (1, 3, height, width) float32: the pixels of a view by which its photo is to be judged
KNOWN: Final = "known"  # (1, 1) float32: the score of the photo as a whole; 0: not yet known
IMAGE_TOKENS: Final = "image_tokens"  # (tokens, hidden) float32
JUDGED: Final = "judged"  # (1, 1) float32: `known`, or else that score
INPUTS_EMBEDS: Final = "inputs_embeds"  # (1, tokens, hidden) float32
POSITION_IDS: Final = "position_ids"  # (3, 1, tokens) int64: time, height, width
KV_LENGTH: Final = "kv_length"  # (1,) int64: tokens already in the cache
LOGITS: Final = "logits"  # (1, 1, vocabulary) float32: after the last token


CachePart = Literal["key", "value"]
CACHE_PARTS: Final[tuple[CachePart, ...]] = ("key", "value")


def past_name(layer: int, part: CachePart) -> str:
    """Input buffer of a layer's cache, (1, kv_heads, max_tokens, head_dim) of the contract's type; its output is
    `present.*`."""
    return f"past.{layer}.{part}"


def present_name(layer: int, part: CachePart) -> str:
    return f"present.{layer}.{part}"


def cache_names(layers: int) -> list[tuple[str, str]]:
    """The input and the output of each buffer of a cache, of all layers."""
    return [(past_name(n, part), present_name(n, part)) for n in range(layers) for part in CACHE_PARTS]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle: its name, its size in bytes, its sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """Patches of `patch_px` a side, `merge` x `merge` of which become one image token; attention is within windows of
    `window_px` a side where it does not span the view."""

    patch_px: int
    merge: int
    window_px: int

    @property
    def token_px(self) -> int:
        return self.patch_px * self.merge

    @property
    def window_tokens(self) -> int:
        """Side of a window in image tokens."""
        return self.window_px // self.token_px


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """How pixels become the vision graph's input. `planar`: one (1, 3, h, w) tensor a view; `patches`: as `patches`
    says, in the order of Qwen's processor. `survey`: whether the graph takes the survey of the photo under the view
    besides. `overview`: the view of the whole photo by which the graph judges it, once for all views of it; see
    vision.py."""

    layout: Literal["planar", "patches"]
    mean: tuple[float, ...]  # three, of 0..1 RGB
    std: tuple[float, ...]
    survey: bool
    patches: PatchSpec | None = None
    overview: ViewSpec | None = None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The decoder's cache layout, and the element type of its buffers."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    max_tokens: int
    cache_dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True, slots=True)
class LanguageSpec:
    """How the model is spoken to. Each template holds one `{image}`; `final` ones tell it that no zoom is left, and
    those of crops are empty where the dialect knows none. Score and coordinate tokens are of `probe-json` alone: the
    others spell numbers digit by digit. `think_tokens`: the most that may be thought aloud in one turn."""

    dialect: Dialect
    first: str
    first_final: str
    crop: str
    crop_final: str
    score_tokens: tuple[str, ...]  # texts of the score tokens; their numbers are the scores
    coordinate_tokens: tuple[str, ...]
    think_tokens: int = 0

    @property
    def zooms(self) -> bool:
        """Whether the model may ask for crops."""
        return self.dialect in ZOOMING


@dataclass(frozen=True, slots=True)
class Contract:
    format: str
    name: str
    version: str
    licence: str
    precision: str
    kinds: tuple[str, ...]
    attributes: tuple[str, ...]
    coordinates: CoordinateSpace
    pixels: PixelSpec
    global_view: ViewSpec
    crop_view: ViewSpec
    crop: CropSpec
    decoder: DecoderSpec
    language: LanguageSpec
    files: dict[str, FileEntry]  # vision, decoder, embeddings, tokenizer, card; vision_data and decoder_data: of graphs
    # What the spread of the score tokens is multiplied by to become a verdict's score_std, so that it is as wide as the
    # errors are (training/calibrate.py).
    score_std_scale: float = 1.0
    # A sampled run draws its score from the likeliest score tokens alone, whose probabilities come to so much.
    rollout_top_p: float = 1.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Parses a contract. Raises BundleError naming the key that is missing, unknown or of the wrong kind."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{CONTRACT_FILE} is not valid JSON ({error})") from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise BundleError(f"{CONTRACT_FILE} has format {found!r}; this version of qcheck reads {FORMAT!r}")
        contract: Contract = _read(cls, data, "")
        contract._check()
        return contract

    def _check(self) -> None:
        """What the types do not say. Raises BundleError."""
        for values in (self.pixels.mean, self.pixels.std):
            _expect(
                len(values) == 3 and all(map(math.isfinite, values)), "pixels", "three finite numbers in mean and std"
            )
        _expect(min(self.pixels.std) > 0, "pixels.std", "positive numbers")
        views = {"global_view": self.global_view, "crop_view": self.crop_view, "pixels.overview": self.pixels.overview}
        for name, view in views.items():
            if view is None:
                continue
            fits = view.token_px > 0 and view.token_px**2 <= view.max_pixels and 0 <= view.min_pixels <= view.max_pixels
            _expect(fits and 1 <= view.max_upscale < math.inf, name, "sizes that hold at least one token")
            _expect(self.global_view.token_px == view.token_px, f"{name}.token_px", "the global view's token size")
        _expect(self.pixels.overview is None or self.pixels.layout == "planar", "pixels.overview", "the layout planar")
        _expect(0 <= self.crop.margin < math.inf and self.crop.min_side_px > 0, "crop", "a margin and a least side")
        decoder = self.decoder
        sizes = (decoder.layers, decoder.kv_heads, decoder.head_dim, decoder.hidden, decoder.max_tokens)
        _expect(min(sizes) > 0, "decoder", "positive sizes")
        _expect(0 < self.score_std_scale < math.inf, "score_std_scale", "a positive finite number")
        _expect(0 < self.rollout_top_p <= 1, "rollout_top_p", "more than 0 and at most 1")
        self._check_patches()
        self._check_language()

    def _check_patches(self) -> None:
        patches, layout = self.pixels.patches, self.pixels.layout
        _expect((patches is not None) == (layout == "patches"), "pixels.patches", "to be there for patches alone")
        if patches is None:
            return
        _expect(not self.pixels.survey, "pixels.survey", "the layout planar")
        sizes = (patches.patch_px, patches.merge, patches.window_px)
        _expect(min(sizes) > 0 and patches.window_tokens > 0, "pixels.patches", "windows of at least one token")
        _expect(self.global_view.token_px == patches.token_px, "global_view.token_px", "the side of merged patches")

    def _check_language(self) -> None:
        language, own_tokens = self.language, self.language.dialect == "probe-json"
        for name in ("first", "first_final", "crop", "crop_final"):
            count = getattr(language, name).count(IMAGE_SLOT)
            if language.zooms or name.startswith("first"):
                _expect(count == 1, f"language.{name}", f"exactly one {IMAGE_SLOT}")
            else:
                _expect(not getattr(language, name), f"language.{name}", f"no text: {language.dialect} has no crops")
        for name in ("score_tokens", "coordinate_tokens"):
            tokens = getattr(language, name)
            if own_tokens:
                _expect(bool(tokens) and all(map(_is_number, tokens)), f"language.{name}", "texts of finite numbers")
            else:
                _expect(not tokens, f"language.{name}", f"no texts: {language.dialect} spells numbers digit by digit")
        if own_tokens:
            _expect(language.think_tokens == 0, "language.think_tokens", "0: probe-json does not think aloud")
            _expect(bool(self.kinds) and bool(self.attributes), "kinds and attributes", "at least one name each")
            return
        _expect(language.think_tokens > 0, "language.think_tokens", "a positive number")
        if language.zooms:
            _expect(bool(self.kinds), "kinds", "at least one name")
        else:
            _expect(
                not self.kinds and not self.attributes,
                "kinds and attributes",
                f"no names: {language.dialect} reports a score alone",
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(kind: Any, value: Any, at: str) -> Any:
    """`value` from JSON as `kind` (a dataclass, tuple, dict, Literal or scalar type); BundleError names the place."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        _expect(isinstance(value, dict), at, "an object")
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        unknown, missing = set(value) - set(fields), required - set(value)
        _expect(not unknown, at, f"no key {', '.join(map(repr, sorted(unknown)))}")
        _expect(not missing, at, f"a key {', '.join(map(repr, sorted(missing)))}")
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], part, f"{at}.{name}") for name, part in value.items()})  # type: ignore[operator]
    if origin is types.UnionType:  # of one type and None
        return None if value is None else _read(typing.get_args(kind)[0], value, at)
    if origin is tuple:
        _expect(isinstance(value, list), at, "a list")
        return tuple(_read(typing.get_args(kind)[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), at, "an object")
        return {key: _read(typing.get_args(kind)[1], item, f"{at}.{key}") for key, item in value.items()}
    if origin is Literal:
        _expect(value in typing.get_args(kind), at, f"one of {', '.join(map(str, typing.get_args(kind)))}")
        return value
    number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    _expect(
        number or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))), at, f"a {kind.__name__}"
    )
    try:
        return float(value) if kind is float else value
    except OverflowError:
        raise BundleError(f"{CONTRACT_FILE}: {at.lstrip('.')} is too large a number") from None


def _expect(holds: bool, at: str, what: str) -> None:
    if not holds:
        raise BundleError(f"{CONTRACT_FILE}: {at.lstrip('.') or 'the contract'} needs {what}")
