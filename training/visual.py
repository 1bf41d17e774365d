"""nano's vision side: frozen convolutions, a glance, a perception that reads them, and a projector.

`Damage` reads every token by itself: what is wrong with it, against the rest of its view and against what lies around.
Nothing in it sees where a token is or what it shows, because whatever could know a photo again learned the few
clean sources by heart (on new sources it found half as much). `Context` (context.py) then compares the readings of
neighbours, and nothing but those. `Quality` reads the score of a photo as a whole, at one size whatever its own
(overviews.py), and another the attributes of a view, some of which `Tone` (tone.py) tells by its light as well. `Toll`
(toll.py) tells what the damages of a view cost. `Regions` (regions.py) judges rectangles of many tokens as a whole, and
`Projector` brings all of it into the decoder's width, so that the decoder speaks of what it is shown.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from belief import BAR
from cells import CELL_CHANNELS, SOURCES, VIEW_CHANNELS, CellEncoder, size_of
from context import Context
from defects import PHOTOS
from glance import CHANNELS as GLANCE_CHANNELS
from glance import Glance
from layers import SourceDropout, reader, zeroed
from nano_spec import CELLS_PER_SIDE, LEAST_UNIT, MERGE, OVERVIEW, PATCH_PX, SCORE_CENTRE
from regions import LEVELS, PROPOSALS, Maps, Proposals, Regions
from toll import Toll
from tone import Tone, ToneStatistics
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qcheck.survey import CELL_PX as SURVEYED_PX
from qcheck.verdict import SCORE_MAX, SCORE_MIN

DAMAGE_WIDTH: Final = 256
DAMAGE_DROPOUT: Final = 0.3
INPUT_DROPOUT: Final = 0.2
SOURCE_DROPOUT: Final = 0.3
SEEN_CHANNELS: Final = 2 * CELL_CHANNELS
SUMMARY_CHANNELS: Final = SEEN_CHANNELS + GLANCE_CHANNELS
WHOLE_CHANNELS: Final = SUMMARY_CHANNELS + 1  # with how large the photo is, as of `doublings`
OPINIONS: Final = 2  # networks that judge each token
AROUND: Final = 7  # tokens a side, of what lies around one
QUALITY_NETWORKS: Final = 3
QUALITY_WIDTHS: Final = (512, 256)
ATTRIBUTE_WIDTHS: Final = (256, 128)
QUALITY_INPUT_DROPOUT: Final = 0.3
QUALITY_DROPOUT: Final = 0.5
RIDGE_SHARE: Final = 0.7  # of a score
ATTRIBUTE_RIDGE_SHARE: Final = 0.3  # what spoils them was made, and is one domain
SUMMARY_CLIP: Final = 6.0  # standard deviations
CLIP: Final = 5.0  # standard deviations, of what a token is against others
LEAST_DAMAGE: Final = 1e-6  # summed probability
PHOTO_KINDS: Final = len(PHOTOS.kinds)
PHOTO_ATTRIBUTES: Final = len(PHOTOS.attributes)
NUMBER_BINS: Final = 21
STRENGTH_UNIT: Final = 1.0  # log odds: strengths are told apart best near those that are as likely a damage as not
CERTAIN: Final = 8.0  # log odds, the most that are told apart
# People rate small photos on their own scale, of which few reach the top; a large original with nothing wrong has all
# points. In between, a photo's score rises so much with each doubling of its pixels, up to so many of them.
LENIENCE: Final = 0.3
LENIENT: Final = 4.0
# Of what people's scale gives a photo above its worst attribute, so much is not believed: rated photos hold few of the
# lights, colours and codecs that attributes were taught with. README.md has the figures.
WORST_ATTRIBUTE_SHARE: Final = 0.4
# Numbers that are dealt out over the tokens: each proposal's box, strength, level and severity, the score of the photo,
# and the toll and the attributes of the view.
PROPOSAL_NUMBERS: Final = 7
VIEW_NUMBERS: Final = 2


def slots_of(attributes: int = PHOTO_ATTRIBUTES) -> int:
    """How many numbers are dealt out."""
    return PROPOSAL_NUMBERS * PROPOSALS + VIEW_NUMBERS + attributes


class Evidence(NamedTuple):
    """What perception reads in a view of rows x cols tokens. `kinds`: (rows, cols, 1 + kinds) logits, 0 clean;
    `levels`: (rows, cols, LEVELS) logits; `severity`: (rows, cols, 1) 0..1, what a defect there costs the photo, less
    its size (samples.severity); `score`: (1,), 1..5, of the whole photo as far as no single place is bad; `toll`: (1,),
    1..5, of a clean photo with the damages that the view shows; `attributes`: (attributes,), 1..5, of the view as a
    whole; `places`: (PROPOSALS, place_size) its most suspicious ones, as Regions gives them. For a batch of views of
    one size, each has one more axis in front.
    """

    kinds: Tensor
    levels: Tensor
    severity: Tensor
    score: Tensor
    toll: Tensor
    attributes: Tensor
    places: Tensor

    @property
    def proposals(self) -> Proposals:
        """Of one view."""
        return Proposals.of(self.places)

    def log_odds(self) -> Tensor:
        """(rows, cols) of damage against none."""
        return log_odds(self.kinds)


def log_odds(kinds: Tensor) -> Tensor:
    """Of damage against none: logits of kinds (..., 1 + kinds) -> (...,)."""
    return kinds[..., 1:].logsumexp(-1) - kinds[..., 0]


class TokenInputs(NamedTuple):
    """Tokens as Damage's networks read them, (..., CELL_CHANNELS) each: `relative` to the rest of their view, `local`
    to what lies around them, in standard deviations of the view. `size`: (..., 1) of the view, as of `size_of`: in big
    photos the same damage is smaller and fainter than in a crop."""

    relative: Tensor
    local: Tensor
    size: Tensor


class Damage(nn.Module):
    """Cells of views, (views, rows, cols, CELL_CHANNELS) -> kinds, levels and severity of each token.

    Two networks judge each token, and are averaged: one against the rest of its view, one against what lies around it.
    None knows it as it is: what is usual in one photo is damage in another.
    """

    def __init__(self, kinds: int = PHOTO_KINDS) -> None:
        super().__init__()
        self.kinds = kinds
        # A level of each kind, for strong blur is not strong noise; and what it costs the photo, whatever its kind.
        self.outputs = 1 + kinds + kinds * LEVELS + 1
        self.register_buffer("std", torch.ones(CELL_CHANNELS))
        self.relative, self.local = self.network(), self.network()

    def network(self) -> nn.Sequential:
        return nn.Sequential(
            SourceDropout(SOURCES, SOURCE_DROPOUT),
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(CELL_CHANNELS + 1, DAMAGE_WIDTH),
            nn.GELU(),
            nn.Dropout(DAMAGE_DROPOUT),
            nn.Linear(DAMAGE_WIDTH, DAMAGE_WIDTH),
            nn.GELU(),
            nn.Dropout(DAMAGE_DROPOUT),
            nn.Linear(DAMAGE_WIDTH, self.outputs),
        )

    def normalised(self, tokens: Tensor, around: Tensor, mean: Tensor, spread: Tensor, size: Tensor) -> TokenInputs:
        """Of tokens (..., CELL_CHANNELS), what lies `around` each, the mean and spread of their views' cells, and the
        views' size (..., 1)."""
        unit = spread + LEAST_UNIT * self.std
        relative, local = (tokens - mean) / unit, (tokens - around) / unit
        return TokenInputs(relative.clamp(-CLIP, CLIP), local.clamp(-CLIP, CLIP), size)

    def read(self, x: TokenInputs) -> list[Tensor]:
        """Outputs of all networks, (..., outputs) each, as `apart` takes them."""
        return [self.relative(torch.cat((x.relative, x.size), -1)), self.local(torch.cat((x.local, x.size), -1))]

    def apart(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., 1 + kinds) logits, of the levels of each kind, (..., kinds, LEVELS), and of severity, (..., 1)."""
        levels = outputs[..., 1 + self.kinds : -1].unflatten(-1, (self.kinds, LEVELS))
        return outputs[..., : 1 + self.kinds], levels, outputs[..., -1:]

    def inputs(self, cells: Tensor) -> TokenInputs:
        """What `read` takes, of each token of views: (views, rows, cols, .)."""
        views, rows, cols = cells.shape[0], cells.shape[1] // CELLS_PER_SIDE, cells.shape[2] // CELLS_PER_SIDE
        mean = cells.mean((1, 2), keepdim=True)
        spread = torch.sqrt(((cells - mean) ** 2).mean((1, 2), keepdim=True))
        tokens = cells.reshape(views, rows, CELLS_PER_SIDE, cols, CELLS_PER_SIDE, CELL_CHANNELS).mean((2, 4))
        ones = torch.ones_like(tokens[..., :1])
        size = size_of(ones * ones.sum((1, 2), keepdim=True))
        return self.normalised(tokens, surroundings(tokens), mean, spread, size)

    def opinions(self, cells: Tensor) -> list[Tensor]:
        """The outputs of all networks for each token of views, (views, rows, cols, outputs)."""
        return self.read(self.inputs(cells))

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return told(*self.apart(mean_of(self.opinions(cells))))


def surroundings(tokens: Tensor) -> Tensor:
    """The mean of the AROUND x AROUND tokens around each of views, (views, rows, cols, channels), that the view has."""
    grid = tokens.permute(0, 3, 1, 2)
    return F.avg_pool2d(grid, AROUND, 1, AROUND // 2, count_include_pad=False).permute(0, 2, 3, 1)


def mean_of(opinions: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(opinions)).mean(0)


def told(kinds: Tensor, levels: Tensor, severity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits as of Damage.apart: the kinds, log probabilities of the likely kinds' levels, and the severity."""
    shares = kinds[..., 1:].softmax(-1)[..., None]
    return kinds, torch.log((shares * levels.softmax(-1)).sum(-2) + LEAST_DAMAGE), severity.sigmoid()


