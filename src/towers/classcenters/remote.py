"""A store on parameter servers: the interface of `store.Store`, rows spread over the shards."""

import collections
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np

from ..errors import PeerLost, StorageError, UserError
from .protocol import class_centers_pb2 as messages
from .spec import MatrixSpec, StepMismatch, checked_learning_rate, checked_rows, checked_values, merged
from .wire import (
    CHANNEL_OPTIONS,
    PULL_ROWS,
    SERVICE,
    block_rows,
    decoded_block,
    encoded_parts,
    encoded_pull,
    serialized,
    spec_of,
    specification_of,
)
from .wire import values_of as state_values

_PULL_BYTES = 1 << 26
# Call -> how a reply is parsed; None: it is taken as bytes.
_REPLIES = {
    "Describe": messages.Description.FromString,
    "Create": messages.MatrixDescription.FromString,
    "Pull": None,
    "Push": messages.PushReply.FromString,
    "Read": messages.StateBlock.FromString,
    "Write": messages.WriteReply.FromString,
    "Commit": messages.MatrixDescription.FromString,
    "Save": messages.Description.FromString,
    "Load": messages.Description.FromString,
    "Metrics": messages.MetricsReply.FromString,
}
_STREAMS_IN, _STREAMS_OUT = {"Push", "Write"}, {"Pull", "Read"}


class _Kept(NamedTuple):
    """A push, kept until it cannot be lost any more."""

    version: int
    request: int
    learning_rate: float
    rows: np.ndarray
    gradients: np.ndarray


