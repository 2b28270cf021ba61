"""Whether an exported model computes what the network computes."""

from typing import NamedTuple

import numpy as np

from ..errors import UserError

LEAST_COSINE = 0.9999


class Parity(NamedTuple):
    """Cosines of the embeddings over the pictures, least and mean; and of the largest logits, the share that agrees."""

    pictures: int
    least_cosine: float
    mean_cosine: float
    top1_agreement: float | None


def compare(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> Parity:
    """``embedding`` [N, D] and, where there are some, ``logits`` [N, C] of two models on the same pictures."""
    one, other = (outputs["embedding"].astype(np.float64) for outputs in (expected, found))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    # No comparison with a NaN holds; it must count as the worst.
    cosines = np.nan_to_num(np.sum(one * other, axis=1) / np.maximum(lengths, 1e-30), nan=-1.0)
    agreement = None
    if "logits" in expected:
        agreement = float(np.mean(expected["logits"].argmax(axis=1) == found["logits"].argmax(axis=1)))
    return Parity(len(one), float(cosines.min()), float(cosines.mean()), agreement)


def check(parity: Parity, what: str) -> None:
    """Raise UserError where a float32 model is not the network: a cosine below ``LEAST_COSINE``."""
    if not parity.least_cosine >= LEAST_COSINE:
        raise UserError(
            f"{what}: on {parity.pictures} pictures its embeddings have cosines down to {parity.least_cosine:.6f} with "
            f"the network's, {LEAST_COSINE} is needed; the file was removed: take another format, or report this"
        )
