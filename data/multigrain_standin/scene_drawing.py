"""A class as an outline and a pattern, an instance of it as one object in one scene, and views of that scene."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

OUTLINES = ("triangle", "star", "cog", "ellipse", "cross")
PATTERNS = ("stripes", "checks", "dots", "rings")
MAX_CLASSES = len(OUTLINES) * len(PATTERNS)
LETTERS = "AEFHKLNRTVXYZ"
SUPERSAMPLING = 2


def class_name(number: int) -> str:
    """Such as ``striped`` outlines: ``star_dots``."""
    return f"{OUTLINES[number % len(OUTLINES)]}_{PATTERNS[number // len(OUTLINES)]}"


@dataclass(frozen=True)
class Instance:
    """One object before one background, as numbers. Lengths are shares of the side, angles radians, colours BGR."""

    outline: str
    pattern: str
    colours: tuple[np.ndarray, np.ndarray]
    frequency: float
    angle: float
    phase: float
    aspect: float
    radius: float
    letter: str
    letter_place: tuple[float, float]
    sky: tuple[np.ndarray, np.ndarray]
    clutter: list[tuple]


def draw_instance(class_number: int, random: np.random.Generator) -> Instance:
    """The numbers of a new instance of a class. Instances of a class differ in colours, proportions and details."""
    hue = random.uniform(0, 180)
    clutter = [
        (
            random.uniform(-0.1, 1.1, 2),
            random.uniform(0.05, 0.18, 2),
            random.uniform(0, 180),
            _colour(random.uniform(0, 180), random.uniform(20, 160), random.uniform(60, 220)),
            bool(random.integers(2)),
        )
        for _ in range(7)
    ]
    ground = random.uniform(0, 180)
    return Instance(
        outline=OUTLINES[class_number % len(OUTLINES)],
        pattern=PATTERNS[class_number // len(OUTLINES)],
        colours=(
            _colour(hue, random.uniform(90, 255), random.uniform(150, 255)),
            _colour(hue + random.uniform(30, 150), random.uniform(60, 255), random.uniform(40, 150)),
        ),
        frequency=random.uniform(4, 8),
        angle=random.uniform(0, math.pi),
        phase=random.uniform(0, 1),
        aspect=random.uniform(0.75, 1.33),
        radius=random.uniform(0.27, 0.36),
        letter=LETTERS[random.integers(len(LETTERS))],
        letter_place=tuple(random.uniform(-0.3, 0.3, 2)),
        sky=(
            _colour(ground, random.uniform(10, 90), random.uniform(120, 250)),
            _colour(ground + 40, random.uniform(10, 90), random.uniform(60, 200)),
        ),
        clutter=clutter,
    )


def draw_view(instance: Instance, size: int, random: np.random.Generator, change: float) -> np.ndarray:
    """A picture of an instance: uint8 BGR [size, size, 3].

    change: how much place, turn, size, light and noise differ from view to view; 1 is as from photograph to photograph.
    """
    side = size * SUPERSAMPLING
    shift = change * random.uniform(-0.1, 0.1, 2)
    turn, zoom = change * random.uniform(-0.5, 0.5), math.exp(change * random.uniform(-0.25, 0.25))
    drift, ground_zoom = change * random.uniform(-0.12, 0.12, 2), math.exp(change * random.uniform(-0.15, 0.15))
    picture = _background(instance, side, drift, ground_zoom)
    colour, mask = _object(instance, side, 0.5 + shift, turn, zoom)
    picture = picture * (1 - mask) + colour * mask
    light = np.linspace(1 - change * random.uniform(0, 0.3), 1 + change * random.uniform(0, 0.2), side)
    if random.integers(2):
        light = light[::-1]
    picture = picture * light[None, :, None] * math.exp(change * random.uniform(-0.25, 0.2))
    picture = cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    picture += change * random.uniform(0, 8) * random.normal(size=picture.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    pixel = np.array([[[hue % 180, saturation, value]]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _background(instance: Instance, side: int, drift: np.ndarray, zoom: float) -> np.ndarray:
    share = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    picture = np.broadcast_to(instance.sky[0] * (1 - share) + instance.sky[1] * share, (side, side, 3)).copy()
    for place, axes, angle, colour, round_ in instance.clutter:
        centre = ((place - 0.5) * zoom + 0.5 + drift) * side
        half = axes * zoom * side
        if round_:
            cv2.ellipse(picture, (centre, 2 * half, angle), colour.tolist(), -1, cv2.LINE_AA)
        else:
            corners = cv2.boxPoints((centre.tolist(), (2 * half).tolist(), angle))
            cv2.fillConvexPoly(picture, np.round(corners).astype(np.int32), colour.tolist(), cv2.LINE_AA)
    return picture


def _object(instance: Instance, side: int, centre, turn: float, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """Colours [S, S, 3] and mask [S, S, 1] in 0..1 of the object alone."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    x, y = columns - centre[0], rows - centre[1]
    x, y = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    radius = instance.radius * zoom
    x, y = x / (radius * instance.aspect), y / (radius / instance.aspect)
    mask = _outline(instance.outline, x, y, edge=2 / (side * radius))[..., None]
    share = _pattern(instance, x, y, edge=2 * instance.frequency / (side * radius))[..., None]
    colour = instance.colours[0] * share + instance.colours[1] * (1 - share)
    letter = np.zeros((side, side), np.uint8)
    u, v = instance.letter_place
    place = (
        centre[0] + radius * (u * instance.aspect * math.cos(turn) - v / instance.aspect * math.sin(turn)),
        centre[1] + radius * (u * instance.aspect * math.sin(turn) + v / instance.aspect * math.cos(turn)),
    )
    corner = (round(place[0] * side - 0.1 * zoom * side), round(place[1] * side + 0.1 * zoom * side))
    scale = zoom * side / 110
    cv2.putText(letter, instance.letter, corner, cv2.FONT_HERSHEY_DUPLEX, scale, 255, round(3 * scale) + 1, cv2.LINE_AA)
    written = (letter / np.float32(255))[..., None]
    return colour * (1 - written) + written * (255 - instance.colours[0]), mask


