import numpy as np
import pytest
from sklearn import metrics

from towers.errors import BadData, UserError
from towers.evaluation import ijb


def slow_templates(features, templates, media, weights):
    """The protocol word for word: mean inside each medium, sum over media, normalised."""
    result = {}
    for template in sorted(set(templates)):
        total = np.zeros(features.shape[1])
        for medium in set(media[templates == template]):
            rows = np.flatnonzero((templates == template) & (media == medium))
            total += np.mean([features[row] * weights[row] for row in rows], axis=0)
        result[template] = total / np.linalg.norm(total)
    return result


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_templates_equal_the_protocol(rows_at_once, monkeypatch):
    monkeypatch.setattr(ijb, "ROWS_AT_ONCE", rows_at_once)
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 5)).astype(np.float32)
    templates, media = random.choice([3, 8, 9, 40], 60), random.integers(0, 6, 60)
    weights = random.uniform(0.1, 1, 60)
    names, got = ijb.template_features(features, templates, media, weights=weights)
    want = slow_templates(features, templates, media, weights)
    assert names.tolist() == list(want)
    np.testing.assert_allclose(got, list(want.values()), rtol=1e-5, atol=1e-6)


def test_a_long_video_counts_as_one_picture():
    features = np.array([[1.0, 0]] * 9 + [[0, 1.0]])
    _, got = ijb.template_features(features, np.zeros(10, int), np.array([7] * 9 + [8]))
    np.testing.assert_allclose(got, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


@pytest.mark.parametrize("scores_at_once", [1, 30, 1 << 20])
def test_pair_scores_are_the_cosines(scores_at_once, monkeypatch):
    monkeypatch.setattr(ijb, "SCORES_AT_ONCE", scores_at_once)
    random = np.random.default_rng(1)
    features = random.normal(size=(20, 6)).astype(np.float32)
    left, right = random.integers(0, 9, 200), random.integers(5, 20, 200)
    want = [features[a] @ features[b] for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(ijb.score_pairs(features, left, right), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_rates_equal_the_roc_of_scikit_learn(seed, levels):
    """`tar_at_nearest_far` is what InsightFace computes from it, `tar_at_far` the strict reading."""
    random = np.random.default_rng(seed)
    same = random.random(300) < 0.2
    scores = np.round((random.normal(size=300) + same) * levels / 8).astype(np.float32)
    fars = (1e-4, 1e-2, 0.03, 0.1, 0.4)
    rates = ijb.rate_pairs(scores, same, fars)
    fpr, tpr, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    assert rates.tar_at_far == {far: pytest.approx(max(tpr[fpr <= far])) for far in fars}
    fpr, tpr, _ = metrics.roc_curve(same, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    assert rates.tar_at_nearest_far == {far: pytest.approx(tpr[np.argmin(np.abs(fpr - far))]) for far in fars}
    assert (rates.genuine, rates.impostors) == (same.sum(), (~same).sum())


def test_one_score_for_all_accepts_nobody():
    rates = ijb.rate_pairs(np.ones(6), np.array([True, False] * 3), (0.1, 1.0))
    assert rates.tar_at_far == {0.1: 0, 1.0: 1}


def test_two_scores_separate_all():
    """The shortest ROC with a corner."""
    rates = ijb.rate_pairs(np.array([1.0, 0, 1, 0, 0]), np.array([True, False, True, False, False]))
    assert set(rates.tar_at_far.values()) == set(rates.tar_at_nearest_far.values()) == {1}


@pytest.fixture
def meta(tmp_path):
    (tmp_path / "tid_mid.txt").write_text("1.jpg 10 5\n2.jpg 10 -1\n3.jpg 11 6\n")
    (tmp_path / "pairs.txt").write_text("10 11 0\n10 10 1\n")
    (tmp_path / "scores.txt").write_text("1.jpg " + " ".join(map(str, range(10))) + " 0.9\n")
    (tmp_path / "gallery.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n11,7,a.jpg\n10,3,b.jpg\n10,3,c.jpg\n")
    return tmp_path


def test_meta_files_are_read(meta):
    media = ijb.read_media(meta / "tid_mid.txt")
    assert media.names == ["1.jpg", "2.jpg", "3.jpg"]
    assert (media.templates.tolist(), media.media.tolist()) == ([10, 10, 11], [5, -1, 6])
    left, right, same = ijb.read_template_pairs(meta / "pairs.txt")
    assert (left.tolist(), right.tolist(), same.tolist()) == ([10, 10], [11, 10], [False, True])
    names, landmarks, scores = ijb.read_detection_scores(meta / "scores.txt")
    assert names == ["1.jpg"]
    assert landmarks.tolist() == [[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]]
    np.testing.assert_allclose(scores, [0.9], rtol=1e-6)
    templates, subjects = ijb.read_subjects(meta / "gallery.csv")
    assert (templates.tolist(), subjects.tolist()) == ([10, 11], [3, 7])


@pytest.mark.parametrize(
    "reader, text, part",
    [
        (ijb.read_media, "1.jpg 10\n", "line 1: expected"),
        (ijb.read_media, "1.jpg 10 5\n2.jpg ten 5\n", "line 2: expected"),
        (ijb.read_media, "", "empty"),
        (ijb.read_template_pairs, "10 11\n", "1 lines of 2 numbers"),
        (ijb.read_template_pairs, "10 11 0\n10 11\n", "number of columns changed"),
        (ijb.read_template_pairs, "10 a 0\n", "could not convert"),
        (ijb.read_template_pairs, "10 11 0\n10 11 2\n", "pair 2 has the label 2"),
        (ijb.read_template_pairs, "", "empty"),
        (ijb.read_detection_scores, "1.jpg 1 2 3\n", "line 1: expected"),
        (ijb.read_detection_scores, "1.jpg " + "1 " * 10 + "nan\n", "line 1: expected"),
        (ijb.read_subjects, "TEMPLATE_ID,SUBJECT_ID\n10\n", "expected lines"),
        (ijb.read_subjects, "TEMPLATE_ID,SUBJECT_ID\n10,3\n10,4\n", "template 10 has several subjects"),
    ],
)
def test_wrong_meta_files_are_refused(reader, text, part, tmp_path):
    path = tmp_path / "meta.txt"
    path.write_text(text)
    with pytest.raises(BadData, match=part):
        reader(path)


@pytest.mark.parametrize("reader", [ijb.read_media, ijb.read_template_pairs, ijb.read_subjects])
def test_missing_meta_files_are_named(reader, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        reader(tmp_path / "none.txt")


def test_unknown_templates_and_broken_features_are_refused():
    assert ijb.rows_of(np.array([3, 7, 9]), np.array([9, 3])).tolist() == [2, 0]
    for unknown in (2, 8, 10):
        with pytest.raises(BadData, match=f"template {unknown} and 0 more"):
            ijb.rows_of(np.array([3, 7, 9]), np.array([9, unknown]))
    features = np.ones((3, 2))
    features[1, 0] = np.inf
    with pytest.raises(BadData, match="templates: 1 of 2 rows are not finite"):
        ijb.template_features(features, np.array([1, 2, 2]), np.zeros(3, int))
    with pytest.raises(BadData, match="weight of picture 2"):
        ijb.template_features(np.ones((3, 2)), np.zeros(3, int), np.zeros(3, int), weights=[1, 1, np.nan])
    with pytest.raises(BadData, match="both kinds"):
        ijb.rate_pairs(np.ones(3), np.ones(3, bool))
    with pytest.raises(BadData, match="not finite"):
        ijb.rate_pairs(np.array([0.1, np.nan, 0.3]), np.array([True, False, False]))
