"""The judge of histories is judged first: what it must accept, and what it must not."""

import pytest
from histories import FOR_EVER, Operation, last_states


def store(version, begin, end, answer="stored"):
    return Operation("store", begin, end, answer, version)


def read(version, begin, end):
    return Operation("read", begin, end, "read", version)


def delete(begin, end, answer="deleted", kind="delete"):
    return Operation(kind, begin, end, answer)


A, B = store("a", 0, 2), store("b", 1, 3)


@pytest.mark.parametrize(
    ("operations", "replacing", "ends"),
    [
        ([], True, {None}),
        ([A, B], True, {"a", "b"}),
        ([A, store("b", 3, 4)], True, {"b"}),
        ([A, B], False, set()),  # two winners
        ([A, store("b", 1, 3, "refused")], False, {"a"}),
        ([store("b", 1, 3, "refused")], False, set()),  # refused by nothing
        ([A, B, read("a", 4, 5)], True, {"a"}),
        ([A, store("b", 3, 4), read("a", 5, 6)], True, set()),  # what was replaced came back
        ([A, delete(3, 4), read("a", 5, 6)], True, set()),  # what was deleted came back
        ([A, delete(3, 4), read(None, 5, 6)], True, {None}),
        ([A, read(None, 3, 4)], True, set()),  # acknowledged and lost
        ([store("a", 0, FOR_EVER, None)], True, {None, "a"}),
        ([store("a", 0, FOR_EVER, None), read("a", 4, 5), read(None, 6, 7)], True, set()),
        ([store("a", 2, FOR_EVER, None), read("a", 0, 1)], True, set()),  # before it began
        ([A, delete(3, FOR_EVER, None)], True, {None, "a"}),
        ([A, delete(3, 4, "absent")], True, set()),
        ([delete(3, 4)], True, set()),  # nothing was there
        ([delete(3, 4, kind="delete-above")], True, {None}),
        ([A, delete(3, 4, "absent", kind="delete-above")], True, set()),
        ([A, store("b", 3, FOR_EVER, None), delete(3, 4), read("b", 6, 7)], False, {"b"}),
    ],
)
def test_ends(operations, replacing, ends):
    assert last_states(operations, None, replacing=replacing) == ends


def test_a_long_history():
    """Three operations at any time, and five that were never answered."""
    answered = [store(str(number), number, number + 2.5) for number in range(100)]
    lost = [store(f"lost {number}", number * 20, FOR_EVER, None) for number in range(5)]
    last = read("lost 3", 400, 401)
    assert "lost 3" in last_states([*answered, *lost, last], None, replacing=True)
