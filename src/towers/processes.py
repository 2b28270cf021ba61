"""The processes of one run: that all have come and are alike, what they tell each other, and that they end together.

Each holds one TCP connection to the chief, which is process 0, beside the ones that TensorFlow makes for tensors. Lines
of JSON go over it, nothing else. TensorFlow's sums may wait for a process that is gone; here its connection breaks.
"""

import json
import os
import platform
import queue
import socket
import sys
import threading
import time
from importlib import metadata

from . import __version__
from .errors import PeerLost, UserError

# A process is lost when it has said nothing for SILENCE seconds; each says something every BEAT seconds. Writing a
# large array keeps Python's other threads waiting for some seconds.
BEAT, SILENCE = 5.0, 30.0
# Seconds that a process has to end by its own error when another has ended.
GRACE = 3.0
_LONGEST_GREETING = 1 << 20


class Processes:
    """This process and the others of the run; without addresses, this one alone.

    Args:
      addresses: ``host:port`` of each process, the chief's first; the port is TensorFlow's, which opens it afterwards.
      index: this process among them.
      name: begins the line that tells the user of a lost process.
    """

    def __init__(self, addresses: tuple[str, ...] = (), index: int = 0, name: str = "towers"):
        self.addresses, self.index, self.name = tuple(addresses), index, name
        self._peers: dict[int, _Peer] = {}
        self._changed = threading.Condition()
        self._verdict: str | None = None
        self._leaving = False
        self._said_goodbye: set[int] = set()
        self._answers = _Queues()
        self._done, self._until, self._signal = -1, None, None
        self._holding, self._asked = False, False
        self._earliest: dict[int, int] = {}

    @property
    def num(self) -> int:
        return max(1, len(self.addresses))

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def meet(self, facts: dict, seconds: float) -> None:
        """Wait until all processes are there, and compare ``facts`` and versions; the first thing a process does.

        Args:
          facts: name -> JSON value that all processes must have alike; options by ``--name``.

        Raises:
          PeerLost: a process did not come within ``seconds``.
          UserError: processes of other options or versions.
        """
        if self.num == 1:
            return
        facts = json.loads(json.dumps({**versions(), **facts}))
        (self._wait_for_workers if self.is_chief else self._go_to_chief)(facts, seconds)
        for peer in self._peers.values():
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def gather(self, value, topic: str = "") -> list:
        """What each process gives, in their order; all must call it alike. JSON values.

        Args:
          topic: threads that call it at the same time each have their own.
        """
        if self.num == 1:
            return [value]
        if not self.is_chief:
            self._peers[0].send({"gather": value, "topic": topic})
            return self._answers.of(topic).get()
        values = [value, *(peer.given.of(topic).get() for _, peer in sorted(self._peers.items()))]
        self._tell({"all": values, "topic": topic})
        return values

    def check_alike(self, what: str, value, error: type[UserError] = UserError, advice: str = "") -> None:
        """Raise ``error`` in every process where ``value`` is not the chief's in each of them."""
        values = self.gather(value)
        others = [index for index, other in enumerate(values) if other != values[0]]
        if others:
            raise error(
                f"{what}: {values[others[0]]} in {self._called(others[0])}, {values[0]} in {self._called(0)}{advice}"
            )

    def stop_after(self, step: int, asked: int | None) -> int | None:
        """The signal by which all processes stop after ``step`` steps done, or None; called after every step.

        All stop after the same step: the first that none of them has gone beyond. To find it they are held before their
        next steps.

        Args:
          asked: the signal that this process got, None where it got none.
        """
        if self.num == 1:
            return asked
        if asked and not self._asked:
            self._asked = True
            if self.is_chief:
                self._hold(asked)
            else:
                self._peers[0].send({"stop": asked})
        with self._changed:
            self._done = step
            self._changed.wait_for(lambda: not self._holding)
            return self._signal if self._until is not None and step >= self._until else None

    def leave(self) -> None:
        """Wait until every process has come to its end, the last thing a process does."""
        if self.num == 1 or not self._peers:
            return
        if self.is_chief:
            with self._changed:
                self._changed.wait_for(lambda: len(self._said_goodbye) == len(self._peers))
                self._leaving = True
            self._tell({"goodbye": True})
        else:
            self._peers[0].send({"goodbye": True})
            with self._changed:
                self._changed.wait_for(lambda: self._leaving)

    def fail(self, why: str) -> None:
        """Tell the others that this process ends by an error."""
        with self._changed:
            self._leaving = True
        self._tell({"ended": why})

    def lost(self, seconds: float = 0.0) -> PeerLost | None:
        """The error of a lost process, waiting so long for it to show; from then on the caller ends this process."""
        if not self._peers:
            return None
        with self._changed:
            self._changed.wait_for(lambda: self._verdict is not None, timeout=seconds)
            if self._verdict is None:
                return None
            self._leaving = True
            return PeerLost(self._verdict)

    def _called(self, index: int) -> str:
        return f"worker {index} ({self.addresses[index]})"

    def _wait_for_workers(self, facts: dict, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        host, _, port = self.addresses[0].rpartition(":")
        # Between processes of one machine nothing is opened to others.
        own = host if host in ("localhost", "127.0.0.1") else ""
        try:
            listener = socket.create_server((own, int(port)), backlog=self.num)
        except OSError as error:
            raise UserError(
                f"port {port} of {self._called(0)} cannot be opened ({error.strerror}); choose another port"
            ) from error
        found = {}
        with listener:
            while len(self._peers) < self.num - 1:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    break
                connection.settimeout(10)
                peer = _Peer(connection)
                greeting = peer.greeting()
                index = greeting.get("index")
                if index in range(1, self.num) and index not in self._peers and isinstance(greeting["facts"], dict):
                    self._peers[index], found[index] = peer, greeting["facts"]
                else:
                    peer.close()
        missing = [index for index in range(1, self.num) if index not in self._peers]
        differing = [index for index, other in sorted(found.items()) if _differences(other, facts)]
        error = None
        if missing:
            named = ", ".join(map(self._called, missing))
            error = PeerLost(
                f"{named} did not come within {seconds:g} s; see whether it started and reaches {self.addresses[0]}, "
                "or give a larger --wait_for_workers"
            )
        elif differing:
            index = differing[0]
            shown = "; ".join(_differences(found[index], facts))
            error = UserError(f"{self._called(index)} runs otherwise than worker 0: {shown}; start all with the same")
        if error is None:
            self._tell({"welcome": True})
        else:
            self._tell({"refused": str(error), "exit_code": error.exit_code})
            raise error

    def _go_to_chief(self, facts: dict, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        host, _, port = self.addresses[0].rpartition(":")
        while True:
            try:
                connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise PeerLost(
                        f"{self._called(0)} did not answer within {seconds:g} s ({error.strerror or error}); see "
                        "whether it started and whether a firewall is between, or give a larger --wait_for_workers"
                    ) from error
                time.sleep(0.2)
        peer = _Peer(connection)
        peer.send({"index": self.index, "facts": facts})
        # The chief began to count before it took this connection.
        connection.settimeout(seconds + 10)
        answer = peer.greeting()
        if "refused" in answer:
            raise (PeerLost if answer["exit_code"] == PeerLost.exit_code else UserError)(answer["refused"])
        if "welcome" not in answer:
            raise PeerLost(
                f"{self._called(0)} closed the connection or is no process of this run; see its own message, "
                "or whether another run uses this port"
            )
        self._peers[0] = peer

    def _tell(self, message: dict) -> None:
        for peer in self._peers.values():
            peer.send(message)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            self._tell({})

    def _listen(self, peer: "_Peer") -> None:
        index = next(index for index, other in self._peers.items() if other is peer)
        try:
            peer.connection.settimeout(SILENCE)
            for line in peer.lines:
                self._take(index, peer, json.loads(line))
            why = f"{self._called(index)} is gone: its connection closed"
        except TimeoutError:
            why = f"{self._called(index)} has said nothing for {SILENCE:g} s"
        except (OSError, ValueError) as error:
            why = f"{self._called(index)} is gone: {error}"
        if index not in self._said_goodbye:
            self._lose(why)

    def _take(self, index: int, peer: "_Peer", message: dict) -> None:
        if "gather" in message:
            peer.given.of(message["topic"]).put(message["gather"])
        elif "all" in message:
            self._answers.of(message["topic"]).put(message["all"])
        elif "ended" in message:
            self._lose(f"{self._called(index)} ended: {message['ended']}")
        elif "lost" in message:
            self._lose(message["lost"])
        elif "stop" in message:
            self._hold(message["stop"])
        elif "hold" in message:
            with self._changed:
                self._holding, self._signal = True, message["hold"]
                earliest = self._done + 1
            peer.send({"held": earliest})
        elif "held" in message:
            self._held(index, message["held"])
        elif "until" in message:
            self._release(message["until"])
        elif "goodbye" in message:
            with self._changed:
                self._said_goodbye.add(index)
                self._leaving = self._leaving or not self.is_chief
                self._changed.notify_all()

    def _hold(self, signal_number: int) -> None:
        with self._changed:
            if self._signal is not None:
                return
            self._holding, self._signal = True, signal_number
            earliest = self._done + 1
        self._tell({"hold": signal_number})
        self._held(0, earliest)

    def _held(self, index: int, earliest: int) -> None:
        with self._changed:
            self._earliest[index] = earliest
            complete = len(self._earliest) == self.num
        if complete:
            until = max(self._earliest.values())
            self._tell({"until": until})
            self._release(until)

    def _release(self, until: int) -> None:
        with self._changed:
            self._holding, self._until = False, until
            self._changed.notify_all()

    def _lose(self, why: str) -> None:
        """End this process, unless it ends by itself within the grace: its main thread may wait in a sum for ever."""
        with self._changed:
            if self._leaving or self._verdict is not None:
                return
            self._verdict = f"{why}; all processes end; the same command goes on from the last checkpoint"
            self._changed.notify_all()
        self._tell({"lost": why})
        time.sleep(GRACE)
        if not self._leaving:
            print(f"{self.name}: {self._verdict}", file=sys.stderr, flush=True)
            os._exit(PeerLost.exit_code)


class _Queues:
    """Queues by topic, made when first asked for."""

    def __init__(self):
        self._queues: dict[str, queue.Queue] = {}

    def of(self, topic: str) -> queue.Queue:
        # One call, so that two threads that ask first get the same one.
        return self._queues.setdefault(topic, queue.Queue())


class _Peer:
    """A connection: lines of JSON in both directions."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.lines = connection.makefile("rb")
        self.given = _Queues()
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def greeting(self) -> dict:
        """The first line; empty where there is none or another program is at the other end."""
        try:
            found = json.loads(self.lines.readline(_LONGEST_GREETING))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def send(self, message: dict) -> bool:
        """False where the connection is broken: whoever reads from it says so."""
        try:
            with self._sending:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


ALONE = Processes()


def versions() -> dict[str, str]:
    """What must be alike in all processes of a run, beside the options."""
    return {
        "Towers": __version__,
        "TensorFlow": _installed("tensorflow") or _installed("tensorflow-cpu"),
        "Keras": _installed("keras"),
        "Python": platform.python_version(),
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _differences(found: dict, expected: dict) -> list[str]:
    return [
        f"{name} {found.get(name)} instead of {expected.get(name)}"
        for name in sorted(set(found) | set(expected))
        if found.get(name) != expected.get(name)
    ]
