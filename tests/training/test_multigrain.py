import numpy as np
import pytest
import tensorflow as tf
from losses.margin_pairs_reference import slow_losses

from towers.errors import UserError
from towers.heads.replicated import ReplicatedHead
from towers.networks.gem import GeM
from towers.training.multigrain import MarginBorder, check_options, make_objective, make_power_objective

FIRST, SEED = 2**33, 17
CHOICE = {
    "classification_weight": 0.5,
    "label_smoothing": 0.0,
    "retrieval_loss": "margin",
    "copies": 3,
    "alpha": 0.2,
    "beta": 1.2,
    "mining": "batch_hard",
}


def batch(instances=5, copies=3, size=6, classes=4):
    random = np.random.default_rng(1)
    records = np.repeat(random.permutation(20)[:instances], copies)
    rows = np.abs(random.normal(size=(20, size))[records] + random.normal(size=(len(records), size)))
    return {
        "image": 3 * rows,
        "label": records % classes,
        "record": records,
        "position": FIRST + np.arange(len(records)),
    }


def cross_entropy(logits, labels, smoothing):
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = np.full_like(logits, smoothing / logits.shape[1])
    target[np.arange(len(labels)), labels] += 1 - smoothing
    return -(target * logs).sum(axis=1)


def computed(whole, **options):
    """Loss as the step forms it, losses, metrics, and its derivatives by embeddings, weights and beta."""
    head, border = ReplicatedHead(4, 6, seed=0, dtype="float64"), MarginBorder(1.1, "float64")
    pictures = tf.constant(whole["image"])
    options = {"classification_weight": 0.3, "seed": SEED, **options}
    objective = make_objective(head, border, lambda part: pictures, **options)
    with tf.GradientTape() as tape:
        tape.watch(pictures)
        found = objective(lambda inputs, training: inputs, {key: tf.constant(value) for key, value in whole.items()})
        loss = tf.reduce_sum(found.losses) / tf.reduce_sum(found.weights)
    gradients = tape.gradient(loss, [pictures, head.weights.value, border.beta.value], unconnected_gradients="zero")
    return head, float(loss), found, [gradient.numpy() for gradient in gradients]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_equation_of_the_paper(smoothing):
    whole = batch()
    head, loss, found, gradients = computed(whole, label_smoothing=smoothing)
    raw = whole["image"]
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    classes = cross_entropy(raw @ head.weights.numpy().T, whole["label"], smoothing)
    pairs, active, by_unit, by_beta = slow_losses(unit, whole["record"], whole["position"], 1.1, 0.2, SEED)
    assert 0 < active.sum()
    want = 0.3 * classes.mean() + 0.7 * pairs.sum() / active.sum()
    assert loss == pytest.approx(want, rel=1e-9)
    assert found.metrics["main"].numpy() == pytest.approx(classes.mean(), rel=1e-9)
    assert found.metrics["retrieval"].numpy() == pytest.approx(pairs.sum() / active.sum(), rel=1e-9)
    assert found.metrics["beta"] == 1.1
    assert gradients[2] == pytest.approx(0.7 * by_beta / active.sum(), rel=1e-9)
    # The retrieval loss reaches the embedding through its normalisation, the classes without.
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    by_pairs = (by_unit - unit * (unit * by_unit).sum(axis=1, keepdims=True)) / norms / active.sum()
    by_classes = np.zeros_like(raw)
    for index in np.ndindex(raw.shape):
        step = np.zeros_like(raw)
        step[index] = 1e-6
        ends = [cross_entropy((raw + s * step) @ head.weights.numpy().T, whole["label"], smoothing) for s in (1, -1)]
        by_classes[index] = (ends[0].mean() - ends[1].mean()) / 2e-6
    np.testing.assert_allclose(gradients[0], 0.3 * by_classes + 0.7 * by_pairs, rtol=1e-5, atol=1e-9)


def test_the_ends_of_lambda():
    whole = batch()
    head, only_classes, found, gradients = computed(whole, classification_weight=1.0)
    assert only_classes == pytest.approx(float(found.metrics["main"]))
    assert gradients[2] == 0
    _, only_pairs, found, gradients = computed(whole, classification_weight=0.0)
    assert only_pairs == pytest.approx(float(found.metrics["retrieval"]))
    assert not gradients[1].any()


