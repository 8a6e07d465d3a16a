"""A filtered server answers as a server that holds only the visible instances.

One store holds all instances; the other one is its copy, from which the hidden ones were deleted. A principal
with a rule asks the first, one without a rule the second. Their answers are compared byte by byte."""

import shutil

import orjson
import pytest
from rules_world import Side, file_of, key_of

from streamsrv.pixels.pool import PixelPool
from streamsrv.query.rules import FACTS, facts_of, rule_of
from streamsrv.store import Store, StoreOptions
from streamsrv.store.index.levels import fact_reader
from streamsrv.store.index.rows import Variant

RULE = rule_of(["InstitutionName=A*", "StudyDate=20200101-"])
BROAD = rule_of(["StudyDate=20200101-"])
HOSPITALS = ("A", "B", "A-Nord", None)
STUDIES = range(101, 125)
# Instances of others in the same study: all attributes differ, or those that are in all lists.
OTHER = {
    "institution": "B",
    "date": "20210303",
    "patient": "P1",
    "name": "Roe^Jim",
    "accession": "A3",
    "description": "study 1",
    "modality": "MR",
}
OLDER = {"date": "20190101", "name": None, "accession": None, "description": None}
# (series, number, changed values) of the instances of each study, in the order in which they are stored.
SHAPES = (
    ((1, 1, {}), (1, 2, {})),
    ((1, 1, {}), (2, 1, {"modality": "MR"}), (2, 2, {"modality": "MR"})),
    ((1, 1, {}), (2, 1, OTHER)),  # one series of another hospital
    ((1, 1, {}), (1, 2, OLDER)),  # one instance of another day
    ((1, 1, OTHER), (1, 2, {}), (2, 1, {"modality": "MR"}), (3, 1, OTHER | {"modality": "US"})),
    ((1, 1, OLDER), (1, 2, {}), (1, 3, OTHER | {"date": None})),
)


