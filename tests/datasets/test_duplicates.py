import cv2
import numpy as np
import pytest
from datasets.pictures import face

from towers.datasets import duplicates
from towers.datasets.duplicates import (
    MAX_HASH_DISTANCE,
    difference_hash,
    equal_groups,
    near_pairs,
    pixels_digest,
    thumbnail,
)


def grey(seed, side=48):
    return cv2.cvtColor(face(seed, side, side), cv2.COLOR_RGB2GRAY)


def with_flipped_bits(hashed, count):
    bits = np.unpackbits(hashed.view(np.uint8))
    bits[np.linspace(0, 127, count).astype(int)] ^= 1
    return np.packbits(bits).view(np.uint64)


def test_the_difference_hash_by_hand():
    rising = np.tile(np.arange(72, dtype=np.uint8) * 3, (72, 1))
    assert np.unpackbits(difference_hash(rising).view(np.uint8)).tolist() == [1] * 64 + [0] * 64
    assert np.unpackbits(difference_hash(rising.T.copy()).view(np.uint8)).tolist() == [0] * 64 + [1] * 64


def test_pixels_are_told_apart_by_value_and_by_shape():
    picture = face(0)
    changed = picture.copy()
    changed[3, 4, 1] ^= 1
    assert pixels_digest(picture) == pixels_digest(np.asfortranarray(picture))
    assert pixels_digest(picture) != pixels_digest(changed)
    assert pixels_digest(np.zeros((2, 8, 3), np.uint8)) != pixels_digest(np.zeros((4, 4, 3), np.uint8))


def test_equal_groups():
    digests = np.array([[1, 0], [7, 7], [1, 0], [0, 1], [7, 7], [1, 0]], np.uint8)
    assert [group.tolist() for group in equal_groups(digests)] == [[0, 2, 5], [1, 4]]
    assert equal_groups(digests[[0, 1, 3]]) == []
    assert equal_groups(digests[:0]) == []


@pytest.mark.parametrize(("bits", "found"), [(0, True), (MAX_HASH_DISTANCE, True), (MAX_HASH_DISTANCE + 1, False)])
def test_hashes_up_to_the_distance_are_near(bits, found):
    picture = grey(1)
    hashed = difference_hash(picture)
    hashes = np.stack([hashed, with_flipped_bits(hashed, bits)])
    assert near_pairs(hashes, np.stack([thumbnail(picture)] * 2)).tolist() == ([[0, 1]] if found else [])


def test_equal_hashes_of_other_pictures_and_flat_pictures_are_not_near():
    picture = grey(2)
    hashes = np.stack([difference_hash(picture)] * 4)
    darker = (thumbnail(picture) // 2).astype(np.uint8)
    flat = np.full((16, 16), 90, np.uint8)
    assert near_pairs(hashes, np.stack([thumbnail(picture), darker, flat, flat])).tolist() == []


@pytest.mark.parametrize("word", range(8))
def test_one_word_in_common_is_enough(word):
    picture = grey(3)
    hashed = difference_hash(picture)
    changed = hashed.copy().view(np.uint16)
    changed[np.arange(8) != word] ^= 4
    hashes = np.stack([hashed, changed.view(np.uint64)])
    assert near_pairs(hashes, np.stack([thumbnail(picture)] * 2)).tolist() == [[0, 1]]


@pytest.mark.parametrize("block", [2**20, 64])
def test_near_pairs_are_those_of_all_comparisons(monkeypatch, block):
    monkeypatch.setattr(duplicates, "_BLOCK_PAIRS", block)
    random = np.random.default_rng(0)
    pictures = [grey(seed) for seed in range(30)]
    seeds = random.integers(0, 30, 200)
    hashes = np.stack([with_flipped_bits(difference_hash(pictures[seed]), random.integers(0, 9)) for seed in seeds])
    thumbnails = np.stack([thumbnail(pictures[seed]) for seed in seeds])
    thumbnails ^= random.integers(0, 8, thumbnails.shape, dtype=np.uint8)
    expected = [
        [i, j]
        for i in range(200)
        for j in range(i + 1, 200)
        if bin(int(hashes[i, 0] ^ hashes[j, 0])).count("1") + bin(int(hashes[i, 1] ^ hashes[j, 1])).count("1") <= 7
        and np.mean(abs(thumbnails[i].astype(float) - thumbnails[j])) <= 3
    ]
    assert 100 < len(expected) < 199 * 100
    assert near_pairs(hashes, thumbnails).tolist() == expected


@pytest.mark.parametrize(("side", "quality"), [(48, 60), (38, 80), (96, 90)])
def test_a_picture_stored_again_is_near_itself_and_no_other(side, quality):
    pictures = [grey(seed) for seed in range(20)]
    stored = cv2.imencode(".jpg", cv2.resize(pictures[7], (side, side)), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    pictures.append(cv2.imdecode(stored, cv2.IMREAD_GRAYSCALE))
    hashes = np.stack([difference_hash(picture) for picture in pictures])
    assert near_pairs(hashes, np.stack([thumbnail(picture) for picture in pictures])).tolist() == [[7, 20]]
