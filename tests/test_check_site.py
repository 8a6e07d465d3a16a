"""check_site finds what `make docs` has to refuse."""

import check_site
import pytest

GOOD = (
    '<link href="a.css" rel="stylesheet"><h1 id="top">x</h1>'
    '<a href="b.html#end">b</a><a href="https://x.org/">x</a>'
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<p id="end"><a href="#end">here</a> <a href="a.html?x=1#top">a</a></p>')
    (tmp_path / "a.css").write_text("p { background: url(data:image/png;base64,xx) }")
    return tmp_path


def test_a_good_site_has_no_finding(site):
    assert list(check_site.findings(site)) == []


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("c.html", '<script src="https://cdn.example/x.js"></script>', "from another host"),
        ("c.html", '<link rel="stylesheet" href="//fonts.example/x.css">', "from another host"),
        ("c.html", '<img src="no.png">', "no.png leads nowhere"),
        ("c.html", '<a href="no.html">x</a>', "no.html leads nowhere"),
        ("c.html", '<a href="b.html#no">x</a>', "b.html#no names no element"),
        ("c.css", '@import "https://fonts.example/x.css";', "from another host"),
        ("c.css", "p { src: url('//fonts.example/x.woff2') }", "from another host"),
    ],
)
def test_each_fault_is_found(site, name, text, finding):
    (site / name).write_text(text)
    (found,) = check_site.findings(site)
    assert finding in found
