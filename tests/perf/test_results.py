"""Figures of a run: how they are stored, compared, judged by claims, and shown in README."""

import re

import pytest

from perf import __main__ as perf_main
from perf import publish, table
from perf.results import RESULTS, Results, Row, Section, compared, comparison, median_row
from perf.run import QUICK, Run, Size
from perf.servers import ROOT
from perf.table import Claim, Group, Judgement, Measure, judged, matched

FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "processor": "a processor",
    "cores": "2",
    "memory": "24 GB",
    "system": "Linux",
    "congestion control": "bbr",
    "commit": "abc",
    "arguments": "study",
}


def row(*rounds, measure="store", subject="streamsrv", unit="MB/s"):
    return Row(measure, subject, sorted(rounds)[len(rounds) // 2], "", rounds, unit)


def results(*rows, **facts):
    return Results({"study": Section({**FACTS, **facts}, rows)})


def verdict(old, new):
    return compared(old, new).verdict


# --- compared ---


@pytest.mark.parametrize("unit", ["ms", "ms at p95", "MB", "s/GB", "bytes an instance", "calls"])
def test_of_costs_less_is_better(unit):
    assert verdict(row(10, 10, 10, unit=unit), row(5, 5, 5, unit=unit)) == "better"
    assert verdict(row(5, 5, 5, unit=unit), row(10, 10, 10, unit=unit)) == "WORSE"


@pytest.mark.parametrize("unit", ["MB/s", "a second", "frames/s", "instances a second", "x"])
def test_of_rates_more_is_better(unit):
    assert verdict(row(10, 10, 10, unit=unit), row(20, 20, 20, unit=unit)) == "better"
    assert verdict(row(20, 20, 20, unit=unit), row(10, 10, 10, unit=unit)) == "WORSE"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ((80, 100, 120, 130, 90), (90, 110, 125, 130, 85), ""),  # within the spread of the rounds
        ((100, 101, 99, 100, 20), (130, 131, 129, 130, 25), "better"),  # one bad round hides nothing
        ((100, 100, 100), (96, 96, 96), ""),  # less than a twentieth
        ((100, 100, 100), (94, 94, 94), "WORSE"),
        ((100,), (85,), ""),  # one round has to move by a quarter
        ((100,), (70,), "WORSE"),
        ((100,), (130,), "better"),
    ],
)
def test_noise(old, new, word):
    assert verdict(row(*old), row(*new)) == word


def test_the_gain_says_how_many_times_better():
    assert compared(row(10, 10, 10, unit="ms"), row(4, 4, 4, unit="ms")).gain == 2.5


def test_rows_without_a_figure_are_not_compared():
    assert compared(Row("store", "nginx", None, "not installed"), row(1, 2, 3)) is None


def test_rows_are_paired_by_measure_and_subject():
    old = results(row(1, 1, 1), row(2, 2, 2, subject="nginx"), row(9, 9, 9, measure="gone"))
    new = results(row(2, 2, 2, subject="nginx"), row(1, 1, 1), row(9, 9, 9, measure="come"))
    lines, fine = comparison(old, new)
    assert fine
    assert [line.split() for line in lines if line.endswith("x")] == [
        ["nginx", "2", "2", "1.00x"],
        ["streamsrv", "1", "1", "1.00x"],
    ]
    assert "only in the new run: come: streamsrv" in lines
    assert "only in the old run: gone: streamsrv" in lines


def test_a_row_of_ours_that_got_worse_is_not_fine():
    lines, fine = comparison(results(row(100, 100, 100)), results(row(50, 50, 50), arguments="study --quick"))
    assert not fine
    assert "  streamsrv                           100         50    0.50x  WORSE" in lines
    assert "streamsrv: 1 figures, 0 better, 1 worse, 0.50x on average" in lines
    assert "the runs differ: perf 'study' and perf 'study --quick'" in lines


@pytest.mark.parametrize("subject", ["nginx", "nginx, one file", "Orthanc", "cp + fsync"])
def test_a_peer_that_got_worse_is_a_slow_machine(subject):
    old, new = (results(row(*[value] * 3, subject=subject)) for value in (100, 50))
    lines, fine = comparison(old, new)
    assert fine
    assert "peers, disk and libraries: 1 figures, 0 better, 1 worse, 0.50x on average" in lines


# --- judged ---


