"""Distorted copies of a picture, in the manner of Copydays: crops, JPEG quality, and strong ones."""

import math

import cv2
import numpy as np


def crop(picture: np.ndarray, removed: float) -> np.ndarray:
    """The middle of a picture, with so much of its area (0..1) removed; not scaled back."""
    height, width = picture.shape[:2]
    rows, columns = (round(side * math.sqrt(1 - removed)) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    return picture[top : top + rows, left : left + columns]


def strong(picture: np.ndarray, changes: int, random: np.random.Generator) -> np.ndarray:
    """So many different heavy changes, drawn among ten: uint8 BGR of the same size."""
    for index in random.choice(len(CHANGES), changes, replace=False):
        picture = CHANGES[index](picture, random)
    return picture


def _part(picture, random):
    height, width = picture.shape[:2]
    share = math.sqrt(random.uniform(0.4, 0.7))
    rows, columns = round(height * share), round(width * share)
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    return cv2.resize(picture[top : top + rows, left : left + columns], (width, height))


def _turn(picture, random):
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), random.choice([-1, 1]) * random.uniform(12, 35), 1.15)
    return cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def _flip(picture, random):
    return picture[:, ::-1].copy()


def _perspective(picture, random):
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + (random.uniform(-0.22, 0.22, (4, 2)) * (width, height)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, moved)
    return cv2.warpPerspective(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def _blur(picture, random):
    return cv2.GaussianBlur(picture, (0, 0), picture.shape[0] * random.uniform(0.012, 0.025))


def _noise(picture, random):
    noisy = picture + random.normal(0, random.uniform(20, 40), picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _grey(picture, random):
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def _contrast(picture, random):
    values = 255 * (picture / 255) ** math.exp(random.choice([-1, 1]) * random.uniform(0.5, 0.9))
    return np.clip(values * random.uniform(0.6, 0.9) + random.uniform(0, 50), 0, 255).astype(np.uint8)


def _cover(picture, random):
    picture = picture.copy()
    height, width = picture.shape[:2]
    for _ in range(2):
        top, left = random.integers(height * 3 // 4), random.integers(width // 2)
        colour = random.integers(0, 256, 3).tolist()
        cv2.rectangle(picture, (int(left), int(top)), (int(left) + width // 2, int(top) + height // 6), colour, -1)
    return picture


def _compress(picture, random):
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(3, 12))]
    return cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_COLOR)


CHANGES = (_part, _turn, _flip, _perspective, _blur, _noise, _grey, _contrast, _cover, _compress)
