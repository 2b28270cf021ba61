"""Pictures held out of every class, to measure classification on pictures that were not trained on."""

import numpy as np


def split_classes(source, ratio: float, *, min_held_out: int = 0, seed: int):
    """Hold out the share ``ratio`` of each class (facenet's --validation_set_split_ratio).

    Args:
      source: a ``Source``.
      ratio: 0 <= ratio < 1; of a class with n pictures, round(n * ratio) are held out, and at least one stays.
      min_held_out: a class that would hold out fewer keeps all its pictures (--min_nrof_val_images_per_class).
      seed: of the choice.

    Returns:
      (training source, records held out [M] int64); labels of the records held out are the source's own.
    """
    random = np.random.default_rng(seed)
    by_class = np.argsort(source.labels, kind="stable")
    counts = np.bincount(source.labels, minlength=source.num_classes)
    held_out = []
    for records in np.split(by_class, np.cumsum(counts)[:-1]):
        count = min(round(len(records) * ratio), len(records) - 1)
        if count >= max(min_held_out, 1):
            held_out.append(random.permutation(records)[:count])
    held_out = np.sort(np.concatenate(held_out)) if held_out else np.zeros(0, np.int64)
    kept = np.ones(len(source), bool)
    kept[held_out] = False
    return source.subset(np.flatnonzero(kept)), held_out