def test_a_claim_holds_within_its_bounds():
    assert Judgement("", 0.5, "x", sign=">=", bound=0.5).holds
    assert not Judgement("", 0.49, "x", sign=">=", bound=0.5).holds
    assert Judgement("", 50, "MB", sign="<=", bound=50).holds
    assert not Judgement("", 51, "MB", sign="<=", bound=50).holds


@pytest.mark.parametrize(
    ("claim", "reached"),
    [
        (Judgement("", 0.3, "x", sign=">=", bound=0.6), 0.5),
        (Judgement("", 10, "ms", sign="<=", bound=5), 0.5),
        (Judgement("", 1, "ms", sign="<=", bound=5), 5),
        (Judgement("", 0, "MB", sign="<=", bound=50), float("inf")),
    ],
)
def test_the_share_of_a_bound(claim, reached):
    assert claim.reached == pytest.approx(reached)
    assert claim.holds == (reached >= 1)


def test_templates():
    assert matched("store {n} of {m}", "store 4 of 5") == {"n": "4", "m": "5"}
    assert matched("store {n:A/B C}", "store B C") == {"n": "B C"}
    assert matched("store {n:A/B}", "store C") is None
    assert matched("store {n}", "store 4, 1 at once") == {"n": "4, 1 at once"}
    assert matched("store (x)", "store (x)") == {}


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        (Claim("rate {n}", "streamsrv", over="nginx", sign=">=", bound=0.5), 2.0),  # of the faster nginx
        (
            Claim("rate {n}", "streamsrv", over="cp", sign=">=", bound=0.5),
            0.25,
        ),  # medians: other numbers of rounds
        (Claim("rate {n}", "streamsrv", over="Orthanc", sign=">=", bound=0.5), 3.0),  # round by round
        (Claim("time {n}", "streamsrv", over="Orthanc", sign=">=", bound=0.5), 5.0),  # so many times as fast
        (Claim("time {n}", "streamsrv", over="Orthanc", sign="<=", bound=0.5), 0.2),  # so much of the time
        (
            Claim("rate {n}", "streamsrv", over="Orthanc", of="time {n}", sign="<=", bound=1.3),
            1 / 0.3,
        ),  # a rate and a time
        (Claim("time {n}", "streamsrv", sign="<=", bound=5), 10),
    ],
)
def test_relations(claim, value):
    rows = [
        row(10, 30, 20, measure="rate 4", unit="a second"),
        row(5, 5, measure="rate 4", subject="nginx, one file", unit="a second"),
        row(10, measure="rate 4", subject="nginx, many files", unit="a second"),
        row(80, measure="rate 4", subject="cp", unit="a second"),
        row(1, 10, 10, measure="rate 4", subject="Orthanc", unit="a second"),
        row(10, measure="time 4", unit="ms"),
        row(50, measure="time 4", subject="Orthanc", unit="ms"),
        row(1, measure="rate 4", subject="Orthanc, 2 at once", unit="ms"),
        row(7, measure="rate 4", subject="nginx, a file as long as the whole answer", unit="a second"),
    ]
    (found,) = judged([claim], rows)
    if claim.of:
        assert found.value == pytest.approx(50 / (1000 / 20))
    else:
        assert found.value == pytest.approx(value)


def test_a_claim_over_an_absent_subject_is_no_claim():
    assert judged([Claim("store", "streamsrv", over="nginx", sign=">=", bound=1)], [row(1)]) == []
    absent = Row("store", "nginx", None, "not installed", (), "MB/s")
    assert judged([Claim("store", "streamsrv", over="nginx", sign=">=", bound=1)], [row(1), absent]) == []


# --- the table ---


def test_every_claim_is_about_a_measure_of_its_group():
    for group in table.GROUPS.values():
        for claim in group.claims:
            for measure in (claim.measure, claim.of or claim.measure):
                assert any(
                    matched(one.name, measure) is not None or matched(measure, one.name) is not None
                    for one in group.measures
                ), claim


def test_a_row_that_the_table_does_not_have_is_refused():
    with pytest.raises(KeyError):
        table.GROUPS["study"].measure_of(Row("store", "streamsrv", 1.0))


@pytest.mark.parametrize("text", ["", "## study\n\n| measure | a |\n"])
def test_another_table_is_refused(text):
    with pytest.raises(ValueError):
        list(table.read(text))


def test_published_rows_are_rows_of_the_table():
    published = Results.load(RESULTS / "published.json")
    for name, section in published.sections.items():
        for each in section.rows:
            assert table.GROUPS[name].measure_of(each).unit == each.unit