class Quality(nn.Module):
    """What pictures are as a whole, (pictures, channels) -> (pictures, outputs) scores, 1..5.

    All it knows of one is the mean and spread of each channel over its cells (`summary`) and, if it reads more channels
    than those, a glance (`summary_of`). A ridge regression reads them, a few strongly dropped-out networks all but the
    glance, and their answers are averaged: the networks rank photos like those of the training best, the ridge is far
    steadier on others (summaries.py). Until they are taught, they say SCORE_CENTRE.
    """

    def __init__(
        self,
        channels: int = SUMMARY_CHANNELS,
        outputs: int = 1,
        widths: tuple[int, int] = QUALITY_WIDTHS,
        ridge_share: float = RIDGE_SHARE,
    ) -> None:
        super().__init__()
        self.ridge_share = ridge_share
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.networks = nn.ModuleList(
            reader(SEEN_CHANNELS, widths, outputs, QUALITY_INPUT_DROPOUT, QUALITY_DROPOUT)
            for _ in range(QUALITY_NETWORKS)
        )
        self.ridge = zeroed(nn.Linear(channels, outputs))

    @classmethod
    def of_attributes(cls, attributes: int) -> "Quality":
        """What reads as many attributes of a view."""
        return cls(SEEN_CHANNELS, attributes, ATTRIBUTE_WIDTHS, ATTRIBUTE_RIDGE_SHARE)

    def normalised(self, summary: Tensor) -> Tensor:
        """(pictures, channels), in standard deviations of all that were learned from."""
        return ((summary - self.mean) / self.std).clamp(-SUMMARY_CLIP, SUMMARY_CLIP)

    def votes(self, x: Tensor) -> list[Tensor]:
        """What each network says, (..., outputs), of `normalised` summaries, (..., channels)."""
        return [network(x[..., :SEEN_CHANNELS]) for network in self.networks]

    def forward(self, summaries: Tensor) -> Tensor:
        # With an axis more than it needs: linear maps of plain matrices are exported as Gemm, which is not quantised.
        x = self.normalised(summaries)[:, None]
        votes = torch.stack(self.votes(x)).mean(0)
        score: Tensor = SCORE_CENTRE + (1 - self.ridge_share) * votes + self.ridge_share * self.ridge(x)
        return score[:, 0]


