import argparse
import os
import signal
import socket
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from classcenters.serving import ROOT, Program, serving

from towers.classcenters import server
from towers.classcenters.protocol import class_centers_pb2 as messages
from towers.classcenters.remote import RemoteStore
from towers.classcenters.shard import Shard
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import memory_store
from towers.classcenters.wire import SERVICE
from towers.errors import UserError

ROWS = 10
SPEC = MatrixSpec(rows=ROWS, columns=3, rule="momentum", weight_decay=0.1)


@pytest.fixture(scope="module")
def served():
    with serving("--max_request_mb", 1) as (addresses, shards):
        store = RemoteStore(addresses, timeout=20)
        store.create("w", SPEC)
        with grpc.insecure_channel(addresses[0]) as channel:
            yield store, shards[0], channel
        store.close()


def call(channel, name, *parts, kind="unary_unary"):
    """Send messages, or bytes as they are; the reply's bytes."""
    data = [part if isinstance(part, bytes) else part.SerializeToString() for part in parts]
    request = iter(data) if kind.startswith("stream") else data[0]
    reply = getattr(channel, kind)(f"/{SERVICE}/{name}")(request, timeout=20)
    return list(reply) if kind.endswith("stream") else reply


KINDS = {"Push": "stream_unary", "Write": "stream_unary", "Pull": "unary_stream", "Read": "unary_stream"}


def code_of(channel, method, parts):
    try:
        call(channel, method, *parts, kind=KINDS.get(method, "unary_unary"))
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def state_of(shard):
    matrix = shard.store.matrix("w")
    return (
        matrix.version,
        matrix.weights.tobytes(),
        matrix.slot.tobytes(),
        matrix.updated.tobytes(),
        sorted(shard.specs),
        {name: {v: sorted(c) for v, c in waiting.items()} for name, waiting in shard._waiting.items()},
    )


def header(**changes):
    fields = {"matrix": "w", "client": 0, "request": 7, "version": 0, "learning_rate": 0.1, "rows": 1}
    return messages.PushPart(header=messages.PushHeader(**{**fields, **changes}))


def block(rows=(1,), values=None, **changes):
    values = np.ones((len(rows), 3), "<f4") if values is None else np.asarray(values, "<f4")
    fields = {"rows": rows, "columns": 3, "dtype": messages.FLOAT32, "values": values.tobytes()}
    return messages.PushPart(block=messages.Block(**{**fields, **changes}))


def pull(**changes):
    return messages.PullRequest(**{"matrix": "w", "rows": [1], **changes})


def specification(**changes):
    fields = {"rows": 10, "columns": 3, "scale": 0.1, "rule": "sgd"}
    return messages.CreateRequest(name="v", specification=messages.Specification(**{**fields, **changes}))


