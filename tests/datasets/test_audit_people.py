import numpy as np
import pytest

from towers.datasets.audit_people import PeopleAudit
from towers.datasets.people import PeopleOrder
from towers.errors import BadData, StorageError

LABELS = np.repeat(np.arange(8), [4, 5, 2, 3, 6, 1, 4, 4])
PEOPLE, IMAGES, TOWERS = 4, 3, 2
SHARE = PEOPLE * IMAGES // TOWERS


def make_audit(path, **options):
    return PeopleAudit(path, LABELS, people_per_batch=PEOPLE, images_per_person=IMAGES, **options)


def tower_batch(step, tower):
    order = PeopleOrder(LABELS, people_per_batch=PEOPLE, images_per_person=IMAGES, seed=0)
    positions = step * PEOPLE * IMAGES + tower * SHARE + np.arange(SHARE)
    return order.records(positions), positions


def feed(audit, steps, change=None):
    """Play steps of the real stream; `change(step, tower, records, positions)` plants a fault."""
    for step in steps:
        for tower in range(TOWERS):
            records, positions = tower_batch(step, tower)
            if change is not None:
                records, positions = change(step, tower, records, positions)
            if len(records):
                audit.add(step, tower, records, positions)
    audit.close()


def at_step_1_tower_1(fault):
    return lambda step, tower, *batch: fault(*batch) if (step, tower) == (1, 1) else batch


def test_the_true_stream_passes_and_is_written_down(tmp_path):
    feed(make_audit(tmp_path / "audit.tsv"), range(30))
    lines = (tmp_path / "audit.tsv").read_text().splitlines()
    assert len(lines) == 60
    step, tower, positions, records = lines[3].split("\t")
    assert (step, tower, positions) == ("1", "1", "18-23")
    assert [int(record) for record in records.split(",")] == tower_batch(1, 1)[0].tolist()


def twice(records, positions):
    """The second picture of somebody with enough pictures becomes a copy of the first."""
    rows = records.copy().reshape(-1, IMAGES)
    row = np.flatnonzero(np.bincount(LABELS)[LABELS[rows[:, 0]]] >= IMAGES)[0]
    rows[row, 1] = rows[row, 0]
    return rows.reshape(-1), positions


def others(records, positions):
    """The first person is replaced by one of the other tower."""
    return np.concatenate([tower_batch(1, 0)[0][:IMAGES], records[IMAGES:]]), positions


def mixed(records, positions):
    return np.roll(records, 1), positions


def earlier(records, positions):
    """The first person is replaced by one of step 0 who is not in the batch of step 1."""
    batch = LABELS[np.concatenate([tower_batch(1, tower)[0] for tower in range(TOWERS)])]
    old = np.concatenate([tower_batch(0, tower)[0] for tower in range(TOWERS)]).reshape(-1, IMAGES)
    old = old[~np.isin(LABELS[old[:, 0]], batch)][0]
    # Step 1 runs over the border of passes: 7 people, 4 a batch. Its first three places are of pass 0.
    return np.concatenate([old, tower_batch(1, 0)[0][IMAGES:]]), tower_batch(1, 0)[1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda records, positions: tower_batch(1, 0), "tower 1 was fed positions 12-14 that tower 0 had been fed"),
        (lambda records, positions: tower_batch(0, 1), "position 6, which belongs to the batch of step 0"),
        (twice, r"record \d+ 2 times in a batch, though person \d has \d pictures for 3 places"),
        (others, r"person \d, who is in this batch already, on tower 0"),
        (mixed, r"records \[.*\] as one person; they are of"),
        (lambda records, positions: (records[1:], positions[1:]), "a part of the positions 18-20 of one person"),
        (
            lambda records, positions: (records, positions[[0, 0, 2, 3, 4, 5]]),
            "positions 18-20 of one person, or one of them twice",
        ),
        (lambda records, positions: (records[:0], positions[:0]), "ended without 2 of 4 people: .* positions 18-20"),
        (lambda records, positions: (np.full(SHARE, 20), positions), "record 20 of person 5, who has no other"),
        (lambda records, positions: (records + 1000, positions), "not of these 29"),
    ],
)
def test_planted_faults_are_found(tmp_path, fault, message):
    with pytest.raises(BadData, match=message) as error:
        feed(make_audit(tmp_path / "audit.tsv"), range(3), at_step_1_tower_1(fault))
    assert error.value.exit_code == 65
    assert "\n" not in str(error.value)
    assert "step 1" in str(error.value)


def test_somebody_drawn_twice_in_a_pass_is_found(tmp_path):
    def change(step, tower, *batch):
        return earlier(*batch) if (step, tower) == (1, 0) else batch

    with pytest.raises(BadData, match=r"person \d a second time in pass 0 of the people, first at step 0"):
        feed(make_audit(tmp_path / "audit.tsv"), range(3), change)


def test_a_person_of_few_pictures_gets_each_of_them_equally_often(tmp_path):
    def audit(name):
        return PeopleAudit(tmp_path / name, np.repeat([0, 1], 3), people_per_batch=2, images_per_person=4)

    audit("right").add(0, 0, [0, 1, 2, 0, 3, 4, 5, 3], range(8))
    with pytest.raises(BadData, match="record 0 2 times"):
        audit("one left out").add(0, 0, [0, 1, 1, 0, 3, 4, 5, 3], range(8))
    with pytest.raises(BadData, match="record 0 3 times"):
        audit("one too often").add(0, 0, [0, 1, 0, 0, 3, 4, 5, 3], range(8))


def test_a_last_step_without_a_tower_is_found_at_close(tmp_path):
    audit = make_audit(tmp_path / "audit.tsv")
    audit.add(0, 0, *tower_batch(0, 0))
    with pytest.raises(BadData, match="step 0 ended without 2 of 4 people"):
        audit.close()


def test_steps_follow_each_other(tmp_path):
    audit = make_audit(tmp_path / "audit.tsv")
    with pytest.raises(BadData, match="step 5 came after step 3; the steps between are missing"):
        feed(audit, [3, 5])
    with pytest.raises(BadData, match="step 2 of tower 0 came after step 3"):
        audit.add(2, 0, *tower_batch(2, 0))


def test_resuming_drops_later_steps_and_keeps_checking(tmp_path):
    path = tmp_path / "audit.tsv"
    feed(make_audit(path), range(5))
    with path.open("a") as file:
        file.write("5\t0\t60-6")
    feed(make_audit(path, first_step=2), range(2, 7))
    feed(make_audit(tmp_path / "whole.tsv"), range(7))
    assert path.read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    resumed = make_audit(path, first_step=1)
    with pytest.raises(BadData, match="a second time in pass 0 of the people, first at step 0"):
        resumed.add(1, 0, *earlier(*tower_batch(1, 0)))


def test_an_unwritable_place(tmp_path):
    with pytest.raises(StorageError, match="cannot keep the audit here"):
        make_audit(tmp_path / "missing" / "audit.tsv")