def summary_of(cells: Tensor, glances: Tensor) -> Tensor:
    """Cells of photos, (photos, rows, cols, CELL_CHANNELS), and a glance at each, (photos, GLANCE_CHANNELS) -> (photos,
    SUMMARY_CHANNELS)."""
    return torch.cat((summary(cells), glances), 1)


def doublings(surveyed_cells: Tensor) -> Tensor:
    """How large photos of as many cells of the survey are: 0 if they are no larger than their overview, then one more
    with each doubling of their pixels."""
    return torch.log2(surveyed_cells * (SURVEYED_PX**2 / OVERVIEW.max_pixels)).clamp(min=0)


def summary(cells: Tensor) -> Tensor:
    """Cells of views, (views, rows, cols, CELL_CHANNELS) -> (views, 2 * CELL_CHANNELS): their mean, their spread."""
    mean = cells.mean((1, 2))
    return torch.cat((mean, torch.sqrt(((cells - mean[:, None, None]) ** 2).mean((1, 2)) + 1e-6)), 1)


class Perception(nn.Module):
    """Cells of views of one size, (views, rows, cols, CELL_CHANNELS), the scores of their photos as a whole, (views, 1)
    as of `judged`, and their attributes -> their Evidence. Attributes are what `attributes` reads of a view's `summary`
    and, where there are pixels, `tone` in its light."""

    def __init__(self, kinds: int = PHOTO_KINDS, attributes: int = PHOTO_ATTRIBUTES) -> None:
        super().__init__()
        self.damage, self.context = Damage(kinds), Context(kinds, OPINIONS)
        self.regions = Regions(kinds, OPINIONS)
        self.quality, self.toll = Quality(), Toll()
        self.attributes, self.tone = Quality.of_attributes(attributes), Tone(attributes)

    def judged(self, wholes: Tensor, attributes: Tensor) -> Tensor:
        """What photos are, (photos, WHOLE_CHANNELS): as of `summary_of`, and their `doublings`; and the `attributes` of
        their overviews, (photos, attributes) -> (photos, 1): what each scores if no single place of it is bad."""
        summaries, size = wholes[:, :SUMMARY_CHANNELS], wholes[:, SUMMARY_CHANNELS:]
        people: Tensor = self.quality(summaries)
        people = people - WORST_ATTRIBUTE_SHARE * (people - attributes.amin(1, keepdim=True)).clamp(min=0)
        return (people + LENIENCE * size.clamp(max=LENIENT)).clamp(SCORE_MIN, SCORE_MAX)

    def around(self, cells: Tensor) -> Tensor:
        """What Context reads of each token."""
        inputs = self.damage.inputs(cells)
        return self._around(self.damage.read(inputs), inputs)

    def maps(self, cells: Tensor) -> Maps:
        """What Regions reads of one view, (rows, cols, CELL_CHANNELS)."""
        inputs, opinions, kinds, _, severity = self._tokens(cells[None])
        return self._maps(inputs, opinions, kinds, severity)[0]

    def _around(self, opinions: list[Tensor], inputs: TokenInputs) -> Tensor:
        return self.context.inputs(opinions, inputs.relative[..., VIEW_CHANNELS:], inputs.size)

    def _tokens(self, cells: Tensor) -> tuple[TokenInputs, list[Tensor], Tensor, Tensor, Tensor]:
        """What Damage's networks read, what they say, and the logits of all together, corrected by Context."""
        inputs = self.damage.inputs(cells)
        opinions = self.damage.read(inputs)
        kinds, levels, severity = self.damage.apart(mean_of(opinions))
        more = self.context(self._around(opinions, inputs))
        return inputs, opinions, kinds + more[..., :-1], levels, severity + more[..., -1:]

    def _maps(self, inputs: TokenInputs, opinions: list[Tensor], kinds: Tensor, severity: Tensor) -> list[Maps]:
        each = torch.stack([log_odds(self.damage.apart(one)[0]) for one in opinions], -1)
        parts = (log_odds(kinds), each, kinds, severity, inputs.relative, inputs.size[:, 0, 0])
        return [Maps(*(part[view] for part in parts)) for view in range(kinds.shape[0])]

    def forward(self, cells: Tensor, judged: Tensor, attributes: Tensor) -> Evidence:
        inputs, opinions, kinds, levels, severity = self._tokens(cells)
        maps = self._maps(inputs, opinions, kinds, severity)
        kinds, levels, severity = told(kinds, levels, severity)
        places = torch.stack([self.regions(view) for view in maps])
        return Evidence(kinds, levels, severity, judged, self.toll(places), attributes, places)


