import numpy as np
import pytest

from towers.errors import BadData, UserError
from towers.evaluation.identification import identify, identify_among_distractors

# Corners of a cube: their cosines are multiples of 1/4 to the last bit, so that there are many ties.
CORNERS = np.array([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)], np.float32)


def corners(random, count):
    """Vectors of different lengths with tied cosines."""
    return CORNERS[random.integers(0, 16, count)] * random.choice([0.5, 1, 4], (count, 1)).astype(np.float32)


def cosine(left, right):
    return np.float32(left @ right / np.sqrt((left @ left) * (right @ right)))


def slow_highest_share(rate, strangers, hits):
    """Share of `hits` above the best threshold that at most the share `rate` of `strangers` exceeds."""
    best = 0.0
    for threshold in [-np.inf, *strangers]:
        if np.mean([score > threshold for score in strangers]) <= rate:
            best = max(best, np.mean([score > threshold for score in hits]))
    return best


def slow_identify(gallery, gallery_subjects, probes, probe_subjects, ranks, fpirs):
    found, own_scores, strangers = [], [], []
    for probe, subject in zip(probes, probe_subjects, strict=True):
        scores = [cosine(probe, entry) for entry in gallery]
        own = [score for score, name in zip(scores, gallery_subjects, strict=True) if name == subject]
        others = [score for score, name in zip(scores, gallery_subjects, strict=True) if name != subject]
        if own:
            rank = 1 + sum(other >= max(own) for other in others)
            found.append(rank)
            own_scores.append(max(own) if rank == 1 else -np.inf)
        else:
            strangers.append(max(scores))
    return (
        {rank: np.mean([place <= rank for place in found]) for rank in ranks},
        {fpir: slow_highest_share(fpir, strangers, own_scores) for fpir in fpirs},
    )


@pytest.mark.parametrize("seed", range(4))
def test_gallery_search_equals_the_loop(seed, monkeypatch):
    random = np.random.default_rng(seed)
    gallery, probes = corners(random, 12), corners(random, 60)
    subjects, probe_subjects = random.integers(0, 10, 12), random.integers(0, 16, 60)
    monkeypatch.setattr("towers.evaluation.identification.TILE_BYTES", 12 * 4 * 7)
    ranks, fpirs = (1, 2, 5, 12), (0.01, 0.1, 0.25, 0.5, 1.0)
    result = identify(gallery, subjects, probes, probe_subjects, ranks=ranks, fpirs=fpirs)
    rank_rates, tpirs = slow_identify(gallery, subjects, probes, probe_subjects, ranks, fpirs)
    assert result.rank_rates == pytest.approx(rank_rates)
    assert result.rates_at_false == pytest.approx(tpirs)
    assert result.mated + result.non_mated == 60


@pytest.mark.parametrize("seed, noise", [(0, 0.3), (1, 1.0)])
def test_gallery_search_without_ties_equals_the_loop(seed, noise):
    random = np.random.default_rng(seed)
    people = random.normal(size=(30, 8))
    subjects, probe_subjects = np.arange(20), random.integers(0, 30, 80)
    gallery = people[subjects] + noise * random.normal(size=(20, 8))
    probes = people[probe_subjects] + noise * random.normal(size=(80, 8))
    result = identify(gallery, subjects, probes, probe_subjects, fpirs=(0.1, 0.3))
    rank_rates, tpirs = slow_identify(gallery, subjects, probes, probe_subjects, (1, 5, 10), (0.1, 0.3))
    assert result.rank_rates == pytest.approx(rank_rates)
    assert result.rates_at_false == pytest.approx(tpirs)
    assert 0 < result.rank_rates[1] < 1 or noise < 1


def test_equal_embeddings_identify_nobody():
    same = np.ones((5, 3))
    result = identify(same, np.arange(5), same, np.arange(5), ranks=(1, 4, 5))
    assert result.rank_rates == {1: 0, 4: 0, 5: 1}
    assert np.isnan(result.rates_at_false[0.01])
    among = identify_among_distractors(same, [0, 0, 1, 1, 2], np.ones((9, 3)), ranks=(1, 9, 10), fars=(0.5,))
    assert among.rank_rates == {1: 0, 9: 0, 10: 1}
    assert among.rates_at_false == {0.5: 0}


