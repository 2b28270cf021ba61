"""Identification: who is it? Among a gallery (1:N), and among very many distractors, as MegaFace asks.

A tie counts against the probe: a network that gives every picture the same embedding identifies nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BadData, UserError

TILE_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Identification:
    """Shares in 0..1.

    `rank_rates`: rank -> share of the mated searches whose mate is among the first so many.
    `rates_at_false`: in a gallery, FPIR -> TPIR; among distractors, FAR -> TAR of the pairs; nan where there is nothing
    to choose a threshold from. `mated` and `non_mated`: searches behind them (distractors: pairs).
    """

    rank_rates: dict[int, float]
    rates_at_false: dict[float, float]
    mated: int
    non_mated: int


def unit_rows(features: np.ndarray, what: str, first_row: int = 0) -> np.ndarray:
    """Features [N, D] as float32, each divided by its L2 norm; rows of zeros stay.

    Raises BadData where a row is not finite; `what` and `first_row` name it.
    """
    features = np.asarray(features, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.vecdot(features, features))
    broken = np.flatnonzero(~np.isfinite(norms))
    if broken.size:
        raise BadData(
            f"{what}: {broken.size} of {len(features)} rows are not finite, the first is row {first_row + broken[0]}:"
            " the model has diverged or the file is damaged; extract the features again"
        )
    return features / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]


def identify(
    gallery: np.ndarray,
    gallery_subjects: np.ndarray,
    probes: np.ndarray,
    probe_subjects: np.ndarray,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    fpirs: Sequence[float] = (0.01, 0.1),
) -> Identification:
    """Searches each of P probes in a gallery of G entries by cosine.

    A probe is mated where the gallery has its subject; its rank is 1 + the entries of others that score at least as
    high as the best of its own. TPIR at FPIR: share of the mated probes of rank 1 that score above the lowest threshold
    which at most that share of the non-mated probes' best entries exceeds.

    Args:
        gallery: [G, D], any norm; gallery_subjects: [G] integers. probes: [P, D]; probe_subjects: [P].

    Raises:
        BadData: an empty gallery, no mated probe, or features that are not finite.
        ValueError: shapes that do not fit.
    """
    gallery_subjects, probe_subjects = np.asarray(gallery_subjects), np.asarray(probe_subjects)
    _check_shapes(gallery, gallery_subjects, probes, probe_subjects)
    _check_rates(ranks, fpirs)
    if not len(gallery):
        raise BadData("the gallery is empty: give one with at least one template")
    gallery, probes = unit_rows(gallery, "gallery"), unit_rows(probes, "probes")
    is_mated = np.isin(probe_subjects, gallery_subjects)
    if not is_mated.any():
        raise BadData(
            f"none of {len(probes)} probes has its subject among the {len(gallery)} entries of the gallery:"
            " check that both files belong to one protocol"
        )
    own = np.empty(len(probes), np.float32)
    ahead = np.empty(len(probes), np.int64)
    best_of_others = np.empty(len(probes), np.float32)
    rows = max(1, TILE_BYTES // (4 * len(gallery)))
    for start in range(0, len(probes), rows):
        block = slice(start, start + rows)
        scores = probes[block] @ gallery.T
        same = probe_subjects[block, None] == gallery_subjects
        own[block] = np.max(scores, axis=1, where=same, initial=-np.inf)
        scores[same] = -np.inf
        ahead[block] = np.count_nonzero(scores >= own[block, None], axis=1)
        best_of_others[block] = scores.max(axis=1)
    strangers = np.sort(best_of_others[~is_mated])[::-1]
    first = (ahead == 0) & is_mated
    mated = int(is_mated.sum())
    return Identification(
        rank_rates={rank: np.count_nonzero(ahead[is_mated] < rank) / mated for rank in ranks},
        rates_at_false={
            fpir: np.count_nonzero(first & (own > _threshold(strangers, fpir))) / mated if len(strangers) else np.nan
            for fpir in fpirs
        },
        mated=mated,
        non_mated=len(strangers),
    )


def identify_among_distractors(
    probes: np.ndarray,
    subjects: np.ndarray,
    distractors,
    *,
    ranks: Sequence[int] = (1, 10),
    fars: Sequence[float] = (1e-6,),
    tile_bytes: int = TILE_BYTES,
) -> Identification:
    """MegaFace's protocol: each pair (probe, other probe of its subject) is a search among M distractors.

    The mate's rank is 1 + the distractors that score at least as high with the probe. TAR at FAR: share of these pairs
    that score above the lowest threshold which at most that share of all P x M pairs with distractors exceeds.

    P x M scores are made in tiles and only those that can matter are kept: max(ranks) a probe and max(fars) of all.

    Args:
        probes: [P, D], any norm; subjects: [P] integers.
        distractors: [M, D], anything with a length that gives rows by slices: an array, a memory map, an HDF5 data set.
        tile_bytes: memory of a tile of scores; features of a tile come on top.

    Raises:
        BadData: no distractors, no two probes of one subject, or features that are not finite.
        ValueError: shapes that do not fit.

    Kemelmacher-Shlizerman et al., 2016, https://arxiv.org/abs/1512.00596.
    """
    subjects = np.asarray(subjects)
    _check_shapes(probes, subjects)
    _check_rates(ranks, fars)
    count = len(distractors)
    if not count:
        raise BadData("there are no distractors: give a file with at least one row")
    probes = unit_rows(probes, "probes")
    pair_probes, pair_scores = _mates(probes, subjects)
    if not len(pair_scores):
        raise BadData(f"no two of {len(probes)} probes show one subject: give several pictures of each")
    allowed = {far: _allowed(far, count * len(probes)) for far in fars}
    kept = _Highest(len(probes), max(ranks), max(allowed.values(), default=-1) + 1)
    start, width = 0, 2 * max(ranks)
    most = max(1, tile_bytes // (5 * len(probes)))
    while start < count:
        # Doubling widths: what a tile adds to the highest scores stays about as much, from the first tile on.
        stop = min(count, start + min(width, most))
        rows = unit_rows(distractors[start:stop], "distractors", start)
        if rows.shape[1:] != probes.shape[1:]:
            raise ValueError(f"probes have {probes.shape[1]} columns, distractors {rows.shape[1:]}")
        kept.add(probes @ rows.T)
        start, width = stop, start + stop
    descending = kept.of_each[:, ::-1]
    overall = np.sort(kept.of_all)[::-1]
    return Identification(
        rank_rates={rank: float(np.mean(descending[pair_probes, rank - 1] < pair_scores)) for rank in ranks},
        rates_at_false={
            far: float(np.mean(pair_scores > (overall[m] if m < len(overall) else -np.inf)))
            for far, m in allowed.items()
        },
        mated=len(pair_scores),
        non_mated=count * len(probes),
    )


class _Highest:
    """The highest scores so far: `of_each` [P, K] rising, of each probe, and `of_all` [<= A], of all together."""

    def __init__(self, probes: int, each: int, overall: int):
        self.of_each = np.full((probes, each), -np.inf, np.float32)
        self.of_all = np.empty(0, np.float32)
        self.overall = overall

    def add(self, scores: np.ndarray) -> None:
        """Take in scores [P, n]."""
        least = self.of_all.min() if 0 < self.overall <= len(self.of_all) else -np.inf
        if not self.overall:
            least = np.inf
        floor = np.minimum(self.of_each[:, 0], np.float32(least))
        probes, columns = np.nonzero(scores > floor[:, None])
        values = scores[probes, columns]
        if self.overall:
            joined = np.concatenate([self.of_all, values[values > least]])
            surplus = len(joined) - self.overall
            self.of_all = np.partition(joined, surplus)[surplus:] if surplus > 0 else joined
        higher = values > self.of_each[probes, 0]
        self._merge(probes[higher], values[higher])

    def _merge(self, probes: np.ndarray, values: np.ndarray) -> None:
        """`probes` is sorted, as np.nonzero gives it."""
        touched, firsts, counts = np.unique(probes, return_index=True, return_counts=True)
        if not len(touched):
            return
        added = np.full((len(touched), counts.max()), -np.inf, np.float32)
        added[np.repeat(np.arange(len(touched)), counts), np.arange(len(probes)) - np.repeat(firsts, counts)] = values
        each = self.of_each.shape[1]
        joined = np.concatenate([self.of_each[touched], added], axis=1)
        self.of_each[touched] = np.sort(np.partition(joined, -each, axis=1)[:, -each:], axis=1)


def _mates(probes: np.ndarray, subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each ordered pair of two probes of one subject: the first one [Q], and their score [Q]."""
    order = np.argsort(subjects, kind="stable")
    _, firsts = np.unique(subjects[order], return_index=True)
    pair_probes, pair_scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for members in np.split(order, firsts[1:]):
        scores = probes[members] @ probes[members].T
        others = ~np.eye(len(members), dtype=bool)
        pair_probes.append(np.repeat(members, len(members) - 1))
        pair_scores.append(scores[others])
    return np.concatenate(pair_probes), np.concatenate(pair_scores)


def _allowed(rate: float, count: int) -> int:
    """The largest m with m / count <= rate."""
    m = min(int(rate * count) + 1, count)
    while m / count > rate:
        m -= 1
    return m


def _threshold(descending: np.ndarray, rate: float) -> float:
    """What at most the share `rate` of the scores exceeds; as low as can be."""
    m = _allowed(rate, len(descending))
    return descending[m] if m < len(descending) else -np.inf


def _check_shapes(*arrays) -> None:
    """Features [N, D] and subjects [N] in turn; all D alike."""
    shapes = [np.shape(array) for array in arrays]
    for features, subjects in zip(shapes[::2], shapes[1::2], strict=True):
        if len(features) != 2 or subjects != features[:1] or features[1] != shapes[0][1]:
            raise ValueError(f"expected features [N, D] and subjects [N]; got {', '.join(map(str, shapes))}")


def _check_rates(ranks, rates) -> None:
    for rank in ranks:
        if rank < 1:
            raise UserError(f"rank {rank}: choose 1 or more")
    for rate in rates:
        if not 0 < rate <= 1:
            raise UserError(f"false accept rate {rate}: choose one above 0, at most 1")