WRONG = {
    "row too large": ("Push", [header(), block(rows=[ROWS])]),
    "row below 0": ("Push", [header(), block(rows=[-1])]),
    "rows not increasing": ("Push", [header(rows=2), block(rows=[2, 1])]),
    "row twice": ("Push", [header(rows=2), block(rows=[2, 2])]),
    "nan": ("Push", [header(), block(values=[[1, np.nan, 1]])]),
    "infinite": ("Push", [header(), block(values=[[1, np.inf, -np.inf]])]),
    "wrong dtype": ("Push", [header(), block(dtype=2)]),
    "no dtype": ("Push", [header(), block(dtype=0)]),
    "wrong columns": ("Push", [header(), block(columns=4)]),
    "half a row": ("Push", [header(), block(values=[[1, 2]])]),
    "more values than rows": ("Push", [header(rows=2), block(values=np.ones((2, 3)))]),
    "fewer rows than announced": ("Push", [header(rows=2), block()]),
    "more rows than announced": ("Push", [header(), block(), block(rows=[2])]),
    "more rows than the matrix has": ("Push", [header(rows=ROWS + 1)]),
    "rows below 0 announced": ("Push", [header(rows=-1)]),
    "no header": ("Push", [block()]),
    "two headers": ("Push", [header(), header()]),
    "empty push": ("Push", []),
    "no such client": ("Push", [header(client=1), block()]),
    "rate below 0": ("Push", [header(learning_rate=-1), block()]),
    "rate not finite": ("Push", [header(learning_rate=np.inf), block()]),
    "not a message": ("Push", [b"\xff\xff\xff"]),
    "pulled row too large": ("Pull", [pull(rows=[0, ROWS])]),
    "pulled row below 0": ("Pull", [pull(rows=[-5])]),
    "too much pulled": ("Pull", [pull(rows=[1] * 100_000)]),
    "pull is no message": ("Pull", [b"\x0a"]),
    "no rows": ("Create", [specification(rows=0)]),
    "too many columns": ("Create", [specification(columns=1 << 20)]),
    "too large a matrix": ("Create", [specification(rows=1 << 39)]),
    "no such rule": ("Create", [specification(rule="adam")]),
    "name of a path": ("Create", [messages.CreateRequest(name="../x", specification=specification().specification)]),
    "decay not finite": ("Create", [specification(weight_decay=np.nan)]),
    "another specification": (
        "Create",
        [messages.CreateRequest(name="w", specification=specification().specification)],
    ),
    "range too long": ("Read", [messages.ReadRequest(matrix="w", start=0, stop=ROWS + 1)]),
    "range below 0": ("Read", [messages.ReadRequest(matrix="w", start=-1, stop=1)]),
    "written beyond the end": (
        "Write",
        [messages.StateBlock(matrix="w", start=ROWS, columns=3, dtype=1, weights=bytes(12))],
    ),
    "written nan": (
        "Write",
        [messages.StateBlock(matrix="w", columns=3, dtype=1, weights=np.full(3, np.nan, "<f4").tobytes())],
    ),
    "slot of another length": (
        "Write",
        [messages.StateBlock(matrix="w", columns=3, dtype=1, weights=bytes(24), slot=bytes(12))],
    ),
    "version below 0": ("Commit", [messages.CommitRequest(matrix="w", version=-1)]),
    "snapshot without a folder": ("Save", [messages.SnapshotRequest(name="a")]),
    "snapshot of a path": ("Load", [messages.SnapshotRequest(name="../../etc/passwd")]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_messages_change_nothing(served, name):
    _, shard, channel = served
    before = state_of(shard)
    method, parts = WRONG[name]
    with pytest.raises(grpc.RpcError) as error:
        call(channel, method, *parts, kind=KINDS.get(method, "unary_unary"))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details()
    assert state_of(shard) == before


def test_unknown_names_and_steps(served):
    _, shard, channel = served
    before = state_of(shard)
    for code, method, parts in (
        ("NOT_FOUND", "Pull", [pull(matrix="x")]),
        ("NOT_FOUND", "Push", [header(matrix="x"), block()]),
        ("FAILED_PRECONDITION", "Push", [header(version=1), block()]),
        ("FAILED_PRECONDITION", "Push", [header(version=-1), block()]),
        ("FAILED_PRECONDITION", "Push", [header(generation=3), block()]),
        ("FAILED_PRECONDITION", "Pull", [pull(generation=3)]),
        ("RESOURCE_EXHAUSTED", "Pull", [bytes(5 << 20)]),
        ("UNIMPLEMENTED", "Steal", [b""]),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call(channel, method, *parts, kind=KINDS.get(method, "unary_unary"))
        assert error.value.code().name == code
    assert state_of(shard) == before


def damaged(random, parts):
    """Messages with bytes changed, cut, doubled or made up."""
    data = [part if isinstance(part, bytes) else part.SerializeToString() for part in parts]
    if not data or random.random() < 0.1:
        return [random.bytes(int(random.integers(0, 200))) for _ in range(int(random.integers(1, 4)))]
    chosen = int(random.integers(len(data)))
    one = bytearray(data[chosen])
    for _ in range(int(random.integers(1, 5))):
        if one:
            one[int(random.integers(len(one)))] = int(random.integers(256))
    if random.random() < 0.3:
        one = one[: int(random.integers(len(one) + 1))]
    if random.random() < 0.2:
        one += random.bytes(int(random.integers(1, 50)))
    data[chosen] = bytes(one)
    return data * 2 if random.random() < 0.1 else data


def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) // 1024


@pytest.mark.parametrize("count", [1_500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_fuzzed_messages(count):
    """Whatever is sent is answered, by one of the codes that the protocol names; valid rows stay finite."""
    random = np.random.default_rng(0)
    seeds = [*WRONG.values(), ("Push", [header(), block()]), ("Pull", [pull()]), ("Create", [specification()])]
    allowed = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "OK"}
    settings = {"step_timeout": 0.05, "max_bytes": 1 << 20}
    with (
        serving("--max_request_mb", 1, **settings) as (addresses, shards),
        grpc.insecure_channel(addresses[0]) as channel,
    ):
        RemoteStore(addresses).create("w", SPEC)
        answered, before = 0, None
        for number in range(count):
            method, parts = seeds[int(random.integers(len(seeds)))]
            code = code_of(channel, method, damaged(random, parts))
            assert code in allowed, method
            answered += code == "OK"
            if number == min(500, count // 2):
                before = resident()
        assert 0 < answered < count
        assert resident() - before < 100
        assert np.isfinite(shards[0].store.matrix("w").weights).all()
        assert sum(matrix.spec.num_bytes for matrix in shards[0].store.matrices.values()) <= 1 << 20
        assert RemoteStore(addresses).pull("w", np.arange(ROWS)).shape == (ROWS, 3)


def test_random_bytes_to_the_port(served):
    store, shard, _ = served
    before = state_of(shard)
    host, _, port = store.addresses[0].rpartition(":")
    random = np.random.default_rng(0)
    for size in (0, 1, 24, 1000, 100_000):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            try:
                connection.sendall(random.bytes(size))
            except OSError:
                # The server may close before all is sent.
                assert size > 24
    assert store.pull("w", np.arange(ROWS)).shape == (ROWS, 3)
    assert state_of(shard) == before


def test_health_and_metrics(served):
    store, _, channel = served
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\x08\x01"
    text = store.metrics()[0]
    assert 'towers_matrix_version{matrix="w"} 0' in text
    assert "towers_pulls_total " in text


def test_a_token_is_asked_for(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    with serving("--token_file", token) as (addresses, shards):
        store = RemoteStore(addresses, token="0123456789abcdef")
        store.create("w", SPEC)
        store.push("w", np.array([1]), np.ones((1, 3), np.float32), 0.1)
        assert store.pull("w", np.arange(ROWS), version=1).shape == (ROWS, 3)
        for wrong in (None, "0123456789abcdeg"):
            with pytest.raises(UserError, match="token"):
                RemoteStore(addresses, token=wrong)
        with grpc.insecure_channel(addresses[0]) as channel:
            for method, parts in (("Push", [header(), block()]), ("Pull", [pull()])):
                with pytest.raises(grpc.RpcError) as error:
                    call(channel, method, *parts, kind=KINDS[method])
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\x08\x01"
        assert shards[0].store.version("w") == 1


def test_tls(certificate):
    ca = (certificate / "crt").read_bytes()
    with serving("--tls_cert", certificate / "crt", "--tls_key", certificate / "key") as (addresses, _):
        RemoteStore(addresses, ca=ca).create("w", SPEC)
        with pytest.raises(UserError):
            RemoteStore(addresses, timeout=1)


def test_clients_must_show_a_certificate(certificate):
    ca, key = ((certificate / name).read_bytes() for name in ("crt", "key"))
    options = (
        "--tls_cert",
        certificate / "crt",
        "--tls_key",
        certificate / "key",
        "--tls_client_ca",
        certificate / "crt",
    )
    with serving(*options) as (addresses, _):
        RemoteStore(addresses, ca=ca, certificate=(ca, key)).create("w", SPEC)
        with pytest.raises(UserError):
            RemoteStore(addresses, ca=ca, timeout=1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--bind", "0.0.0.0:5570"], "insecure_allow_remote"),
        (["--bind", "[::]:5570"], "insecure_allow_remote"),
        (["--bind", "127.evil.example:5570"], "insecure_allow_remote"),
        (["--tls_cert", "x"], "belong together"),
        (["--clients", "0"], "clients"),
        (["--staleness", "-1"], "staleness"),
        (["--step_timeout", "0"], "step_timeout"),
        (["--shards", "2", "--first_shard", "2"], "first_shard"),
        (["--shards", "2", "--here", "3"], "here"),
        (["--shards", "2", "--bind", "unix:/tmp/x"], "several shards"),
        (["--storage", "mapped"], "directory"),
        (["--waiting_gb", "1"], "--storage mapped"),
        (["--storage", "mapped", "--directory", "x", "--waiting_gb", "-1"], "0 or more"),
        (["--storage", "mapped", "--directory", "x", "--waiting_gb", "inf"], "0 or more"),
    ],
)
def test_options_that_cannot_work(options, reason):
    with pytest.raises(UserError, match=reason):
        server.check(server.parser().parse_args(options))


def test_remote_addresses_that_are_allowed(tmp_path):
    for options in (["--insecure_allow_remote"], ["--token_file", "x"], ["--tls_cert", "x", "--tls_key", "y"]):
        server.check(server.parser().parse_args(["--bind", "0.0.0.0:5570", *options]))
    for bind in ("127.0.0.1:5570", "localhost:5570", "[::1]:5570", "unix:/tmp/x"):
        server.check(server.parser().parse_args(["--bind", bind]))


def test_a_short_token_is_refused(tmp_path):
    (tmp_path / "token").write_text("short")
    arguments = argparse.Namespace(token_file=tmp_path / "token", clients=1)
    with pytest.raises(UserError, match="16"):
        server.make_server(arguments, "127.0.0.1:0", Shard(memory_store()), lambda: True)


def test_ports_of_shards():
    assert server.address_of("127.0.0.1:5570", 3) == "127.0.0.1:5573"
    with pytest.raises(UserError, match="port"):
        server.address_of("127.0.0.1:65534", 3)


def test_a_port_in_use_is_told(served):
    store, _, _ = served
    command = [
        sys.executable,
        "-m",
        "towers.classcenters.server",
        "--bind",
        store.addresses[0].replace("localhost", "127.0.0.1"),
    ]
    found = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False
    )
    assert found.returncode == 2
    assert "in use" in found.stderr.splitlines()[-1]


def test_several_shards_are_processes_that_end_together(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    options = ["--bind", f"127.0.0.1:{port}", "--shards", "2", "--directory", str(tmp_path), "--storage", "mapped"]
    process = subprocess.Popen(
        [sys.executable, "-m", "towers.classcenters.server", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        store = RemoteStore([f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"], timeout=60)
        store.create("w", SPEC)
        store.push("w", np.arange(ROWS), np.ones((ROWS, 3), np.float32), 0.1)
        store.pull("w", np.arange(ROWS), version=1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "shard 1 of 2 stopped" in output
        assert sorted(path.name for path in tmp_path.glob("stopped*")) == [
            "stopped.shard0of2.h5",
            "stopped.shard1of2.h5",
        ]
    finally:
        process.kill()


@pytest.mark.parametrize("own", [[], ["--waiting_gb", "0.5"]])
def test_shards_of_a_machine_share_the_memory_for_waiting_rows(tmp_path, monkeypatch, own):
    started = []

    def start(command):
        started.append(server.parser().parse_args(command[3:]).waiting_gb)
        ended = argparse.Namespace(poll=lambda: 0, wait=lambda: 0)
        return ended

    monkeypatch.setattr(server.subprocess, "Popen", start)
    monkeypatch.setattr(server, "default_waiting_bytes", lambda: 3_000_000_000)
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    options = ["--shards", "4", "--here", "3", "--directory", str(tmp_path), "--storage", "mapped", *own]
    assert server.main(options) == 0
    assert started == [0.5 if own else 1.0] * 3


def test_the_server_imports_no_tensorflow():
    code = "import sys, towers.classcenters.server, towers.classcenters.remote; sys.exit('tensorflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_stop_does_not_wait_for_clients_that_wait(tmp_path):
    program = Program("--clients", 2, "--step_timeout", 600)
    try:
        store = RemoteStore([program.address], timeout=3)
        store.create("w", SPEC)
        store.push("w", np.array([1]), np.ones((1, 3), np.float32), 0.1)
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import numpy as np; from towers.classcenters.remote import RemoteStore as R; "
                f"R(['{program.address}'], client=1, timeout=2).pull('w', np.array([1]), version=1)",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=subprocess.DEVNULL,
        )
        time.sleep(1.5)
        _, code = program.stop()
        assert code == 0
        assert waiting.wait(timeout=60) != 0
    finally:
        program.kill()
