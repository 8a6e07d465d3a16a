"""`python -m perf.compare`: what it calls better and worse, and its exit code."""

import json
from dataclasses import asdict

import pytest

from perf.compare import Change, change, changed_claims, compared, is_cost, main, report
from perf.report import Claim, Results, Row

MACHINE = {
    "date": "2026-01-01T00:00:00+00:00",
    "processor": "a processor",
    "cores": "2",
    "system": "Linux",
    "commit": "abc",
}


def row(*rounds, measure="store", subject="streamsrv", unit="MB/s"):
    return Row(measure, subject, sorted(rounds)[len(rounds) // 2], unit, "", rounds)


def results(rows=(), claims=(), arguments=""):
    return Results(MACHINE, arguments, list(rows), list(claims))


def verdict(old, new):
    return change(old, new).verdict


@pytest.mark.parametrize("unit", ["ms", "ms at p95", "MB", "s/GB", "bytes an instance", "calls"])
def test_of_costs_less_is_better(unit):
    assert is_cost(unit)
    assert verdict(row(10, 10, 10, unit=unit), row(5, 5, 5, unit=unit)) == "better"
    assert verdict(row(5, 5, 5, unit=unit), row(10, 10, 10, unit=unit)) == "WORSE"


@pytest.mark.parametrize("unit", ["MB/s", "a second", "frames/s", "instances a second", "x"])
def test_of_rates_more_is_better(unit):
    assert not is_cost(unit)
    assert verdict(row(10, 10, 10, unit=unit), row(20, 20, 20, unit=unit)) == "better"
    assert verdict(row(20, 20, 20, unit=unit), row(10, 10, 10, unit=unit)) == "WORSE"


def test_what_lies_within_the_spread_of_rounds_is_noise():
    assert verdict(row(80, 100, 120, 130, 90), row(90, 110, 125, 130, 85)) == ""


def test_one_round_that_went_wrong_hides_nothing():
    assert verdict(row(100, 101, 99, 100, 20), row(130, 131, 129, 130, 25)) == "better"


def test_less_than_a_twentieth_is_noise_however_steady():
    assert verdict(row(100, 100, 100), row(96, 96, 96)) == ""
    assert verdict(row(100, 100, 100), row(94, 94, 94)) == "WORSE"


def test_a_figure_without_rounds_has_to_move_by_a_quarter():
    old = Row("memory", "streamsrv", 100.0, "MB")
    assert verdict(old, Row("memory", "streamsrv", 120.0, "MB")) == ""
    assert verdict(old, Row("memory", "streamsrv", 130.0, "MB")) == "WORSE"
    assert verdict(old, Row("memory", "streamsrv", 70.0, "MB")) == "better"


def test_the_gain_says_how_many_times_better():
    old, new = row(10, 10, 10, unit="ms"), row(4, 4, 4, unit="ms")
    assert change(old, new) == Change(old, new, 2.5, "better")


def test_rows_without_a_figure_are_not_compared():
    assert change(Row("store", "nginx", None, "MB/s", "not installed"), row(1, 2, 3)) is None


def test_rows_are_paired_by_measure_and_subject():
    old = results([row(1, 1, 1), row(2, 2, 2, subject="nginx"), row(9, 9, 9, measure="gone")])
    new = results([row(2, 2, 2, subject="nginx"), row(1, 1, 1), row(9, 9, 9, measure="come")])
    changes, lonely = compared(old, new)
    assert [(each.new.subject, each.gain) for each in changes] == [("nginx", 1.0), ("streamsrv", 1.0)]
    assert lonely == ["only in the new run: come: streamsrv", "only in the old run: gone: streamsrv"]


def test_claims_that_changed():
    held, failed = Claim("a", 2, "x", at_least=1), Claim("a", 0.5, "x", at_least=1)
    other_limit = Claim("a", 2, "x", at_least=1.5)
    assert list(changed_claims([held], [held])) == []
    assert list(changed_claims([held], [failed])) == [(held, failed)]
    assert list(changed_claims([held], [other_limit])) == [(held, other_limit)]
    assert list(changed_claims([], [failed])) == []


def test_a_row_of_ours_that_got_worse_is_not_fine():
    lines, fine = report(results([row(100, 100, 100)]), results([row(50, 50, 50)]))
    assert not fine
    assert "  streamsrv                           100         50    0.50x  WORSE" in lines
    assert "streamsrv: 1 figures, 0 better, 1 worse, 0.50x on average" in lines


@pytest.mark.parametrize("subject", ["nginx", "nginx, one file", "Orthanc", "cp + fsync"])
def test_a_peer_that_got_worse_says_something_of_the_machine_alone(subject):
    lines, fine = report(
        results([row(100, 100, 100, subject=subject)]), results([row(50, 50, 50, subject=subject)])
    )
    assert fine
    assert "peers, disk and libraries: 1 figures, 0 better, 1 worse, 0.50x on average" in lines


def test_a_claim_that_fails_now_is_not_fine():
    held, failed = Claim("a", 2, "x", at_least=1), Claim("a", 0.5, "x", at_least=1)
    assert not report(results(claims=[held]), results(claims=[failed]))[1]
    assert report(results(claims=[failed]), results(claims=[failed]))[1]
    assert report(results(claims=[failed]), results(claims=[held]))[1]


def test_runs_of_other_things_say_so():
    lines, _ = report(results(arguments="study"), results(arguments="study --quick"))
    assert "the runs were not the same: perf 'study' and perf 'study --quick'" in lines


def written(path, found):
    content = {"machine": found.machine, "arguments": found.arguments, "seconds": {}}
    content |= {"rows": [{"of": "study", **asdict(each)} for each in found.rows]}
    content |= {"claims": [{"of": "study", **asdict(each), "holds": each.holds} for each in found.claims]}
    path.write_text(json.dumps(content))
    return str(path)


def test_files_are_read_as_they_are_written(tmp_path):
    found = results([row(1, 2, 3)], [Claim("a", 2, "x", at_least=1, note="one file")])
    loaded = Results.load(tmp_path / written(tmp_path / "a.json", found))
    assert (loaded.rows, loaded.claims) == (found.rows, found.claims)


@pytest.mark.parametrize(("after", "code"), [((100, 100, 100), 0), ((40, 40, 40), 1)])
def test_the_exit_code(tmp_path, capsys, after, code):
    old = written(tmp_path / "old.json", results([row(100, 100, 100)]))
    new = written(tmp_path / "new.json", results([row(*after)]))
    assert main([old, new]) == code
    assert "store (MB/s)" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rows": [{}], "claims": []}'])
def test_what_is_no_file_of_results(tmp_path, capsys, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    assert main([str(path), str(path)]) == 2
    assert capsys.readouterr().err
    assert main([str(path)]) == 2
    assert main([str(path), str(tmp_path / "missing.json")]) == 2
