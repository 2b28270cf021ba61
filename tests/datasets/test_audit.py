import numpy as np
import pytest

from towers.datasets.audit import Audit
from towers.datasets.order import Order
from towers.errors import BadData, StorageError

NUM_RECORDS = 10


def feed(audit, steps, *, towers=2, batch=2, order=None, change=None):
    """Play steps of the real stream; `change(step, tower, records, positions)` plants a fault."""
    order = order or Order(NUM_RECORDS, 0)
    for step in steps:
        for tower in range(towers):
            positions = (step * towers + tower) * batch + np.arange(batch)
            records = order.records(positions)
            if change is not None:
                records, positions = change(step, tower, records, positions)
            if len(records):
                audit.add(step, tower, records, positions)


def test_the_true_stream_passes_and_is_written_down(tmp_path):
    audit = Audit(tmp_path / "audit.tsv", NUM_RECORDS)
    feed(audit, range(23))
    audit.close()
    lines = (tmp_path / "audit.tsv").read_text().splitlines()
    assert len(lines) == 46
    step, tower, positions, records = lines[5].split("\t")
    assert (step, tower, positions) == ("2", "1", "10-11")
    assert [int(record) for record in records.split(",")] == Order(NUM_RECORDS, 0).records(np.array([10, 11])).tolist()


def test_a_batch_fed_to_two_towers_is_found(tmp_path):
    def same_batch(step, tower, records, positions):
        return (
            (Order(NUM_RECORDS, 0).records(positions - 2), positions - 2)
            if (step, tower) == (1, 1)
            else (records, positions)
        )

    with pytest.raises(BadData, match=r"step 1: tower 1 was fed positions 4, 5 .*that tower 0 had been fed") as error:
        feed(Audit(tmp_path / "audit.tsv", NUM_RECORDS), range(3), change=same_batch)
    assert error.value.exit_code == 65
    assert "\n" not in str(error.value)


def test_a_record_twice_in_a_pass_is_found(tmp_path):
    first = int(Order(NUM_RECORDS, 0).records(np.array([0]))[0])

    def repeat(step, tower, records, positions):
        return (np.array([records[0], first]), positions) if (step, tower) == (1, 1) else (records, positions)

    with pytest.raises(BadData, match=rf"tower 1 was fed records {first} a second time in pass 0, first by tower 0"):
        feed(Audit(tmp_path / "audit.tsv", NUM_RECORDS), range(3), change=repeat)


@pytest.mark.parametrize(
    ("records", "positions", "message"),
    [([3, 3], [0, 1], "records 3 a second time"), ([3, 4], [1, 1], "fed positions 1 ")],
)
def test_repetition_within_a_batch_is_found(tmp_path, records, positions, message):
    with pytest.raises(BadData, match=message):
        Audit(tmp_path / "audit.tsv", NUM_RECORDS).add(0, 0, records, positions)


def test_a_record_never_fed_is_found_at_the_end_of_its_pass(tmp_path):
    missing = Order(NUM_RECORDS, 0).records(np.array([4, 5]))

    def skip(step, tower, records, positions):
        return ([], []) if (step, tower) == (1, 0) else (records, positions)

    audit = Audit(tmp_path / "audit.tsv", NUM_RECORDS)
    feed(audit, range(2), change=skip)
    names = ", ".join(map(str, sorted(missing.tolist())))
    with pytest.raises(BadData, match=rf"without 2 of 10 records: no tower was fed positions 4, 5 \(records {names}\)"):
        feed(audit, range(2, 5), change=skip)


def test_a_whole_pass_is_checked_at_close(tmp_path):
    audit = Audit(tmp_path / "audit.tsv", 8)
    order = Order(8, 0)
    feed(audit, range(1), order=order)
    audit.add(1, 1, order.records(np.array([6, 7])), [6, 7])
    with pytest.raises(BadData, match="positions 4, 5"):
        audit.close()


def test_a_run_may_end_or_begin_inside_a_pass(tmp_path):
    audit = Audit(tmp_path / "audit.tsv", NUM_RECORDS)
    feed(audit, range(4, 9))
    audit.close()


def test_resuming_drops_later_steps_and_keeps_checking(tmp_path):
    path = tmp_path / "audit.tsv"
    audit = Audit(path, NUM_RECORDS)
    feed(audit, range(4))
    audit.close()
    with path.open("a") as file:
        file.write("4\t0\t16-1")
    resumed = Audit(path, NUM_RECORDS, first_step=2)
    assert [int(line.split("\t")[0]) for line in path.read_text().splitlines()] == [0, 0, 1, 1]
    feed(resumed, range(2, 7))
    resumed.close()
    whole = Audit(tmp_path / "whole.tsv", NUM_RECORDS)
    feed(whole, range(7))
    whole.close()
    assert path.read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    with pytest.raises(BadData, match="had been fed"):
        Audit(path, NUM_RECORDS, first_step=7).add(7, 0, [0, 1], [27, 26])


def test_positions_that_do_not_follow_each_other_survive_the_file(tmp_path):
    path = tmp_path / "audit.tsv"
    audit = Audit(path, NUM_RECORDS)
    audit.add(0, 0, [1, 2, 3], [0, 5, 2])
    audit.close()
    with pytest.raises(BadData, match="positions 5"):
        Audit(path, NUM_RECORDS, first_step=1).add(1, 0, [4], [5])


def test_a_record_that_does_not_exist(tmp_path):
    with pytest.raises(BadData, match="not all of the 10 records"):
        Audit(tmp_path / "audit.tsv", NUM_RECORDS).add(0, 0, [10], [0])


def test_steps_out_of_order(tmp_path):
    audit = Audit(tmp_path / "audit.tsv", NUM_RECORDS)
    audit.add(1, 0, [1], [2])
    with pytest.raises(BadData, match="step 0 of tower 0 came after step 1"):
        audit.add(0, 0, [0], [1])


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "audit.tsv"
    path.write_text("0\t0\t0-1\t5,6\nstep tower\n")
    with pytest.raises(BadData, match="line 2: not a line of an audit"):
        Audit(path, NUM_RECORDS, first_step=5)


def test_an_unwritable_place(tmp_path):
    with pytest.raises(StorageError, match="cannot keep the audit here"):
        Audit(tmp_path / "missing" / "audit.tsv", NUM_RECORDS)
