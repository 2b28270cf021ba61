"""Encoded pictures to RGB: what a header allows, how the rest is decoded, and which pictures are given up."""

import contextlib
import functools
import re
import struct
import threading
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from ..errors import BadData

MAX_PIXELS = 16_000_000
MAX_ENCODED_BYTES = 16 * 2**20
MAX_JPEG_SCANS = 100
JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE = 0xC0
_START_OF_SCAN = 0xDA
_EXIF_SEGMENT = 0xE1
_FRAME_OR_SCAN = _START_OF_FRAME | {_START_OF_SCAN}
_EXIF_OR_SCAN = frozenset([_EXIF_SEGMENT, _START_OF_SCAN])
# Degrees clockwise that a decoder turns the stored pixels by -> what EXIF calls that.
_ORIENTATIONS = {90: 6, 180: 3, 270: 8}
_FRAME = struct.Struct(">BHHB")
# First and last coefficient of a scan and the bits of them: all, as every baseline scan has them.
_ALL_COEFFICIENTS = b"\0\x3f\0"
# The header that libjpeg writes unless asked for more, up to the scan: JFIF, one or two quantization tables, a baseline
# frame of one or three components of 8 bits, the standard Huffman tables, a scan of all coefficients. Groups: height,
# width.
_COMMON_JPEG = re.compile(
    rb"\xff\xd8\xff\xe0\0\x10JFIF\0.{9}(?:\xff\xdb\0\x43.{65}){1,2}"
    rb"\xff\xc0\0(?:\x0b\x08(?=....\x01)|\x11\x08(?=....\x03))(..)(..)(?:.{4}|.{10})"
    rb"(?:\xff\xc4\0(?:\x1f.{29}|\xb5.{179})){2,4}\xff\xda\0(?:\x08\x01..|\x0c\x03.{6})\0\x3f\0",
    re.DOTALL,
)


class BadPicture(ValueError):
    """A picture that cannot be used; the message is the reason."""


class Header(NamedTuple):
    """Size in pixels as stored, before an EXIF turn, and what the encoding is.

    A plain JPEG is whole, baseline, of one or three components of 8 bits, with scans of all coefficients, without EXIF:
    all decoders read it alike.
    """

    height: int
    width: int
    is_jpeg: bool
    is_plain_jpeg: bool = False


def read_header(encoded: bytes) -> Header:
    """Check an encoded picture without decoding it.

    Raises BadPicture: empty, more than MAX_ENCODED_BYTES, neither JPEG nor PNG, cut, or more than MAX_PIXELS.
    """
    if not encoded:
        raise BadPicture("empty")
    if len(encoded) > MAX_ENCODED_BYTES:
        raise BadPicture(f"{len(encoded)} bytes, more than {MAX_ENCODED_BYTES}")
    if encoded.startswith(JPEG_MAGIC):
        header = _jpeg_header(encoded)
    elif encoded.startswith(PNG_MAGIC):
        header = _png_header(encoded)
    else:
        raise BadPicture(f"neither JPEG nor PNG: starts with {encoded[:8]!r}")
    if header.height < 1 or header.width < 1:
        raise BadPicture(f"{header.width} x {header.height} pixels")
    if header.height * header.width > MAX_PIXELS:
        raise BadPicture(f"{header.width} x {header.height} pixels, more than {MAX_PIXELS}")
    return header


def decode(encoded: bytes, header: Header, place: np.ndarray | None = None) -> np.ndarray:
    """Decode a picture whose header was read: uint8 RGB [H, W, 3], EXIF orientation applied.

    `place`, uint8 [H, W, 3], is filled and returned where the picture is a plain JPEG of its size.
    Grey is repeated, CMYK converted, alpha dropped (colours under it stay), 16 bits cut to the upper 8: OpenCV's rules.
    Raises BadPicture where the contents are broken; damage inside a JPEG's scan that libjpeg conceals is let pass.
    """
    if header.is_plain_jpeg:
        shape = (header.height, header.width, 3)
        # OpenCV has the last word: it reads some pictures whose headers libjpeg warns of and simplejpeg refuses.
        with contextlib.suppress(BadPicture):
            fits = place is not None and place.shape == shape
            return _decode_plain_jpeg(encoded, place if fits else np.empty(shape, np.uint8))
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise BadPicture(f"does not decode ({error.err})") from error
    if picture is None:
        raise BadPicture("does not decode: broken or cut")
    return picture