def _outline(outline: str, x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    if outline == "triangle":
        inside = 0.55 - np.max([x * math.cos(a) + y * math.sin(a) for a in (-2.618, -0.5236, 1.5708)], axis=0)
    elif outline == "star":
        inside = 0.72 + 0.28 * np.cos(5 * angle + 1.5708) - distance
    elif outline == "cog":
        inside = 0.88 + 0.12 * np.clip(3 * np.cos(10 * angle), -1, 1) - distance
    elif outline == "ellipse":
        inside = 1 - np.hypot(x / 1.1, y / 0.8)
    else:
        inside = np.maximum(np.minimum(0.35 - np.abs(x), 1 - np.abs(y)), np.minimum(0.35 - np.abs(y), 1 - np.abs(x)))
    return np.clip(inside / edge + 0.5, 0, 1).astype(np.float32)


def _pattern(instance: Instance, x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    """Share of the first colour, 0..1."""
    along = (x * math.cos(instance.angle) + y * math.sin(instance.angle)) * instance.frequency / 2 + instance.phase
    across = (y * math.cos(instance.angle) - x * math.sin(instance.angle)) * instance.frequency / 2 + instance.phase
    waves = np.sin(2 * math.pi * along), np.sin(2 * math.pi * across)
    if instance.pattern == "stripes":
        wave = waves[0]
    elif instance.pattern == "checks":
        wave = waves[0] * waves[1] * 2
    elif instance.pattern == "dots":
        wave = 0.45 - np.hypot(along % 1 - 0.5, across % 1 - 0.5) * 1.5
    else:
        wave = np.sin(2 * math.pi * (np.hypot(x, y) * instance.frequency / 2 + instance.phase))
    return np.clip(wave / (2 * edge) + 0.5, 0, 1).astype(np.float32)
