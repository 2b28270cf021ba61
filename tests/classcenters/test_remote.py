import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from classcenters.dense_reference import DenseReference, random_step
from classcenters.serving import Program, serving

from towers.classcenters.protocol import class_centers_pb2 as messages
from towers.classcenters.remote import RemoteStore, access
from towers.classcenters.spec import MatrixSpec, StepMismatch
from towers.classcenters.store import memory_store
from towers.classcenters.wire import CHANNEL_OPTIONS, SERVICE, decoded_block, encoded_pull
from towers.errors import PeerLost, UserError

EVERYTHING = np.arange(60)


def spec_of(rule, **changes):
    return MatrixSpec(**{"rows": 60, "columns": 7, "seed": 3, "rule": rule, "weight_decay": 0.01, **changes})


QUICK = [(1, 1, "adagrad"), (4, 3, "momentum")]
ALL = itertools.product([1, 4], [1, 3], ["sgd", "momentum", "adagrad"])


@pytest.mark.parametrize(
    ("shards", "clients", "rule"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK)],
)
def test_equal_to_the_dense_rule_after_200_steps(shards, clients, rule):
    """Each client pushes gradients of its own; the reference gets their mean."""
    spec = spec_of(rule)
    random = np.random.default_rng(0)
    steps = [[random_step(random, 60, 7) for _ in range(clients)] for _ in range(200)]
    with serving(shards=shards, clients=clients) as (addresses, _):
        stores = [RemoteStore(addresses, client=client, timeout=30) for client in range(clients)]
        for store in stores:
            store.create("w", spec)
        reference = DenseReference(stores[0].pull("w", EVERYTHING), spec)
        for step, pushes in enumerate(steps):
            rate = 0.1 * 0.99**step
            for store, (rows, gradients) in zip(stores, pushes, strict=True):
                assert store.push("w", rows, gradients, rate, version=step) == step + 1
            reference.step(
                np.concatenate([rows for rows, _ in pushes]),
                np.concatenate([gradients for _, gradients in pushes]) / clients,
                rate,
            )
            if step % 20 == 0:
                some = random.integers(0, 60, 9)
                found = stores[-1].pull("w", some, version=step + 1)
                np.testing.assert_allclose(found, reference.weights[some], atol=1e-5)
        for store in stores:
            np.testing.assert_allclose(store.pull("w", EVERYTHING, version=200), reference.weights, atol=1e-5)
            store.close()


@pytest.fixture(scope="module")
def four_shards():
    with serving(shards=4) as (addresses, shards):
        store = RemoteStore(addresses, timeout=10)
        yield store, shards
        store.close()


def test_first_rows_are_those_of_a_local_store(four_shards):
    store, _ = four_shards
    local = memory_store()
    for one in (store, local):
        one.create("first", spec_of("sgd"))
    np.testing.assert_array_equal(store.pull("first", EVERYTHING), local.pull("first", EVERYTHING))
    rows = np.array([5, 5, 59, 0])
    np.testing.assert_array_equal(store.pull("first", rows), local.pull("first", rows))


def test_many_blocks(four_shards):
    store, _ = four_shards
    spec = MatrixSpec(rows=12_000, columns=128, rule="sgd")
    store.create("many", spec)
    rows = np.random.default_rng(0).permutation(12_000)[:9_000]
    before = store.pull("many", rows)
    gradients = np.random.default_rng(1).normal(size=before.shape).astype(np.float32)
    store.push("many", rows, gradients, 0.5)
    np.testing.assert_allclose(store.pull("many", rows), before - 0.5 * gradients, rtol=1e-6, atol=1e-7)


def test_a_pull_that_is_on_its_way_is_of_one_step():
    """The rows of a push that comes while blocks of a pull are still to be sent."""
    with serving() as (addresses, _):
        store = RemoteStore(addresses, timeout=20)
        store.create("w", MatrixSpec(rows=9_000, columns=512, rule="sgd", weight_decay=0.1))
        rows = np.arange(9_000)
        before = store.pull("w", rows)
        request = messages.PullRequest(matrix="w", version=0)
        with grpc.insecure_channel(addresses[0], CHANNEL_OPTIONS) as channel:
            replies = channel.unary_stream(f"/{SERVICE}/Pull")(encoded_pull(request, rows), timeout=20)
            first = next(replies)
            store.push("w", rows, np.ones((9_000, 512), np.float32), 0.1)
            found = [decoded_block(data, 512) for data in (first, *replies)]
            np.testing.assert_array_equal(np.concatenate([values for _, values in found]), before)
            np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in found]), rows)
            assert {messages.Block.FromString(data).version for data in (first, *replies)} == {0}
        assert store.version("w") == 1
        store.close()


