"""Held-out pictures of a margin head's classes, against its logits one by one."""

from types import SimpleNamespace

import numpy as np
import pytest

from towers.errors import UserError
from towers.losses.margin import LogitForm
from towers.runs.validation import margin_classifier, of_classes


@pytest.mark.parametrize("as_pair", [False, True])
@pytest.mark.parametrize("normalised", [True, False])
def test_products_are_the_logits_of_a_margin_head(normalised, as_pair):
    random = np.random.default_rng(0)
    weights, embeddings = random.normal(size=(7, 5)), random.normal(size=(3, 5))
    head = SimpleNamespace(export=lambda: (weights, None) if as_pair else weights)
    found, bias = margin_classifier(head, LogitForm(normalised=normalised, scale=30.0))()
    assert bias is None
    for embedding in embeddings:
        own = embedding / np.linalg.norm(embedding) if normalised else embedding
        for weight, row in zip(weights, found, strict=True):
            expected = 30 * own @ (weight / np.linalg.norm(weight) if normalised else weight)
            np.testing.assert_allclose(own @ row, expected, rtol=1e-9)


def test_where_classes_cannot_be_validated():
    one, two = (SimpleNamespace(processes=SimpleNamespace(num=num)) for num in (1, 2))
    assert of_classes(two, None, None, None, None, LogitForm(sub_centres=3)) == []
    with pytest.raises(UserError, match="--sub_centres 3"):
        of_classes(one, None, "held out", None, None, LogitForm(sub_centres=3))
    with pytest.raises(UserError, match="2 processes"):
        of_classes(two, None, "held out", None, None, LogitForm())
