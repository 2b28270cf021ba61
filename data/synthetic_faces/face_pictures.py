"""Pictures of a person: what changes from picture to picture, and the JPEG files.

A picture is drawn at twice its size and shrunk. It is a function of (seed, person's number, picture's number) alone, so
that any number of processes writes the same bytes.
"""

from pathlib import Path

import cv2
import numpy as np
from face_drawing import Expression, draw_face, draw_glasses, skin_colour
from face_geometry import Pose, ellipse, fill, on_face, silhouette, smooth, stroke
from face_law import Person

OVERSAMPLING = 2
OCCLUSION_SHARE = 0.06


def draw_pose(rng: np.random.Generator, size: int) -> Pose:
    """Draw a pose in an image of `size` pixels."""
    yaw, pitch, roll = np.clip(rng.normal(0, (0.13, 0.08, 0.08)), (-0.5, -0.28, -0.22), (0.5, 0.28, 0.22))
    x, y = size * (np.array([0.5, 0.53]) + np.clip(rng.normal(0, 0.042, 2), -0.09, 0.09))
    return Pose(yaw, pitch, roll, size * rng.uniform(0.335, 0.425), x, y)


def draw_expression(rng: np.random.Generator) -> Expression:
    """Draw an expression; a picture in thirty blinks."""
    return Expression(
        smile=np.clip(rng.normal(0.2, 0.45), -0.8, 1),
        mouth_open=max(0.0, rng.uniform(-0.9, 1)),
        lids_open=0.1 if rng.random() < 0.03 else rng.uniform(0.75, 1.1),
        brows=np.clip(rng.normal(0, 0.025), -0.05, 0.07),
        gaze_x=rng.uniform(-0.035, 0.035),
        gaze_y=rng.uniform(-0.012, 0.012),
    )


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a scene, uint8 [size, size, 3]: a gradient of colours, shapes, sometimes stripes, all somewhat blurred."""
    # What is blurred needs no more, and is drawn in a quarter of the time.
    full, size = size, size // 2
    corners = rng.uniform(30, 235, (2, 2, 3)).astype(np.float32)
    image = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    for _ in range(rng.integers(2, 9)):
        shape = ellipse(*rng.uniform(0, size, 2), *rng.uniform(0.06, 0.4, 2) * size, num=int(rng.integers(3, 12)))
        fill(image, shape, rng.uniform(20, 245, 3))
    if rng.random() < 0.3:
        colour, step, slope = rng.uniform(20, 245, 3), rng.uniform(0.06, 0.16) * size, rng.uniform(-1, 1) * size
        for x in np.arange(-size, 2 * size, step):
            stroke(image, np.array([(x, 0), (x + slope, size)]), colour, 0.35 * step)
    blurred = cv2.GaussianBlur(image, (0, 0), size * rng.uniform(0.004, 0.025))
    return cv2.resize(blurred, (full, full), interpolation=cv2.INTER_LINEAR)


def draw_occluder(image: np.ndarray, rng: np.random.Generator, person: Person, pose: Pose) -> None:
    """Hide a part of the face: by sunglasses, a mask, a hand or a bar."""
    colour = rng.uniform(20, 240, 3)
    kind = rng.choice(["sunglasses", "mask", "hand", "bar"], p=[0.10, 0.10, 0.40, 0.40])
    width = person.head_width
    if kind == "sunglasses":
        draw_glasses(image, person, pose, lens=rng.uniform(10, 60, 3))
    elif kind == "mask":
        top = rng.uniform(0.22, 0.34)
        sides = [(0.98 * width, top + 0.05), (0.86 * width, 0.75), (0.3, 1.12)]
        mask = [(0, top - 0.06), *sides, *[(-x, y) for x, y in reversed(sides)]]
        fill(image, on_face(smooth(mask), pose, 0.12), colour)
    elif kind == "hand":
        side, y = rng.choice([-1, 1]), rng.uniform(0.1, 0.9)
        for finger in range(4):
            ends = [
                (side * 1.3 * width, y + 0.17 * finger + 0.2),
                (side * rng.uniform(0.4, 0.65) * width, y + 0.15 * finger - 0.1),
            ]
            stroke(image, silhouette(ends, pose), skin_colour(person) * 0.7, 0.19 * pose.scale)
            stroke(image, silhouette(ends, pose), skin_colour(person) * 0.95, 0.16 * pose.scale)
    else:
        angle, half = rng.uniform(0, np.pi), rng.uniform(0.06, 0.16)
        offset = rng.uniform(0.45, 0.9) * rng.choice([-1, 1])
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        bar = [s * 3 * along + (offset + t * half) * across for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        fill(image, silhouette(bar, pose), colour)


def take_photo(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a drawing as a camera saw it, uint8 [H, W, 3]: light from a side, exposure, cast, gamma, blur, noise."""
    size = image.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.38)
    across = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
    if rng.random() < 0.2:
        across = np.tanh(across * np.float32(rng.uniform(2, 6)) + np.float32(rng.uniform(-1, 1)))
    light = (1 + strength * across)[..., None] * (rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)).astype(
        np.float32
    )
    photo = np.clip(image * light, 0, 255) / np.float32(255)
    photo = photo ** np.float32(np.exp(rng.uniform(-0.2, 0.2)))
    blur = rng.uniform(0, 0.007) * size
    if blur > 0.4:
        photo = cv2.GaussianBlur(photo, (0, 0), blur)
    photo = photo * 255 + rng.standard_normal(photo.shape, np.float32) * np.float32(rng.uniform(0, 6))
    return np.clip(np.round(photo), 0, 255).astype(np.uint8)


def make_picture(person: Person, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a picture of a person, uint8 [size, size, 3] in RGB order."""
    large = size * OVERSAMPLING
    pose, expression = draw_pose(rng, large), draw_expression(rng)
    image = draw_background(rng, large)
    draw_face(image, person, pose, expression, clothes=rng.uniform(20, 240, 3))
    if rng.random() < OCCLUSION_SHARE:
        draw_occluder(image, rng, person, pose)
    return take_photo(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), rng)


def write_person(folder: str, person: Person, number: int, num_images: int, size: int, seed: int) -> None:
    """Write `Name_0001.jpg` and so on into the folder `Name`, which is made."""
    path = Path(folder)
    path.mkdir(parents=True)
    for index in range(num_images):
        rng = np.random.default_rng([seed, 2, number, index])
        picture = make_picture(person, size, rng)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96))]
        encoded, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
        if not encoded:
            raise OSError(f"{path}: OpenCV cannot encode a JPEG of {size} pixels")
        (path / f"{path.name}_{index + 1:04d}.jpg").write_bytes(data.tobytes())
