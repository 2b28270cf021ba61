"""Curves on a head: points in the units of `face_law`, turned in depth by the pose, drawn with anti-aliasing.

Images are uint8 [H, W, 3] in RGB order and drawn on in place; points are float64 [n, 2].
"""

from dataclasses import dataclass

import cv2
import numpy as np

SUBPIXEL_BITS = 4
SPLINE_STEPS = np.arange(6)[:, None] / 6
SPLINE = 0.5 * (
    SPLINE_STEPS ** np.arange(4) @ np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], float)
)


@dataclass(frozen=True)
class Pose:
    """Where the head is: turns in radians, `scale` pixels a unit, the middle of the face at (x, y) pixels."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    x: float
    y: float


def smooth(points: np.ndarray, closed: bool = True) -> np.ndarray:
    """Return the Catmull-Rom curve [m, 2] through points [n, 2]."""
    points = np.asarray(points, float)
    num = len(points)
    around = np.arange(-1, num + 2)
    padded = points[around % num if closed else np.clip(around, 0, num - 1)]
    neighbours = np.stack([padded[:num], points, padded[2 : num + 2], padded[3:]])
    curve = np.einsum("sk,knd->nsd", SPLINE, neighbours)
    return curve.reshape(-1, 2) if closed else np.vstack([curve[:-1].reshape(-1, 2), points[-1:]])


def ellipse(x: float, y: float, width: float, height: float, num: int = 24) -> np.ndarray:
    """Return an ellipse's outline [num, 2]; `width` and `height` are semi-axes."""
    angles = np.arange(num) * (2 * np.pi / num)
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], -1)


def silhouette(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Return the pixels [n, 2] of points on the head's outline, which yaw and pitch leave where it is."""
    cos, sin = np.cos(pose.roll), np.sin(pose.roll)
    return np.asarray(points, float) @ np.array([[cos, sin], [-sin, cos]]) * pose.scale + (pose.x, pose.y)


def on_face(points: np.ndarray, pose: Pose, lift: float = 0.0) -> np.ndarray:
    """Return the pixels [n, 2] of points on the front of the head, an ellipsoid, or `lift` units above it."""
    points = np.asarray(points, float)
    depth = 0.72 * np.sqrt(np.maximum(1 - (points[:, 0] / 1.05) ** 2 - (points[:, 1] / 1.25) ** 2, 0.02)) + lift
    x = points[:, 0] * np.cos(pose.yaw) + depth * np.sin(pose.yaw)
    y = points[:, 1] * np.cos(pose.pitch) + (depth - 0.35) * np.sin(pose.pitch)
    return silhouette(np.stack([x, y], -1), pose)


def fill(image: np.ndarray, pixels: np.ndarray, colour: np.ndarray) -> None:
    """Fill a polygon [n, 2]."""
    fixed = np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(image, [fixed], np.clip(colour, 0, 255).tolist(), cv2.LINE_AA, SUBPIXEL_BITS)


def stroke(image: np.ndarray, pixels: np.ndarray, colour: np.ndarray, width: float, closed: bool = False) -> None:
    """Draw a line through points [n, 2], `width` pixels wide."""
    fixed = np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)
    colour = np.clip(colour, 0, 255).tolist()
    cv2.polylines(image, [fixed], closed, colour, max(1, round(width)), cv2.LINE_AA, SUBPIXEL_BITS)
