"""The calls of the protocol on a `Shard`: messages are checked, errors become gRPC's status codes."""

import functools
import hmac
import itertools
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from ..errors import UserError
from .protocol import class_centers_pb2 as messages
from .shard import FenceTimeout, GenerationMismatch, Shard, Stopping
from .spec import StepMismatch, checked_values
from .wire import (
    MAX_MESSAGE_BYTES,
    SERVICE,
    block_rows,
    block_slices,
    decoded_block,
    decoded_part,
    decoded_pull,
    encoded_blocks,
    serialized,
    spec_of,
    specification_of,
    values_of,
)

_CODES = (
    (StepMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (FenceTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Stopping, grpc.StatusCode.UNAVAILABLE),
    (KeyError, grpc.StatusCode.NOT_FOUND),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
    (DecodeError, grpc.StatusCode.INVALID_ARGUMENT),
    ((UserError, OSError, MemoryError), grpc.StatusCode.RESOURCE_EXHAUSTED),
)

_READERS = 4


class Service:
    """The calls.

    Args:
      max_request_bytes: of the values of one push or pull.
    """

    def __init__(self, shard: Shard, *, max_request_bytes: int = 1 << 28):
        self.shard = shard
        self.max_request_bytes = max_request_bytes
        # Rows are read while others are sent.
        self._pool = futures.ThreadPoolExecutor(_READERS, thread_name_prefix="reading")
        self.failures = dict.fromkeys((code.name for _, code in _CODES), 0)

    def describe(self, request: messages.DescribeRequest) -> messages.Description:
        shard = self.shard
        return messages.Description(
            shard=shard.index,
            shards=shard.count,
            clients=shard.clients,
            staleness=shard.staleness,
            generation=shard.generation,
            matrices=[self._matrix(name) for name in sorted(shard.specs)],
        )

    def create(self, request: messages.CreateRequest) -> messages.MatrixDescription:
        self.shard.create(request.name, spec_of(request.specification))
        return self._matrix(request.name)

    def pull(self, given: tuple[messages.PullRequest, np.ndarray]) -> Iterator[bytes]:
        request, rows = given
        self.shard.check_generation(request.generation)
        columns = self.shard.matrix(request.matrix).spec.columns
        self._check_size(len(rows), columns)
        version = request.version if request.HasField("version") else None
        reading = self.shard.pull(request.matrix, rows, version, request.generation)
        return _ahead(encoded_blocks(rows, _taken(reading, len(rows), columns), reading.version), self._pool)

    def push(self, parts: Iterator[tuple[messages.PushHeader | None, memoryview | None]]) -> messages.PushReply:
        header, _ = next(parts, (None, None))
        if header is None:
            raise ValueError("a push begins with its header")
        self.shard.check_generation(header.generation)
        spec = self.shard.matrix(header.matrix).spec
        if not 0 <= header.rows <= spec.rows:
            raise ValueError(f"{header.rows} rows are announced, the matrix has {spec.rows}")
        self._check_size(header.rows, spec.columns)
        rows = np.empty(header.rows, np.int64)
        values = np.empty((header.rows, spec.columns), np.float32)
        filled = 0
        for _, block in parts:
            if block is None:
                raise ValueError("a header is followed by blocks only")
            some_rows, some_values = decoded_block(block, spec.columns)
            if filled + len(some_rows) > header.rows:
                raise ValueError(f"more rows than the {header.rows} announced")
            place = slice(filled, filled + len(some_rows))
            rows[place], values[place] = some_rows, some_values
            # Here, while the block is in the processor's cache and others are on their way.
            checked_values(values[place], some_values.shape)
            filled += len(some_rows)
        if filled != header.rows:
            raise ValueError(f"{filled} rows instead of the {header.rows} announced")
        version, duplicate = self.shard.push(
            header.matrix,
            rows,
            values,
            header.learning_rate,
            version=header.version,
            client=header.client,
            request=header.request,
            generation=header.generation,
        )
        return messages.PushReply(version=version, duplicate=duplicate)

    def read(self, request: messages.ReadRequest) -> Iterator[messages.StateBlock]:
        spec = self.shard.matrix(request.matrix).spec
        if not 0 <= request.start <= request.stop <= spec.rows:
            raise ValueError(f"range [{request.start}, {request.stop}) is not within the {spec.rows} rows")
        if request.start == request.stop:
            return
        for piece in block_slices(request.stop - request.start, spec.columns):
            start = request.start + piece.start
            weights, slot = self.shard.matrix(request.matrix).state(start, request.start + piece.stop)
            yield messages.StateBlock(
                matrix=request.matrix,
                start=start,
                columns=spec.columns,
                dtype=messages.FLOAT32,
                weights=weights.tobytes(),
                slot=b"" if slot is None else slot.tobytes(),
            )

    def write(self, parts: Iterator[messages.StateBlock]) -> messages.WriteReply:
        for part in parts:
            columns = self.shard.matrix(part.matrix).spec.columns
            weights = values_of(part.weights, part.dtype, part.columns, columns)
            slot = values_of(part.slot, part.dtype, part.columns, columns) if part.slot else None
            if not len(weights):
                raise ValueError("a block without rows")
            self.shard.write(part.matrix, part.start, weights, slot)
        return messages.WriteReply()

    def commit(self, request: messages.CommitRequest) -> messages.MatrixDescription:
        self.shard.commit(request.matrix, request.version)
        return self._matrix(request.matrix)

    def save(self, request: messages.SnapshotRequest) -> messages.Description:
        self.shard.save(request.name)
        return self.describe(messages.DescribeRequest())

    def load(self, request: messages.SnapshotRequest) -> messages.Description:
        self.shard.load(request.name)
        return self.describe(messages.DescribeRequest())

    def metrics(self, request: messages.MetricsRequest) -> messages.MetricsReply:
        shard = self.shard
        lines = [f"towers_{name}_total {count}" for name, count in shard.counters.items()]
        lines += [f'towers_failures_total{{code="{code}"}} {count}' for code, count in self.failures.items()]
        for name, matrix in sorted(shard.store.matrices.items()):
            lines.append(f'towers_matrix_version{{matrix="{name}"}} {matrix.version}')
            lines.append(f'towers_matrix_bytes{{matrix="{name}"}} {matrix.spec.num_bytes}')
        return messages.MetricsReply(text="\n".join(lines) + "\n")

    def _matrix(self, name):
        return messages.MatrixDescription(
            name=name,
            specification=specification_of(self.shard.specs[name]),
            version=self.shard.store.version(name),
        )

    def _check_size(self, rows, columns):
        if rows * columns * 4 > self.max_request_bytes:
            raise ValueError(
                f"{rows} rows of {columns} are more than the {self.max_request_bytes} bytes of --max_request_mb; "
                "send them in parts, or start the server with a larger value"
            )


# Call -> how a request is parsed, whether requests and replies are streams.
_CALLS = {
    "Describe": (messages.DescribeRequest.FromString, False, False),
    "Create": (messages.CreateRequest.FromString, False, False),
    "Pull": (decoded_pull, False, True),
    "Push": (decoded_part, True, False),
    "Read": (messages.ReadRequest.FromString, False, True),
    "Write": (messages.StateBlock.FromString, True, False),
    "Commit": (messages.CommitRequest.FromString, False, False),
    "Save": (messages.SnapshotRequest.FromString, False, False),
    "Load": (messages.SnapshotRequest.FromString, False, False),
    "Metrics": (messages.MetricsRequest.FromString, False, False),
}


def handler(service: Service) -> grpc.GenericRpcHandler:
    """All calls. Requests are parsed in the call, since gRPC answers INTERNAL to what it cannot parse itself."""
    methods = {}
    for name, (parse, many_in, many_out) in _CALLS.items():
        call = functools.partial(_call, service, getattr(service, name.lower()), parse, many_in, many_out)
        kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}_rpc_method_handler"
        methods[name] = getattr(grpc, kind)(call, None, serialized)
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _call(service, function, parse, many_in, many_out, request, context):
    try:
        reply = function(map(parse, request) if many_in else parse(request))
        if not many_out:
            return reply
        # The first block is made here, so that what is wrong with a request is found before the stream begins.
        first = next(reply, None)
        return _stream(reply if first is None else itertools.chain([first], reply))
    except Exception as error:
        for kinds, code in _CODES:
            if isinstance(error, kinds):
                service.failures[code.name] += 1
                text = error.args[0] if isinstance(error, KeyError) and error.args else error
                details = str(text) or type(error).__name__
                if isinstance(error, StepMismatch):
                    kind = "generation" if isinstance(error, GenerationMismatch) else "step"
                    context.set_trailing_metadata((("towers-mismatch", kind), ("towers-version", str(error.version))))
                context.abort(code, details)
        raise


