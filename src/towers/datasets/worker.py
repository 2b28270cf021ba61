"""A process that reads and decodes batches for another one: `python -m towers.datasets.worker SOCKET MEMORY`.

Both are descriptors that it inherits. It gets `Job`s over the socket, does one after the other and answers each
with the slots that it could not fill, or with the exception that ended it. It ends when the socket closes.
"""

import contextlib
import math
import sys
from multiprocessing.connection import Connection

import cv2

from .batch_memory import look


def main(socket: int, memory: int) -> None:
    # There is a process a core.
    cv2.setNumThreads(1)
    with Connection(socket) as connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(_answer(connection, memory))


def _answer(connection: Connection, memory: int) -> list[int] | Exception:
    try:
        job = connection.recv()
        return job.fill(look(memory, job.offset, math.prod(job.shape)).reshape(job.shape))
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        return error


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