def test_gradients_whose_sum_is_not_finite_change_nothing():
    with serving(clients=2) as (addresses, shards):
        stores = [RemoteStore(addresses, client=client) for client in range(2)]
        for store in stores:
            store.create("w", spec_of("sgd"))
        most = np.full((60, 7), 3e38, np.float32)
        before = stores[0].pull("w", EVERYTHING)
        stores[0].push("w", EVERYTHING, most, 0.1)
        with pytest.raises(ValueError, match="finite"):
            stores[1].push("w", EVERYTHING, most, 0.1)
        assert shards[0].store.version("w") == 0
        np.testing.assert_array_equal(stores[0].pull("w", EVERYTHING), before)
        # Another push of that client ends the step.
        stores[1].push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        assert shards[0].store.version("w") == 1


@pytest.mark.parametrize("span", [(0, 60), (7, 33), (13, 15), (20, 20)])
def test_state_and_assign_spread_rows(four_shards, span):
    store, _ = four_shards
    name = f"state{span[0]}-{span[1]}"
    local = memory_store()
    for one in (store, local):
        one.create(name, spec_of("momentum"))
        one.push(name, EVERYTHING[::3], np.ones((20, 7), np.float32), 0.1)
    for found, expected in zip(store.state(name, *span), local.state(name, *span), strict=True):
        np.testing.assert_array_equal(found, expected)
    if span[0] < span[1]:
        values = np.arange((span[1] - span[0]) * 7, dtype=np.float32).reshape(-1, 7)
        for one in (store, local):
            one.assign(name, span[0], values, -values)
            one.set_version(name, 5)
            assert one.version(name) == 5
            one.push(name, EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        np.testing.assert_array_equal(store.pull(name, EVERYTHING), local.pull(name, EVERYTHING))


def test_a_step_without_rows_counts(four_shards):
    store, _ = four_shards
    store.create("none", spec_of("sgd"))
    assert store.push("none", np.zeros(0, np.int64), np.zeros((0, 7), np.float32), 0.1) == 1
    assert store.pull("none", np.zeros(0, np.int64), version=1).shape == (0, 7)


def test_errors_have_a_meaning(four_shards):
    store, _ = four_shards
    store.create("errors", spec_of("sgd"))
    with pytest.raises(ValueError, match="there already"):
        store.create("errors", spec_of("adagrad"))
    with pytest.raises(KeyError, match="no matrix"):
        store.pull("absent", EVERYTHING)
    with pytest.raises(StepMismatch) as error:
        store.push("errors", EVERYTHING, np.ones((60, 7), np.float32), 0.1, version=3)
    assert error.value.version == 0
    store.push("errors", EVERYTHING, np.ones((60, 7), np.float32), 0.1, version=0)
    with pytest.raises(StepMismatch):
        store.pull("errors", EVERYTHING, version=0)
    with pytest.raises(ValueError, match="spread"):
        store.create("small", MatrixSpec(rows=3, columns=2))


def test_addresses_in_the_wrong_order(four_shards):
    store, _ = four_shards
    with pytest.raises(UserError, match="shard 1 of 4, not 0"):
        RemoteStore([store.addresses[1], store.addresses[0], *store.addresses[2:]])
    with pytest.raises(UserError, match="client 1"):
        RemoteStore(store.addresses, client=1)


def test_nobody_there():
    with pytest.raises(PeerLost, match="localhost:9"):
        RemoteStore(["localhost:9"], timeout=0.5)


def test_a_push_sent_twice_is_applied_once(four_shards):
    store, shards = four_shards
    store.create("twice", spec_of("momentum"))
    gradients = np.ones((60, 7), np.float32)
    store.push("twice", EVERYTHING, gradients, 0.1)
    once = store.pull("twice", EVERYTHING)
    for shard in range(4):
        assert store._push_once(shard, "twice", store._kept[shard]["twice"][-1]).duplicate
    np.testing.assert_array_equal(store.pull("twice", EVERYTHING), once)
    another = store._kept[0]["twice"][-1]._replace(request=1)
    with pytest.raises(Exception, match="step 0"):
        store._push_once(0, "twice", another)
    assert shards[0].counters["duplicates"] == 1


def test_a_push_sent_twice_within_a_round():
    with serving(clients=2) as (addresses, shards):
        stores = [RemoteStore(addresses, client=client) for client in range(2)]
        for store in stores:
            store.create("w", spec_of("sgd"))
        gradients = np.ones((60, 7), np.float32)
        before = stores[0].pull("w", EVERYTHING)
        stores[0].push("w", EVERYTHING, gradients, 1.0)
        assert stores[0]._push_once(0, "w", stores[0]._kept[0]["w"][-1]).duplicate
        assert shards[0].store.version("w") == 0
        stores[1].push("w", EVERYTHING, 3 * gradients, 1.0)
        np.testing.assert_allclose(stores[0].pull("w", EVERYTHING, version=1), before * 0.99 - 2, atol=1e-6)


def test_other_clients_are_told_when_one_dies_inside_a_step():
    with serving(clients=3, step_timeout=1.0) as (addresses, shards):
        stores = [RemoteStore(addresses, client=client, timeout=20) for client in range(3)]
        for store in stores:
            store.create("w", spec_of("sgd"))
        for store in stores[:2]:
            store.push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(store.pull, "w", EVERYTHING, 1) for store in stores[:2]]
            for one in waiting:
                with pytest.raises(PeerLost, match=r"client 2 of 3 has not pushed within 1 s"):
                    one.result()
        assert time.monotonic() - started < 15
        assert shards[0].store.version("w") == 0
        # It comes back, and the step is finished.
        stores[2].push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        assert stores[0].pull("w", EVERYTHING, version=1).shape == (60, 7)


