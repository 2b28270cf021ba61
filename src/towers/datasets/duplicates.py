"""Which pictures are the same, and which are nearly so: exact digests, difference hashes, and who shares them."""

import hashlib

import cv2
import numpy as np

MAX_HASH_DISTANCE = 7
MAX_MEAN_DIFFERENCE = 3.0
MIN_CONTRAST = 4.0
THUMBNAIL_SIDE = 16
_DIGEST_BYTES = 16
_BLOCK_PAIRS = 2**20


def bytes_digest(encoded: bytes) -> bytes:
    """16 bytes that tell files apart."""
    return hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def pixels_digest(picture: np.ndarray) -> bytes:
    """16 bytes that tell decoded pictures apart, size included. picture: uint8 [H, W, 3]."""
    digest = hashlib.blake2b(str(picture.shape).encode(), digest_size=_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(picture))
    return digest.digest()


def difference_hash(grey: np.ndarray) -> np.ndarray:
    """128 bits: whether brightness rises to the right, and whether it rises downwards, on 8 x 8 places each.

    grey: uint8 [H, W]. Returns uint64 [2]. The difference hash of N. Krawetz (2013), in both directions.
    """
    right = np.diff(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16), axis=1) > 0
    down = np.diff(cv2.resize(grey, (8, 9), interpolation=cv2.INTER_AREA).astype(np.int16), axis=0) > 0
    return np.packbits(np.concatenate([right.ravel(), down.ravel()])).view(np.uint64)


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> uint8 [16, 16], by area."""
    return cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)


def equal_groups(digests: np.ndarray) -> list[np.ndarray]:
    """Indices of equal digests [n, 16], for every digest that stands more than once; each group ascending."""
    _, group = np.unique(digests, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    ends = np.flatnonzero(np.diff(group.reshape(-1)[order])) + 1
    return sorted((members for members in np.split(order, ends) if len(members) > 1), key=lambda members: members[0])


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Pairs of pictures that may be one, stored at another size or quality: int64 [m, 2], each row ascending, sorted.

    hashes: uint64 [n, 2]; thumbnails: uint8 [n, 16, 16]. Both must agree: at most MAX_HASH_DISTANCE bits apart, and a
    mean difference of at most MAX_MEAN_DIFFERENCE grey levels, for the hashes of aligned faces are alike. A picture of
    a standard deviation below MIN_CONTRAST has no hash to speak of and is left out.

    Hashes 7 bits apart agree in one of their 8 words of 16 bits; only pairs that do are compared.
    """
    with_contrast = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= MIN_CONTRAST)
    words = np.ascontiguousarray(hashes[with_contrast]).view(np.uint16)
    found = [np.zeros((0, 2), np.int64)]
    for column in range(MAX_HASH_DISTANCE + 1):
        order = np.argsort(words[:, column], kind="stable")
        ends = np.flatnonzero(np.diff(words[order, column])) + 1
        found += [
            _close_pairs(with_contrast[members], hashes, thumbnails)
            for members in np.split(order, ends)
            if len(members) > 1
        ]
    return np.unique(np.concatenate(found), axis=0)


def _close_pairs(members: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The close pairs among these ascending indices; memory in proportion to their number."""
    found = []
    height = max(1, _BLOCK_PAIRS // len(members))
    for start in range(0, len(members), height):
        rows, columns = members[start : start + height], members[start:]
        distances = sum(np.bitwise_count(hashes[rows, half][:, None] ^ hashes[columns, half]) for half in (0, 1))
        first, second = np.nonzero(np.triu(distances <= MAX_HASH_DISTANCE, 1))
        found.append(_alike(np.stack([rows[first], columns[second]], axis=1), thumbnails))
    return np.concatenate(found)


def _alike(pairs: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Those of the pairs [m, 2] whose thumbnails differ little."""
    kept = [pairs[:0]]
    for start in range(0, len(pairs), _BLOCK_PAIRS // 16):
        block = pairs[start : start + _BLOCK_PAIRS // 16]
        one, other = thumbnails[block[:, 0]].astype(np.int16), thumbnails[block[:, 1]].astype(np.int16)
        kept.append(block[np.abs(one - other).mean(axis=(1, 2)) <= MAX_MEAN_DIFFERENCE])
    return np.concatenate(kept)
