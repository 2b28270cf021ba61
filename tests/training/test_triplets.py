import numpy as np
import pytest
import tensorflow as tf

from towers.errors import UserError
from towers.training.triplets import make_objective, mean_pair_distance, warn_of_collapse

OPTIONS = {"mining": "batch_hard", "mining_scope": "tower", "alpha": 0.2}


def batch(labels):
    return {"label": tf.constant(labels, tf.int64), "position": tf.range(len(labels), dtype=tf.int64)}


@pytest.mark.parametrize("scope", ["tower", "global"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_are_normalised_in_a_wide_type(scope, dtype):
    # Directions 0, 90 and 180 degrees: d_ap = 2; d_an = 4 and 2.
    embeddings = tf.constant([[3.0, 0.0], [0.0, 5.0], [-7.0, 0.0]], dtype)
    objective = make_objective(lambda batch: embeddings, **OPTIONS | {"mining_scope": scope})
    found = objective(lambda inputs, training: inputs, batch([4, 4, 5]))
    assert found.losses.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(found.losses, [0.0, 0.2, 0.0], atol=1e-6)
    np.testing.assert_array_equal(found.weights, [1, 1, 0])
    np.testing.assert_allclose(found.metrics["embedding_norm"], 5.0)
    np.testing.assert_allclose(found.metrics["pair_distance"], 8 / 3, rtol=1e-6)


def test_collapse_shows_in_the_metrics_and_zero_embeddings_have_finite_gradients():
    objective = make_objective(lambda batch: batch["image"], **OPTIONS)
    for rows in (np.tile([[1.0, 2.0]], (4, 1)), np.zeros((4, 2))):
        images = tf.constant(rows)
        with tf.GradientTape() as tape:
            tape.watch(images)
            found = objective(lambda inputs, training: inputs, batch([0, 0, 1, 1]) | {"image": images})
            loss = tf.reduce_sum(found.losses)
        np.testing.assert_allclose(found.losses, 0.2)
        np.testing.assert_allclose(found.metrics["pair_distance"], 0.0, atol=1e-12)
        assert np.isfinite(tape.gradient(loss, images)).all()


def test_a_collapse_is_said_once_each_time_it_begins():
    warn = warn_of_collapse(0.2)
    said = [
        warn({"step": step, "loss": 0.19, "pair_distance": distance})
        for step, distance in enumerate([1.9, 0.01, 0.01, 0.3, 0.02])
    ]
    assert [line is not None for line in said] == [False, True, False, False, True]
    assert all(part in said[1] for part in ("step 1", "0.0100 apart", "0.190", "alpha 0.2", "--learning_rate"))
    assert "log 2" in warn_of_collapse(0.2, soft_margin=True)({"step": 9, "loss": None, "pair_distance": 0.0})


def test_mean_pair_distance_of_one_picture_is_zero():
    assert mean_pair_distance(tf.ones([1, 3])).numpy() == 0


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match="--mining_scope machine"):
        make_objective(lambda batch: batch, **OPTIONS | {"mining_scope": "machine"})


def test_other_options_are_refused_before_training():
    with pytest.raises(UserError, match="--alpha"):
        make_objective(lambda batch: batch, **OPTIONS | {"alpha": -0.2})
