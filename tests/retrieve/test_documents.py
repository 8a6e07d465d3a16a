"""Documents as rendered resources: Structured Reports as pages, encapsulated documents as they are stored."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import orjson
import pydicom
import pytest
from pixel_world import KINDS, LITTLE, arrays_of, image, stored_as
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from report_world import EVIL, content_item, findings, language, report
from retrieve_world import (
    SERIES,
    STUDY,
    ask,
    computed,
    header,
    instance_path,
    keep,
    part10,
    parts_of,
    payload,
)

from streamsrv.errors import NotAcceptable
from streamsrv.reports.cda import read_cda
from streamsrv.reports.content import read_report
from streamsrv.reports.pages import plain_page, xml_page
from streamsrv.wire.answers import Deferred

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

ONE = instance_path("1.2.3.4.1")
PDF = b"%PDF-1.7\nlast byte is odd"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
XHTML = "{http://www.w3.org/1999/xhtml}"


def page(store, media_type, path=ONE):
    answer = ask(store, f"{path}/rendered", accept=media_type)
    assert header(answer, "content-type") == f"{media_type}; charset=utf-8"
    return payload(answer).decode()


def test_a_report_is_a_page(store):
    keep(store, part10(report(content=[language(), findings()])))
    tree = ElementTree.fromstring(page(store, "text/xml"))
    assert tree.get("lang") == "zh-CN"
    assert [one.text for one in tree.iter(f"{XHTML}h1")] == ["Radiology Report"]
    assert [one.text for one in tree.iter(f"{XHTML}h2")] == ["Findings"]
    terms = [one.text for one in tree.iter(f"{XHTML}dt")]
    facts = dict(zip(terms, (one.text for one in tree.iter(f"{XHTML}dd")), strict=True))
    assert facts["Patient"] == "Wang, XiaoDong (王 小东)"
    assert (facts["Patient ID"], facts["Born"], facts["Document of"]) == (
        "<ID>",
        "1960-02-29",
        "2024-01-31 10:15",
    )
    assert (facts["Completion"], facts["Verification"]) == ("complete", "verified")
    assert facts["Verified by"] == "Li, Na (李 娜), Hospital, 2024-01-31 10:15:00"
    shown = ["".join(one.itertext()) for one in tree.iter(f"{XHTML}p")]
    assert f"Finding: {EVIL}".replace("\x07", "\ufffd").replace("\r\n", "\n") in [
        one.replace("\r\n", "\n") for one in shown
    ]
    for line in (
        "Diameter: 12.5 mm",
        "Outline: circle 1, 2.5, 3, 4",
        "Share: 3 ratio",
        "Volume: no value",
        "Diagnosis: Lung cancer (C34, I10)",
        "Reader: Li, Na (李 娜)",
        "Seen: 2024-01-31 10:15:30 +0800",
        "Slice: 1.2.9.1.1, frames 2, 5",
        "Earlier: 1.2.8",
    ):
        assert line in shown
    links = {one.text: one.get("href") for one in tree.iter(f"{XHTML}a")}
    place = "http://h/v2/studies/1.2.9/series/1.2.9.1/instances"
    assert links == {
        "1.2.9.1.1": f"{place}/1.2.9.1.1/frames/2,5/rendered",
        "1.2.9.1.2": f"{place}/1.2.9.1.2",
        "item 1.2": "#i1-2",
    }
    assert any(one.get("id") == "i1-2" for one in tree.iter(f"{XHTML}section"))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)


@pytest.mark.parametrize("accept", [None, "*/*", BROWSER, "text/*"])
def test_html_is_the_default_and_has_no_script(store, accept):
    keep(store, part10(report(content=[findings()])))
    answer = ask(store, f"{ONE}/rendered", **({"accept": accept} if accept else {}))
    assert header(answer, "content-type") == "text/html; charset=utf-8"
    policy, text = header(answer, "content-security-policy"), payload(answer).decode()
    assert text.startswith("<!DOCTYPE html>")
    assert '<html xmlns="http://www.w3.org/1999/xhtml" lang="und"' in text
    assert "script" not in Tags(text).found
    style = re.search("<style>(.*)</style>", text)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        f"style-src 'sha256-{digest}'",
    ]


def test_plain_text(store):
    keep(store, part10(report(content=[language("en-GB"), findings()])))
    lines = page(store, "text/plain").split("\n")
    assert lines[:2] == ["Radiology Report", "================"]
    assert "Language: en-GB" in lines
    assert "  Diameter: 12.5 mm" in lines
    assert "    Outline: circle 1, 2.5, 3, 4" in lines
    assert "    第二行" in lines
    assert "\x07" not in "".join(lines)


def test_every_word_of_the_report_of_dcmtk_is_there(store):
    path = get_testdata_file("test-SR.dcm")
    dataset = pydicom.dcmread(path)
    keep(store, Path(path).read_bytes())
    url = instance_path(dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID)
    text = " ".join(page(store, "text/plain", url).split())
    words = [one.value for one in dataset.iterall() if one.keyword in ("TextValue", "UID", "GraphicType")]
    words += [
        one.CodeMeaning
        for found in dataset.iterall()
        if found.keyword == "ConceptCodeSequence"
        for one in found
    ]
    words += ["Riesmeier, Jörg", "This document is completed!"]
    assert len(words) > 12
    for word in words:
        assert " ".join(word.split()).lower() in text.lower()


def test_what_is_no_text_is_refused(store):
    keep(store, part10(report()))
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, f"{ONE}/rendered", accept="image/jpeg")
    assert "text/html" in refusal.value.acceptable
    assert isinstance(computed(store, f"{ONE}/rendered"), Deferred)  # a page is never made in the loop


def test_the_page_of_another_host_has_another_entity_tag(store):
    keep(store, part10(report(content=[findings()])))
    first = ask(store, f"{ONE}/rendered")
    payload(first)
    again = ask(store, f"{ONE}/rendered", if_none_match=header(first, "etag"))
    assert again.status == 304
    plain = ask(store, f"{ONE}/rendered", accept="text/plain", if_none_match=header(first, "etag"))
    assert plain.status == 200
    payload(plain)


# Long reports


def notes(count):
    """The JSON of items whose concepts are numbered."""
    text = orjson.dumps(content_item("TEXT", "Note 0", "HAS PROPERTIES", TextValue="x" * 60).to_json_dict())
    return [orjson.loads(text.replace(b"Note 0", b"Note %d" % number)) for number in range(count)]


def read(dataset, pieces=lambda text: (text[at : at + 10_000] for at in range(0, len(text), 10_000))):
    return read_report(pieces(orjson.dumps(dataset, option=orjson.OPT_SORT_KEYS)))


def test_a_long_report_is_read_item_by_item():
    last = content_item("TEXT", "Last", TextValue="end")
    dataset = report(content=[language(), content_item("CONTAINER", "Long section"), last]).to_json_dict()
    dataset["0040A730"]["Value"][1]["0040A730"] = {"vr": "SQ", "Value": notes(4_000)}
    taken = total = 0

    def pieces(text):
        nonlocal taken, total
        total = len(text)
        for taken in range(0, total, 10_000):
            yield text[taken : taken + 10_000]

    found = read(dataset, pieces)
    assert (found.language, found.places["1.2.9.1.1"].series) == ("zh-CN", "1.2.9.1")
    items = []
    for one in found.items:
        items.append(one)
        if len(items) == 100:
            assert taken < total / 2
    assert [one.depth for one in items] == [1, 2, 1, *[2] * 4_000, 1]
    assert [one.concept.meaning for one in items[3:-1]] == [f"Note {number}" for number in range(4_000)]
    assert items[-1].path == (1, 3)
    assert items[-2].path == (1, 2, 4_000)


def test_long_attributes_are_left_out_and_children_come_before_later_attributes():
    graphic = content_item("SCOORD", "Region", GraphicType="POINT", GraphicData=[1.0, 2.0])
    huge = content_item("TEXT", "Huge", TextValue="y" * 2_000_000)
    dataset = report(content=[graphic, huge]).to_json_dict()
    dataset["0040A730"]["Value"][0]["0040A730"] = {"vr": "SQ", "Value": notes(3_000)}
    lines = b"".join(plain_page(read(dataset), lambda link: "")).decode().split("\n")
    assert lines[lines.index("Region") + 1] == f"  Note 0 (property): {'x' * 60}"
    assert lines.index("  point 1, 2") == lines.index("Region") + 3_001
    assert "Huge: (too long to be shown)" in lines


def changed(value, mutate):
    """Copies of a JSON value, each with one value in it replaced."""
    yield mutate(value)
    if isinstance(value, dict):
        for name in value:
            yield from ({**value, name: other} for other in changed(value[name], mutate))
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in changed(one, mutate))


WRONG = [None, 7, -1.5, "text", "\ud800", [], [[]], {}, {"Value": [{"Value": 3}]}, {"Alphabetic": 5}, True]


def test_values_of_a_wrong_type_cost_no_page():
    whole = report(content=[language(), findings()]).to_json_dict()
    random = Random(5)
    copies = list(changed(whole, lambda value: random.choice(WRONG)))[1:]
    assert len(copies) > 500
    for dataset in random.sample(copies, 300):
        text = json.dumps(dataset).encode()
        ElementTree.fromstring(b"".join(xml_page(read_report([text]), lambda link: "http://h")))
        assert b"".join(plain_page(read_report([text]), lambda link: "http://h")).decode()


# Encapsulated documents


def encapsulated(instance, sop_class, content, **attributes):
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = f"1.2.840.10008.5.1.4.1.1.104.{sop_class}", instance
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = STUDY, SERIES, "ID1"
    made.EncapsulatedDocument = content + bytes(len(content) % 2)
    made.EncapsulatedDocumentLength = len(content)
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return part10(made)


CDA = """<?xml version="1.0" encoding="ENCODING"?>
<?xml-stylesheet type="text/xsl" href="CDA.xsl"?>
<ClinicalDocument xmlns="urn:hl7-org:v3"><title>出院小结</title><languageCode code="zh-CN"/>
<component><structuredBody>
<component><section><title>Diagnosis</title><text>Before <content styleCode="Bold">all</content>.
<paragraph>First &lt;b&gt; line<br/>second</paragraph>
<list><item>One</item><item><paragraph>Two</paragraph></item></list>
<table><caption>Values</caption><thead><tr><th>Test</th><th>Result</th></tr></thead>
<tbody><tr><td>Na</td><td><paragraph>140</paragraph></td></tr></tbody></table></text>
<entry><observation><text>hidden</text></observation></entry>
<component><section><title>Inner</title><text>血压正常</text></section></component></section></component>
<component><section><text><paragraph>No title</paragraph></text></section></component>
</structuredBody></component></ClinicalDocument>"""
CDA_LINES = [
    "Diagnosis",
    "  Before all.",
    "  First <b> line",
    "    second",
    "  • One",
    "  • Two",
    "  Values",
    "  Test | Result",
    "  Na | 140",
    "  Inner",
    "    血压正常",
    "No title",
    "",
]
STL = b"solid x\nendsolid"
KINDS_OF_DOCUMENTS = [(1, "application/pdf", PDF), (3, "model/stl", STL)]


@pytest.mark.parametrize(("sop_class", "media_type", "content"), KINDS_OF_DOCUMENTS, ids=["PDF", "STL"])
@pytest.mark.parametrize("times", [1, 200], ids=["inline", "bulk"])
def test_encapsulated_documents(store, sop_class, media_type, content, times):
    content = content * times + b"!" * (len(content) * times % 2 == 0)
    keep(store, encapsulated("1.2.3.4.1", sop_class, content))
    for accept in (None, "*/*", media_type):
        answer = ask(store, f"{ONE}/rendered", **({"accept": accept} if accept else {}))
        assert (header(answer, "content-type"), payload(answer)) == (media_type, content)
    in_parts = f'multipart/related; type="{media_type}"'
    ((headers, body),) = parts_of(ask(store, f"{ONE}/rendered", accept=in_parts))
    assert (headers["content-type"], body) == (media_type, content)
    with pytest.raises(NotAcceptable):
        ask(store, f"{ONE}/rendered", accept="text/html")
    if times == 1:
        return
    path = f"{ONE}/bulkdata/00420011"
    alone = ask(store, path, accept=media_type)
    assert (header(alone, "content-type"), payload(alone)) == (media_type, content)
    ((headers, body),) = parts_of(ask(store, path, accept=in_parts))
    assert (headers["content-type"], body) == (media_type, content)
    assert headers["content-location"].endswith(path)
    ((headers, body),) = parts_of(ask(store, path))
    assert headers["content-type"].startswith("application/octet-stream")
    assert body == content + b"\0"  # as stored
    with pytest.raises(NotAcceptable):
        ask(store, f"{ONE}/bulkdata/00420011", accept="image/png")


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16", "iso-2022-jp"])
def test_cda_is_a_page(store, encoding):
    text = CDA.replace("血压正常", "正常") if encoding == "iso-2022-jp" else CDA
    keep(store, encapsulated("1.2.3.4.1", 2, text.replace("ENCODING", encoding).encode(encoding, "replace")))
    answer = ask(store, f"{ONE}/rendered")
    assert header(answer, "content-type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in header(answer, "content-security-policy")
    shown = payload(answer).decode()
    assert 'lang="zh-CN"' in shown
    assert "First &lt;b&gt; line" in shown
    lines = page(store, "text/plain").split("\n")
    if encoding != "iso-2022-jp":
        assert lines[0] == "出院小结"
        assert lines[lines.index("Diagnosis") :] == CDA_LINES
    assert "hidden" not in shown


def test_cda_as_it_is_stored(store):
    content = CDA.replace("ENCODING", "gb18030").encode("gb18030") + b"<!-- a bulk value -->" * 50
    keep(store, encapsulated("1.2.3.4.1", 2, content))
    for path in (f"{ONE}/rendered", f"{ONE}/bulkdata/00420011"):
        answer = ask(store, path, accept="text/xml")
        assert (header(answer, "content-type"), payload(answer)) == ("text/xml", content)


ENTITIES = '<!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>'
DEEP = f'<ClinicalDocument xmlns="urn:hl7-org:v3">{"<a>" * 100_000}'
MALFORMED = {
    "entities": ENTITIES,
    "deep": DEEP,
    "cut": CDA[:-300].replace("ENCODING", "utf-8"),
    "no XML": "%PDF",
}


@pytest.mark.parametrize("name", ["zlib", "hex", "undefined", "none", "rot13"])
def test_encodings_that_are_no_character_sets_are_utf_8(name):
    report = read_cda([CDA.replace("ENCODING", name).encode()], {})
    lines = b"".join(plain_page(report, lambda link: "")).decode().split("\n")
    assert lines[lines.index("Diagnosis") :] == CDA_LINES


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_cda_says_so_where_it_ends(content):
    report = read_cda([content.encode()], {})
    lines = b"".join(plain_page(report, lambda link: "")).decode().split("\n")
    assert lines[-2].strip() == "(the document ends here: it is not well-formed XML)"
    assert ("First <b> line" in "".join(lines)) == (content is MALFORMED["cut"])


def test_long_cda_is_read_while_it_is_sent():
    start, end = CDA.replace("ENCODING", "utf-8").encode().split(b"<paragraph>First", 1)
    taken = 0

    def pieces():
        nonlocal taken
        yield start
        for taken in range(1_000):
            yield b"<paragraph>%d</paragraph>" % taken
        yield b"<paragraph>First" + end

    items = iter(read_cda(pieces(), {}).items)
    found = [next(items) for _ in range(20)]
    assert taken < 100
    assert [one.depth for one in found] == [1, *[2] * 19]
    assert len([*found, *items]) == 1_000 + len(CDA_LINES) - 2  # one has two lines, one is empty


# Several


def filled(store):
    kind = KINDS["8 bit"]
    keep(store, stored_as(image(kind, arrays_of(kind, 2), "1.2.3.4.1"), LITTLE))
    keep(store, encapsulated("1.2.3.4.2", 1, PDF), part10(report("1.2.3.4.3", [findings()])))
    raw = Dataset()
    raw.SOPClassUID, raw.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66", "1.2.3.4.4"
    raw.StudyInstanceUID, raw.SeriesInstanceUID = STUDY, SERIES
    keep(store, part10(raw))


HTML = "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "types"),
    [
        (None, ["image/jpeg", "image/jpeg", "application/pdf", HTML]),
        ("*/*", ["image/jpeg", "image/jpeg", "application/pdf", HTML]),
        ('multipart/related; type="image/png"', ["image/png", "image/png"]),
        ('multipart/related; type="application/pdf"', ["application/pdf"]),
        (
            'multipart/related; type="text/plain", multipart/related; type="image/jpeg"',
            ["image/jpeg", "image/jpeg", "text/plain; charset=utf-8"],
        ),
    ],
)
@pytest.mark.parametrize("level", [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}"])
def test_a_study_has_its_documents(store, accept, types, level):
    filled(store)
    answer = ask(store, f"{level}/rendered", **({"accept": accept} if accept else {}))
    parts = parts_of(answer, set(types))
    assert [headers["content-type"] for headers, _ in parts] == types
    for headers, body in parts:
        if headers["content-type"] == HTML:
            assert headers["content-location"].endswith("/1.2.3.4.3/rendered")
            assert body.startswith(b"<!DOCTYPE html>")
            assert body.endswith(b"</html>\n")
        if headers["content-type"] == "application/pdf":
            assert body == PDF


def test_a_study_of_which_nothing_is_acceptable(store):
    filled(store)
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, f"/studies/{STUDY}/rendered", accept='multipart/related; type="video/mp4"')
    assert 'multipart/related; type="text/html"' in refusal.value.acceptable
    assert 'multipart/related; type="image/jpeg"' in refusal.value.acceptable


def test_in_another_character_set_a_study_has_no_pages(store):
    filled(store)
    path, pages = f"/studies/{STUDY}/rendered", 'multipart/related; type="text/html"'
    parts = parts_of(ask(store, path, accept_charset="latin1"), {"application/pdf"})
    assert [headers["content-type"] for headers, _ in parts] == [
        "image/jpeg",
        "image/jpeg",
        "application/pdf",
    ]
    with pytest.raises(NotAcceptable, match="utf-8"):
        ask(store, path, accept=pages, accept_charset="latin1")
