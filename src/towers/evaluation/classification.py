"""Top-1, top-5 and what is mistaken for what, from logits and labels. NumPy in, numbers out."""

from dataclasses import dataclass

import numpy as np

TOP = 5
BLOCK = 4096


@dataclass(frozen=True)
class Classification:
    """How N pictures of C classes were classified.

    Attributes:
      labels, predictions: [N] int64.
      ranks: [N] int64, the number of other classes whose logit is at least the true one's: 0 is right. A tie counts
        against the picture, so that equal logits for every class are never right.
      losses: [N] float64, cross-entropy in nats.
      excess: [N] float64, probability of the best wrong class minus that of the true one: how wrong.
      num_classes: C.
    """

    labels: np.ndarray
    predictions: np.ndarray
    ranks: np.ndarray
    losses: np.ndarray
    excess: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def top(self, k: int) -> float:
        """Share of the pictures whose class is among the k best."""
        return float((self.ranks < k).mean())

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    def confusion(self) -> np.ndarray:
        """[C, C] int64: pictures of class row that were taken for class column."""
        flat = np.bincount(self.labels * self.num_classes + self.predictions, minlength=self.num_classes**2)
        return flat.reshape(self.num_classes, self.num_classes)

    def worst_mistakes(self, count: int) -> np.ndarray:
        """Indices of at most ``count`` wrong pictures, the most certainly wrong first."""
        wrong = np.flatnonzero(self.ranks > 0)
        return wrong[np.argsort(-self.excess[wrong], kind="stable")][:count]


@dataclass(frozen=True)
class ClassRow:
    """One class: its pictures, shares right among the best 1 and 5, and what it is most often taken for."""

    name: str
    pictures: int
    top1: float
    top5: float
    mistaken_for: str
    mistakes: int


def classify(
    embeddings: np.ndarray, weights: np.ndarray, bias: np.ndarray | None, labels: np.ndarray
) -> Classification:
    """Classify embeddings [N, D] by class weights [C, D] and bias [C]; labels [N]."""
    parts = []
    for first in range(0, len(labels), BLOCK):
        rows = slice(first, first + BLOCK)
        logits = np.asarray(embeddings[rows] @ weights.T, np.float64)
        if bias is not None:
            logits += bias
        parts.append(_classify_block(logits, labels[rows]))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Classification(np.asarray(labels, np.int64), *columns, num_classes=len(weights))


def _classify_block(logits: np.ndarray, labels: np.ndarray):
    rows = np.arange(len(labels))
    true = logits[rows, labels].copy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1)
    losses = np.log(sums) - shifted[rows, labels]
    ranks = (logits >= true[:, None]).sum(axis=1) - 1
    shifted[rows, labels] = -np.inf
    best_wrong = shifted.argmax(axis=1)
    excess = np.exp(shifted[rows, best_wrong]) / sums - np.exp(-losses)
    return np.where(ranks > 0, best_wrong, labels).astype(np.int64), ranks.astype(np.int64), losses, excess


def class_rows(result: Classification, names: list[str]) -> list[ClassRow]:
    """A row for each class that has a picture, in order of the classes. names: [C]."""
    confusion = result.confusion()
    rows = []
    for label in np.unique(result.labels):
        own = result.ranks[result.labels == label]
        others = confusion[label].copy()
        others[label] = 0
        worst = int(others.argmax())
        mistakes = int(others[worst])
        rows.append(
            ClassRow(
                names[label],
                len(own),
                float((own < 1).mean()),
                float((own < TOP).mean()),
                names[worst] if mistakes else "",
                mistakes,
            )
        )
    return rows
