import numpy as np
import pytest
import tensorflow as tf
from losses import margin_reference as slow

from towers.errors import UserError
from towers.heads.replicated import ReplicatedHead
from towers.losses.margin import LogitForm, NormStatistics
from towers.training.margins import chosen_loss, make_objective

OPTIONS = {
    "loss": "arcface",
    "margin_m1": None,
    "margin_m2": None,
    "margin_m3": None,
    "scale": None,
    "sub_centres": 1,
    "interclass_filtering_threshold": 0.0,
    "logits_chunk": 0,
}


@pytest.mark.parametrize(
    ("options", "margins"),
    [
        ({}, (1.0, 0.5, 0.0)),
        ({"loss": "nsoftmax"}, (1.0, 0.0, 0.0)),
        ({"loss": "cosface"}, (1.0, 0.0, 0.35)),
        ({"loss": "cosface", "margin_m3": 0.4}, (1.0, 0.0, 0.4)),
        ({"loss": "combined"}, (1.0, 0.3, 0.2)),
        ({"loss": "adaface"}, None),
    ],
)
def test_margins_are_insightfaces_unless_told(options, margins):
    chosen = chosen_loss(**{**OPTIONS, **options})
    assert chosen.margins == margins
    assert chosen.form == LogitForm(scale=64.0)


def test_softmax_is_not_normalised():
    assert chosen_loss(**{**OPTIONS, "loss": "softmax"}).form == LogitForm(normalised=False, scale=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "softmax", "scale": 30.0}, "--loss softmax has no use for --scale"),
        ({"loss": "softmax", "sub_centres": 3}, "no use for --sub_centres"),
        ({"loss": "adaface", "margin_m2": 0.5}, "no use for --margin_m2"),
        ({"scale": 0.0}, "--scale 0.0"),
        ({"sub_centres": 0}, "--sub_centres 0"),
        ({"interclass_filtering_threshold": 1.0}, "--interclass_filtering_threshold 1.0"),
        ({"logits_chunk": -1}, "--logits_chunk -1"),
    ],
)
def test_options_without_use_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        chosen_loss(**{**OPTIONS, **options})


@pytest.mark.parametrize("name", ["softmax", "arcface", "magface", "adaface"])
def test_the_replicated_head_gives_the_losses_of_the_loops(name):
    random = np.random.default_rng(2)
    embeddings, labels = random.normal(size=(4, 6)) * 12, np.array([1, 0, 4, 1])
    scale = None if name == "softmax" else 8.0
    loss = chosen_loss(**{**OPTIONS, "loss": name, "scale": scale})
    head = ReplicatedHead(5, 6, use_bias=False, form=loss.form, seed=1, dtype="float64")
    statistics = NormStatistics(share=1.0, dtype="float64")
    objective = make_objective(head, lambda batch: batch["image"], loss, statistics=statistics)
    found = objective(lambda image, training: image, {"image": tf.constant(embeddings), "label": tf.constant(labels)})
    norms = np.linalg.norm(embeddings, axis=1)
    settings, penalty = {"scale": scale or 1.0, "normalised": name != "softmax"}, 0.0
    if name == "arcface":
        settings["angles"] = 0.5
    if name == "magface":
        held = np.clip(norms, 10, 110)
        settings["angles"] = 0.45 + 0.35 * (held - 10) / 100
        penalty = 35 * (held / 110**2 + 1 / held)
    if name == "adaface":
        quality = np.clip(0.333 * (norms - norms.mean()) / (norms.std(ddof=1) + 1e-3), -1, 1)
        settings |= {"angles": -0.4 * quality, "offsets": 0.4 + 0.4 * quality, "clipped": True}
    expected = slow.losses(embeddings, head.export()[0], labels, **settings)
    np.testing.assert_allclose(found.losses, expected + penalty, rtol=1e-9)
    np.testing.assert_allclose(found.metrics["main"], expected.mean(), rtol=1e-9)
    np.testing.assert_array_equal(found.weights, np.ones(4))
    assert len(found.commits) == (name == "adaface")
