"""Clients in Python that nobody here wrote, as their users call them: dicomweb-client with all its verbs,
highdicom and wsidicom reading over the wire."""

import io

import clinic as world
import dicomweb_client
import highdicom
import numpy as np
import pytest
import wsidicom
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, SLIDE, SLIDE_SERIES, SLIDE_STUDY
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from requests import HTTPError

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def client(clinic):
    return dicomweb_client.DICOMwebClient(clinic.url)


@pytest.fixture
def writing(server):
    """A client of an empty server."""
    return dicomweb_client.DICOMwebClient(server.url)


def bytes_of(dataset):
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


# -- dicomweb-client


def test_store_search_retrieve_delete(writing):
    files = [dcmread(io.BytesIO(world.file_of(world.ct(number)))) for number in (1, 2, 3)]
    response = writing.store_instances(files)
    assert len(response.ReferencedSOPSequence) == 3
    assert "FailedSOPSequence" not in response
    with pytest.raises(HTTPError, match="409"):
        writing.store_instances(files[:1], CT_STUDY)
    assert len(writing.search_for_studies()) == 1
    assert [each.SOPInstanceUID for each in writing.retrieve_study(CT_STUDY)] == CT_INSTANCES
    assert writing.retrieve_instance(CT_STUDY, CT_SERIES, CT_INSTANCES[0]) == files[0]
    writing.delete_instance(CT_STUDY, CT_SERIES, CT_INSTANCES[0])
    assert len(writing.search_for_instances(CT_STUDY)) == 2
    writing.delete_series(CT_STUDY, CT_SERIES)
    assert writing.search_for_studies() == []
    writing.store_instances(files[:1])
    writing.delete_study(CT_STUDY)
    with pytest.raises(HTTPError, match="404"):
        writing.delete_study(CT_STUDY)


def test_searches(client):
    studies = client.search_for_studies(
        search_filters={"PatientName": "doe*", "StudyDate": "20240101-20240131"},
        fields=["StudyTime"],
        limit=10,
    )
    assert {each["0020000D"]["Value"][0] for each in studies} == {CT_STUDY, world.OTHER_STUDY}
    assert len(client.search_for_studies(limit=1, offset=1)) == 1
    assert len(client.search_for_studies(limit=1, get_remaining=True)) == 3
    assert len(client.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "muller"})) == 1
    series = client.search_for_series(CT_STUDY, search_filters={"Modality": "CT"})
    assert Dataset.from_json(series[0]).NumberOfSeriesRelatedInstances == 3
    assert len(client.search_for_series()) == 4
    assert len(client.search_for_instances(CT_STUDY, CT_SERIES, fields=["Rows", "00280011"])) == 3
    found = client.search_for_instances(search_filters={"SOPInstanceUID": SLIDE})
    assert Dataset.from_json(found[0]).NumberOfFrames == 4


def test_instances_of_every_level(client):
    expected = [world.file_of(world.ct(number)) for number in (1, 2, 3)]
    for found in (client.retrieve_study(CT_STUDY), client.iter_series(CT_STUDY, CT_SERIES)):
        assert [bytes_of(each) for each in found] == expected
    one = client.retrieve_instance(CT_STUDY, CT_SERIES, CT_INSTANCES[1], media_types=("application/dicom",))
    assert bytes_of(one) == expected[1]
    slide = client.retrieve_instance(
        SLIDE_STUDY, SLIDE_SERIES, SLIDE, media_types=(("application/dicom", JPEGBaseline8Bit),)
    )
    assert slide.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    decoded = client.retrieve_instance(
        SLIDE_STUDY, SLIDE_SERIES, SLIDE, media_types=(("application/dicom", ExplicitVRLittleEndian),)
    )
    assert len(decoded.PixelData) == 4 * 3 * world.TILE**2


def test_metadata_of_every_level(client):
    wanted = world.ct(1)
    for found in (
        client.retrieve_study_metadata(CT_STUDY),
        client.retrieve_series_metadata(CT_STUDY, CT_SERIES),
        [client.retrieve_instance_metadata(CT_STUDY, CT_SERIES, CT_INSTANCES[0])],
    ):
        first = Dataset.from_json(found[0], bulk_data_uri_handler=lambda uri: b"")
        for element in wanted:
            if element.keyword != "PixelData":
                assert first[element.tag].value == element.value


def test_frames(client):
    (frame,) = client.retrieve_instance_frames(CT_STUDY, CT_SERIES, CT_INSTANCES[0], [1])
    assert frame == world.ct_pixels(1).tobytes()
    tiles = world.tiles(1, 4)
    asked = (("image/jpeg", JPEGBaseline8Bit),)
    found = client.retrieve_instance_frames(SLIDE_STUDY, SLIDE_SERIES, SLIDE, [4, 1, 4], media_types=asked)
    assert found == [tiles[3], tiles[0], tiles[3]]
    expected = np.asarray(Image.open(io.BytesIO(tiles[1])), np.int16)
    for raw in (None, (("application/octet-stream", EXPLICIT),)):  # None is `Accept: */*`
        (pixels,) = client.iter_instance_frames(SLIDE_STUDY, SLIDE_SERIES, SLIDE, [2], media_types=raw)
        picture = np.frombuffer(pixels, np.uint8).reshape(world.TILE, world.TILE, 3)
        assert np.abs(picture - expected).max() <= 3


