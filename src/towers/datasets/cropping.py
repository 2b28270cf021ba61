"""Random resized crops, chosen on the host before decoding as a pure function of (seed, position)."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .decoding import BadPicture, decode, has_exif, read_header
from .host_hashing import keyed_hash_numpy

TRIES = 10
MIN_ASPECT, MAX_ASPECT = 3 / 4, 4 / 3
# The device's augmentation draws 0, 1, 2, … of a position; these lie far behind.
_FIRST_DRAW = 1024
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of random area and aspect, brought to a square of `size` pixels.

    Inception's law (Szegedy et al., 2014): a share of the area uniform in [min_area, 1], width / height log-uniform in
    [3/4, 4/3], the place uniform; after ten rectangles that do not fit, the largest one of a permitted aspect in the
    middle.
    """

    seed: int
    size: int
    min_area: float = 0.08

    def draws(self, positions: np.ndarray) -> np.ndarray:
        """Positions int64 [b] -> float64 [b, TRIES, 4] in [0, 1): area, aspect, row, column of each try."""
        numbers = _FIRST_DRAW + np.arange(TRIES * 4)
        bits = keyed_hash_numpy(self.seed, numbers, np.asarray(positions, np.int64)[:, None])
        return (bits * 2.0**-32).reshape(-1, TRIES, 4)

    def box(self, height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
        """Top, left, height, width of the crop in a picture of this size, from draws [TRIES, 4]."""
        for area_draw, aspect_draw, row_draw, column_draw in draws.tolist():
            area = (self.min_area + (1 - self.min_area) * area_draw) * height * width
            aspect = MIN_ASPECT * (MAX_ASPECT / MIN_ASPECT) ** aspect_draw
            rows, columns = max(1, round(math.sqrt(area / aspect))), max(1, round(math.sqrt(area * aspect)))
            if rows <= height and columns <= width:
                return int(row_draw * (height - rows + 1)), int(column_draw * (width - columns + 1)), rows, columns
        rows, columns = min(height, round(width / MIN_ASPECT)), min(width, round(height * MAX_ASPECT))
        rows, columns = max(rows, 1), max(columns, 1)
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def load(self, encoded: bytes, draws: np.ndarray) -> np.ndarray:
        """Decode and crop: uint8 RGB [size, size, 3].

        A JPEG whose crop is twice, 4 or 8 times the size is decoded at that part of its scale, which libjpeg does by
        leaving out frequencies. Shrinks by area, enlarges bilinearly. Raises BadPicture.
        """
        header = read_header(encoded)
        reduction = 1
        # With EXIF the picture may be turned, and sides and crop are known only when it is decoded.
        if header.is_jpeg and not has_exif(encoded):
            _, _, rows, columns = self.box(header.height, header.width, draws)
            reduction = max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(rows, columns) >= scale * self.size)
        if reduction == 1:
            picture = decode(encoded, header)
            top, left, rows, columns = self.box(*picture.shape[:2], draws)
        else:
            picture = _decode_reduced(encoded, reduction)
            top, left, rows, columns = (
                round(side / reduction) for side in self.box(header.height, header.width, draws)
            )
        crop = picture[top : top + rows, left : left + columns]
        smaller = min(crop.shape[:2]) >= self.size
        return cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _decode_reduced(encoded: bytes, reduction: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), _REDUCED[reduction])
    except cv2.error as error:
        raise BadPicture(f"does not decode ({error.err})") from error
    if picture is None:
        raise BadPicture("does not decode: broken or cut")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
