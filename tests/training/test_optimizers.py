import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from training.reference_rules import FIRST_SLOTS, trajectory

from towers.errors import UserError
from towers.heads.replicated import ReplicatedHead
from towers.losses.center import CenterTable
from towers.training import optimizers

NAMES = sorted(FIRST_SLOTS)
RATES = [0.1, 0.1, 0.01, 0.05, 0.001]
YES, NO = tf.constant(True), tf.constant(False)


def example(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 4)), rng.normal(size=(len(RATES), 3, 4))


def built(name, weights, dtype="float64"):
    with keras.name_scope("layer"):
        variable = keras.Variable(weights, dtype=dtype, name="kernel")
    optimizer = optimizers.build(name)
    optimizer.build([variable])
    return optimizer, variable


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_weights_and_slots_follow_the_rule_while_the_rate_changes(name, dtype, tolerance):
    weights, gradients = example()
    optimizer, variable = built(name, weights, dtype)

    @tf.function
    def step(gradient, rate):
        optimizers.apply_updates(optimizer, [gradient], [variable], rate, YES)

    for gradient, rate in zip(gradients, RATES, strict=True):
        step(tf.constant(gradient, dtype), tf.constant(rate, dtype))
    expected, slots = trajectory(name, weights, gradients, RATES)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=tolerance, atol=tolerance)
    state = optimizers.state(optimizer)
    assert set(state) == {"iterations"} | {f"layer/kernel/{slot}" for slot in slots}
    assert int(state["iterations"]) == int(optimizer.iterations) == len(RATES)
    for slot, value in slots.items():
        np.testing.assert_allclose(state[f"layer/kernel/{slot}"].numpy(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_keep_false_changes_no_bit(name):
    weights, gradients = example()
    optimizer, variable = built(name, weights)
    optimizers.apply_updates(optimizer, [gradients[0]], [variable], 0.1, YES)

    def bits():
        return [value.numpy().tobytes() for value in (variable, *optimizers.state(optimizer).values())]

    before = bits()
    tf.function(lambda keep: optimizers.apply_updates(optimizer, [np.full((3, 4), np.nan)], [variable], 0.1, keep))(NO)
    assert bits() == before


OF_KERAS = ["keras.AdamW", "keras.Lion", "keras.Nadam", "keras.Adafactor", "keras.SGD"]


def by_keras_itself(name, weights, gradients, rates):
    optimizer = getattr(keras.optimizers, name.removeprefix("keras."))()
    variable = keras.Variable(weights, dtype="float64")
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(gradient)], [variable])
    return variable.numpy()


@pytest.mark.parametrize("name", OF_KERAS)
def test_a_class_of_keras_makes_its_own_updates(name):
    weights, gradients = example()
    optimizer, variable = built(name, weights)

    @tf.function(autograph=False)
    def step(gradient, rate, keep):
        optimizers.apply_updates(optimizer, [gradient], [variable], rate, keep)

    for gradient, rate in zip(gradients, RATES, strict=True):
        step(tf.constant(gradient), tf.constant(rate, tf.float64), YES)
        before = [value.numpy().tobytes() for value in (variable, *optimizer.variables)]
        step(tf.constant(gradient * np.nan), tf.constant(0.7, tf.float64), NO)
        assert [value.numpy().tobytes() for value in (variable, *optimizer.variables)] == before
    expected = by_keras_itself(name, weights, gradients, RATES)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-12)
    assert np.abs(expected - weights).max() > 1e-3
    assert int(optimizer.iterations) == len(RATES)


@pytest.mark.parametrize("name", OF_KERAS)
def test_the_state_of_a_class_of_keras_goes_on(name):
    weights, gradients = example()
    optimizer, variable = built(name, weights)
    for gradient in gradients[:2]:
        optimizers.apply_updates(optimizer, [tf.constant(gradient)], [variable], 0.1, YES)
    again, copy = built(name, variable.numpy())
    state = optimizers.state(optimizer)
    assert len(state) == len(optimizer.variables)
    for key, value in state.items():
        optimizers.state(again)[key].assign(value.numpy())
    for target, owner in ((variable, optimizer), (copy, again)):
        optimizers.apply_updates(owner, [tf.constant(gradients[2])], [target], 0.1, YES)
    np.testing.assert_array_equal(variable.numpy(), copy.numpy())