def test_instances_are_records_not_classes():
    """Two pictures of one class are no pair: only copies of a record are."""
    whole = batch()
    _, _, found, _ = computed(whole)
    assert found.metrics["pairs"] == len(whole["record"]) * 2
    whole["record"] = np.arange(len(whole["record"]))
    _, loss, found, _ = computed(whole)
    assert found.metrics["pairs"] == 0
    assert loss == pytest.approx(0.3 * float(found.metrics["main"]))


@pytest.mark.parametrize("mining", ["batch_hard", "semihard", "batch_all"])
def test_triplets_in_place_of_pairs(mining):
    whole = batch()
    _, loss, found, gradients = computed(whole, retrieval_loss="triplet", mining=mining)
    assert loss == pytest.approx(0.3 * float(found.metrics["main"]) + 0.7 * float(found.metrics["retrieval"]))
    assert found.metrics["retrieval"] > 0
    assert "beta" not in found.metrics
    unit = whole["image"] / np.linalg.norm(whole["image"], axis=1, keepdims=True)
    if mining == "batch_hard":
        distances = ((unit[:, None] - unit[None]) ** 2).sum(-1)
        same = whole["record"][:, None] == whole["record"][None]
        hardest = [max(0, distances[a][same[a]].max() - distances[a][~same[a]].min() + 0.2) for a in range(len(unit))]
        assert float(found.metrics["retrieval"]) == pytest.approx(np.mean(hardest), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classification_weight": -0.1}, "between 0 and 1"),
        ({"classification_weight": 1.01}, "between 0 and 1"),
        ({"classification_weight": float("nan")}, "between 0 and 1"),
        ({"label_smoothing": 1.0}, "--label_smoothing 1.0"),
        ({"retrieval_loss": "contrastive"}, "margin, triplet"),
        ({"copies": 1}, "--copies 2 or more"),
        ({"alpha": 0.0}, "--alpha"),
        ({"beta": 3.0}, "--beta"),
        ({"retrieval_loss": "triplet", "mining": "hardest"}, "--mining"),
    ],
)
def test_what_makes_no_objective_is_refused(change, named):
    with pytest.raises(UserError, match=named):
        check_options(**CHOICE | change)


def test_classes_alone_need_no_copies():
    check_options(**CHOICE | {"classification_weight": 1.0, "copies": 1})


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match="--mining_scope"):
        make_objective(None, None, None, classification_weight=0.5, mining_scope="machine")


def test_the_power_alone_gets_the_gradient_of_the_cross_entropy():
    random = np.random.default_rng(3)
    maps, labels = np.abs(random.normal(size=(8, 5, 7, 6))), random.integers(0, 4, 8)
    head = ReplicatedHead(4, 6, seed=0, dtype="float64")
    pool = GeM(2.5, learnt=True, dtype="float64")
    pool.build(maps.shape)

    def network(inputs, training):
        assert training is False
        return pool(inputs)

    objective = make_power_objective(head, pool.power, lambda part: part["image"])
    parts = {"image": tf.constant(maps), "label": tf.constant(labels)}
    with tf.GradientTape() as tape:
        found = objective(network, parts)
        loss = tf.reduce_sum(found.losses) / tf.reduce_sum(found.weights)

    def slow(p):
        embeddings = (maps**p).mean(axis=(1, 2)) ** (1 / p)
        return cross_entropy(embeddings @ head.weights.numpy().T, labels, 0.0).mean()

    assert float(loss) == pytest.approx(slow(2.5), rel=1e-9)
    by_power = (slow(2.5 + 1e-5) - slow(2.5 - 1e-5)) / 2e-5
    assert tape.gradient(loss, pool.power.value).numpy() == pytest.approx(by_power, rel=1e-6)
    assert found.metrics["gem_p"] == 2.5
    assert found.metrics["main"].numpy() == pytest.approx(slow(2.5), rel=1e-9)
