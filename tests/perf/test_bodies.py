"""The bodies that perf/ sends hold valid instances: a measurement of refusals would look fast."""

import email
import email.policy
import io

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from perf import archive, bodies


def parts_of(body):
    payload = b"".join(body.chunks())
    assert len(payload) == body.length
    head = f"Content-Type: {bodies.CONTENT_TYPE}\r\n\r\n".encode()
    message = email.message_from_bytes(head + payload, policy=email.policy.HTTP)
    return [part.get_payload(decode=True) for part in message.iter_parts()]


def instances_of(body):
    return [pydicom.dcmread(io.BytesIO(part)) for part in parts_of(body)]


def uids(instances):
    return [(i.StudyInstanceUID, i.SeriesInstanceUID, i.SOPInstanceUID) for i in instances]


def test_a_ct_study():
    body = bodies.ct_study(3, 5, pixels=2048)
    instances = instances_of(body)
    assert uids(instances) == body.keys
    assert [i.file_meta.MediaStorageSOPInstanceUID for i in instances] == [key.instance for key in body.keys]
    assert [i.InstanceNumber for i in instances] == [0, 1, 2, 3, 4]
    assert len({i.PixelData for i in instances}) == 5
    assert all(len(i.PixelData) == i.Rows * i.Columns * 2 == 2048 for i in instances)
    assert not set(body.keys) & set(bodies.ct_study(4, 5).keys)


def test_a_ct_instance_has_526_kb():
    (part,) = parts_of(bodies.ct_study(1, 1))
    assert 526_000 < len(part) < 530_000


def test_ct_slices_compress_as_real_ones_do():
    """Public ones of 512 x 512: 2.9 to 5.4 by JPEG-LS; noise alone would be under 2."""
    body = bodies.ct_slices(7, 6)
    instances = instances_of(body)
    assert uids(instances) == body.keys
    assert len({i.PixelData for i in instances}) == bodies.SLICES
    picture = instances[0].pixel_array
    assert np.array_equal(picture, bodies.ct_pictures()[0])
    heart = picture[225:235, 270:290].astype(float) - 1024
    assert abs(heart.mean() - 130) < 5
    assert 8 < heart.std() < 16
    assert 3 < picture.nbytes / len(imagecodecs.jpegls_encode(picture)) < 5


@pytest.mark.parametrize("frames", [1, 3, 400])
def test_a_multi_frame_instance(frames):
    body = bodies.multi_frame(4, frames, 21_000)
    (instance,) = instances_of(body)
    assert uids([instance]) == body.keys
    found = list(generate_frames(instance.PixelData, number_of_frames=frames))
    assert [len(frame) for frame in found] == [21_000] * frames
    assert len(set(found)) == frames


@pytest.mark.parametrize("make", [bodies.native_loop, bodies.jpeg_slide, bodies.long_loop])
def test_pixels_that_can_be_decoded(make):
    (instance,) = instances_of(make(9, 20))
    assert int(instance.NumberOfFrames) == 20
    frames = instance.pixel_array
    assert frames.shape[:3] == (20, instance.Rows, instance.Columns)
    assert frames[3].std() > 10


def test_a_study_of_an_archive_has_the_values_that_searches_ask_for():
    body = archive.archive_study(7)
    instances = instances_of(body)
    assert uids(instances) == body.keys
    assert len(instances) == len(set(body.keys)) == archive.A_STUDY
    assert {(i.SeriesNumber, i.Modality) for i in instances} == {(1, "CT"), (2, "MR")}
    assert {(i.PatientID, i.AccessionNumber, i.StudyID) for i in instances} == {("P000003", "A0000007", "S7")}
    request = instances[0].RequestAttributesSequence[0]
    assert (request.ScheduledProcedureStepID, request.RequestedProcedureID) == ("SPS7", "RP7")
    assert instances[0].PerformedProcedureStepStartDate == instances[0].StudyDate


def test_studies_of_different_patients():
    body = bodies.patients(5, 512)
    instances = instances_of(body)
    assert uids(instances) == body.keys
    assert [i.PatientID for i in instances] == [f"P000000{number}" for number in range(5)]
    assert len({i.StudyInstanceUID for i in instances}) == 5
