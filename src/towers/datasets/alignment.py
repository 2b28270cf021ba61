"""Faces cut out by five landmarks: turned, scaled and moved so that eyes, nose and mouth lie where networks want them.

The landmarks are left eye, right eye, nose, left and right corner of the mouth, as seen in the picture. Places and
method are InsightFace's, so that its networks and benchmarks see the crops that they were made for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadData
from .decoding import BadPicture, decode, read_header
from .folder import read_file

# Pixels of a crop of CROP_SIZE.
CROP_SIZE = 112
CROP_LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity_transforms(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Turn, scale and shift that bring points nearest to a target, by the sum of squared distances; no reflection.

    Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns". In the plane, with
    points as complex numbers, the solution is the one of the linear regression target = a * point + b.

    Args:
      points: [N, K, 2], x and y; target: [K, 2].

    Returns:
      float64 [N, 2, 3], to be multiplied by (x, y, 1); NaN where all K points are one.
    """
    points, target = (np.asarray(value, np.float64) @ [1, 1j] for value in (points, target))
    means, mean = points.mean(axis=1, keepdims=True), target.mean()
    centred = points - means
    with np.errstate(invalid="ignore"):
        factors = np.vecdot(centred, target - mean) / np.sum(np.abs(centred) ** 2, axis=1)
    shifts = mean - factors * means[:, 0]
    rows = [factors.real, -factors.imag, shifts.real, factors.imag, factors.real, shifts.imag]
    return np.stack(rows, axis=1).reshape(-1, 2, 3)


def align(picture: np.ndarray, transform: np.ndarray, image_size: int = CROP_SIZE) -> np.ndarray:
    """The crop uint8 [image_size, image_size, 3] of a picture uint8 [H, W, 3] by a transform [2, 3], bilinear.

    What lies outside of the picture is black.
    """
    return cv2.warpAffine(picture, transform, (image_size, image_size), flags=cv2.INTER_LINEAR, borderValue=0)


@dataclass(frozen=True, eq=False)
class AlignedSource:
    """Crops of pictures as a source: record r is `root/names[r]` by `transforms[r]`, as a PNG of `image_size`.

    `labels` int64 [N] are 0: nothing is known of who is shown.
    """

    root: str
    names: list[str]
    transforms: np.ndarray
    labels: np.ndarray
    image_size: int

    def __len__(self) -> int:
        return len(self.names)

    def where(self, record: int) -> str:
        """The path of a record."""
        return f"{self.root}/{self.names[record]}"

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """As `folder.Source.reader`; it raises OSError also where a picture cannot be decoded."""
        paths = [self.where(record) for record in records]
        return partial(_read_aligned, paths, self.transforms[records], self.image_size)


def aligned_source(
    root: str | Path, names: list[str], landmarks: np.ndarray, *, image_size: int = CROP_SIZE
) -> AlignedSource:
    """Pictures below a folder, by their landmarks [N, 5, 2] in pixels.

    Raises:
      BadData: a name that leads out of the folder, or landmarks that lie all in one place.
    """
    outside = next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)
    if outside is not None:
        raise BadData(f"{outside}: leads out of {root}; give names of pictures below that folder")
    transforms = similarity_transforms(landmarks, CROP_LANDMARKS * (image_size / CROP_SIZE))
    scales = np.hypot(transforms[:, 0, 0], transforms[:, 1, 0])
    wrong = np.flatnonzero(~(scales > 1e-6))
    if wrong.size:
        raise BadData(
            f"{names[wrong[0]]}: its landmarks are {landmarks[wrong[0]].tolist()}, no face, and so are those of "
            f"{wrong.size - 1} more pictures; detect them again, or leave these pictures out"
        )
    return AlignedSource(str(root), list(names), transforms, np.zeros(len(names), np.int64), image_size)


def _read_aligned(paths: list[str], transforms: np.ndarray, image_size: int) -> list[bytes]:
    crops = []
    for path, transform in zip(paths, transforms, strict=True):
        encoded = read_file(path)
        try:
            picture = decode(encoded, read_header(encoded))
        except BadPicture as error:
            raise OSError(str(error)) from error
        crop = align(picture, transform, image_size)
        # Little compression: the crop is decoded at once.
        crops.append(cv2.imencode(".png", crop[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    return crops