def test_names_as_users_write_them():
    written = {"mom": "MOM", "keras.lion": "keras.Lion", "Keras.ADAMW": "keras.AdamW"}
    assert {text: optimizers.full_name(text) for text in written} == written
    assert {name: optimizers.num_slots(name) for name in ("keras.SGD", "keras.Lion", "keras.AdamW")} == {
        "keras.SGD": 0,
        "keras.Lion": 1,
        "keras.AdamW": 2,
    }
    for text, message in (
        ("lion", "keras.Lion"),
        ("keras.lyon", "comes one of .*Lion"),
        ("keras.Optimizer", "no such"),
    ):
        with pytest.raises(UserError, match=message):
            optimizers.full_name(text)


def test_first_adam_step_is_corrected_for_t_equal_1():
    optimizer, variable = built("ADAM", np.zeros(1))
    optimizers.apply_updates(optimizer, [tf.constant([2.0], tf.float64)], [variable], 1.0, YES)
    np.testing.assert_allclose(
        variable.numpy(), [-np.sqrt(0.001) / 0.1 * (0.1 * 2.0) / (np.sqrt(0.001 * 4.0) + 0.1)], rtol=1e-12
    )


def test_a_python_rate_keeps_double_precision():
    optimizer, variable = built("SGD", np.zeros(1))
    optimizers.apply_updates(optimizer, [tf.constant([1.0], tf.float64)], [variable], 0.1, YES)
    assert variable.numpy()[0] == -0.1


def test_momentum_is_an_option_of_mom():
    variable = keras.Variable(np.zeros(1), dtype="float64", name="kernel")
    optimizer = optimizers.build("MOM", momentum=0.5)
    optimizer.build([variable])
    optimizers.apply_updates(optimizer, [tf.constant([1.0], tf.float64)], [variable], 1.0, YES)
    np.testing.assert_allclose(variable.numpy(), [-1.5])


def test_update_step_of_keras_interface_makes_the_same_update():
    weights, gradients = example()
    optimizer, variable = built("ADAM", weights)
    optimizer.update_step(tf.constant(gradients[0]), variable, 0.1)
    np.testing.assert_allclose(variable.numpy(), trajectory("ADAM", weights, gradients[:1], [0.1])[0], rtol=1e-12)


def test_variables_of_two_types_are_updated_in_their_own():
    optimizer = optimizers.build("MOM")
    with keras.name_scope("a"):
        single = keras.Variable(np.zeros(2), dtype="float32", name="kernel")
    with keras.name_scope("b"):
        double = keras.Variable(np.zeros(3), dtype="float64", name="kernel")
    optimizer.build([single, double])
    gradients = [tf.ones(2), tf.ones(3, tf.float64)]
    optimizers.apply_updates(optimizer, gradients, [single, double], 0.1, YES)
    np.testing.assert_allclose(single.numpy(), [-0.19] * 2, rtol=1e-6)
    np.testing.assert_allclose(double.numpy(), [-0.19] * 3, rtol=1e-14)
    assert set(optimizers.state(optimizer)) == {"iterations", "a/kernel/accum", "b/kernel/accum"}


def test_state_can_be_stored_and_put_back():
    weights, gradients = example()
    optimizer, variable = built("ADAM", weights)
    optimizers.apply_updates(optimizer, [gradients[0]], [variable], 0.1, YES)
    again, copy = built("ADAM", variable.numpy())
    for name, value in optimizers.state(optimizer).items():
        optimizers.state(again)[name].assign(value.numpy())
    for target, owner in ((variable, optimizer), (copy, again)):
        optimizers.apply_updates(owner, [gradients[1]], [target], 0.1, YES)
    np.testing.assert_array_equal(variable.numpy(), copy.numpy())


