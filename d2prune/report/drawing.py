"""Instances drawn on an image, without OpenCV, which Detectron2's Visualizer would need."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDES = (256, 512)
"""Longer side of a drawn image in pixels: below the first it is hard to read, above the second the
report grows by megabytes."""

OPACITY = 0.45
FONT_SIZE = 13
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Drawing:
    """What to draw: boxes (N, 4) XYXY in pixels, classes (N,), words (N,), masks (N, H, W) bool."""

    boxes: np.ndarray
    classes: Sequence[int]
    labels: Sequence[str]
    masks: np.ndarray | None = None


def draw(image: np.ndarray, drawing: Drawing) -> bytes:
    """Return a PNG of the RGB image (H, W, 3) with the drawing on it.

    Small images are enlarged and large ones reduced. Colours go by class, so that they are alike in
    every image.
    """
    height, width = image.shape[:2]
    scale = min(max(SIDES[0] / max(height, width), 1.0), SIDES[1] / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    colours = [_colour(kind) for kind in drawing.classes]
    if drawing.masks is not None:
        canvas = _blend(canvas, drawing.masks, colours)
    pen = ImageDraw.Draw(canvas)
    for box, colour in zip(drawing.boxes * scale, colours, strict=True):
        pen.rectangle(_clipped(box, size), outline=colour, width=1)
    for box, label, colour in zip(drawing.boxes * scale, drawing.labels, colours, strict=True):
        _write(pen, _clipped(box, size), label, colour, size)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _colour(kind: int) -> Colour:
    """Bright, and hues of neighbouring classes lie far apart (steps of the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb(0.58 + 0.618034 * kind, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _blend(canvas: Image.Image, masks: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    for mask, colour in zip(masks, colours, strict=True):
        large = Image.fromarray(mask.astype(np.uint8) * 255)
        inside = np.asarray(large.resize(canvas.size, Image.Resampling.BILINEAR)) > 127
        pixels[inside] += OPACITY * (np.array(colour, dtype=np.float32) - pixels[inside])
        pixels[_edge(inside)] = colour
    return Image.fromarray(pixels.round().astype(np.uint8))


def _edge(inside: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask (H, W)."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def _clipped(box: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    x0, x1 = sorted(np.clip(box[[0, 2]], 0, size[0] - 1).tolist())
    y0, y1 = sorted(np.clip(box[[1, 3]], 0, size[1] - 1).tolist())
    return x0, y0, x1, y1


def _write(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    text: str,
    colour: Colour,
    size: tuple[int, int],
) -> None:
    """The label in the box's upper left corner, on a plate of its colour, inside the image."""
    _, _, width, height = pen.textbbox((0, 0), text, font=_font())
    x = max(0.0, min(box[0], size[0] - width - 4))
    y = max(0.0, min(box[1], size[1] - height - 4))
    pen.rectangle((x, y, x + width + 3, y + height + 2), fill=colour)
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    pen.text((x + 2, y + 1), text, font=_font(), fill=(0, 0, 0) if bright else (255, 255, 255))


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib brings one along, so that every machine draws the same."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), FONT_SIZE)
