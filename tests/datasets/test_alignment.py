import cv2
import numpy as np
import pytest
from datasets.pictures import decoded

from towers.datasets.alignment import CROP_LANDMARKS, align, aligned_source, similarity_transforms
from towers.datasets.decoding import read_header
from towers.errors import BadData


def umeyama(source, target):
    """Equations 40 to 42 of the paper, by singular values."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    left, values, right = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left @ np.diag(signs) @ right
    scale = (values * signs).sum() / ((source - source_mean) ** 2).sum(axis=1).mean()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def test_the_transform_worked_by_hand():
    """A quarter turn (x, y) -> (-y, x), twice the size, moved by (10, 20), is found from points that follow it."""
    points = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [1.0, 5.0], [0.0, 2.0]])
    target = np.array([[10.0, 20.0], [10.0, 28.0], [6.0, 28.0], [0.0, 22.0], [6.0, 20.0]])
    (found,) = similarity_transforms(points[None], target)
    np.testing.assert_allclose(found, [[0, -2, 10], [2, 0, 20]], atol=1e-12)


def test_the_nearest_transform_worked_by_hand():
    """Two points 2 apart to two 4 apart on a diagonal, and a third that no similarity brings there."""
    points = np.array([[[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    target = np.array([[-2.0, -2.0], [2.0, 2.0], [0.0, 3.0]])
    # Means (0, 0) and (0, 1); a = ((-1)(-2 - 3i) + (1)(2 + 1i)) / 2 = 2 + 2i.
    np.testing.assert_allclose(similarity_transforms(points, target)[0], [[2, -2, 0], [2, 2, 1]], atol=1e-12)


def test_transforms_are_those_of_the_paper():
    random = np.random.default_rng(0)
    points = random.uniform(-50, 300, (20, 5, 2))
    # A mirrored face: the best similarity still is none that mirrors.
    points[0] = CROP_LANDMARKS * [-1, 1] + [200, 0]
    expected = [umeyama(one, CROP_LANDMARKS) for one in points]
    np.testing.assert_allclose(similarity_transforms(points, CROP_LANDMARKS), expected, rtol=1e-9, atol=1e-9)


def test_a_turned_face_is_set_upright(tmp_path):
    """A picture whose pixels lie a quarter turn and a shift away from their places comes back in the crop."""
    random = np.random.default_rng(1)
    upright = cv2.resize(random.integers(0, 256, (14, 14, 3), np.uint8), (112, 112), interpolation=cv2.INTER_CUBIC)
    turned = np.zeros((200, 200, 3), np.uint8)
    turned[30:142, 50:162] = np.rot90(upright)
    # rot90 takes the pixel (x, y) to (y, 111 - x).
    landmarks = np.stack([CROP_LANDMARKS[:, 1] + 50, 111 - CROP_LANDMARKS[:, 0] + 30], axis=1)
    cv2.imwrite(str(tmp_path / "7.png"), turned[..., ::-1])
    source = aligned_source(tmp_path, ["7.png"], landmarks[None].astype(np.float32))
    (encoded,) = source.reader([0])()
    assert read_header(encoded)[:2] == (112, 112)
    assert np.abs(decoded(encoded).astype(int) - upright).max() <= 1
    assert (len(source), source.where(0), source.labels.tolist()) == (1, f"{tmp_path}/7.png", [0])
    half = aligned_source(tmp_path, ["7.png"], landmarks[None], image_size=56)
    assert decoded(half.reader([0])()[0]).shape == (56, 56, 3)
    np.testing.assert_allclose(half.transforms, source.transforms / 2, atol=1e-4)


def test_what_lies_outside_is_black():
    crop = align(np.full((10, 10, 3), 255, np.uint8), np.array([[1.0, 0, 100], [0, 1.0, 0]]))
    assert crop.shape == (112, 112, 3)
    assert crop[5, 105].tolist() == [255] * 3
    assert not crop[:, :100].any()


def test_broken_pictures_names_and_landmarks(tmp_path):
    landmarks = CROP_LANDMARKS[None].repeat(2, axis=0)
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    source = aligned_source(tmp_path, ["a.jpg", "b.jpg"], landmarks)
    for record, message in ((0, "neither JPEG nor PNG"), (1, "No such file")):
        with pytest.raises(OSError, match=message):
            source.reader([record])()
    for name in ("../a.jpg", "/a.jpg"):
        with pytest.raises(BadData, match="leads out of"):
            aligned_source(tmp_path, ["a.jpg", name], landmarks)
    landmarks[1] = 3
    with pytest.raises(BadData, match=r"b\.jpg: its landmarks are .* no face, and so are those of 0 more"):
        aligned_source(tmp_path, ["a.jpg", "b.jpg"], landmarks)
