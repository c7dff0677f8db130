"""The composition of one scene of the embedded data set: a few digits on a piece of a photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .sources import DigitPool

SCENE_SIZE = 128
MAX_DIGITS = 4
DIGIT_SIZE = (40.0, 100.0)  # longer side of the digit before rotation, px, log-uniform
CANDIDATE_PLACES = 8  # a digit takes the freest of as many random places
MAX_ROTATION = math.radians(20.0)
MAX_SHEAR = 0.2
MIN_VISIBLE = 0.25
MIN_CONTRAST = 80.0  # luminance difference between a digit and what lies under it, of 255
SHADOW_PROBABILITY = 0.4
_LUMA = np.array([0.299, 0.587, 0.114])
_PIXEL = np.float32  # half the time of float64, and more than enough for 8-bit images


@dataclass(frozen=True)
class Scene:
    """A scene: ``image`` (H, W, 3) uint8 RGB; ``masks`` (N, H, W) bool, visible parts; ``labels`` (N,)."""

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class _Layer:
    """One placed digit: its opacity (H, W) in 0..1, its class, and its centre and size in pixels."""

    alpha: np.ndarray
    label: int
    centre: np.ndarray
    size: float

    @property
    def mask(self) -> np.ndarray:
        return self.alpha > 0.5


def compose_scene(rng: np.random.Generator, digits: DigitPool, photographs: tuple[Image.Image, ...]) -> Scene:
    """Draw a scene of 1-4 digits; everything random comes from ``rng``.

    Digits lie on each other in list order, the last one on top. A digit of which less than a
    quarter would stay visible is left out of the image altogether, so nothing unlabelled shows.
    """
    canvas = _background(rng, photographs)
    layers: list[_Layer] = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        layers.append(_place(rng, digits, layers))
    kept = visible_layers([layer.mask for layer in layers])
    for index, _ in kept:
        _paint(rng, canvas, layers[index].alpha)
    canvas += _noise(rng, canvas.shape, 1.0, 6.0)
    return Scene(
        image=canvas.clip(0, 255).round().astype(np.uint8),
        masks=np.stack([visible for _, visible in kept]),
        labels=np.array([layers[index].label for index, _ in kept]),
    )


def visible_layers(masks: list[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """Return index and visible part of every mask (H, W) that stays visible enough, bottom to top.

    Seen from the top: a mask left out does not cover those below it. The top one always stays.
    """
    covered = np.zeros_like(masks[0])
    kept = []
    for index in reversed(range(len(masks))):
        visible = masks[index] & ~covered
        if visible.sum() >= max(1.0, MIN_VISIBLE * masks[index].sum()):
            kept.append((index, visible))
            covered |= masks[index]
    return kept[::-1]


def _background(rng: np.random.Generator, photographs: tuple[Image.Image, ...]) -> np.ndarray:
    """Return a random crop of a random photograph as (H, W, 3) float, flipped and relit at random."""
    photo = photographs[rng.integers(len(photographs))]
    side = min(SCENE_SIZE * math.exp(rng.uniform(math.log(0.75), math.log(2.5))), *photo.size)
    left, top = (rng.uniform(0, extent - side) for extent in photo.size)
    patch = photo.resize(
        (SCENE_SIZE, SCENE_SIZE),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
    )
    pixels = np.asarray(patch, dtype=_PIXEL)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    gain = rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, size=3)
    return (pixels * gain.astype(_PIXEL) + _PIXEL(rng.uniform(-20.0, 20.0))).clip(0, 255)


def _place(rng: np.random.Generator, digits: DigitPool, below: list[_Layer]) -> _Layer:
    """Scale, rotate, shear, thicken and place one digit."""
    choice = rng.integers(len(digits.labels))
    size = math.exp(rng.uniform(*np.log(DIGIT_SIZE)))
    centre = _free_place(rng, size, below)
    opacity = _warp(rng, digits.images[choice], size, centre)
    radius = rng.integers(0, 1 + max(1, round(size / 25)))  # the stroke grows by this many px
    if radius:
        thick = Image.fromarray(_dilate(np.asarray(opacity), int(radius)))
        opacity = thick.filter(ImageFilter.GaussianBlur(float(radius) / 2))
    # Enlarged 28 px digits have edges several pixels wide: steepen them to about one pixel.
    alpha = (np.asarray(opacity, dtype=_PIXEL) / 255.0 - 0.5) * (size / 14.0) + 0.5
    return _Layer(alpha.clip(0, 1), int(digits.labels[choice]), centre, size)


def _free_place(rng: np.random.Generator, size: float, below: list[_Layer]) -> np.ndarray:
    """Return a centre (2,) for a digit of ``size`` px: of several random ones the furthest from others.

    Distances count in units of the two digits' mean size, so below 1 they are likely to overlap.
    Thrown at random (one candidate), strokes cross so often that few digits stay legible.
    """
    margin = 0.45 * size
    places = rng.uniform(margin, SCENE_SIZE - margin, size=(CANDIDATE_PLACES, 2))
    clearance = np.full(CANDIDATE_PLACES, np.inf)
    for other in below:
        distance = np.linalg.norm(places - other.centre, axis=1) / ((size + other.size) / 2)
        clearance = np.minimum(clearance, distance)
    return places[clearance.argmax()]


def _dilate(image: np.ndarray, radius: int) -> np.ndarray:
    """Return the largest value of ``image`` (H, W) in the square of ``radius`` px around each pixel.

    PIL's MaxFilter gives the same, but took 90 times as long for a radius of 3.
    """
    for _ in range(radius):
        padded = np.pad(image, 1)
        wide = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
        image = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:])
    return image


def _warp(rng: np.random.Generator, digit: np.ndarray, size: float, centre: np.ndarray) -> Image.Image:
    """Map a digit (28, 28) to ``centre`` (2,), its longer side ``size`` px long before rotation."""
    rows, columns = np.nonzero(digit > 127)
    low = np.array([columns.min(), rows.min()])
    high = np.array([columns.max(), rows.max()]) + 1
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, rng.uniform(-MAX_SHEAR, MAX_SHEAR)], [0.0, 1.0]])
    forward = rotation @ shear * (size / (high - low).max())
    inverse = np.linalg.inv(forward)
    offset = (low + high) / 2 - inverse @ centre
    (a, b), (d, e) = inverse
    return Image.fromarray(digit).transform(
        (SCENE_SIZE, SCENE_SIZE),
        Image.Transform.AFFINE,
        (a, b, offset[0], d, e, offset[1]),
        Image.Resampling.BICUBIC,
    )


def _paint(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray) -> None:
    """Blend a digit of opacity ``alpha`` (H, W) into ``canvas`` (H, W, 3), in place."""
    if rng.random() < SHADOW_PROBABILITY:
        canvas *= 1.0 - _shadow(rng, alpha)[..., None]
    box = _extent(alpha)  # most of the canvas stays as it is, and drawing noise costs the most
    alpha, region = alpha[box], canvas[box]
    under = np.tensordot(alpha, region, 2) / alpha.sum()
    colour = _contrasting_colour(rng, under).astype(_PIXEL) + _shading(rng)[box]
    region += alpha[..., None] * (colour + _noise(rng, region.shape, 3.0, 15.0) - region)


def _extent(alpha: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box that holds all of ``alpha`` (H, W) above 0."""
    rows, columns = (np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Return white noise with a standard deviation drawn between ``low`` and ``high`` grey levels."""
    return rng.standard_normal(shape, dtype=_PIXEL) * _PIXEL(rng.uniform(low, high))


def _shadow(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """Return the darkness (H, W) of a soft shadow a few pixels beside the digit."""
    radius = rng.uniform(1.0, 3.0)
    image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    down, right = (int(shift) for shift in rng.integers(2, 6, size=2))
    soft = np.zeros_like(alpha)
    soft[down:, right:] = np.asarray(image)[:-down, :-right] / 255.0
    return _PIXEL(rng.uniform(0.3, 0.6)) * soft


def _contrasting_colour(rng: np.random.Generator, under: np.ndarray) -> np.ndarray:
    """Return a random colour (3,) whose luminance differs enough from that of ``under`` (3,)."""
    candidates = rng.uniform(0.0, 255.0, size=(16, 3))
    contrast = np.abs(candidates @ _LUMA - under @ _LUMA)
    enough = np.flatnonzero(contrast >= MIN_CONTRAST)
    return candidates[enough[0] if len(enough) else contrast.argmax()]


def _shading(rng: np.random.Generator) -> np.ndarray:
    """Return a slow change of brightness (H, W, 1) across the canvas, along a random direction."""
    ramp = np.linspace(-1.0, 1.0, SCENE_SIZE, dtype=_PIXEL)
    down, right = rng.uniform(-25.0, 25.0, size=2).astype(_PIXEL)
    return (down * ramp[:, None] + right * ramp[None, :])[..., None]
