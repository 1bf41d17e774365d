"""What a checkpoint's config.json says of its model, checked, and the tensors that such a model has.

Both spellings are read: the flat one of published Qwen2.5-VL checkpoints (`rope_scaling` with type `mrope`) and the
nested one that newer transformers writes (`text_config`, `rope_parameters`). Defaults are those of transformers.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from errors import ExportError

CONFIG_FILE: Final = "config.json"
MODEL_TYPE: Final = "qwen2_5_vl"
SUPPORTED: Final = "Qwen2_5_VLForConditionalGeneration"
ROPE_AXES: Final = 3  # time, height, width
VISION_NORM_EPS: Final = 1e-6  # no key of config.json changes it

Settings = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TextArchitecture:
    """The decoder. `rope_sections`: how many of the head_dim / 2 rotary frequencies follow time, height and width."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    rope_sections: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def check(self) -> None:
        """Raises ExportError for sizes that do not fit together."""
        _fits(self.hidden % self.heads == 0, f"hidden_size {self.hidden} is not a multiple of {self.heads} heads")
        _fits(
            self.heads % self.kv_heads == 0,
            f"{self.heads} attention heads cannot share {self.kv_heads} key and value heads",
        )
        _fits(self.head_dim % 2 == 0, f"a head of {self.head_dim} values has no halves to rotate")
        _fits(
            len(self.rope_sections) == ROPE_AXES and sum(self.rope_sections) * 2 == self.head_dim,
            f"mrope_section {list(self.rope_sections)} does not add up to half a head of {self.head_dim} values",
        )

    def tensors(self) -> Shapes:
        """Name, without the prefix of the layout, and shape of every tensor but the head's."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: Shapes = {"embed_tokens.weight": (self.vocabulary, self.hidden), "norm.weight": (self.hidden,)}
        for index in range(self.layers):
            layer = f"layers.{index}."
            for part, rows in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{layer}self_attn.{part}_proj.weight"] = (rows, self.hidden)
                shapes[f"{layer}self_attn.{part}_proj.bias"] = (rows,)
            shapes[f"{layer}self_attn.o_proj.weight"] = (self.hidden, queries)
            for part in ("gate", "up"):
                shapes[f"{layer}mlp.{part}_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{layer}mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{layer}{norm}.weight"] = (self.hidden,)
        return shapes


@dataclass(frozen=True, slots=True)
class VisionArchitecture:
    """The vision tower. Blocks in `full_blocks` let a whole image attend; the others, windows of `window_px` a side."""

    blocks: int
    hidden: int
    intermediate: int
    heads: int
    channels: int
    patch_px: int
    temporal_patch: int
    merge: int
    window_px: int
    full_blocks: tuple[int, ...]
    out_hidden: int
    rope_theta: float

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers of one patch of a still: channel, row, column."""
        return self.channels * self.patch_px**2

    @property
    def window_tokens(self) -> int:
        """Side of an attention window, in merged tokens."""
        return self.window_px // (self.patch_px * self.merge)

    def check(self) -> None:
        """Raises ExportError for sizes that do not fit together."""
        _fits(
            self.hidden % self.heads == 0, f"vision hidden_size {self.hidden} is not a multiple of {self.heads} heads"
        )
        _fits(self.head_dim % 4 == 0, f"a vision head of {self.head_dim} values has no quarters to rotate")
        _fits(
            self.window_tokens > 0,
            f"window_size {self.window_px} holds no token of {self.patch_px * self.merge} pixels",
        )
        _fits(
            all(0 <= block < self.blocks for block in self.full_blocks),
            f"fullatt_block_indexes {list(self.full_blocks)} are not all among {self.blocks} blocks",
        )

    def tensors(self) -> Shapes:
        """Name, without the prefix of the layout, and shape of every tensor."""
        kernel = (self.channels, self.temporal_patch, self.patch_px, self.patch_px)
        merged = self.hidden * self.merge**2
        shapes: Shapes = {
            "patch_embed.proj.weight": (self.hidden, *kernel),
            "merger.ln_q.weight": (self.hidden,),
            "merger.mlp.0.weight": (merged, merged),
            "merger.mlp.0.bias": (merged,),
            "merger.mlp.2.weight": (self.out_hidden, merged),
            "merger.mlp.2.bias": (self.out_hidden,),
        }
        linears = {
            "attn.qkv": (3 * self.hidden, self.hidden),
            "attn.proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        for index in range(self.blocks):
            for name, shape in linears.items():
                shapes[f"blocks.{index}.{name}.weight"] = shape
                shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
            for norm in ("norm1", "norm2"):
                shapes[f"blocks.{index}.{norm}.weight"] = (self.hidden,)
        return shapes


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Qwen2.5-VL-class model. `tied`: the head's weights are the embeddings."""

    text: TextArchitecture
    vision: VisionArchitecture
    tied: bool

    @property
    def weights(self) -> int:
        """Numbers in all of its tensors."""
        shapes = (*self.text.tensors().values(), *self.vision.tensors().values())
        head = 0 if self.tied else self.text.vocabulary * self.text.hidden
        return sum(map(math.prod, shapes)) + head

    @classmethod
    def of(cls, config: Any) -> "Architecture":
        """From the parsed config.json. Raises ExportError."""
        if not isinstance(config, dict):
            raise ExportError(f"{CONFIG_FILE} holds no object")
        found = config.get("model_type")
        if found != MODEL_TYPE:
            raise ExportError(f"{CONFIG_FILE} describes a {found!r} model; supported: {SUPPORTED} ({MODEL_TYPE})")
        # A reward or a classification model has the same type and other heads.
        names = config.get("architectures") or [SUPPORTED]
        if names != [SUPPORTED]:
            raise ExportError(f"{CONFIG_FILE} names the architecture {names!r}; supported: {SUPPORTED}")
        text = _object(config.get("text_config", config), "text_config")
        vision = _object(config.get("vision_config"), "vision_config")
        made = cls(
            _text(text), _vision(vision), bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
        )
        made.text.check()
        made.vision.check()
        _fits(
            made.vision.out_hidden == made.text.hidden,
            f"image tokens of {made.vision.out_hidden} values do not fit a decoder of {made.text.hidden}",
        )
        return made


def _text(settings: Settings) -> TextArchitecture:
    rope = _object(settings.get("rope_scaling") or settings.get("rope_parameters") or {}, "rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ExportError(f"{CONFIG_FILE} asks for the rope type {kind!r}; supported: default, mrope")
    if settings.get("use_sliding_window"):
        raise ExportError(f"{CONFIG_FILE} asks for sliding window attention, which is not supported")
    _silu(settings)
    heads = _count(settings, "num_attention_heads")
    made = TextArchitecture(
        layers=_count(settings, "num_hidden_layers"),
        hidden=_count(settings, "hidden_size"),
        intermediate=_count(settings, "intermediate_size"),
        heads=heads,
        kv_heads=_count(settings, "num_key_value_heads", heads),
        vocabulary=_count(settings, "vocab_size"),
        norm_eps=_number(settings, "rms_norm_eps", 1e-5),
        rope_theta=_number(rope, "rope_theta", _number(settings, "rope_theta", 1e6)),
        rope_sections=_counts(rope, "mrope_section", (16, 24, 24)),
    )
    own = settings.get("head_dim")
    _fits(own in (None, made.head_dim), f"head_dim {own} is not hidden_size / num_attention_heads")
    return made


def _vision(settings: Settings) -> VisionArchitecture:
    rope = _object(settings.get("rope_parameters") or {}, "vision_config.rope_parameters")
    kind = rope.get("rope_type", "axial")
    if kind not in ("axial", "default"):
        raise ExportError(f"{CONFIG_FILE} asks for the rope type {kind!r} in the vision tower; supported: axial")
    _silu(settings)
    return VisionArchitecture(
        blocks=_count(settings, "depth"),
        hidden=_count(settings, "hidden_size"),
        intermediate=_count(settings, "intermediate_size"),
        heads=_count(settings, "num_heads", 16),
        # Published checkpoints spell it in_chans, which transformers does not read: three channels are its default.
        channels=_count(settings, "in_channels", 3),
        patch_px=_count(settings, "patch_size", 14),
        temporal_patch=_count(settings, "temporal_patch_size", 2),
        merge=_count(settings, "spatial_merge_size", 2),
        window_px=_count(settings, "window_size", 112),
        full_blocks=_counts(settings, "fullatt_block_indexes", (7, 15, 23, 31)),
        out_hidden=_count(settings, "out_hidden_size"),
        rope_theta=_number(rope, "rope_theta", 1e4),
    )


def _fits(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ExportError(f"{CONFIG_FILE}: {otherwise}")


def _silu(settings: Settings) -> None:
    found = settings.get("hidden_act", "silu")
    _fits(found == "silu", f"hidden_act {found!r} is not supported; silu is")


def _object(value: Any, name: str) -> Settings:
    _fits(isinstance(value, dict), f"{name} must be an object")
    checked: Settings = value
    return checked


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _count(settings: Settings, key: str, default: int | None = None) -> int:
    value = settings.get(key)
    if value is None:
        value = default
    if value is None:
        raise ExportError(f"{CONFIG_FILE}: {key} is missing")
    _fits(_is_count(value, 1), f"{key} must be a positive integer, not {value!r}")
    return int(value)


def _counts(settings: Settings, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = settings.get(key, default)
    _fits(
        isinstance(value, list | tuple) and all(_is_count(item, 0) for item in value),
        f"{key} must be a list of integers",
    )
    return tuple(value)


def _number(settings: Settings, key: str, default: float) -> float:
    value = settings.get(key, default)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    _fits(good, f"{key} must be a positive number, not {value!r}")
    return float(value)
