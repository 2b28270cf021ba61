"""A hashing forest: trees that split cells by the bisector of two random points of the cell.

Zhang, Yang, Yan and Lin, "Accelerated Training for Massive Classification via Dynamic Class Selection" (AAAI 2018). A
node is the two points alone: a query goes to the side of the nearer one. The candidates of a query are the points of
the leaves that it reaches in all trees, ranked by their inner product with it.
"""

import numpy as np

from .ranking import best_of_lists

_PIECE = 8192
_SAMPLE = 4096
_LEVELS = 7


def build(points: np.ndarray, *, seed: int = 0, previous=None, num_trees: int = 50, leaf_size: int = 64) -> "Forest":
    """Trees are independent, the same for the same (seed, number of the tree); ``previous`` does not matter.

    Args:
      leaf_size: most points of a cell that is not split further, unless random pairs do not separate them.
    """
    points = np.ascontiguousarray(points, np.float32)
    squares = np.einsum("nd,nd->n", points, points)
    trees = [_tree(points, leaf_size, np.random.default_rng([seed, tree])) for tree in range(num_trees)]
    return Forest(points, squares, trees)


class Forest:
    """Points [C, D] and trees over them. A tree has for node i the ``pairs[i]`` of points and ``children[i]`` on the
    side of each; a child below 0 is leaf ~child, which has the points ``rows[bounds[leaf]:bounds[leaf + 1]]``."""

    def __init__(self, points, squares, trees):
        self.points, self.squares, self.num_trees = points, squares, len(trees)
        nodes = np.cumsum([0, *(len(pairs) for pairs, *_ in trees)])
        leaves = np.cumsum([0, *(len(bounds) - 1 for *_, bounds in trees)])
        self.pairs = np.concatenate([pairs for pairs, *_ in trees])
        self.children = np.concatenate(
            [
                np.where(children < 0, children - leaf, children + node)
                for (_, children, *_), node, leaf in zip(trees, nodes[:-1], leaves[:-1], strict=True)
            ]
        )
        # Of a tree with one leaf there is no node.
        self.roots = np.array(
            [
                node if len(pairs) else ~leaf
                for (pairs, *_), node, leaf in zip(trees, nodes[:-1], leaves[:-1], strict=True)
            ]
        )
        self.rows = np.concatenate([rows for _, _, rows, _ in trees])
        self.bounds = np.concatenate([[0], *(bounds[1:] + i * len(points) for i, (*_, bounds) in enumerate(trees))])

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (self.points, self.squares, self.pairs, self.children, self.rows))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query among the leaves it reaches, and their scores, both [B, k]."""
        queries = np.ascontiguousarray(queries, np.float32)
        leaves = self._leaves(queries)
        rows, scores, bounds = [], [], [0]
        for query, own_leaves in zip(queries, leaves, strict=True):
            candidates = np.concatenate([self.rows[self.bounds[leaf] : self.bounds[leaf + 1]] for leaf in own_leaves])
            candidates = np.unique(candidates)
            rows.append(candidates)
            scores.append(self.points[candidates] @ query)
            bounds.append(bounds[-1] + len(candidates))
        return best_of_lists(np.concatenate(rows), np.concatenate(scores), np.array(bounds), k)

    def _leaves(self, queries):
        """int64 [B, T], the leaf that each query reaches in each tree."""
        at = np.repeat(self.roots[None], len(queries), axis=0).ravel()
        query = np.repeat(np.arange(len(queries)), self.num_trees)
        going = np.flatnonzero(at >= 0)
        while len(going):
            a, b = self.pairs[at[going]].T
            own = queries[query[going]]
            nearness = np.einsum("nd,nd->n", own, self.points[a]) - np.einsum("nd,nd->n", own, self.points[b])
            at[going] = self.children[at[going], (nearness <= (self.squares[a] - self.squares[b]) / 2).astype(np.int8)]
            going = going[at[going] >= 0]
        return ~at.reshape(len(queries), self.num_trees)


def _tree(points, leaf_size, random):
    """(pairs [N, 2], children [N, 2], rows [C], bounds [L + 1]) of one tree."""
    pairs, children, leaves = [], [[0, 0]], []
    draws = _uniforms(random)
    # A cell is its points and where its number goes: the parent's node + 1, and a side. Node 0 here stands for no node.
    open_cells = [(0, 0, np.arange(len(points), dtype=np.int64))]
    while open_cells:
        parent, side, inside = open_cells.pop()
        if len(inside) > max(_SAMPLE, leaf_size):
            top = _top(points, inside, draws)
            if top is not None:
                own_pairs, own_children, members = top
                children[parent][side] = len(pairs)
                # Numbers of nodes move by what is there already; those of exits are replaced when their cell is done.
                children += [[one + len(pairs) if one >= 0 else one for one in two] for two in own_children]
                first = len(pairs) + 1
                pairs += own_pairs
                for node, two in enumerate(own_children):
                    open_cells += [(first + node, s, members[~one]) for s, one in enumerate(two) if one < 0]
                continue
        _split(points[inside], inside, (parent, side), leaf_size, draws, pairs, children, leaves)
    return (
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array(children[1:], np.int64).reshape(-1, 2),
        np.concatenate(leaves),
        np.cumsum([0, *map(len, leaves)]),
    )


def _split(own, rows, place, leaf_size, draws, pairs, children, leaves):
    """Split a cell down to its leaves; ``own`` are its points [n, D], copied along to stay in the cache."""
    cells = [(*place, rows, own)]
    while cells:
        parent, side, rows, own = cells.pop()
        cut = _two_sides(own, draws) if len(rows) > leaf_size else None
        if cut is None:
            children[parent][side] = ~len(leaves)
            leaves.append(rows)
            continue
        a, b, nearer_a = cut
        children[parent][side] = len(pairs)
        pairs.append((rows[a], rows[b]))
        children.append([0, 0])
        nearer_b = ~nearer_a
        cells.append((len(pairs), 0, rows[nearer_a], own[nearer_a]))
        cells.append((len(pairs), 1, rows[nearer_b], own[nearer_b]))


def _top(points, inside, draws):
    """The first seven levels of the cell of the points ``inside`` [n].

    The two points of a node are drawn from a sample of the cell, so they are random points of the cell too; then all
    points go through the nodes by one matrix product.

    Returns:
      pairs (N of two rows), children (N of two: a node, or ~exit), and the points of each exit; None where points are
      too alike to be separated.
    """
    sample = np.unique([int(next(draws) * len(inside)) for _ in range(_SAMPLE)])
    pairs, children, num_exits = [], [], 0
    cells = [(None, None, sample, points[inside[sample]])]
    for _ in range(_LEVELS):
        below = []
        for parent, side, chosen, own in cells:
            cut = _two_sides(own, draws) if len(chosen) > 1 else None
            if cut is None:
                continue
            a, b, nearer_a = cut
            if parent is not None:
                children[parent][side] = len(pairs)
            below.append((len(pairs), 0, chosen[nearer_a], own[nearer_a]))
            below.append((len(pairs), 1, chosen[~nearer_a], own[~nearer_a]))
            pairs.append((inside[chosen[a]], inside[chosen[b]]))
            children.append([None, None])
        cells = below
    if not pairs:
        return None
    for two in children:
        for side in (0, 1):
            if two[side] is None:
                two[side] = ~num_exits
                num_exits += 1
    exits = _exits(points, inside, np.array(pairs), np.array(children))
    order = np.argsort(exits, kind="stable")
    members = np.split(inside[order], np.searchsorted(exits[order], np.arange(1, num_exits)))
    # Rounding differs between the sample and the whole: such points would come back for ever.
    return None if max(map(len, members)) == len(inside) else (pairs, children, members)


def _exits(points, inside, pairs, children):
    """int64 [n], the exit that each point of ``inside`` reaches."""
    normals = points[pairs[:, 0]] - points[pairs[:, 1]]
    offsets = np.einsum("nd,nd->n", normals, points[pairs[:, 0]] + points[pairs[:, 1]]) / 2
    exits = np.empty(len(inside), np.int64)
    for start in range(0, len(inside), _PIECE):
        own = points[inside[start : start + _PIECE]]
        sides = (own @ normals.T <= offsets).astype(np.int8)
        at = np.zeros(len(sides), np.int64)
        going = np.arange(len(sides))
        while len(going):
            at[going] = children[at[going], sides[going, at[going]]]
            going = going[at[going] >= 0]
        exits[start : start + _PIECE] = ~at
    return exits


def _two_sides(own, draws):
    """Two of the points [n, D] and which points are nearer to the first; None if a few draws separate nothing."""
    for _ in range(4):
        a, b = int(next(draws) * len(own)), int(next(draws) * len(own))
        normal = own[a] - own[b]
        nearer_a = own @ normal > (own[a] + own[b]) @ normal / 2
        if 0 < np.count_nonzero(nearer_a) < len(own):
            return a, b, nearer_a
    return None


def _uniforms(random):
    while True:
        yield from random.random(4096).tolist()
