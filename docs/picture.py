"""Makes a run's picture small enough for the docs: ``python docs/picture.py <run folder>/pictures/x.png <name>``.

It becomes ``docs/images/<name>.png``: at most 1,000 pixels wide, of 256 colours, no larger than 300 KiB.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "images"
MOST_BYTES = 300 * 1024
WIDTHS = (1000, 900, 800, 700, 600, 500)


def shrink(source: Path, name: str) -> Path:
    """Writes the picture at the greatest width at which it is small enough, and returns its path."""
    image = Image.open(source).convert("RGB")
    for width in WIDTHS:
        fitting = image if image.width <= width else image.resize((width, round(image.height * width / image.width)))
        content = io.BytesIO()
        fitting.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() <= MOST_BYTES:
            break
    else:
        raise ValueError(f"{source} stays above {MOST_BYTES // 1024} KiB even at a width of {WIDTHS[-1]} pixels")
    path = FOLDER / f"{name}.png"
    path.write_bytes(content.getvalue())
    return path


if __name__ == "__main__":
    print(os.path.relpath(shrink(Path(sys.argv[1]), sys.argv[2])))
