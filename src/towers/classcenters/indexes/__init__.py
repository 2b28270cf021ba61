"""Ways to find the class centres nearest to a query; each is built from points and searched in batches.

An index has ``search(queries [B, D], k) -> (rows [B, k] int64, scores [B, k] float32)``, best first, scores the inner
products with the points it was built from, and row -1 with score -inf where it found fewer than k. One may also have
``best(queries, count) -> (rows [count], scores [count])``, distinct rows with the best score over all queries, or as
many as there are; selection then asks for that. It is built by
``build(points [C, D], seed=..., previous=index or None, **settings)``; ``previous`` is an older one of the classes.
"""

import importlib.util

from . import exact, forest, ivf, libraries

# Names -> function that builds, and the package that it needs besides ours.
INDEXES = {
    "exact": (exact.build, None),
    "forest": (forest.build, None),
    "ivf": (ivf.build, None),
    "annoy": (libraries.build_annoy, "annoy"),
    "faiss": (libraries.build_faiss, "faiss"),
    "usearch": (libraries.build_usearch, "usearch"),
}


def available() -> list[str]:
    """Names of the indexes whose packages are installed."""
    return [name for name, (_, package) in INDEXES.items() if package is None or importlib.util.find_spec(package)]
