"""`qcheck.json`: what is written is read back, and whatever else is in it is refused with the name of the key."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import plain_contract

from qcheck.contract import CONTRACT_FILE, Contract, PatchSpec
from qcheck.errors import BundleError

Edit = Callable[[dict[str, Any]], Any]


def edited(edit: Edit) -> str:
    data = json.loads(plain_contract().to_json())
    edit(data)
    return json.dumps(data)


def refusal(text: str) -> str:
    with pytest.raises(BundleError) as caught:
        Contract.from_json(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(CONTRACT_FILE)
    return message


def test_round_trip() -> None:
    contract = plain_contract()
    again = Contract.from_json(contract.to_json())
    assert again == contract
    assert again.to_json() == contract.to_json()
    assert isinstance(again.kinds, tuple)
    assert again.files["vision"].bytes == 3


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        plain_contract().name = "other"  # type: ignore[misc]


def test_text_beyond_ascii_survives() -> None:
    contract = plain_contract(licence="© ü 漢")
    assert "© ü 漢" in contract.to_json()
    assert Contract.from_json(contract.to_json()).licence == "© ü 漢"


def test_whole_numbers_are_read_as_floats_where_floats_are_due() -> None:
    contract = Contract.from_json(edited(lambda d: d["global_view"].update(max_upscale=2)))
    assert contract.global_view.max_upscale == 2.0
    assert isinstance(contract.global_view.max_upscale, float)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(surprise=1), ["the contract", "no key 'surprise'"]),
        (lambda d: d["decoder"].update(window=1), ["decoder", "no key 'window'"]),
        (lambda d: d["files"]["vision"].update(url="x"), ["files.vision", "no key 'url'"]),
        (lambda d: d.pop("kinds"), ["the contract", "a key 'kinds'"]),
        (lambda d: d["language"].pop("crop_final"), ["language", "a key 'crop_final'"]),
        (lambda d: d["files"]["vision"].pop("sha256"), ["files.vision", "a key 'sha256'"]),
        (lambda d: d.update(name=3), ["name needs a str"]),
        (lambda d: d.update(kinds="noise"), ["kinds needs a list"]),
        (lambda d: d.update(kinds=["noise", 4]), ["kinds[1] needs a str"]),
        (lambda d: d.update(files=[]), ["files needs an object"]),
        (lambda d: d.update(decoder=None), ["decoder needs an object"]),
        (lambda d: d["decoder"].update(layers="6"), ["decoder.layers needs a int"]),
        (lambda d: d["decoder"].update(layers=6.0), ["decoder.layers needs a int"]),
        (lambda d: d["decoder"].update(layers=True), ["decoder.layers needs a int"]),
        (lambda d: d["crop"].update(margin=False), ["crop.margin needs a float"]),
        (lambda d: d["crop"].update(margin="0.2"), ["crop.margin needs a float"]),
        (lambda d: d["pixels"].update(mean=[0.5, "x", 0.5]), ["pixels.mean[1] needs a float"]),
        (lambda d: d["pixels"].update(layout="rows"), ["pixels.layout", "planar, patches"]),
        (lambda d: d.update(coordinates="inches"), ["coordinates", "relative_1000, view_pixels"]),
        (lambda d: d["language"].update(dialect="prose"), ["language.dialect", "probe-json"]),
        (lambda d: d["pixels"].update(patches={"patch_px": 14, "merge": 2}), ["pixels.patches", "a key 'window_px'"]),
        (lambda d: d["decoder"].update(cache_dtype="int8"), ["decoder.cache_dtype", "float32, float16"]),
    ],
)
def test_what_does_not_belong_is_named(edit: Edit, words: list[str]) -> None:
    message = refusal(edited(edit))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["pixels"].update(mean=[0.5, 0.5]), ["pixels", "three finite numbers"]),
        (lambda d: d["pixels"].update(mean=[0.5, math.nan, 0.5]), ["pixels", "three finite numbers"]),
        (lambda d: d["pixels"].update(std=[1, 1, 0]), ["pixels.std", "positive"]),
        (lambda d: d["global_view"].update(token_px=0), ["global_view", "at least one token"]),
        (lambda d: d["crop_view"].update(max_pixels=1), ["crop_view", "at least one token"]),
        (lambda d: d["crop_view"].update(token_px=32), ["crop_view.token_px", "global view's"]),
        (lambda d: d["crop"].update(margin=-0.1), ["crop needs a margin"]),
        (lambda d: d["decoder"].update(layers=0), ["decoder", "positive"]),
        (lambda d: d.update(score_std_scale=0), ["score_std_scale", "a positive finite number"]),
        (lambda d: d.update(score_std_scale=math.inf), ["score_std_scale", "a positive finite number"]),
        (lambda d: d.update(rollout_top_p=0), ["rollout_top_p", "more than 0 and at most 1"]),
        (lambda d: d.update(rollout_top_p=1.5), ["rollout_top_p", "more than 0 and at most 1"]),
        (lambda d: d["language"].update(crop="no picture"), ["language.crop", "exactly one {image}"]),
        (lambda d: d["language"].update(score_tokens=["1.0", "five"]), ["language.score_tokens", "finite numbers"]),
        (lambda d: d["language"].update(coordinate_tokens=[]), ["language.coordinate_tokens"]),
        (lambda d: d.update(kinds=[]), ["kinds and attributes"]),
        (lambda d: d["crop"].update(margin=10**400), ["crop.margin", "too large"]),
    ],
)
def test_impossible_values_are_refused(edit: Edit, words: list[str]) -> None:
    message = refusal(edited(edit))
    assert all(word in message for word in words), message


def patched(**changes: Any) -> Contract:
    """A contract of a model that takes patches and speaks like a stock Qwen."""
    plain = plain_contract()
    view = replace(plain.global_view, token_px=28)
    talk = {"first": "{image}?", "first_final": "{image}!", "crop": "<{image}>?", "crop_final": "<{image}>!"}
    language = {"dialect": "qwen-chat", "score_tokens": (), "coordinate_tokens": (), "think_tokens": 99}
    return replace(
        plain,
        coordinates="view_pixels",
        pixels=replace(plain.pixels, layout="patches", patches=PatchSpec(14, 2, 112)),
        global_view=view,
        crop_view=replace(plain.crop_view, token_px=28),
        decoder=replace(plain.decoder, cache_dtype="float16"),
        language=replace(plain.language, **{**talk, **language, **changes.pop("language", {})}),
        **changes,
    )


def test_patches_and_another_dialect_survive_the_round_trip() -> None:
    contract = patched()
    assert contract.pixels.patches is not None
    assert contract.pixels.patches.window_tokens == 4
    assert Contract.from_json(contract.to_json()) == contract


def test_a_contract_from_before_a_key_means_what_it_meant() -> None:
    known = json.loads(files("qcheck").joinpath("models", "nano", "qcheck.json").read_text(encoding="utf-8"))
    for part, key in (("pixels", "patches"), ("decoder", "cache_dtype"), ("language", "think_tokens")):
        del known[part][key]  # as of nano 0.4.0
    nano = Contract.from_json(json.dumps(known))
    assert (nano.pixels.layout, nano.pixels.patches) == ("planar", None)
    assert nano.decoder.cache_dtype == "float32"
    assert nano.language.think_tokens == 0
    assert nano.language.zooms


SINGLE: Any = {"language": {"dialect": "q-insight", "crop": "", "crop_final": ""}, "kinds": (), "attributes": ()}


def overviewed(contract: Contract, **changes: int) -> Contract:
    """One that judges photos by an overview."""
    view = replace(contract.global_view, **changes)
    return replace(contract, pixels=replace(contract.pixels, overview=view))


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        (patched(language={"think_tokens": 0}), "language.think_tokens needs a positive number"),
        (patched(language={"score_tokens": ("1",)}), "language.score_tokens needs no texts: qwen-chat spells"),
        (patched(language={"crop": ""}), "language.crop needs exactly one {image}"),
        (patched(kinds=()), "kinds needs at least one name"),
        (patched(**{**SINGLE, "kinds": ("noise",)}), "needs no names: q-insight reports a score alone"),
        (patched(**{**SINGLE, "language": {"dialect": "q-insight"}}), "language.crop needs no text: q-insight"),
        (plain_contract(kinds=()), "kinds and attributes needs at least one name"),
        (replace(patched(), pixels=plain_contract().pixels), None),
        (replace(patched(), pixels=replace(patched().pixels, patches=None)), "pixels.patches needs to be there"),
        (replace(patched(), pixels=replace(patched().pixels, survey=True)), "pixels.survey needs the layout planar"),
        (replace(patched(), pixels=replace(patched().pixels, patches=PatchSpec(14, 2, 27))), "windows of at least one"),
        (replace(patched(), pixels=replace(patched().pixels, patches=PatchSpec(16, 2, 64))), "side of merged patches"),
        (patched(attributes=()), None),
        (patched(**SINGLE), None),
        (overviewed(plain_contract()), None),
        (overviewed(patched()), "pixels.overview needs the layout planar"),
        (overviewed(plain_contract(), token_px=32), "pixels.overview.token_px needs the global view's token size"),
        (overviewed(plain_contract(), max_pixels=9), "pixels.overview needs sizes that hold at least one token"),
    ],
)  # fmt: skip
def test_what_layouts_and_dialects_need(contract: Contract, words: str | None) -> None:
    """None: it is fine as it is."""
    if words is None:
        assert Contract.from_json(contract.to_json()) == contract
    else:
        assert words in refusal(contract.to_json())


def test_a_file_nested_without_end_is_refused() -> None:
    assert "not valid JSON" in refusal("[" * 100_000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (edited(lambda d: d.update(format="qcheck-bundle/2")), "format 'qcheck-bundle/2'"),
        (edited(lambda d: d.pop("format")), "format None"),
        (edited(lambda d: d.update(format=["qcheck-bundle/1"])), "format ['qcheck-bundle/1']"),
        ("[]", "format None"),
        ("null", "format None"),
        ('"qcheck-bundle/1"', "format None"),
        ("", "not valid JSON"),
        ('{"format": ', "not valid JSON"),
    ],
)
def test_other_formats_are_refused_before_anything_else(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_new_format_is_named_even_if_its_keys_are_new_too() -> None:
    assert "qcheck-bundle/9" in refusal('{"format": "qcheck-bundle/9", "everything": "else"}')