def slow_among_distractors(probes, subjects, distractors, ranks, fars):
    found, genuine = [], []
    strangers = [[cosine(probe, distractor) for distractor in distractors] for probe in probes]
    for i, probe in enumerate(probes):
        for j, mate in enumerate(probes):
            if i != j and subjects[i] == subjects[j]:
                genuine.append(cosine(probe, mate))
                found.append(1 + sum(score >= genuine[-1] for score in strangers[i]))
    return (
        {rank: np.mean([place <= rank for place in found]) for rank in ranks},
        {far: slow_highest_share(far, [score for row in strangers for score in row], genuine) for far in fars},
        len(found),
    )


@pytest.mark.parametrize("tile_bytes", [1, 700, 1 << 20])
@pytest.mark.parametrize("seed", range(2))
def test_distractors_in_tiles_equal_the_loop(seed, tile_bytes):
    random = np.random.default_rng(seed)
    probes, distractors, subjects = corners(random, 10), corners(random, 37), random.integers(0, 4, 10)
    ranks, fars = (1, 2, 6, 40), (0.003, 0.05, 0.2, 1.0)
    result = identify_among_distractors(probes, subjects, distractors, ranks=ranks, fars=fars, tile_bytes=tile_bytes)
    rank_rates, tars, pairs = slow_among_distractors(probes, subjects, distractors, ranks, fars)
    assert result.rank_rates == pytest.approx(rank_rates)
    assert result.rates_at_false == pytest.approx(tars)
    assert (result.mated, result.non_mated) == (pairs, 370)


def test_rising_distractors_and_a_rate_below_one_pair():
    """The worst order for what is kept, and a rate that allows no distractor at all."""
    random = np.random.default_rng(3)
    probes = random.normal(size=(6, 4)).astype(np.float32)
    distractors = random.normal(size=(50, 4)).astype(np.float32)
    distractors = distractors[np.argsort(distractors @ probes[0] / np.linalg.norm(distractors, axis=1))]
    subjects = [0, 0, 0, 1, 1, 2]
    result = identify_among_distractors(probes, subjects, distractors, ranks=(1, 3), fars=(1e-6,), tile_bytes=300)
    rank_rates, tars, _ = slow_among_distractors(probes, subjects, distractors, (1, 3), (1e-6,))
    assert result.rank_rates == pytest.approx(rank_rates)
    assert result.rates_at_false == pytest.approx(tars)


def broken(features, row):
    features = features.copy()
    features[row, 1] = np.nan
    return features


FEATURES = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    "call, error, part",
    [
        (lambda: identify(FEATURES[:0], [], FEATURES, [0, 1, 2, 3]), BadData, "gallery is empty"),
        (lambda: identify(FEATURES, [0, 1, 2, 3], FEATURES, [5, 6, 7, 8]), BadData, "none of 4 probes"),
        (lambda: identify(broken(FEATURES, 2), [0, 1, 2, 3], FEATURES, [0, 1, 2, 3]), BadData, "gallery: .* row 2"),
        (lambda: identify(FEATURES, [0, 1, 2, 3], broken(FEATURES, 3), [0, 1, 2, 3]), BadData, "probes: .* row 3"),
        (lambda: identify(FEATURES, [0, 1], FEATURES, [0, 1, 2, 3]), ValueError, "expected"),
        (lambda: identify(FEATURES, range(4), FEATURES[:, :2], range(4)), ValueError, "expected"),
        (lambda: identify(FEATURES, range(4), FEATURES, range(4), ranks=(0,)), UserError, "rank 0"),
        (lambda: identify(FEATURES, range(4), FEATURES, range(4), fpirs=(0.0,)), UserError, "above 0"),
        (lambda: identify_among_distractors(FEATURES, [0, 0, 1, 1], FEATURES[:0]), BadData, "no distractors"),
        (lambda: identify_among_distractors(FEATURES, [0, 1, 2, 3], FEATURES), BadData, "no two of 4"),
        (
            lambda: identify_among_distractors(FEATURES, [0, 0, 1, 1], broken(FEATURES, 3), ranks=(1,), tile_bytes=1),
            BadData,
            "distractors: 1 of .* row 3",
        ),
        (lambda: identify_among_distractors(FEATURES, [0, 0, 1, 1], FEATURES[:, :3]), ValueError, "columns"),
    ],
)
def test_wrong_input_is_refused(call, error, part):
    with pytest.raises(error, match=part):
        call()
