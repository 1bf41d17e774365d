"""Draws images of a Vista-like set with their boxes, to be looked at.

    python training/contact_sheet.py SET SHEET [--count 24] [--first 0]

Each cell: an image with its regions, and beside it the first region at full resolution; below, the scene, what was done
and the score.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

CELL: Final = (640, 330)
PICTURE: Final = (400, 300)
ZOOM_PX: Final = 230
COLUMNS: Final = 4


def cell(folder: Path, row: dict[str, Any]) -> Image.Image:
    sheet = Image.new("RGB", CELL, "white")
    draw = ImageDraw.Draw(sheet)
    with Image.open(folder / row["image"]) as file:
        image = file.convert("RGB")
    scale = min(PICTURE[0] / image.width, PICTURE[1] / image.height)
    sheet.paste(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX))
    regions = row["regions"] or []
    for region in regions:
        draw.rectangle([round(c * scale) for c in region["box"]], outline="red", width=2)
    text = f"{row['scene']} {row['score']:.2f}"
    if regions:
        x1, y1, x2, y2 = regions[0]["box"]
        x, y = max(0, (x1 + x2) // 2 - ZOOM_PX // 2), max(0, (y1 + y2) // 2 - ZOOM_PX // 2)
        sheet.paste(image.crop((x, y, x + ZOOM_PX, y + ZOOM_PX)), (PICTURE[0] + 5, 0))
        text += ": " + ", ".join(f"{r['name']} {r['level']}" for r in regions)
    draw.text((2, PICTURE[1] + 6), text, fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.set / "vista.jsonl").read_text().splitlines()]
    rows = rows[args.first : args.first + args.count]
    if not rows:
        parser.error(f"{args.set} has no image {args.first}")
    sheet = Image.new("RGB", (COLUMNS * CELL[0], -(-len(rows) // COLUMNS) * CELL[1]), "white")
    for index, row in enumerate(rows):
        sheet.paste(cell(args.set, row), (index % COLUMNS * CELL[0], index // COLUMNS * CELL[1]))
    sheet.save(args.sheet)


if __name__ == "__main__":
    main()