def has_exif(encoded: bytes) -> bool:
    """Whether a JPEG may hold an orientation; also true for one with such bytes among others."""
    return encoded.find(b"Exif\0\0", 0, encoded.find(b"\xff\xda")) >= 0


def turned(encoded: bytes, degrees: int) -> bytes:
    """The same JPEG, its pixels turned by 0, 90, 180 or 270 degrees clockwise from how they are stored.

    Nothing is lost: an EXIF orientation says so, in the place of all that the file's own EXIF said. One whose header is
    broken comes back as it is, for `read_header` to refuse. Raises BadPicture for a PNG, unless it stays as it is.
    """
    if encoded.startswith(PNG_MAGIC) and degrees:
        raise BadPicture(f"PNG: only a JPEG can be turned, by {degrees} degrees")
    if not encoded.startswith(JPEG_MAGIC):
        return encoded
    parts, kept_until = [encoded[:2]], 2
    if degrees:
        # One entry, the orientation (0x0112), as one short.
        exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, _ORIENTATIONS[degrees], 0, 0)
        parts.append(struct.pack(">BBH", 0xFF, _EXIF_SEGMENT, len(exif) + 2) + exif)
    try:
        place = _find_segment(encoded, 2, _EXIF_OR_SCAN)
        while encoded[place + 1] != _START_OF_SCAN:
            end = place + 2 + (encoded[place + 2] << 8 | encoded[place + 3])
            # The same marker is also that of other metadata.
            if encoded.startswith(b"Exif\0\0", place + 4):
                parts.append(encoded[kept_until:place])
                kept_until = end
            place = _find_segment(encoded, end, _EXIF_OR_SCAN)
    except (IndexError, BadPicture):
        return encoded
    return b"".join([*parts, encoded[kept_until:]])


def fit(picture: np.ndarray, load_size: int) -> np.ndarray:
    """Shorter side to load_size, centre square of it. uint8 [H, W, 3] -> uint8 [load_size, load_size, 3].

    Shrinks by area and enlarges bilinearly. The square is cut first: a strip of 1 x 16 M pixels stays small.
    """
    height, width = picture.shape[:2]
    if height == width == load_size:
        return picture
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    if side == load_size:
        return square
    interpolation = cv2.INTER_AREA if side > load_size else cv2.INTER_LINEAR
    return cv2.resize(square, (load_size, load_size), interpolation=interpolation)


class Quarantine:
    """The unreadable records of one source, why, and which record stands in for each. Thread-safe.

    The input never stops at a picture, nor raises inside the graph: whoever trains calls `check` at every step, and
    before using what a batch gave.
    """

    def __init__(self, source):
        self.bad: dict[int, str] = {}
        self._source = source
        self._stand_ins: dict[int, int] = {}
        self._failure: Exception | None = None
        self._lock = threading.Lock()

    def add(self, record: int, reason: str) -> None:
        """Give a record up."""
        with self._lock:
            self.bad.setdefault(int(record), reason)

    def replace(self, record: int, stand_in: int) -> None:
        """Remember which readable record takes the place of a bad one."""
        with self._lock:
            self._stand_ins[int(record)] = int(stand_in)

    def stand_ins(self, records: list[int]) -> list[int]:
        """The records to read in the place of these: the same while nothing is known against them."""
        return [self._stand_ins.get(record, record) for record in records] if self._stand_ins else records

    def fail(self, error: Exception) -> None:
        """Keep the first error that replacing cannot mend; `check` raises it."""
        with self._lock:
            self._failure = self._failure or error

    def check(self, max_bad_fraction: float = 0.001) -> None:
        """Raise BadData where more than this fraction of the source is bad, or the input failed altogether."""
        with self._lock:
            failure, bad = self._failure, dict(self.bad)
        if failure is not None:
            raise failure
        if len(bad) > max_bad_fraction * len(self._source):
            raise BadData(
                f"{len(bad)} of {len(self._source)} pictures ({len(bad) / len(self._source):.3%}) cannot be read, "
                f"{max_bad_fraction:.3%} are allowed: {self.first_paths(10)}; repair or remove them"
            )

    def first_paths(self, count: int) -> str:
        """The first bad records in source order, `path (reason)` each, on one line."""
        with self._lock:
            first = sorted(self.bad.items())[:count]
        return ", ".join(f"{self._source.where(record)} ({reason})" for record, reason in first)


