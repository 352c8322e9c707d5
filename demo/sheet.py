"""Pictures with their captions on one sheet, framed by whether they are right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128  # pixels of a picture on the sheet
FRAME = 3
LINES, LINE, LETTERS = 3, 11, 27  # of a caption
RIGHT, WRONG = (40, 150, 70), (205, 40, 40)


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], wrong: Sequence[str], columns: int) -> Image.Image:
    """Return the pictures, uint8 [H,W,3], each over its caption and in a green frame, or a red one where it is wrong.

    ``wrong`` says what is wrong in each picture, and is empty where all is right.
    """
    width, height = SIDE + 2 * FRAME + 6, SIDE + 2 * FRAME + LINES * LINE + 8
    image = Image.new("RGB", (min(columns, len(pictures)) * width, -(-len(pictures) // columns) * height), "white")
    draw = ImageDraw.Draw(image)
    for i, (picture, caption, fault) in enumerate(zip(pictures, captions, wrong, strict=True)):
        x, y = i % columns * width + 3, i // columns * height + 3
        colour = WRONG if fault else RIGHT
        draw.rectangle([x, y, x + SIDE + 2 * FRAME - 1, y + SIDE + 2 * FRAME - 1], fill=colour)
        small = Image.fromarray(picture)
        image.paste(small if small.size == (SIDE, SIDE) else small.resize((SIDE, SIDE)), (x + FRAME, y + FRAME))
        lines = textwrap.wrap(f"{caption} ({fault})" if fault else caption, LETTERS)[:LINES]
        draw.text(
            (x, y + SIDE + 2 * FRAME), "\n".join(lines), fill=colour if fault else "black", font_size=9, spacing=1
        )
    return image