def test_variables_that_share_a_path_are_refused():
    variables = [keras.Variable(np.zeros(1), name="kernel") for _ in range(2)]
    with pytest.raises(ValueError, match="kernel"):
        optimizers.build("MOM").build(variables)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="LION.*ADAGRAD.*MOM"):
        optimizers.build("LION")


def test_keras_own_apply_is_refused():
    optimizer, variable = built("MOM", np.zeros(1))
    with pytest.raises(RuntimeError, match="apply_updates"):
        optimizer.apply([tf.ones(1, tf.float64)], [variable])


@pytest.fixture(scope="module")
def two_towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    weights, gradients = example(7)
    rng = np.random.default_rng(8)
    inputs = {
        "weights": weights,
        "gradients": gradients,
        "rates": np.array(RATES),
        "embeddings": rng.normal(size=(2, 5, 3)),
        "labels": rng.integers(0, 4, (2, 5)),
    }
    np.savez(folder / "inputs.npz", **inputs)
    source = str(Path(optimizers.__file__).parents[2])
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mirrored_updates.py")), "inputs.npz", "outputs.npz"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return inputs, dict(np.load(folder / "outputs.npz"))


def test_both_towers_hold_the_same_bits(two_towers):
    _, outputs = two_towers
    assert len(outputs) > 40
    for name, (first, second) in outputs.items():
        assert first.tobytes() == second.tobytes(), name


def test_towers_skip_alike_and_change_no_bit(two_towers):
    _, outputs = two_towers
    names = [name for name in outputs if not name.startswith("skipped/")]
    assert len(names) == len(outputs) / 2
    for name in names:
        assert outputs[name].tobytes() == outputs[f"skipped/{name}"].tobytes(), name


@pytest.mark.parametrize("name", ["keras.AdamW", "keras.Nadam"])
def test_two_towers_follow_keras(two_towers, name):
    inputs, outputs = two_towers
    expected = by_keras_itself(name, inputs["weights"], inputs["gradients"], RATES)
    np.testing.assert_allclose(outputs[f"weights/{name}"][0], expected, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_two_towers_follow_the_rule(two_towers, name):
    inputs, outputs = two_towers
    expected, slots = trajectory(name, inputs["weights"], inputs["gradients"], RATES)
    np.testing.assert_allclose(outputs[f"weights/{name}"][0], expected, rtol=1e-12, atol=1e-12)
    for slot, value in slots.items():
        np.testing.assert_allclose(outputs[f"{name}/{name.lower()}/{slot}"][0], value, rtol=1e-12, atol=1e-12)
    assert (outputs[f"{name}/iterations"] == len(RATES)).all()


def test_head_of_two_towers_equals_the_head_of_one(two_towers):
    inputs, outputs = two_towers
    head = ReplicatedHead(4, 3, seed=0, dtype="float64")
    optimizer = optimizers.build("ADAM")
    optimizer.build(head.trainable_variables)
    embeddings, labels = inputs["embeddings"].reshape(10, 3), inputs["labels"].reshape(10)
    for rate in RATES:
        with tf.GradientTape() as tape:
            rows = head.prepare(labels)
            loss = tf.reduce_sum(head.loss(tf.constant(embeddings), labels, rows))
        gradients = tape.gradient(loss, list(rows))
        optimizers.apply_updates(optimizer, gradients, head.trainable_variables, rate, YES)
    for name, variable in (head.variables() | {f"head/{k}": v for k, v in optimizers.state(optimizer).items()}).items():
        np.testing.assert_allclose(outputs[name][0], variable.numpy(), rtol=1e-10, atol=1e-12)


def test_center_table_of_two_towers_equals_the_table_of_one(two_towers):
    inputs, outputs = two_towers
    table = CenterTable(4, 3, 0.6, "float64")
    for _ in RATES:
        table.update(tf.constant(inputs["embeddings"].reshape(10, 3)), tf.constant(inputs["labels"].reshape(10)), YES)
    np.testing.assert_allclose(outputs["center_loss/centers"][0], table.centers.numpy(), rtol=1e-12, atol=1e-12)