def test_the_documentation_names_every_group():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert [name for name in named if name in table.GROUPS] == list(table.GROUPS)


def test_the_documentation_has_every_bound():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"[\d.]+", text[text.index("## Claims") : text.index("## How to read")]))
    for group in table.GROUPS.values():
        for claim in group.claims:
            assert f"{claim.bound:g}" in numbers, claim


# --- stored and shown ---


def test_a_file_is_read_as_it_is_written(tmp_path):
    found = results(median_row("a", "streamsrv", [3.0, 1.0, 2.0])._replace(unit="MB/s"))
    found.write(tmp_path / "a.json")
    loaded = Results.load(tmp_path / "a.json")
    assert loaded == Results({"study": Section(FACTS, list(found.rows))})
    assert list(loaded.text())[:4] == [
        "study: 2026-01-02T03:04:05+00:00, a processor, 2 cores, 24 GB, Linux, bbr, commit abc",
        "",
        "a",
        "  streamsrv                             2 MB/s           1 to 3 in 3 rounds",
    ]


@pytest.mark.parametrize("content", ["", '{"a": {}}', "[]", '{"a": {"facts": {}, "rows": [{}]}}'])
def test_a_file_without_results(tmp_path, capsys, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    assert perf_main.main(["compare", str(path), str(path)]) == 2
    assert perf_main.main(["show", str(tmp_path / "missing.json")]) == 2
    assert perf_main.main(["compare", str(path)]) == 2
    assert capsys.readouterr().err


CLAIMED = "delete 400 CT instances of 526 kB"


@pytest.mark.parametrize(
    ("old", "new", "code", "word"),
    [(5, 5, 0, ""), (5, 20, 1, "WORSE"), (12, 9, 0, "(it failed in the old run)"), (8, 10.3, 1, "held")],
)
def test_two_runs_on_the_command_line(tmp_path, capsys, old, new, code, word):
    for name, value in (("old", old), ("new", new)):
        results(row(*[value] * 3, measure=CLAIMED, unit="ms")).write(tmp_path / f"{name}.json")
    names = [str(tmp_path / f"{name}.json") for name in ("old", "new")]
    assert perf_main.main(["compare", *names]) == code
    assert word in capsys.readouterr().out
    assert perf_main.main(["show", names[1]]) == (new > 10)
    assert f"{CLAIMED}: " in capsys.readouterr().out


STORE = "store 400 CT instances of 526 kB, one POST"
FRAMES = "frames of 21 kB, 64 at once"
ROWS = [
    Row(FRAMES, "streamsrv", 100.0, unit="a second"),
    Row(FRAMES, "nginx, one file", 900.0, unit="a second"),
    Row(FRAMES, "nginx, many files", 800.0, unit="a second"),
    Row(FRAMES, "Orthanc", None, "not installed", unit="a second"),
    Row(STORE, "streamsrv", 880.0, unit="MB/s"),
    Row(STORE, "cp + fsync", 1539.0, unit="MB/s"),
    Row(STORE, "Orthanc", 115.0, unit="MB/s"),
    Row(CLAIMED, "streamsrv", 3.0, unit="ms"),
    Row("a row that README does not show", "streamsrv", 1.0, unit="MB/s"),
]


def test_readme_has_the_figures_of_the_run():
    text = publish.README.read_text(encoding="utf-8")
    name = publish.OPENING.search(text)[1]
    found = Results.load(RESULTS / f"{name}.json")
    assert text == publish.rewritten(text, name, found)
    assert publish.PICTURE.exists()
    assert all(each.text in publish.PICTURE.read_text() for each in table.judgements(found.rows))


def test_of_each_peer_the_best_row_is_shown():
    assert [(each.measure, each.subject) for each in publish.shown(ROWS)] == [
        (STORE, "streamsrv"),
        (STORE, "cp + fsync"),
        (STORE, "Orthanc"),
        (FRAMES, "streamsrv"),
        (FRAMES, "nginx, one file"),
        (CLAIMED, "streamsrv"),
    ]


def test_the_section_of_readme():
    lines = publish.section("full", results(*ROWS)).splitlines()
    assert lines[0] == "Measured on a processor, 2 cores, 24 GB, Linux, bbr, 2026-01-02."
    assert "2 of 4 claims hold (green). These fail (red):" in lines
    assert f"- {STORE}, in relation to cp + fsync: 0.572 x, wanted at least 0.6" in lines
    assert f"| {STORE}, MB/s | 880 | cp + fsync 1,539 | 115 |" in lines
    assert f"| {FRAMES}, a second | 100 | nginx, one file 900 | |" in lines


def test_rewriting_leaves_the_rest_as_it_is():
    found = results(*ROWS)
    before = "# a\n\n<!-- python -m perf publish old -->\nold\n<!-- published -->\n\n## b\n"
    after = publish.rewritten(before, "full", found)
    assert after.startswith("# a\n\n<!-- python -m perf publish full -->\n\nMeasured")
    assert after.endswith("|\n\n<!-- published -->\n\n## b\n")
    assert publish.rewritten(after, "full", found) == after
    with pytest.raises(ValueError):
        publish.rewritten("# a\n", "full", found)


def test_a_missing_run_is_not_published(capsys):
    before = publish.README.read_bytes()
    assert perf_main.main(["publish", "there-is-no-such-run"]) == 2
    assert perf_main.main(["publish"]) == 2
    assert publish.README.read_bytes() == before


def test_the_picture_has_every_claim_and_is_reproducible(tmp_path):
    claims = table.judgements(ROWS)
    for name in ("one", "two"):
        publish.draw(tmp_path / f"{name}.svg", claims, "a heading")
    picture = (tmp_path / "one.svg").read_text()
    assert picture == (tmp_path / "two.svg").read_text()
    assert all(text in picture for text in [*(each.text for each in claims), "a heading"])


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["study", "--folder", "/somewhere", "--quick"], "study --quick"),
        (["--folder=/somewhere", "study", "--archive", "a"], "study"),
        (["study", "--url", "http://here", "--header", "Authorization: x"], "study --url --header"),
        (["study"], "study"),
    ],
)
def test_results_keep_no_folder_and_no_secret(words, kept):
    assert perf_main.repeatable(words) == kept