def instances():
    """The values of studies of four hospitals; some with instances that the rule does not show."""
    for study in STUDIES:
        common = {
            "institution": HOSPITALS[study % 4],
            "patient": f"P{study % 7}",
            "name": f"Doe^Jane{study % 3}",
            "date": None if study == 120 else f"202{study % 5}0{1 + study % 9}02",
            "accession": f"A{study % 6}",
            "description": f"study {study % 2}",
        }
        for number, (series, each, changed) in enumerate(SHAPES[study * 7 // 4 % 6]):
            yield key_of(study, series, each), common | {"number": number + 1} | changed


def is_recent(values):
    return (values["date"] or "") >= "2020"


def is_visible(values):
    return is_recent(values) and values["institution"] in ("A", "A-Nord")


HIDDEN_INSTANCES = [key for key, values in instances() if not is_visible(values)]
OLD_INSTANCES = [key for key, values in instances() if not is_recent(values)]
VISIBLE = sorted({key[0] for key, values in instances() if is_visible(values)})
HIDDEN = sorted({key[0] for key, _ in instances()} - set(VISIBLE))
MIXED = sorted({key[0] for key in HIDDEN_INSTANCES} & set(VISIBLE))
UNMIXED = sorted(set(VISIBLE) - set(MIXED))
FEW_HIDDEN = sorted({key[0] for key in OLD_INSTANCES})
OPTIONS = StoreOptions(min_free=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A store of all studies, and two without the hidden ones of a rule."""
    several = [tmp_path_factory.mktemp("rules") / name for name in ("whole", "part", "most")]
    with Store.open(several[0], OPTIONS) as store:
        for key, values in instances():
            assert Side(store, None).put(file_of(key, int(key[0][4:]), **values)).status == 200
    for folder, hidden in zip(several[1:], (HIDDEN_INSTANCES, OLD_INSTANCES), strict=True):
        shutil.copytree(several[0], folder)
        with Store.open(folder, OPTIONS) as store:
            for key in hidden:
                assert store.delete(*key)
    return several


@pytest.fixture(scope="module")
def sides(folders):
    """The principal with a rule, and the one of a store that holds no more."""
    pool = PixelPool(1)
    with Store.open(folders[0], OPTIONS) as all_studies, Store.open(folders[1], OPTIONS) as visible:
        yield Side(all_studies, pool, RULE), Side(visible, pool)
    pool.close()


@pytest.fixture(scope="module")
def broad_sides(folders, sides):
    """The same for a rule that hides few studies."""
    with pytest.MonkeyPatch.context() as patched, Store.open(folders[2], OPTIONS) as visible:
        patched.setattr("streamsrv.store.index.few_studies.RuleMemory.most", len(FEW_HIDDEN))
        yield Side(sides[0].store, None, BROAD), Side(visible, None)


def test_the_studies_of_this_test_are_of_both_kinds():
    assert (len(UNMIXED) > 2, len(MIXED) > 3, len(HIDDEN) > 7) == (True, True, True)
    assert 3 < len(FEW_HIDDEN) < len(STUDIES) / 2


SEARCHES = [
    f"{path}{query}"
    for path in ("/studies", "/series", "/instances")
    for query in (
        *("", "?limit=3", "?limit=2&offset=3", "?offset=100", "?limit=0", "?includefield=all&limit=2"),
        *("?InstitutionName=A*", "?InstitutionName=B", "?PatientID=P1", "?PatientID=P1,P2", "?PatientID=*1"),
        *("?StudyDate=20210101-20231231", "?StudyDate=20230802", "?StudyDate=", "?ModalitiesInStudy=MR"),
        *(
            "?ModalitiesInStudy=CT&limit=3",
            "?PatientName=doe*&fuzzymatching=true&limit=4",
            "?AccessionNumber=A1",
        ),
        *("?StudyDescription=study%201&limit=2", "?StudyDescription=study*&limit=1&offset=1"),
        *(f"?StudyInstanceUID={VISIBLE[0]},{HIDDEN[0]},9.9", f"?SOPInstanceUID={HIDDEN[0]}.1.1"),
        *(f"?SeriesInstanceUID={study}.1,{study}.2" for study in MIXED[:3]),
        *(f"?SOPInstanceUID={study}.1.1,{study}.1.2" for study in MIXED[:3]),
        *("?ModalitiesInStudy=US", "?PatientName=Roe*&limit=2", "?StudyDate=20210303&limit=2"),
        *("?AccessionNumber=A3", "?StudyDate=20210101-20210304&limit=1", "?Modality=MR&limit=3"),
        *(
            "?orderby=PatientID&limit=3",
            "?orderby=-StudyDate&limit=2",
            "?orderby=StudyDate&limit=2",
            "?orderby=-AccessionNumber&limit=2",
            "?orderby=StudyID&limit=3",
            "?orderby=StudyTime,PatientID&limit=5",
        ),
        *("?EncapsulatedDocument=", "?Rows=16&limit=2", "?StudyDate=20200101-&limit=2"),
        *('?StudyDate=""&emptyvaluematching=true', "?unknown=1&limit=1", "?PatientAge=1", "?NoKeyword=1"),
    )
]
BELOW = [
    f"/studies/{study}/{below}"
    for study in (UNMIXED[0], *MIXED, HIDDEN[0], "9.9")
    for below in ("series", "instances", "series?Modality=MR", "instances?limit=1")
]


@pytest.mark.parametrize("path", [*SEARCHES, *BELOW])
def test_searches(sides, path):
    """With each page that a Link leads to."""
    compare_pages(*sides, path)


@pytest.mark.parametrize("path", [*SEARCHES, *BELOW])
def test_searches_of_a_rule_that_hides_few_studies(broad_sides, path):
    compare_pages(*broad_sides, path)


def compare_pages(one, other, path):
    for _ in range(60):
        found, expected = one.ask(f"/v2{path}"), other.ask(f"/v2{path}")
        assert found == expected
        link = dict(found.headers).get("Link")
        if not link:
            return
        path = link[len("<http://h/v2") : link.index(">")]
    raise AssertionError("the pages have no end")


def test_searches_find_something(sides):
    told = [sides[0].ask(f"/v2{path}") for path in SEARCHES[:3] + BELOW[:2]]
    assert all(each.status == 200 for each in told)
    assert dict(sides[0].ask("/v2/studies").headers)["X-Total-Count"] == str(len(VISIBLE))


@pytest.mark.parametrize(
    "accept", ["application/dicom+json", 'multipart/related; type="application/dicom+xml"']
)
def test_searches_as_another_type_and_again_with_their_etag(sides, accept):
    for path in ("/v2/studies?limit=4", "/v2/instances"):
        found, expected = (side.ask(path, Accept=accept) for side in sides)
        assert found == expected
        etag = dict(found.headers)["ETag"]
        again = [side.ask(path, Accept=accept, If_None_Match=etag) for side in sides]
        assert again[0] == again[1]
        assert again[0].status == 304


def test_a_budget_counts_visible_rows_only(sides):
    """The principal with a rule gets 413 exactly when the one without does."""
    statuses = set()
    for rows in (3, 6, 12, 90):
        path = "/v2/instances?Rows=16"
        found, expected = (
            Side(side.store, None, rule, search_rows=rows).ask(path)
            for side, rule in zip(sides, (RULE, None), strict=True)
        )
        assert found == expected
        statuses.add(found.status)
    assert statuses == {200, 413}


TARGETS = [
    f"/studies/{study}{below}"
    for study in (UNMIXED[0], UNMIXED[-1], *MIXED[:2], MIXED[-1], HIDDEN[0], HIDDEN[-1], "9.9")
    for below in ("", f"/series/{study}.1", f"/series/{study}.1/instances/{study}.1.1")
]
OF_ALL = (
    "",
    "/metadata",
    "/metadata?includefield=PatientID",
    "/bulkdata",
    "/pixeldata",
    "/rendered",
    "/thumbnail",
)
OF_ONE = ("/frames/1", "/frames/2", "/frames/1/rendered", "/frames/1/thumbnail", "/bulkdata/00420011")


def retrieves():
    for target in TARGETS:
        yield from (f"/v2{target}{below}" for below in OF_ALL)
        if "/instances/" in target:
            yield from (f"/v2{target}{below}" for below in OF_ONE)
            study = target.split("/")[2]
            uids = f"studyUID={study}&seriesUID={study}.1&objectUID={study}.1.1"
            yield from (
                f"/wado?requestType=WADO&{uids}{more}" for more in ("", "&contentType=application/dicom")
            )


@pytest.mark.parametrize("path", list(retrieves()))
def test_retrieves(sides, path):
    """Of visible, invisible and absent studies: plain, as other types, with conditions and ranges."""
    one, other = sides
    found = one.ask(path)
    assert found == other.ask(path)
    etag = dict(found.headers).get("ETag", '"x"')
    several = (
        {"method": "HEAD"},
        {"Accept": "application/zip"},
        {"Accept": "text/plain"},
        {"Accept": "application/octet-stream; transfer-syntax=*"},
        {"If_None_Match": etag},
        {"If_Match": '"other"'},
        {"Range": "bytes=0-9"},
        {"Want_Repr_Digest": "sha-256=1"},
    )
    for headers in several:
        assert one.ask(path, **headers) == other.ask(path, **headers), headers
    absent = path.replace(HIDDEN[0], "9.9").replace(HIDDEN[-1], "9.9")
    if absent != path:
        assert found == one.ask(absent)
        assert found.status == 404


def test_no_answer_names_anything_from_outside(sides):
    for path in (*(f"/v2{each}" for each in (*SEARCHES, *BELOW)), *retrieves()):
        text = sides[0].ask(path).text
        named = [study for study in HIDDEN if study.encode() in text and study not in path]
        assert not named, path


def test_a_rule_that_shows_many_studies_finds_the_same(sides, monkeypatch):
    """Only counts that would take long may be missing."""
    monkeypatch.setattr("streamsrv.store.index.few_studies.RuleMemory.most", 3)
    monkeypatch.setattr("streamsrv.store.index.visibility.KNOWN", 5)
    many = Side(sides[0].store, None, RULE)
    for path in (*SEARCHES, *BELOW):
        found, expected = (side.ask(f"/v2{path}") for side in (many, sides[1]))
        assert (found.status, found.body) == (expected.status, expected.body), path
        told = [each for each in found.headers if each not in expected.headers]
        assert all(name == "Warning" and "additional results" in text for name, text in told), (path, told)
        assert {name for name, _ in expected.headers} - {name for name, _ in found.headers} <= {
            "X-Total-Count"
        }


def test_a_rule_that_shows_and_hides_many_studies_knows_how_many_at_least(tmp_path, monkeypatch):
    monkeypatch.setattr("streamsrv.store.index.few_studies.RuleMemory.most", 3)
    with Store.open(tmp_path, OPTIONS) as store:
        everyone, side = Side(store, None), Side(store, None, rule_of(["InstitutionName=A"]))
        for number in range(100):
            everyone.put(file_of(key_of(number), institution="AB"[number % 2]))
        assert "There are at least 47 additional" in dict(side.ask("/v2/studies?limit=3").headers)["Warning"]
        everyone.ask(f"/v2/studies/{key_of(0)[0]}", "DELETE")
        assert "There are at least 45 additional" in dict(side.ask("/v2/studies?limit=4").headers)["Warning"]


def test_facts_are_read_from_a_row_as_they_were_written(tmp_path):
    """Whatever characters they have, and whatever they look like."""
    texts = ['A"', "A\\", '","v00080080B":1,"', "A\t", "Ä", "博士", 'x\\",v00080080B', "", "A" * 64]
    with Store.open(tmp_path, StoreOptions(min_free=0)) as store:
        everyone = Side(store, None)
        for number, text in enumerate(texts):
            file = file_of(
                key_of(number), institution=text.replace("\\", "/"), patient=text.replace("\\", "/")
            )
            assert everyone.put(file).status in (200, 202)
        facts = {
            key.partition(b"\0")[0]: facts_of(orjson.loads(Variant.unpack(value).text))
            for key, value in store.index.dump("variants")
        }
        for key, value in store.index.dump("studies"):
            for tag in FACTS:
                read = [orjson.loads(b'"' + text + b'"') for text in fact_reader(tag)(value)]
                assert sorted(read) == sorted(facts[key][tag]), (key, tag)
