import mmap

import numpy as np

from towers.datasets.batch_memory import BatchMemory, look


def test_memory_is_used_again_only_when_nothing_looks_at_it():
    memory = BatchMemory()
    offset, first = memory.empty((4, 5, 5, 3))
    first[:] = np.arange(300).reshape(first.shape) % 256
    contents, view = first.copy(), first[1:, ::2]
    assert offset % mmap.PAGESIZE == first.ctypes.data % 64 == 0
    del first
    other_offset, other = memory.empty((4, 5, 5, 3))
    other[:] = 0
    assert other_offset != offset
    assert np.array_equal(view, contents[1:, ::2])
    del view
    assert memory.empty((4, 5, 5, 3))[0] == offset


def test_blocks_of_other_sizes_have_other_places():
    memory = BatchMemory()
    offsets = [memory.empty(shape)[0] for shape in ((1, 2, 2, 3), (2, 2, 2, 3), (64, 32, 32, 3), (1, 1, 1, 3))]
    # Each was given back before the next was asked for; a block serves its own size only.
    assert offsets == [0, 4096, 8192, 8192 + 64 * 32 * 32 * 3]


def test_what_another_process_would_see():
    memory = BatchMemory()
    offset, batch = memory.empty((2, 3, 3, 3))
    look(memory.descriptor, offset, batch.size)[:] = np.arange(54)
    assert np.array_equal(batch.ravel(), np.arange(54))