def _decode_plain_jpeg(encoded: bytes, pixels: np.ndarray) -> np.ndarray:
    """What OpenCV gives, in three quarters of its time; BadPicture also for some damaged headers that OpenCV reads."""
    try:
        # Not strict: what libjpeg warns of and conceals is let pass, as by OpenCV.
        picture = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, buffer=pixels, strict=False)
    except ValueError as error:
        raise BadPicture(f"does not decode: broken or cut ({error})") from error
    if picture.shape != pixels.shape:
        raise BadPicture(f"decodes to {picture.shape}, {pixels.shape} in its header")
    return pixels


def _jpeg_header(encoded: bytes) -> Header:
    # Most pictures of a training set, told in less than half the time.
    common = _COMMON_JPEG.match(encoded)
    if common and encoded.endswith(JPEG_END):
        return _plain_header(*common.groups())
    try:
        place = _find_segment(encoded, 2, _FRAME_OR_SCAN)
        marker = encoded[place + 1]
        if marker == _START_OF_SCAN:
            raise BadPicture("JPEG without a frame")
        precision, height, width, components = _FRAME.unpack_from(encoded, place + 4)
        # Without the marker decoders fill the rest with grey. Bytes may follow it; a thumbnail's comes before the scan.
        whole = encoded.endswith(JPEG_END)
        if not whole:
            place = _find_segment(encoded, place, frozenset([_START_OF_SCAN]))
            if encoded.rfind(JPEG_END, place) < 0:
                raise BadPicture("cut: JPEG without an end marker")
    except (IndexError, struct.error):
        raise BadPicture("cut in its JPEG header") from None
    # Each scan of a progressive JPEG costs a walk over the whole picture, however few bytes it takes.
    baseline = marker == _BASELINE and precision == 8 and components in (1, 3)
    if not baseline and encoded.count(b"\xff\xda", place) > MAX_JPEG_SCANS:
        raise BadPicture(f"JPEG of more than {MAX_JPEG_SCANS} scans")
    plain = baseline and whole and _scans_all(encoded, place) and not has_exif(encoded)
    return Header(height, width, is_jpeg=True, is_plain_jpeg=plain)


def _scans_all(encoded: bytes, place: int) -> bool:
    """Whether the next scan from `place` on is of all coefficients. Of others decoders refuse different ones."""
    try:
        place = _find_segment(encoded, place, frozenset([_START_OF_SCAN]))
        end = place + 2 + (encoded[place + 2] << 8 | encoded[place + 3])
    except (IndexError, BadPicture):
        return False
    return encoded[end - len(_ALL_COEFFICIENTS) : end] == _ALL_COEFFICIENTS


@functools.lru_cache(maxsize=16)
def _plain_header(height: bytes, width: bytes) -> Header:
    return Header(int.from_bytes(height, "big"), int.from_bytes(width, "big"), is_jpeg=True, is_plain_jpeg=True)


def _find_segment(encoded: bytes, place: int, markers: frozenset[int]) -> int:
    """Where the first segment of one of these markers begins, from the segment at `place` on; IndexError: nowhere."""
    while True:
        marker = encoded[place + 1]
        if encoded[place] != 0xFF:
            raise BadPicture("broken JPEG header")
        if marker in markers:
            return place
        if marker == 0xFF:
            place += 1
            continue
        length = encoded[place + 2] << 8 | encoded[place + 3]
        if length < 2:
            raise BadPicture("broken JPEG header")
        place += 2 + length


def _png_header(encoded: bytes) -> Header:
    try:
        length, name, width, height = struct.unpack_from(">I4sII", encoded, len(PNG_MAGIC))
    except struct.error:
        raise BadPicture("cut in its PNG header") from None
    if name != b"IHDR" or length != 13:
        raise BadPicture("broken PNG header")
    if encoded.rfind(b"IEND") < 0:
        raise BadPicture("cut: PNG without an end chunk")
    return Header(height, width, is_jpeg=False)
