"""A stand-in for mini-ImageNet's pictures: 100 classes = 10 shapes x 10 textures, drawn.

Colours, sizes, places, angles, light and background are a picture's own, so that neither colour nor place tells the
class; a mirrored picture is of the same class. Every picture is a function of (seed, class, number).
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "drop", "hexagon", "bar", "crescent")
TEXTURES = ("plain", "stripes", "checks", "dots", "grid", "rings", "rays", "waves", "grain", "patches")
CLASSES = [f"{shape} {texture}" for shape in SHAPES for texture in TEXTURES]
SIDES = (100, 200)
LUMA = np.array([0.114, 0.587, 0.299])  # of blue, green, red


def class_id(label: int) -> str:
    """A name of the form of WordNet's that WordNet does not use: n99000001 for class 0."""
    return f"n{99_000_001 + label}"


def draw(seed: int, label: int, number: int) -> np.ndarray:
    """Picture ``number`` of class ``label``: uint8 BGR [H, W, 3], sides of 100 to 200 pixels."""
    random = np.random.default_rng([seed, label, number])
    height, width = (int(side) for side in random.integers(*SIDES, 2, endpoint=True))
    side = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    radius = side * random.uniform(0.34, 0.47)
    middle_x, middle_y = (
        random.uniform(0.9 * radius, length - 0.9 * radius) if length > 1.8 * radius else length / 2
        for length in (width, height)
    )
    angle = random.uniform(-0.5, 0.5)
    cosine, sine = np.cos(angle), np.sin(angle)
    u = ((x - middle_x) * cosine + (y - middle_y) * sine) / (radius * random.uniform(0.85, 1.15))
    v = ((y - middle_y) * cosine - (x - middle_x) * sine) / (radius * random.uniform(0.85, 1.15))
    inside = _shape(SHAPES[label // len(TEXTURES)], u, v)
    soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), random.uniform(0.6, 1.6))[..., None]
    pattern = _texture(TEXTURES[label % len(TEXTURES)], u, v, random)[..., None]
    # The background's luma lies between the two, so that both shape and texture show.
    one, other = _colour(random, 20, 80), _colour(random, 170, 235)
    figure = pattern * one + (1 - pattern) * other
    picture = soft * figure + (1 - soft) * _background(random, height, width)
    # Light from one side, then noise.
    slope = random.uniform(-0.35, 0.35, 2)
    light = 1 + slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5)
    picture = picture * light[..., None] + random.normal(0, random.uniform(2, 14), (height, width, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _shape(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the shape is, within about the unit disc; v grows downwards."""
    r = np.hypot(u, v)
    if name == "disc":
        return r < 0.9
    if name == "square":
        return np.maximum(abs(u), abs(v)) < 0.78
    if name == "triangle":
        return (v < 0.7) & (1.75 * abs(u) - v < 0.95)
    if name == "star":
        turn = 2 * np.pi / 5
        phi = abs((np.arctan2(u, -v) + turn / 2) % turn - turn / 2)
        return r * np.cos(turn / 2 - phi) / np.cos(turn / 2) < 0.98 - 0.98 * phi * 0.8
    if name == "cross":
        return ((abs(u) < 0.3) & (abs(v) < 0.95)) | ((abs(v) < 0.3) & (abs(u) < 0.95))
    if name == "ring":
        return (r < 0.95) & (r > 0.5)
    if name == "drop":
        return (np.hypot(u, v - 0.3) < 0.62) | ((v < 0.1) & (v > -1) & (abs(u) < 0.56 * (v + 1)))
    if name == "hexagon":
        return np.maximum(abs(v), 0.866 * abs(u) + 0.5 * abs(v)) < 0.8
    if name == "bar":
        return (abs(u) < 0.98) & (abs(v) < 0.36)
    return (r < 0.95) & (np.hypot(u, v + 0.55) > 0.75)


def _texture(name: str, u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Share of the first colour, 0..1."""
    turn = random.uniform(0, np.pi)
    scale = random.uniform(0.8, 1.25)
    a = (u * np.cos(turn) + v * np.sin(turn)) * 9 * scale + random.uniform(0, 6)
    b = (v * np.cos(turn) - u * np.sin(turn)) * 9 * scale + random.uniform(0, 6)
    if name == "plain":
        return np.ones_like(u)
    if name == "stripes":
        return _edge(np.sin(2 * a))
    if name == "checks":
        return _edge(3 * np.sin(1.5 * a) * np.sin(1.5 * b))
    if name == "dots":
        return _edge(np.cos(2 * a) + np.cos(2 * b) - 0.8)
    if name == "grid":
        return _edge(np.maximum(np.cos(2 * a), np.cos(2 * b)) - 0.75)
    if name == "rings":
        return _edge(np.sin(16 * scale * np.hypot(u, v) + random.uniform(0, 6)))
    if name == "rays":
        return _edge(1.5 * np.sin(random.integers(9, 13) * np.arctan2(v, u) + turn))
    if name == "waves":
        return _edge(np.sin(2 * a + 1.6 * np.sin(1.7 * b)))
    size = 40 if name == "grain" else 9
    noise = random.random((size, size), np.float32)
    columns, rows = ((value + 1.3) / 2.6 * size for value in (u, v))
    way = cv2.INTER_NEAREST if name == "patches" else cv2.INTER_LINEAR
    spread = cv2.remap(noise, columns.astype(np.float32), rows.astype(np.float32), way, borderMode=cv2.BORDER_WRAP)
    return spread if name == "patches" else _edge(4 * (spread - 0.5))


def _edge(values: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.5 * values, 0, 1)


def _colour(random: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A colour of any hue whose luma is from ``least`` to ``most``."""
    while True:
        colour = random.uniform(0, 255, 3)
        if least <= colour @ LUMA <= most:
            return colour


def _background(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soft clouds about one colour, and up to four straight things of others near it: [H, W, 3]."""
    colour = _colour(random, 100, 150)
    coarse = (colour + random.uniform(-35, 35, (*random.integers(2, 6, 2), 3))).astype(np.float32)
    clouds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(random.integers(0, 5)):
        ends = (random.random((2, 2)) * (width, height)).astype(int).tolist()
        other = (colour + random.uniform(-70, 70, 3)).tolist()
        cv2.line(clouds, ends[0], ends[1], other, int(random.integers(1, 6)), cv2.LINE_AA)
    return clouds


def write_class(folder: Path, seed: int, images: int, label: int) -> list[str]:
    """Draw a class into ``folder``/class id; file names have ILSVRC's form, with gaps in their numbers, in order."""
    name = class_id(label)
    (folder / name).mkdir(parents=True)
    random = np.random.default_rng([seed, label])
    numbers = np.cumsum(random.integers(1, 40, images))
    quality = random.integers(70, 96, images)
    files = []
    for index, number in enumerate(numbers):
        file = f"{name}_{number}.JPEG"
        encoded = cv2.imencode(".jpg", draw(seed, label, index), [cv2.IMWRITE_JPEG_QUALITY, int(quality[index])])[1]
        (folder / name / file).write_bytes(encoded.tobytes())
        files.append(file)
    return files


def write_all(folder: Path, csv_folder: Path, *, seed: int, images: int, classes: int) -> None:
    """Draw the pictures as an ILSVRC2012 train folder, with the three CSV files as mini-imagenet-tools has them.

    Like the real ones, the files name a picture by its rank in its class, and have 64, 16 and 20 % of the classes.
    """
    draw_one = partial(write_class, folder, seed, images)
    with ProcessPoolExecutor(
        max_workers=len(os.sched_getaffinity(0)), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        list(pool.map(draw_one, range(classes)))
    csv_folder.mkdir(parents=True)
    ends = [0, round(0.64 * classes), round(0.8 * classes), classes]
    for name, first, last in zip(("train", "val", "test"), ends, ends[1:], strict=False):
        rows = [
            f"{class_id(label)}{rank:08}.jpg,{class_id(label)}"
            for label in range(first, last)
            for rank in range(1, images + 1)
        ]
        (csv_folder / f"{name}.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
