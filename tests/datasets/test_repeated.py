import numpy as np
import pytest

from towers.datasets.order import Order
from towers.datasets.repeated import RepeatedAudit, RepeatedOrder, check_copies
from towers.errors import BadData, UserError


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_every_record_comes_so_often_in_a_row(copies):
    order = RepeatedOrder(7, copies=copies, seed=4)
    positions = np.arange(3 * 7 * copies)
    groups = order.records(positions).reshape(-1, copies)
    assert (groups == groups[:, :1]).all()
    assert np.array_equal(groups[:, 0], Order(7, 4).records(np.arange(21)))
    for single in groups[:, 0].reshape(3, 7):
        assert sorted(single) == list(range(7))


def test_any_positions_in_any_order_give_the_same():
    order, again = (RepeatedOrder(11, copies=3, seed=2) for _ in range(2))
    positions = np.random.default_rng(0).integers(0, 2**40, 50)
    whole = order.records(positions)
    assert [int(again.records([position])[0]) for position in positions[::-1]] == whole[::-1].tolist()
    assert not np.array_equal(whole, RepeatedOrder(11, copies=3, seed=3).records(positions))


def test_copies_of_a_group_are_on_one_tower():
    order = RepeatedOrder(10, copies=3, seed=0)
    batch, towers = 12, 2
    for step in range(20):
        shares = order.records(np.arange(step * batch, (step + 1) * batch)).reshape(towers, -1)
        assert all((np.unique(share, return_counts=True)[1] % 3 == 0).all() for share in shares)


@pytest.mark.parametrize(
    ("copies", "batch", "towers", "named"),
    [(3, 512, 1, "510 or 513"), (3, 512, 4, "504 or 516"), (2, 6, 2, "4 or 8"), (4, 2, 1, "batch of 4 in all")],
)
def test_copies_that_do_not_divide_a_towers_batch_are_refused(copies, batch, towers, named):
    with pytest.raises(UserError, match=named):
        check_copies(copies, batch, towers)


def test_copies_that_do_are_let_pass():
    for copies, batch, towers in ((3, 516, 4), (1, 7, 7), (5, 5, 1)):
        check_copies(copies, batch, towers)


@pytest.mark.parametrize("copies", [0, -2])
def test_less_than_one_copy_is_refused(copies):
    with pytest.raises(UserError, match="--copies"):
        RepeatedOrder(5, copies=copies, seed=0)


def feed(audit, order, steps, batch=12, towers=2, change=None):
    for step in steps:
        for tower, positions in enumerate(np.arange(step * batch, (step + 1) * batch).reshape(towers, -1)):
            records = order.records(positions)
            if change is not None:
                positions, records = change(step, tower, positions.copy(), records.copy())
            audit.add(step, tower, records, positions)


def test_the_audit_passes_the_order_and_goes_on(tmp_path):
    order = RepeatedOrder(7, copies=3, seed=1)
    audit = RepeatedAudit(tmp_path / "a.tsv", 7, copies=3)
    feed(audit, order, range(6))
    audit.close()
    whole = (tmp_path / "a.tsv").read_text()
    assert len(whole.splitlines()) == 12
    audit = RepeatedAudit(tmp_path / "a.tsv", 7, copies=3, first_step=4)
    feed(audit, order, range(4, 6))
    audit.close()
    assert (tmp_path / "a.tsv").read_text() == whole


def swap_towers(step, tower, positions, records):
    """The second tower is fed the first one's pictures again."""
    if step == 1 and tower == 1:
        return positions - 6, RepeatedOrder(7, copies=3, seed=1).records(positions - 6)
    return positions, records


def shift(step, tower, positions, records):
    positions += 1
    return positions, RepeatedOrder(7, copies=3, seed=1).records(positions)


def mix(step, tower, positions, records):
    records[0] = (records[0] + 1) % 7
    return positions, records


def lose(step, tower, positions, records):
    return positions[:-1], records[:-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_towers, "had been fed"),
        (shift, "a part of the copies"),
        (mix, "copies of one record belong"),
        (lose, "no multiple"),
    ],
)
def test_the_audit_fails_on_a_fault(tmp_path, change, named):
    audit = RepeatedAudit(tmp_path / "a.tsv", 7, copies=3)
    with pytest.raises(BadData, match=named):
        feed(audit, RepeatedOrder(7, copies=3, seed=1), range(6), change=change)
