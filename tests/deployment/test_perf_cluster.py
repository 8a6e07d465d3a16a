"""The measures of a node over PostgreSQL and a bucket, in their smallest form. The figures mean nothing."""

from perf import run, table
from perf.__main__ import measured
from perf.run import Run, Size


def test_the_group_of_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "WARMED", 2 << 20)
    size = Size(instances=2, rounds=1, rates=1, seconds=0.2, tiles=40, rest=0)
    rows = list(measured(table.GROUPS["cluster"], Run(tmp_path, size)))
    assert all(row.value is not None for row in rows), rows
    assert len(table.judgements(rows, ["cluster"])) == 5
