"""Records: their exact shape, and the schema that ships with them."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from qcheck.errors import PHOTO_ERROR_KINDS
from qcheck.tiles import Box
from qcheck.verdict import (
    DEFECT_LEVELS,
    MAX_DEFECTS,
    SCHEMA,
    Defect,
    Failure,
    Verdict,
    level_of,
    schema,
    schema_text,
    severity_of,
)

GOLDEN = {
    "schema": "qcheck/1",
    "path": "photo.jpg",
    "status": "ok",
    "width": 8000,
    "height": 6000,
    "decode": {"scale": 1},
    "score": 3.42,
    "score_std": 0.21,
    "level": "good",
    "attributes": {"sharpness": 4.1, "noise": 2.6},
    "defects": [{"kind": "noise", "severity": 0.6, "level": "obvious", "box": [10, 20, 110, 220], "confidence": 0.83}],
    "probes": [{"box": [0, 0, 448, 336], "label": "noise", "seen_px": [448, 336], "finding": "grain"}],
    "reasoning": "Grain in the sky.",
    "budget": {"max_probes": 3, "used": 1, "stopped_by": "model"},
    "model": {"name": "nano", "version": "1.0", "sha256": "0" * 64},
    "engine": {"device": "cpu", "provider": "onnxruntime-cpu", "precision": "int8"},
    "timing_ms": {"decode": 10.0, "tiles": 2.0, "vision": 100.0, "prefill": 50.0, "generate": 150.0, "total": 312.0},
}
ERROR = {
    "schema": "qcheck/1",
    "path": "a.jpg",
    "status": "error",
    "error": {"kind": "truncated", "message": "a.jpg: is cut short"},
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def test_record_is_golden(make_verdict: Callable[..., Verdict]) -> None:
    record = make_verdict().record()
    assert record == GOLDEN
    assert list(record) == list(GOLDEN)  # the order is what people read


def test_failure_record_is_golden() -> None:
    assert Failure("a.jpg", "truncated", "a.jpg: is cut short").record() == ERROR


def test_numbers_are_rounded(make_verdict: Callable[..., Verdict]) -> None:
    defect = Defect("noise", "slight", Box(0, 0, 1, 1), 0.123456)
    record = make_verdict(score=3.41987, score_std=0.20961, attributes={"noise": 2.6049}, defects=(defect,)).record()
    assert (record["score"], record["score_std"], record["attributes"]) == (3.42, 0.21, {"noise": 2.6})
    assert record["defects"][0]["confidence"] == 0.1235


@pytest.mark.parametrize(
    ("score", "level"),
    [
        (1.0, "bad"),
        (1.799, "bad"),
        (1.8, "poor"),
        (2.599, "poor"),
        (2.6, "fair"),
        (3.399, "fair"),
        (3.4, "good"),
        (4.199, "good"),
        (4.2, "excellent"),
        (5.0, "excellent"),
    ],
)
def test_level_bounds(score: float, level: str) -> None:
    assert level_of(score) == level


def test_level_agrees_with_the_score_that_is_shown(make_verdict: Callable[..., Verdict]) -> None:
    record = make_verdict(score=3.3996).record()
    assert (record["score"], record["level"]) == (3.4, "good")


def test_severities() -> None:
    assert [severity_of(level) for level in DEFECT_LEVELS] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_schema_says_what_the_code_says() -> None:
    defs = schema()["$defs"]
    assert json.loads(schema_text()) == schema()
    assert defs["verdict"]["properties"]["schema"]["const"] == SCHEMA
    assert defs["failure"]["properties"]["error"]["properties"]["kind"]["enum"] == list(PHOTO_ERROR_KINDS)
    assert defs["defect"]["properties"]["level"]["enum"] == list(DEFECT_LEVELS)
    assert defs["verdict"]["properties"]["defects"]["maxItems"] == MAX_DEFECTS


@pytest.mark.parametrize("record", [GOLDEN, ERROR])
def test_schema_accepts(record: dict[str, Any], validator: Draft202012Validator) -> None:
    validator.validate(record)


def test_schema_accepts_rollouts(validator: Draft202012Validator) -> None:
    rollouts = {"k": 2, "score_mean": 3.4, "score_std": 0.1, "scores": [3.3, 3.5]}
    validator.validate(GOLDEN | {"rollouts": rollouts})
    assert not validator.is_valid(GOLDEN | {"rollouts": rollouts | {"more": 1}})


def _changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the record with the value at a dotted path replaced, or removed if it is `...`."""
    copy = deepcopy(record)
    *parents, last = path.split(".")
    target: Any = copy
    for name in parents:
        target = target[int(name) if name.isdigit() else name]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("score", ...),
        ("score", 0.9),
        ("score", "3"),
        ("level", "great"),
        ("more", 1),
        ("attributes.noise", 5.1),
        ("attributes.noise", "fine"),
        ("defects.0.box", [1, 2, 3]),
        ("defects.0.box", [1.5, 2, 3, 4]),
        ("defects.0.box", [-1, 2, 3, 4]),
        ("defects.0.level", "awful"),
        ("defects.0.confidence", 1.1),
        ("defects", GOLDEN["defects"] * 5),  # type: ignore[operator]
        ("probes.0.seen_px", [448]),
        ("budget.stopped_by", "boredom"),
        ("model.sha256", "abc"),
        ("timing_ms.total", -1),
        ("timing_ms.tea", 1),
        ("status", "error"),
        ("error", {"kind": "internal", "message": "x"}),
    ],
)
def test_schema_refuses(path: str, value: Any, validator: Draft202012Validator) -> None:
    assert not validator.is_valid(_changed(GOLDEN, path, value))


@pytest.mark.parametrize(("path", "value"), [("score", 3.0), ("error.kind", "boredom"), ("error.message", ...)])
def test_schema_refuses_errors(path: str, value: Any, validator: Draft202012Validator) -> None:
    assert not validator.is_valid(_changed(ERROR, path, value))