def test_clients_must_agree_on_the_learning_rate():
    with serving(clients=2) as (addresses, _):
        stores = [RemoteStore(addresses, client=client) for client in range(2)]
        for store in stores:
            store.create("w", spec_of("sgd"))
        stores[0].push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        with pytest.raises(ValueError, match="learning rate"):
            stores[1].push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.2)


def test_bounded_staleness():
    """A client may be two steps ahead of the slowest, not three; rounds are applied in their order."""
    with serving(clients=2, staleness=2, step_timeout=0.3) as (addresses, shards):
        fast, slow = (RemoteStore(addresses, client=client, timeout=10) for client in range(2))
        spec = spec_of("momentum")
        for store in (fast, slow):
            store.create("w", spec)
        reference = DenseReference(fast.pull("w", EVERYTHING), spec)
        ones = np.ones((60, 7), np.float32)
        for step in range(3):
            fast.push("w", EVERYTHING, ones, 0.1)
            if step < 2:
                fast.pull("w", EVERYTHING, version=step + 1)
        with pytest.raises(PeerLost, match="client 1"):
            fast.pull("w", EVERYTHING, version=3)
        with pytest.raises(StepMismatch):
            fast.push("w", EVERYTHING, ones, 0.1)
        for step in range(3):
            slow.push("w", EVERYTHING, 3 * step * ones, 0.1)
            reference.step(EVERYTHING, (1 + 3 * step) / 2 * ones, 0.1)
        np.testing.assert_allclose(fast.pull("w", EVERYTHING, version=3), reference.weights, atol=1e-5)
        assert shards[0].store.version("w") == 3


def test_a_pull_waits_for_the_last_client():
    with serving(clients=2, step_timeout=20) as (addresses, _):
        stores = [RemoteStore(addresses, client=client) for client in range(2)]
        for store in stores:
            store.create("w", spec_of("sgd"))
        stores[0].push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(stores[0].pull, "w", EVERYTHING, 1)
            time.sleep(0.2)
            assert not waiting.done()
            stores[1].push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
            assert waiting.result(10).shape == (60, 7)


def train(store, steps, first=0, interrupt=lambda step: None):
    """Gradients that depend on the rows pulled, as in training."""
    for step, rows in enumerate(steps[first:], first):
        interrupt(step)
        values = store.pull("w", rows, version=step)
        store.push("w", rows, np.sin(values) + 0.1, 0.1 * 0.99**step, version=step)