def test_rendered(client):
    """The client offers these for instances and frames."""
    for media_type, kind in (("image/jpeg", "JPEG"), ("image/png", "PNG")):
        picture = client.retrieve_instance_rendered(
            CT_STUDY,
            CT_SERIES,
            CT_INSTANCES[0],
            media_types=(media_type,),
            params={"window": "40,400,linear"},
        )
        assert Image.open(io.BytesIO(picture)).format == kind
        picture = client.retrieve_instance_frames_rendered(
            SLIDE_STUDY, SLIDE_SERIES, SLIDE, [3], media_types=(media_type,)
        )
        assert Image.open(io.BytesIO(picture)).size == (world.TILE, world.TILE)


def test_bulk_data(server):
    """This client's Host header has no port: URLs in answers get that of the socket."""
    world.store(f"{server.url}/studies", [world.file_of(world.palette())])
    client = dicomweb_client.DICOMwebClient(server.url)
    metadata = client.retrieve_instance_metadata(world.OTHER_STUDY, world.PALETTE_SERIES, world.PALETTE)
    tables = [metadata[f"0028120{number}"]["BulkDataURI"] for number in (1, 2, 3)]
    found = [b"".join(client.retrieve_bulkdata(uri)) for uri in tables]
    palette = world.palette()
    assert found[0] == palette.RedPaletteColorLookupTableData
    assert found[2] == palette.BluePaletteColorLookupTableData
    assert b"".join(client.iter_bulkdata(tables[1])) == palette.GreenPaletteColorLookupTableData
    # Its `byte_range` is of no use with the multipart answers that it asks for: a range is one of the body.
    filled = Dataset.from_json(
        metadata,
        bulk_data_uri_handler=lambda uri: b"".join(
            client.retrieve_bulkdata(uri, media_types=("application/octet-stream",))
        ),
    )
    assert filled.GreenPaletteColorLookupTableData == palette.GreenPaletteColorLookupTableData


def test_errors_reach_the_user(client):
    with pytest.raises(HTTPError, match="404"):
        client.retrieve_instance_metadata(CT_STUDY, CT_SERIES, "1.2.3")
    with pytest.raises(HTTPError, match="400"):
        client.search_for_studies(search_filters={"StudyDate": "yesterday"})


# -- highdicom


def test_highdicom_stores_and_reads_a_segmentation(writing):
    slices = [dcmread(io.BytesIO(world.file_of(world.ct(number)))) for number in (1, 2, 3)]
    writing.store_instances(slices)
    for number, each in enumerate(writing.retrieve_series(CT_STUDY, CT_SERIES), 1):
        image = highdicom.imread(io.BytesIO(bytes_of(each)))
        pixels = image.get_frame(1, dtype=np.uint16, apply_modality_transform=False)
        assert np.array_equal(pixels, world.ct_pixels(number))
    mask = np.zeros((3, 48, 64), np.uint8)
    mask[1, 10:20, 10:30] = 1
    segmentation = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=mask,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(
                segment_number=1,
                segment_label="lung",
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Lung,
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
        ],
        series_instance_uid=f"{CT_STUDY}.2",
        series_number=2,
        sop_instance_uid=f"{CT_STUDY}.2.1",
        instance_number=1,
        manufacturer="Maker",
        manufacturer_model_name="Model",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=False,
    )
    writing.store_instances([segmentation])
    (found,) = writing.retrieve_series(CT_STUDY, f"{CT_STUDY}.2")
    seen = highdicom.seg.segread(io.BytesIO(bytes_of(found)))
    assert np.array_equal(
        seen.get_pixels_by_source_instance(CT_INSTANCES)[..., 0] > 0,
        mask > 0,
    )
    # The frames by themselves: 1 bit a pixel, 384 bytes each.
    frames = writing.retrieve_instance_frames(CT_STUDY, f"{CT_STUDY}.2", f"{CT_STUDY}.2.1", [2])
    assert np.array_equal(
        np.unpackbits(np.frombuffer(frames[0], np.uint8), bitorder="little").reshape(48, 64), mask[1]
    )


# -- wsidicom


# It gives pydicom no way to fetch the ICC profile by its BulkDataURI.
@pytest.mark.filterwarnings("ignore:No bulk data URI handler provided:UserWarning")
@pytest.mark.parametrize("requested", [None, JPEGBaseline8Bit])
def test_wsidicom_opens_a_slide(clinic, requested):
    web = wsidicom.WsiDicomWebClient(dicomweb_client.DICOMwebClient(clinic.url))
    with wsidicom.WsiDicom.open_web(web, SLIDE_STUDY, SLIDE_SERIES, requested) as slide:
        assert slide.size.to_tuple() == (2 * world.TILE, 2 * world.TILE)
        tiles = [Image.open(io.BytesIO(each)) for each in world.tiles(1, 4)]
        whole = np.asarray(slide.read_region((0, 0), 0, slide.size.to_tuple()), np.int16)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, 2)
            part = whole[row * world.TILE :, column * world.TILE :][: world.TILE, : world.TILE]
            assert np.abs(part - np.asarray(tile, np.int16)).max() <= 3
        assert np.abs(np.asarray(slide.read_tile(0, (1, 0)), np.int16) - np.asarray(tiles[1])).max() <= 3
        assert slide.read_overview().size == (world.TILE, world.TILE)