def perceived(perception: Perception, views: Sequence[Tensor], wholes: Sequence[Tensor]) -> list[Evidence]:
    """`perception` of every view, (rows, cols, CELL_CHANNELS), and what its photo is as a whole, (WHOLE_CHANNELS,), in
    order; those of one size go together. Attributes are those that cells tell: of their light nothing is kept, and a
    decoder learns to say numbers as they are read, whoever reads them."""
    out: dict[int, Evidence] = {}
    photos = torch.stack(list(wholes))
    judged = perception.judged(photos, perception.attributes(photos[:, :SEEN_CHANNELS]))
    for members in by_size(views):
        cells = torch.stack([views[i] for i in members])
        evidence = perception(cells, judged[members], perception.attributes(summary(cells)))
        for at, index in enumerate(members):
            out[index] = Evidence(*(part[at] for part in evidence))
    return [out[index] for index in range(len(views))]


def by_size(views: Sequence[Tensor]) -> list[list[int]]:
    """The indices of views, those of one size together."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, view in enumerate(views):
        sizes.setdefault(tuple(view.shape), []).append(index)
    return list(sizes.values())


def reading_size(kinds: int, attributes: int = PHOTO_ATTRIBUTES) -> int:
    """Of what `described` says of a token."""
    return 1 + kinds + LEVELS + 2 + slots_of(attributes) + NUMBER_BINS


def view_reading_size(kinds: int, attributes: int = PHOTO_ATTRIBUTES) -> int:
    """Of what `described` says of a view."""
    return slots_of(attributes) * NUMBER_BINS + PROPOSALS * (1 + kinds + LEVELS)


class Projector(nn.Module):
    """What `described` makes of a view's evidence, at the decoder's width."""

    def __init__(self, hidden: int, kinds: int = PHOTO_KINDS, attributes: int = PHOTO_ATTRIBUTES) -> None:
        super().__init__()
        self.from_reading = nn.Linear(reading_size(kinds, attributes), hidden)
        self.from_view = nn.Linear(view_reading_size(kinds, attributes), hidden, bias=False)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, reading: Tensor, view: Tensor) -> Tensor:
        """(n, reading_size) and (n or 1, view_reading_size) -> (n, hidden)."""
        x = self.from_reading(reading) + self.from_view(view)
        projected: Tensor = self.norm(x + self.mix(x))
        return projected


def described(evidence: Evidence) -> tuple[Tensor, Tensor]:
    """A view's evidence as inputs of the projector: (tokens, reading_size), each token's own, and
    (view_reading_size,), the proposals, the score, the toll and the attributes.

    Every token also carries one number of the whole, and which (its place in raster order modulo `slots_of`):
    to say a coordinate, a level or a score the decoder then only has to look up its slot.
    """
    kinds, levels = evidence.kinds.softmax(-1), evidence.levels.softmax(-1)
    damaged = 1 - kinds[..., :1]
    odds = (evidence.log_odds() / CERTAIN).clamp(-1, 1)[..., None]
    own = torch.cat((kinds, damaged * levels, damaged * evidence.severity, odds), -1).flatten(0, 1)
    found = evidence.proposals
    strength = torch.sigmoid((found.strengths - BAR) / STRENGTH_UNIT)
    scores = torch.cat((evidence.score, evidence.toll, evidence.attributes))
    scores = ((scores - SCORE_MIN) / (SCORE_MAX - SCORE_MIN)).clamp(0, 1)
    places = torch.cat((found.boxes, strength[:, None], found.level[:, None], found.severities), 1)
    numbers = bumps(torch.cat((places.flatten(), scores)), NUMBER_BINS)
    slots = torch.arange(numbers.shape[0], device=own.device)
    slot = torch.remainder(torch.arange(own.shape[0], device=own.device), numbers.shape[0])
    reading = torch.cat((own, (slot[:, None] == slots).to(own.dtype), numbers[slot]), 1)
    return reading, torch.cat((numbers.flatten(), found.kinds.flatten(), found.levels.flatten()))


def bumps(values: Tensor, bins: int) -> Tensor:
    """(n,) in 0..1 -> (n, bins): a Gaussian bump around each value, so that a linear layer can read it to a bin."""
    centres = torch.arange(bins, device=values.device, dtype=torch.float32) / (bins - 1)
    return torch.exp(-(((values[:, None] - centres) * (bins - 1)) ** 2) / 2)


class NanoVisual(nn.Module):
    """Pixels to image tokens, with the call signature of Qwen2.5-VL's vision tower."""

    def __init__(self, hidden: int, kinds: int = PHOTO_KINDS, attributes: int = PHOTO_ATTRIBUTES) -> None:
        super().__init__()
        self.spatial_merge_size = MERGE
        self.encoder, self.glance, self.light = CellEncoder(), Glance(), ToneStatistics()
        self.perception = Perception(kinds, attributes)
        self.projector = Projector(hidden, kinds, attributes)

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.from_reading.weight.dtype

    def image_tokens(self, pixels: Tensor, survey: Tensor, glanced: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """A view as the projector's tokens, (h/64 * w/64, hidden), raster order, and the score of its photo as a whole,
        (1, 1). `pixels`: (1, 3, h, w), normalised; `survey`: (1, rows, cols, 8) of what they show; `known`: that score,
        of an earlier call, or 0, where this view, of all of the photo, is to tell; `glanced`: in that case `pixels`,
        else anything, and the smaller the faster."""
        evidence, judged = self.seen(pixels, survey, glanced, known)
        tokens: Tensor = self.projector(*described(evidence))
        return tokens, judged

    def seen(
        self, pixels: Tensor, survey: Tensor, glanced: Tensor, known: Tensor, eyes: Perception | None = None
    ) -> tuple[Evidence, Tensor]:
        """What `eyes`, or its own perception, make of a view, given as in `image_tokens`."""
        eyes = eyes or self.perception
        cells = self.encoder(pixels, survey)
        size = doublings(torch.ones_like(survey[..., 0]).sum((1, 2)))
        whole = torch.cat((summary_of(cells, self.glance(glanced)), size[:, None]), 1)
        # Read once: where this view tells what the photo is, it is the photo's overview.
        attributes = eyes.tone(self.light(pixels), eyes.attributes(summary(cells)))
        judged = torch.where(known > 0, known, eyes.judged(whole, attributes))
        return Evidence(*(part[0] for part in eyes(cells, judged, attributes))), judged

    def forward(
        self, hidden_states: Tensor, grid_thw: Tensor, *, surveys: Sequence[Tensor], known: Tensor, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Qwen's call, with a survey an image besides, and the score of their photo as a whole. `hidden_states`: all
        patches, (n, 3*16*16), in merge-block order; `grid_thw`: (images, 3); `surveys`: (1, rows, cols, 8) each;
        `known`: (1, 1), as for `image_tokens`, for all images; 0: what the first one tells."""
        views, start = [], 0
        for (_, rows, cols), survey in zip(grid_thw.tolist(), surveys, strict=True):
            patches = hidden_states[start : start + rows * cols]
            start += rows * cols
            x = patches.reshape(rows // MERGE, cols // MERGE, MERGE, MERGE, 3, PATCH_PX, PATCH_PX)
            x = x.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * PATCH_PX, cols * PATCH_PX)
            view, known = self.image_tokens(x, survey, x, known)
            views.append(view)
        tokens = torch.cat(views)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens)