def access(
    token_file: Path | None = None,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> dict:
    """What `RemoteStore` needs to be let in, from files.

    Raises UserError: a file that cannot be read, or options that belong together.
    """
    if (tls_cert is None) != (tls_key is None):
        raise UserError("--param_tls_cert and --param_tls_key belong together: give both, or none")
    if tls_cert and not tls_ca:
        raise UserError("--param_tls_cert needs --param_tls_ca, the certificate that the servers' own are signed by")
    named = {"--param_token_file": token_file, "--param_tls_ca": tls_ca}
    named |= {"--param_tls_cert": tls_cert, "--param_tls_key": tls_key}
    read = {}
    for option, path in named.items():
        try:
            read[option] = path.read_bytes() if path else None
        except OSError as error:
            raise UserError(f"{option} {path}: cannot be read ({error.strerror}); check the path") from error
    token, ca, chain, key = read.values()
    return {
        "token": token.decode(errors="replace").strip() if token else None,
        "ca": ca,
        "certificate": (chain, key) if chain else None,
    }


class RemoteStore:
    """Matrices on servers. One for each training process; never share it with a fork.

    A call to a server that does not answer is repeated until ``timeout``; one that has started anew gets the last
    pushes again, and applies each once.

    Args:
      addresses: host:port of the shards, in their order.
      client: number of this process among those that push, from 0.
      timeout: seconds that a server may be away, or a step may wait for other clients.
      token: what the servers' --token_file holds.
      ca: certificate, PEM, to trust for TLS; None: no TLS.
      certificate: (chain, key), PEM, for servers that ask for one.

    Raises:
      PeerLost: a server does not answer.
      UserError: the addresses are not the shards in their order, or there is no such client.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        client: int = 0,
        timeout: float = 90.0,
        token: str | None = None,
        ca: bytes | None = None,
        certificate: tuple[bytes, bytes] | None = None,
    ):
        self.addresses, self.client, self.timeout = list(addresses), client, timeout
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channels = [_channel(address, ca, certificate) for address in self.addresses]
        self._calls = [_calls(channel) for channel in self._channels]
        self._pool = futures.ThreadPoolExecutor(2 * len(self.addresses), thread_name_prefix="class centres")
        # Taken again by its thread where a server starts anew while pushes are sent again.
        self._lock = threading.RLock()
        self._specs: dict[str, MatrixSpec] = {}
        self._versions: dict[str, int] = {}
        self._generations = [0] * len(self.addresses)
        # Of each shard: name -> the pushes that a restart could lose.
        self._kept: list[dict[str, collections.deque]] = [{} for _ in self.addresses]
        descriptions = self._everywhere(self._describe)
        self.staleness, self.clients = descriptions[0].staleness, descriptions[0].clients
        for number, description in enumerate(descriptions):
            if (description.shard, description.shards) != (number, len(self.addresses)):
                raise UserError(
                    f"{self.addresses[number]} is shard {description.shard} of {description.shards}, not {number} of "
                    f"{len(self.addresses)}; give all addresses in the order of the shards"
                )
            if not 0 <= client < description.clients:
                raise UserError(
                    f"client {client}: {self.addresses[number]} expects {description.clients}; give it more --clients"
                )

    def create(self, name: str, spec: MatrixSpec) -> None:
        """Make a matrix, or join the training of one that is there with the same spec. Raises ValueError otherwise."""
        request = messages.CreateRequest(name=name, specification=specification_of(spec))
        found = self._everywhere(lambda shard: self._call(shard, "Create", request))
        self._take_over(name, spec_of(found[0].specification), [one.version for one in found])

    def spec(self, name: str) -> MatrixSpec:
        return self._spec(name)

    def version(self, name: str) -> int:
        """The step that this client pushes next."""
        self._spec(name)
        return self._versions[name]

    def pull(self, name: str, rows: np.ndarray, version: int | None = None) -> np.ndarray:
        """float32 [S, D], values of int64 ``rows`` [S].

        Args:
          version: wait until all clients have made that many steps. None: as the rows are now.

        Raises:
          PeerLost: the servers do not answer, or other clients have not pushed in time.
          StepMismatch: the step is over.
        """
        spec = self._spec(name)
        rows = checked_rows(rows, spec.rows)
        values = np.empty((len(rows), spec.columns), np.float32)
        step = max(1, min(PULL_ROWS, _PULL_BYTES // (4 * spec.columns)))

        def pull_from(shard):
            places = slice(None) if len(self.addresses) == 1 else np.flatnonzero(rows % len(self.addresses) == shard)
            own = rows[places] // len(self.addresses)
            found = values if len(self.addresses) == 1 else np.empty((len(own), spec.columns), np.float32)
            for start in range(0, len(own), step):
                self._pull_part(shard, name, own[start : start + step], version, found[start : start + step])
            if found is not values:
                values[places] = found

        self._everywhere(pull_from)
        return values

    def push(
        self, name: str, rows: np.ndarray, gradients: np.ndarray, learning_rate: float, version: int | None = None
    ) -> int:
        """This client's gradients [S, D] of int64 ``rows`` [S], in any order, equal rows summed, for one step.

        The servers apply the mean over all clients once every client has pushed.

        Returns:
          The version to pull next.

        Raises:
          ValueError, StepMismatch: as `Store.push`.
          PeerLost: a server does not answer.
        """
        spec = self._spec(name)
        rows = checked_rows(rows, spec.rows)
        # One shard looks itself, and changes nothing where a value is not finite; of several some would have changed.
        gradients = checked_values(gradients, (len(rows), spec.columns), finite=len(self.addresses) > 1)
        learning_rate = checked_learning_rate(learning_rate)
        rows, gradients = merged(rows, gradients)
        version = self._versions[name] if version is None else version
        request = secrets.randbits(63)

        def push_to(shard):
            mine = rows % len(self.addresses) == shard
            one_shard = len(self.addresses) == 1
            own = (rows, gradients) if one_shard else (rows[mine] // len(self.addresses), gradients[mine])
            kept = _Kept(version, request, learning_rate, *own)
            waiting = self._kept[shard].setdefault(name, collections.deque(maxlen=self.staleness + 1))
            self._again(shard, lambda: self._push_once(shard, name, kept))
            waiting.append(kept)

        self._everywhere(push_to)
        self._versions[name] = version + 1
        return version + 1

    def state(self, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Present weights and slot of the rows in [start, stop)."""
        spec = self._spec(name)
        shape = (stop - start, spec.columns)
        weights, slot = np.empty(shape, np.float32), np.empty(shape, np.float32) if spec.has_slot else None
        count = len(self.addresses)

        def read_from(shard):
            first, last = (-(-(border - shard) // count) for border in (start, stop))
            at = first * count + shard - start
            request = messages.ReadRequest(matrix=name, start=first, stop=last)
            for block in self._call(shard, "Read", request):
                own = state_values(block.weights, block.dtype, block.columns, spec.columns)
                places = slice(at, at + len(own) * count, count)
                weights[places] = own
                if slot is not None:
                    slot[places] = state_values(block.slot, block.dtype, block.columns, spec.columns)
                at += len(own) * count

        self._everywhere(read_from)
        return weights, slot

    def assign(self, name: str, start: int, weights: np.ndarray, slot: np.ndarray | None = None) -> None:
        """Overwrite rows from ``start`` on; ``set_version`` must follow."""
        spec = self._spec(name)
        weights = checked_values(weights, (len(weights), spec.columns))
        slot = None if slot is None else checked_values(slot, weights.shape)
        count, step = len(self.addresses), block_rows(spec.columns)

        def write_to(shard):
            offset = (shard - start) % count
            first, own = (start + offset) // count, weights[offset::count]
            own_slot = None if slot is None else slot[offset::count]
            if len(own):
                parts = [
                    messages.StateBlock(
                        matrix=name,
                        start=first + at,
                        columns=spec.columns,
                        dtype=messages.FLOAT32,
                        weights=own[at : at + step].astype("<f4").tobytes(),
                        slot=b"" if own_slot is None else own_slot[at : at + step].astype("<f4").tobytes(),
                    )
                    for at in range(0, len(own), step)
                ]
                self._call(shard, "Write", parts)

        self._everywhere(write_to)

    def set_version(self, name: str, version: int) -> None:
        """Count steps from ``version`` on; rows keep their values. By one client, while no other trains."""
        request = messages.CommitRequest(matrix=name, version=version)
        self._everywhere(lambda shard: self._call(shard, "Commit", request))
        self._everywhere(self._describe)
        self._take_over(name, self._spec(name), [version])

    def save(self, path: Path) -> None:
        """Write a snapshot into each server's folder, named as the file of ``path`` is without its suffix."""
        request = messages.SnapshotRequest(name=Path(path).stem)
        self._everywhere(lambda shard: self._call(shard, "Save", request))

    def load(self, path: Path) -> None:
        """Make all servers go back to a snapshot of ``save``. By one client; the others then call ``rejoin``."""
        request = messages.SnapshotRequest(name=Path(path).stem)
        self._everywhere(lambda shard: self._call(shard, "Load", request))
        self.rejoin()

    def rejoin(self) -> None:
        """Take over what the servers hold now, and forget this client's pushes."""
        descriptions = self._everywhere(self._describe)
        for matrix in descriptions[0].matrices:
            versions = [one.version for each in descriptions for one in each.matrices if one.name == matrix.name]
            self._take_over(matrix.name, spec_of(matrix.specification), versions)

    def metrics(self) -> list[str]:
        """Counters of each shard, in Prometheus' text format."""
        return [reply.text for reply in self._everywhere(lambda s: self._call(s, "Metrics", messages.MetricsRequest()))]

    def close(self) -> None:
        """End all connections."""
        self._pool.shutdown()
        for channel in self._channels:
            channel.close()

    def _spec(self, name):
        if name not in self._specs:
            self.rejoin()
        if name not in self._specs:
            raise KeyError(f"no matrix {name!r}; there are {sorted(self._specs)}")
        return self._specs[name]

    def _take_over(self, name, spec, versions):
        if len(set(versions)) > 1:
            raise StepMismatch(
                f"the shards hold {name} at steps {versions}; load one snapshot on all of them", min(versions)
            )
        self._specs[name], self._versions[name] = spec, versions[0]
        for kept in self._kept:
            kept.pop(name, None)

    def _pull_part(self, shard, name, rows, version, out):
        def once():
            request = messages.PullRequest(matrix=name, version=version, generation=self._generations[shard])
            data = encoded_pull(request, rows)
            filled = 0
            for block in self._calls[shard]["Pull"](data, timeout=self.timeout, metadata=self.metadata):
                _, values = decoded_block(block, out.shape[1])
                out[filled : filled + len(values)] = values
                filled += len(values)
            if filled != len(rows):
                raise PeerLost(f"{self.addresses[shard]} sent {filled} rows instead of {len(rows)}")

        self._again(shard, once)

    def _push_once(self, shard, name, kept):
        header = messages.PushHeader(
            matrix=name,
            generation=self._generations[shard],
            client=self.client,
            request=kept.request,
            version=kept.version,
            learning_rate=kept.learning_rate,
            rows=len(kept.rows),
        )

        def parts():
            yield messages.PushPart(header=header)
            yield from encoded_parts(kept.rows, kept.gradients)

        return self._calls[shard]["Push"](parts(), timeout=self.timeout, metadata=self.metadata)

    def _describe(self, shard):
        description = self._again(
            shard,
            lambda: self._calls[shard]["Describe"](
                messages.DescribeRequest(), timeout=self.timeout, metadata=self.metadata
            ),
        )
        self._generations[shard] = description.generation
        return description

    def _call(self, shard, name, request):
        def once():
            given = iter(request) if name in _STREAMS_IN else request
            reply = self._calls[shard][name](given, timeout=self.timeout, metadata=self.metadata)
            return list(reply) if name in _STREAMS_OUT else reply

        return self._again(shard, once)

    def _again(self, shard, once):
        """Call ``once`` until it succeeds, while what it fails with may pass."""
        deadline, pause = time.monotonic() + self.timeout, 0.05
        while True:
            try:
                return once()
            except grpc.RpcError as error:
                if _mismatch(error) == "generation":
                    self._resend(shard)
                elif error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise self._meaning(shard, error) from error
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, 2.0)

    def _resend(self, shard):
        """A server has started anew: send again what it may have lost."""
        with self._lock:
            versions = {one.name: one.version for one in self._describe(shard).matrices}
            for name, waiting in self._kept[shard].items():
                at = versions.get(name, -1)
                if waiting and at < waiting[0].version:
                    raise StepMismatch(
                        f"{self.addresses[shard]} has started anew with {name} at step {at}, this client is at "
                        f"{waiting[-1].version + 1}; load the snapshot that belongs to a checkpoint on all servers",
                        at,
                    )
                for kept in waiting:
                    if kept.version >= at:
                        self._again(shard, lambda name=name, kept=kept: self._push_once(shard, name, kept))

    def _meaning(self, shard, error):
        code, text = error.code(), f"{self.addresses[shard]}: {error.details()}"
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return ValueError(text)
        if code == grpc.StatusCode.NOT_FOUND:
            return KeyError(text)
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            return StepMismatch(text, int(_trailing(error).get("towers-version", -1)))
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return UserError(f"{text}; give the token of the server's --token_file")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return StorageError(text)
        return PeerLost(f"{text} ({code.name}); start the servers again and repeat the command, which resumes")

    def _everywhere(self, function):
        """Results of ``function(shard)`` for all shards, at once."""
        if len(self.addresses) == 1:
            return [function(0)]
        return list(self._pool.map(function, range(len(self.addresses))))


def _channel(address, ca, certificate):
    options = [*CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", 2000), ("grpc.initial_reconnect_backoff_ms", 100)]
    if ca is None:
        return grpc.insecure_channel(address, options)
    chain, key = certificate or (None, None)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, chain), options)


def _calls(channel):
    calls = {}
    for name, parse in _REPLIES.items():
        kind = f"{'stream' if name in _STREAMS_IN else 'unary'}_{'stream' if name in _STREAMS_OUT else 'unary'}"
        calls[name] = getattr(channel, kind)(
            f"/{SERVICE}/{name}",
            request_serializer=serialized,
            response_deserializer=parse,
        )
    return calls


def _trailing(error):
    return dict(error.trailing_metadata() or ())


def _mismatch(error):
    return _trailing(error).get("towers-mismatch")