def test_long_groups_run_only_if_they_are_named():
    long = ("search", "listing", "scale", "viewer", "cluster", "database", "dimse", "exporting", "forwarding")
    everything = [name for name in table.GROUPS if name not in long]
    assert perf_main.arguments([]).groups == everything
    assert perf_main.arguments(["scale"]).groups == ["scale"]
    header = perf_main.arguments(["--url", "http://h/v2", "--header", "A: b: c"]).target
    assert (header.prefix, header.headers) == ("/v2", {"A": "b: c"})


@pytest.mark.parametrize("words", [["everything"], ["--url", "h"], ["--url", "http://h", "--header", "none"]])
def test_a_wrong_command_line(words, capsys):
    with pytest.raises(SystemExit):
        perf_main.arguments(words)


def test_a_broken_group_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def breaks(run):
        assert run.size == QUICK
        yield Row("a", "streamsrv", 1.0)
        raise ZeroDivisionError("nothing was asked")

    def works(run):
        yield Row("b", "streamsrv", 2.0)

    groups = {
        name: Group(run, [Measure(letter, "ms", ["streamsrv", "nginx"], "")])
        for name, run, letter in (("study", breaks, "a"), ("large", works, "b"))
    }
    monkeypatch.setattr(perf_main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(perf_main, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(perf_main, "GROUPS", groups)
    words = ["study", "large", "--quick", "--name", "try", "--folder", str(tmp_path)]
    assert perf_main.main(words) == 1
    found = Results.load(tmp_path / "results" / "try.json")
    assert [(each.measure, each.subject, each.note) for each in found.rows] == [
        ("a", "streamsrv", ""),
        ("study", "not finished", "ZeroDivisionError: nothing was asked"),
        ("b", "streamsrv", ""),
        ("b", "nginx", "not installed"),
    ]
    assert found.sections["large"].facts["arguments"] == "study large --quick --name try"
    assert "ZeroDivisionError" in capsys.readouterr().err
    # Another run of one group replaces its section alone.
    monkeypatch.setattr(perf_main, "GROUPS", {"study": groups["large"]})
    assert perf_main.main(["study", "--name", "try", "--folder", str(tmp_path)]) == 0
    assert [each.measure for each in Results.load(tmp_path / "results" / "try.json").rows] == list("bbbb")


def test_a_group_that_needs_the_server_is_left_out_of_a_remote_run(tmp_path):
    target = perf_main.arguments(["--url", "http://h"]).target
    for name in ("memory", "latency", "search", "scale"):
        rows = list(perf_main.measured(table.GROUPS[name], Run(tmp_path, Size(), target)))
        assert rows
        assert all(each.value is None and each.note.startswith("left out") for each in rows)
