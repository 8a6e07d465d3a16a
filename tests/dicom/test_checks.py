import pytest

from streamsrv.dicom.values import broken_rule

GOOD = [
    ("AE", ["STORE SCP"]),
    ("AS", ["042Y"]),
    ("CS", ["CT", "ORIGINAL_1 "]),
    ("DA", ["20250131", "2025.01.31"]),
    ("DT", ["2025", "20250131101112.123456+0100"]),
    ("IS", [12, -3, None]),
    ("DS", [1.5]),
    ("LO", ["x" * 64]),
    ("SH", ["x" * 16]),
    ("TM", ["10", "1011", "101112", "101112.5", "10:11:12"]),
    ("UI", ["1.2.03"]),
    ("PN", [{"Alphabetic": "Doe^Jane"}, None]),
    ("UT", ["anything\x01"]),
    ("US", [1]),
]
BAD = [
    ("AE", ["seventeen letters"]),
    ("AS", ["42Y"]),
    ("CS", ["lower"]),
    ("CS", ["CT", "X" * 17]),
    ("DA", ["20251301"]),
    ("DA", ["2025-01-31"]),
    ("DT", ["25"]),
    ("IS", ["1A"]),
    ("IS", [2**31]),
    ("DS", ["abc"]),
    ("LO", ["x" * 65]),
    ("LO", ["a\x01"]),
    ("SH", ["x" * 17]),
    ("TM", ["2561"]),
    ("UI", ["1.2.x"]),
    ("UI", ["1" * 65]),
    ("PN", [{"Ideographic": "x" * 65}]),
]


@pytest.mark.parametrize(("vr", "values"), GOOD)
def test_good_values(vr, values):
    assert broken_rule({"vr": vr, "Value": values}) is None


@pytest.mark.parametrize(("vr", "values"), BAD)
def test_broken_values_have_a_reason_without_the_value(vr, values):
    reason = broken_rule({"vr": vr, "Value": values})
    assert reason
    assert str(values[-1]) not in reason


def test_no_value_breaks_no_rule():
    assert broken_rule({"vr": "DA"}) is None
