"""Probe-CoT lines of trajectories.py as chat messages that a large model learns from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defects import Domain
from runs import RunError

from large.answers import question, spell
from large.views import global_view, in_view, shown, zoomed
from qcheck.dialects.chat import SYSTEM, TOOL
from qcheck.photo import Photo
from qcheck.tiles import Box

Row = dict[str, Any]


def lines_of(path: Path, split: str) -> list[Row]:
    """Of a trajectories.jsonl. Raises RunError for a line whose image is missing."""
    if not path.is_file():
        raise RunError(f"{path}: is missing; make it first (trajectories.py make)")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines, 1):
        if not Path(line["image"]).is_file():
            raise RunError(f"{path}, line {number}: {line['image']} is missing; make the conversations again")
    return [line for line in lines if line["split"] == split]


def first_messages(picture: Any, domain: Domain, attributes: bool) -> list[Row]:
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": question(domain, attributes)}]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def found_in(findings: list[Row] | None) -> str:
    """What one thinks of a crop."""
    if findings is None:
        return ""
    named = ", ".join(f"{f['level']} {f['kind']}" for f in findings)
    return f"<think>{named or 'All is well here'}.</think>"


def conversation(line: Row, domain: Domain, global_pixels: int, crop_pixels: int) -> list[Row]:
    """The messages of a line, with its pictures: the photo whole, then each probe."""
    photo = Photo.open(line["image"])
    view = global_view(photo, global_pixels)
    messages = first_messages(shown(photo, view), domain, attributes=False)
    thought = ""
    for probe in line["probes"]:
        corners = in_view(Box(*probe["box"]), view)
        call = {"name": TOOL, "arguments": {"bbox_2d": corners, "label": probe["label"]}}
        doubt = thought or f"<think>Is that {probe['label']}?</think>"
        messages.append({"role": "assistant", "content": doubt, "tool_calls": [{"type": "function", "function": call}]})
        crop = shown(photo, zoomed(photo, view, corners, crop_pixels))
        messages.append({"role": "tool", "name": TOOL, "content": [{"type": "image", "image": crop}]})
        thought = found_in(probe["findings"])
    findings = line["answer"]["findings"]
    defects = [
        {"kind": f["kind"], "level": f["level"], "bbox_2d": in_view(Box(*f["box"]), view)} for f in findings or ()
    ]
    answer = thought + spell(line["answer"]["score"], defects, {})
    return [*messages, {"role": "assistant", "content": answer}]


def pictures(messages: list[Row]) -> Iterator[Any]:
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part["image"] for part in message["content"] if part["type"] == "image")