def _taken(reading, count, columns):
    """Values of ``count`` rows, a block at a time; each is valid until the next."""
    values = np.empty((min(count, block_rows(columns)), columns), np.float32)
    for piece in block_slices(count, columns):
        yield reading.take(values[: piece.stop - piece.start])


def _ahead(replies, pool):
    """Make each reply while the one before is sent."""
    following = pool.submit(next, replies, None)
    while (reply := following.result()) is not None:
        following = pool.submit(next, replies, None)
        yield reply


def _stream(replies):
    yield from replies


class TokenCheck(grpc.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN`; health is free to ask."""

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

    def intercept_service(self, continuation, details):
        given = dict(details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, bytes) else given.encode()
        if hmac.compare_digest(given, self._expected) or details.method.startswith("/grpc.health."):
            return continuation(details)

        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token, or a wrong one, in `authorization: Bearer TOKEN`")

        # gRPC asks for a handler of the kind that the client uses, and takes any for a refusal.
        return grpc.unary_unary_rpc_method_handler(refuse)


def health_handler(is_serving: Callable[[], bool]) -> grpc.GenericRpcHandler:
    """grpc.health.v1.Health/Check, as load balancers and Kubernetes ask it.

    Its reply has one field, `status`: 1 SERVING, 2 NOT_SERVING. As bytes it needs neither a package nor generated code.
    """

    def check(request, context):
        return b"\x08\x01" if is_serving() else b"\x08\x02"

    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )


def channel_options(extra=()) -> list[tuple[str, int]]:
    """Limits of a server."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
        # A client that vanished is found by these, and its thread is free again.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        *extra,
    ]
