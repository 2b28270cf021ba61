"""A process ends when its work is done, whatever its input is doing."""

import time

from conftest import make_faces, run_python

SLOW_DISK = """
import runpy, sys, time
from towers.datasets import folder
read = folder.read_file
reads = 0

def slow(path):
    global reads
    reads += 1
    if reads > 80:
        time.sleep(600)
    return read(path)

folder.read_file = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_finished_run_does_not_wait_for_pictures_that_are_still_read(tmp_path):
    faces = make_faces(tmp_path)
    started = time.monotonic()
    result = run_python(
        *("-c", SLOW_DISK, "train_softmax.py", "--data_dir", faces / "train", "--run_dir", tmp_path / "run"),
        *("--image_size", "28", "--embedding_size", "8", "--batch_size", "4", "--max_steps", "3"),
        timeout=300,
    )
    assert "3 steps done" in result.stdout
    assert time.monotonic() - started < 290
