"""dicomtrolley, as its users call it: search and download, with the headers of requests (`Accept: */*`)."""

import clinic as world
import pytest
import requests
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, SLIDE_SERIES, SLIDE_STUDY
from dicomtrolley.core import SeriesReference, StudyReference
from dicomtrolley.qido_rs import HierarchicalQuery, QidoRS
from dicomtrolley.trolley import Trolley
from dicomtrolley.wado_rs import WadoRS, WadoRSMetaData
from pydicom.uid import ExplicitVRLittleEndian


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize(
    "wanted",
    [
        StudyReference(study_uid=CT_STUDY),
        SeriesReference(study_uid=CT_STUDY, series_uid=CT_SERIES),
    ],
    ids=["study", "series"],
)
def test_downloads(clinic, session, wanted):
    downloader = WadoRS(session, clinic.url, request_per_series=False)
    found = list(downloader.datasets([wanted]))
    assert [each.SOPInstanceUID for each in found] == CT_INSTANCES
    assert found[1].PixelData == world.ct_pixels(2).tobytes()


def test_compressed_instances_arrive_decoded(clinic, session):
    slides = WadoRS(session, clinic.url).datasets(
        [SeriesReference(study_uid=SLIDE_STUDY, series_uid=SLIDE_SERIES)]
    )
    assert {each.file_meta.TransferSyntaxUID for each in slides} == {ExplicitVRLittleEndian}


def test_download_of_what_a_search_found(clinic, session):
    trolley = Trolley(downloader=WadoRS(session, clinic.url), searcher=QidoRS(session, clinic.url))
    (study,) = trolley.find_studies(HierarchicalQuery(StudyInstanceUID=CT_STUDY))
    found = list(trolley.fetch_all_datasets([study]))
    assert {each.SOPInstanceUID for each in found} == set(CT_INSTANCES)


def test_metadata(clinic, session):
    downloader = WadoRSMetaData(session, clinic.url)
    found = list(downloader.datasets([StudyReference(study_uid=CT_STUDY)]))
    assert [each.SOPInstanceUID for each in found] == CT_INSTANCES