def all_steps(count=24):
    random = np.random.default_rng(4)
    return [np.sort(random.choice(60, 9, replace=False)) for _ in range(count)]


@pytest.fixture(scope="module")
def unbroken():
    store = memory_store()
    store.create("w", spec_of("momentum"))
    train(store, all_steps())
    return store.pull("w", EVERYTHING)


def test_killed_and_restarted_in_the_middle(tmp_path, unbroken):
    program = Program("--directory", tmp_path)
    store = RemoteStore([program.address], timeout=60)
    store.create("w", spec_of("momentum"))

    def interrupt(step):
        if step == 7:
            program.kill()
            threading.Timer(0.5, program.start).start()
        elif step == 15:
            store.save(tmp_path / "fifteen.h5")
            program.kill()
            program.start()

    try:
        train(store, all_steps(), interrupt=interrupt)
        np.testing.assert_array_equal(store.pull("w", EVERYTHING), unbroken)
        # Stopped with grace, it goes on from its snapshot; and back at a snapshot it does the same again.
        output, code = program.stop()
        assert code == 0
        assert "stopped" in output
        program.start()
        np.testing.assert_array_equal(store.pull("w", EVERYTHING), unbroken)
        store.load("fifteen")
        assert store.version("w") == 15
        train(store, all_steps(), first=15)
        np.testing.assert_array_equal(store.pull("w", EVERYTHING), unbroken)
    finally:
        program.kill()


def test_accepted_but_not_applied_is_sent_again(tmp_path):
    """Of two clients one has pushed when the server is killed; its push is not lost."""
    program = Program("--directory", tmp_path, "--clients", 2)
    try:
        stores = [RemoteStore([program.address], client=client, timeout=60) for client in range(2)]
        for store in stores:
            store.create("w", spec_of("sgd", weight_decay=0.0))
        before = stores[0].pull("w", EVERYTHING)
        ones = np.ones((60, 7), np.float32)
        stores[0].push("w", EVERYTHING, ones, 1.0)
        program.kill()
        program.start()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(stores[0].pull, "w", EVERYTHING, 1)
            stores[1].push("w", EVERYTHING, 3 * ones, 1.0)
            np.testing.assert_allclose(waiting.result(30), before - 2, atol=1e-6)
    finally:
        program.kill()


def test_without_a_journal_lost_steps_are_told(tmp_path):
    program = Program("--directory", tmp_path, "--journal_mb", 0)
    try:
        store = RemoteStore([program.address], timeout=30)
        store.create("w", spec_of("sgd"))
        for _ in range(3):
            store.push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        store.save("three")
        three = store.pull("w", EVERYTHING)
        store.push("w", EVERYTHING, np.ones((60, 7), np.float32), 0.1)
        program.kill()
        program.start()
        with pytest.raises(StepMismatch, match="load the snapshot"):
            store.pull("w", EVERYTHING, version=4)
        store.load("three")
        assert store.version("w") == 3
        np.testing.assert_array_equal(store.pull("w", EVERYTHING, version=3), three)
    finally:
        program.kill()


def test_access_reads_what_servers_ask_for(tmp_path):
    for name in ("token", "ca", "crt", "key"):
        (tmp_path / name).write_text(f"{name}\n")
    assert access() == {"token": None, "ca": None, "certificate": None}
    found = access(*(tmp_path / name for name in ("token", "ca", "crt", "key")))
    assert found == {"token": "token", "ca": b"ca\n", "certificate": (b"crt\n", b"key\n")}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"token_file": "none"}, "--param_token_file .*none: cannot be read .No such file"),
        ({"tls_ca": "none"}, "--param_tls_ca .*none: cannot be read"),
        ({"tls_ca": "here", "tls_cert": "here"}, "belong together"),
        ({"tls_cert": "here", "tls_key": "here"}, "needs --param_tls_ca"),
    ],
)
def test_access_that_cannot_be_had(tmp_path, given, reason):
    (tmp_path / "here").write_text("x")
    with pytest.raises(UserError, match=reason):
        access(**{name: tmp_path / file for name, file in given.items()})
