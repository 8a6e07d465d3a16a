"""README's figures are those of the files of results, and nobody's own."""

import re

import pytest

from perf import plots, publish
from perf.report import RESULTS, Claim, Results, Row

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "processor": "a processor",
    "cores": "2",
    "memory": "24 GB",
    "system": "Linux",
    "congestion control": "bbr",
    "commit": "abc",
}
STORE = "store 400 CT instances of 526 kB, one POST"
FRAMES = "frames of 21 kB, 16 at once"
ROWS = [
    Row(FRAMES, "streamsrv", 100.0, "a second"),
    Row(FRAMES, "nginx, one file", 900.0, "a second"),
    Row(FRAMES, "nginx, many files", 800.0, "a second"),
    Row(FRAMES, "Orthanc", None, "a second", "not installed"),
    Row(STORE, "streamsrv", 880.0, "MB/s"),
    Row(STORE, "cp + fsync", 1539.0, "MB/s"),
    Row(STORE, "Orthanc", 115.0, "MB/s"),
    Row("what nobody shows", "streamsrv", 1.0, "MB/s"),
]
CLAIMS = [
    Claim(f"{STORE}, in relation to cp + fsync", 0.57, "x", at_least=0.6),
    Claim("delete", 3.0, "ms", at_most=5),
]
RUN = Results(MACHINE, "", ROWS, CLAIMS)


def test_readme_says_what_was_measured():
    text = publish.README.read_text(encoding="utf-8")
    names = publish.OPENING.search(text)[1].split()
    runs = [Results.load(RESULTS / f"{name}.json") for name in names]
    assert text == publish.rewritten(text, names, runs)
    for picture in re.findall(r"\((perf/results/[\w.-]+)\)", text):
        assert (publish.ROOT / picture).exists()


def test_of_each_peer_its_best_is_shown_in_a_fixed_order():
    shown = [(row.measure, row.subject) for row in publish.shown(ROWS)]
    assert shown == [
        (STORE, "streamsrv"),
        (STORE, "cp + fsync"),
        (STORE, "Orthanc"),
        (FRAMES, "streamsrv"),
        (FRAMES, "nginx, one file"),
    ]


def test_the_section():
    lines = publish.section(["full"], [RUN]).splitlines()
    assert lines[0] == (
        "Measured on a processor, 2 cores, 24 GB, Linux, bbr; all rows and rounds are in "
        "`perf/results/full.txt` (2026-01-02)."
    )
    assert "1 of 2 claims hold: green above is reached, red is not. These fail:" in lines
    assert f"- {STORE}, in relation to cp + fsync: 0.57 x, wanted at least 0.6" in lines
    assert f"| {STORE}, MB/s | 880 | cp + fsync 1,539 | 115 |" in lines
    assert f"| {FRAMES}, a second | 100 | nginx, one file 900 | |" in lines


def test_what_was_measured_again_counts():
    rows = [Row(FRAMES, "streamsrv", 300.0, "a second"), Row(FRAMES, "nginx, one file", 850.0, "a second")]
    again = Results(MACHINE, "", rows, [Claim("delete", 6.0, "ms", at_most=5)])
    lines = publish.section(["full", "again"], [RUN, again]).splitlines()
    assert "0 of 2 claims hold: green above is reached, red is not. These fail:" in lines
    assert f"| {FRAMES}, a second | 300 | nginx, one file 850 | |" in lines
    assert f"| {STORE}, MB/s | 880 | cp + fsync 1,539 | 115 |" in lines


def test_rewriting_leaves_the_rest_as_it_is():
    before = "# a\n\n<!-- python -m perf.publish old -->\nold\n<!-- published -->\n\n## b\n"
    after = publish.rewritten(before, ["full"], [RUN])
    assert after.startswith("# a\n\n<!-- python -m perf.publish full -->\n\nMeasured")
    assert after.endswith("|\n\n<!-- published -->\n\n## b\n")
    assert publish.rewritten(after, ["full"], [RUN]) == after
    with pytest.raises(ValueError):
        publish.rewritten("# a\n", ["full"], [RUN])


def test_what_is_missing_writes_nothing(capsys):
    before = publish.README.read_bytes()
    assert publish.main(["there-is-no-such-run"]) == 2
    assert publish.main([]) == 2
    assert publish.README.read_bytes() == before


def test_pictures_hold_every_name_and_are_the_same_again(tmp_path):
    for draw, what, words in (
        (plots.blocks, ROWS, [row.measure for row in ROWS]),
        (plots.targets, CLAIMS, [claim.text for claim in CLAIMS]),
    ):
        draw(tmp_path / "one.svg", what, "a heading")
        draw(tmp_path / "two.svg", what, "a heading")
        picture = (tmp_path / "one.svg").read_text()
        assert picture == (tmp_path / "two.svg").read_text()
        assert all(word in picture for word in [*words, "a heading"])


@pytest.mark.parametrize(
    ("claim", "reached"),
    [
        (Claim("", 0.3, "x", at_least=0.6), 0.5),
        (Claim("", 10, "ms", at_most=5), 0.5),
        (Claim("", 1, "ms", at_most=5), 5),
        (Claim("", 0, "MB", at_most=50), float("inf")),
    ],
)
def test_how_much_of_a_claim_is_reached(claim, reached):
    assert claim.reached == pytest.approx(reached)
    assert claim.holds == (reached >= 1)
