"""Frames and instances in other transfer syntaxes, without HTTP: every row of the registry, both ways."""

import os
import time
from contextlib import closing

import numpy as np
import pydicom
import pytest
from pixel_world import (
    BASELINE,
    BIG,
    DEFLATED,
    DEFLATED_FRAME,
    HTJ2K,
    IMPLICIT,
    J2K,
    JPEG_LS,
    JXL_JPEG,
    KINDS,
    LITTLE,
    MPEG4,
    RLE,
    RPCL,
    Kind,
    ManualAnswer,
    arrays_of,
    frames_of_type,
    image,
    of_syntax,
    opened,
    shown_values,
    stored_as,
)
from retrieve_world import (
    POOL,
    SERIES,
    STUDY,
    ask,
    computed,
    dataset_of,
    header,
    instance_path,
    keep,
    part10,
    parts_of,
    payload,
)

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from streamsrv.errors import NotAcceptable, NotFound, PreconditionFailed, StoreCorrupt
from streamsrv.pixels import transcoding
from streamsrv.pixels.pool import PixelPool
from streamsrv.retrieve import answering, instances
from streamsrv.retrieve import frames as frame_answers
from streamsrv.wire.answers import ByteStream, Deferred, Pending, resolved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

ONE = instance_path("1.2.3.4.1")
# pydicom's own decoders know these; of the others the way back to native pixels is the proof.
PYDICOM_READS = (RLE, J2K, JPEG_LS, HTJ2K, RPCL)
# Largest and mean error of a lossy syntax, as a part of the range of values: halved chrominance is far off
# here and there.
LOSS, MEAN_LOSS = 0.25, 0.02


def info_of(kind):
    return FrameInfo(
        kind.rows,
        kind.columns,
        kind.samples,
        kind.allocated,
        kind.stored,
        kind.stored - 1,
        kind.signed,
        kind.planar,
        kind.photometric,
    )


CASES = [
    pytest.param(name, uid, id=f"{name} to {registry.SYNTAXES[uid].name}")
    for name, kind in KINDS.items()
    for uid in transcoding.targets(LITTLE, info_of(kind))
]


def test_every_syntax_with_an_encoder_is_proved():
    proved = {case.values[1] for case in CASES}
    assert proved == {uid for uid in transcoding.targets(LITTLE) if registry.encodable(uid)}


def replaced(store, content):
    store.delete(STUDY)
    keep(store, content)


def instance_in(store, uid, path=ONE):
    """The only instance of an answer, with its label."""
    ((headers, content),) = parts_of(ask(store, path, accept=of_syntax(uid)))
    assert headers["content-type"] == f"application/dicom; transfer-syntax={uid}"
    return content


@pytest.mark.parametrize(("name", "uid"), CASES)
def test_instances_there_and_back(store, name, uid):
    kind = KINDS[name]
    arrays = arrays_of(kind)
    keep(store, stored_as(image(kind, arrays), LITTLE))
    content = instance_in(store, uid)
    coded = opened(content)
    assert coded.file_meta.TransferSyntaxUID == uid
    assert coded.PatientName == "Doe^Jane"
    assert coded["PixelData"].VR == "OB"
    assert coded["PixelData"].is_undefined_length
    assert (coded.get("LossyImageCompression") == "01") == registry.SYNTAXES[uid].lossy
    check_offset_table(coded)
    if uid in PYDICOM_READS and kind.allocated > 1:
        assert np.array_equal(shown_values(coded), expected(kind, arrays, coded))
    replaced(store, content)
    native = opened(instance_in(store, LITTLE))
    assert native.file_meta.TransferSyntaxUID == LITTLE
    check_pixels(kind, arrays, native, registry.SYNTAXES[uid].lossy)


def expected(kind, arrays, dataset):
    """What pydicom has to find: JPEG 2000 in RGB is told by its transform."""
    assert dataset.PhotometricInterpretation in (kind.photometric, "YBR_RCT")
    return arrays


def check_offset_table(dataset):
    """The frames are short, so the table is there, and tells the truth."""
    offsets = pydicom.encaps.parse_basic_offsets(dataset.PixelData)
    items = list(pydicom.encaps.generate_fragments(dataset.PixelData[8 + 4 * len(offsets) :]))
    assert len(offsets) == len(items) == int(dataset.get("NumberOfFrames", 1))
    assert offsets == [sum(8 + len(item) for item in items[:place]) for place in range(len(items))]


def check_pixels(kind, arrays, dataset, lossy):
    found = shown_values(dataset)
    if dataset.PhotometricInterpretation != kind.photometric:
        assert kind.photometric == "YBR_FULL"
        assert dataset.PhotometricInterpretation == "RGB"
        found = pydicom.pixels.convert_color_space(found, "RGB", "YBR_FULL")
    if dataset.get("PlanarConfiguration"):
        assert kind.planar
    if not lossy:
        assert np.array_equal(found, arrays)
        return
    check_loss(kind, found, arrays)


def check_loss(kind, found, arrays):
    errors = np.abs(found.astype(float) - arrays) / ((1 << kind.stored) - 1)
    assert errors.max() <= LOSS
    assert errors.mean() <= MEAN_LOSS


FRAME_CASES = [case for case in CASES if case.values[0] in ("12 in 16", "RGB")]


@pytest.mark.parametrize(("name", "uid"), FRAME_CASES)
def test_frames_there_and_back(store, name, uid):
    kind = KINDS[name]
    arrays = arrays_of(kind)
    keep(store, stored_as(image(kind, arrays), LITTLE))
    row = registry.SYNTAXES[uid]
    found = parts_of(ask(store, f"{ONE}/frames/3,1", accept=frames_of_type(row.media_type, uid)))
    assert [headers["content-type"] for headers, _ in found] == [
        f"{row.media_type}; transfer-syntax={uid}"
    ] * 2
    assert [headers["content-location"] for headers, _ in found] == [
        f"http://h/v2{ONE}/frames/{number}" for number in (3, 1)
    ]
    for (_, codestream), array in zip(found, arrays[[2, 0]], strict=True):
        native, now = registry.decode(codestream, uid, info_of(kind))
        values = np.frombuffer(native, array.dtype).reshape(array.shape)
        assert now.photometric_interpretation == kind.photometric
        assert row.lossy or np.array_equal(values, array)
        check_loss(kind, values, array)
    # What was sent, stored: its frames come out decoded.
    replaced(store, stored_as(image(kind, arrays[[2, 0]]), uid, [frame for _, frame in found]))
    for path, number in ((f"{ONE}/frames/2", 1), (f"{ONE}/frames/1,2", 2)):
        back = parts_of(ask(store, path))
        assert len(back) == number
        assert {len(frame) for _, frame in back} == {arrays[0].nbytes}
        if not row.lossy:
            assert back[-1][1] == arrays[0].tobytes()


@pytest.mark.parametrize("stored", [IMPLICIT, BIG, DEFLATED])
@pytest.mark.parametrize("name", ["12 in 16", "8 bit", "RGB by plane", "1 bit, frames begin inside bytes"])
def test_every_native_syntax_is_a_source(store, stored, name):
    kind = KINDS[name]
    arrays = arrays_of(kind)
    dataset = image(kind, arrays)
    if stored == BIG and kind.allocated == 16:
        dataset.PixelData = arrays.astype(">u2").tobytes()
    elif stored == BIG:
        dataset["PixelData"].VR = "OB"
    keep(store, stored_as(dataset, stored))
    replaced(store, instance_in(store, J2K if kind.allocated > 1 else DEFLATED_FRAME))
    check_pixels(kind, arrays, opened(instance_in(store, LITTLE)), lossy=False)


@pytest.mark.parametrize(("stored", "other"), [(IMPLICIT, BIG), (BIG, IMPLICIT)])
def test_a_syntax_that_web_services_do_not_use_goes_out_if_it_is_named(store, stored, other):
    """An extension of PS3.18 8.7.3."""
    kind = KINDS["12 in 16"]
    content = stored_as(image(kind, arrays_of(kind)), stored)
    keep(store, content)
    for path in (ONE, f"/studies/{STUDY}"):
        ((head, payload),) = parts_of(ask(store, path, accept=of_syntax(stored)))
        assert payload == content
        assert head["content-type"] == f"application/dicom; transfer-syntax={stored}"
        assert of_syntax(stored) in refused(store, path, of_syntax(other))
        for accept in (of_syntax("*"), "*/*"):
            ((head, payload),) = parts_of(ask(store, path, accept=accept))
            assert head["content-type"] == f"application/dicom; transfer-syntax={LITTLE}"
            assert payload != content


# Colour


def test_jpeg_is_decoded_to_rgb_and_says_so(store):
    kind = KINDS["RGB"]
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    replaced(store, instance_in(store, BASELINE))
    as_stored = opened(instance_in(store, BASELINE))
    assert as_stored.PhotometricInterpretation == "YBR_FULL_422"
    assert as_stored.LossyImageCompressionMethod == "ISO_10918_1"
    assert 1.5 < as_stored.LossyImageCompressionRatio < 40
    native = opened(instance_in(store, LITTLE))
    assert (native.PhotometricInterpretation, native.PlanarConfiguration) == ("RGB", 0)
    assert native.LossyImageCompression == "01"
    assert native.LossyImageCompressionRatio == as_stored.LossyImageCompressionRatio
    again = opened(instance_in(store, "1.2.840.10008.1.2.4.203"))
    assert again.LossyImageCompressionMethod == ["ISO_10918_1", "ISO_15444_15"]
    assert len(again.LossyImageCompressionRatio) == 2


def test_what_was_lossy_says_so_when_it_is_decoded(store):
    kind = KINDS["8 bit"]
    arrays = arrays_of(kind, 1)
    codestream, _ = registry.encode(arrays.tobytes(), BASELINE, info_of(kind))
    keep(store, stored_as(image(kind, arrays), BASELINE, [codestream]))
    assert opened(instance_in(store, LITTLE)).LossyImageCompression == "01"


def test_jpeg_is_packed_without_loss_and_restored(store):
    kind = KINDS["RGB"]
    keep(store, stored_as(image(kind, arrays_of(kind, 1)), LITTLE))
    jpeg = instance_in(store, BASELINE)
    replaced(store, jpeg)
    packed = instance_in(store, JXL_JPEG)
    replaced(store, packed)
    restored = opened(instance_in(store, BASELINE))
    assert restored.PixelData == opened(jpeg).PixelData
    assert restored.LossyImageCompressionMethod == "ISO_10918_1"
    assert opened(packed).PhotometricInterpretation == "YBR_FULL_422"


def test_shared_chrominance_is_spread(store):
    """Native YBR_FULL_422: two samples a pixel (PS3.3 C.7.6.3.1.2)."""
    pixels = np.arange(4 * 6 * 2, dtype="u1")
    kind = Kind("YBR_FULL_422", 8, 8, rows=4, columns=6)
    dataset = image(Kind("YBR_FULL", 8, 8, rows=4, columns=6), np.zeros((1, 4, 6, 3), "u1"))
    dataset.PhotometricInterpretation, dataset.PixelData = kind.photometric, pixels.tobytes()
    keep(store, stored_as(dataset, LITTLE))
    coded = opened(instance_in(store, RLE))
    assert coded.PhotometricInterpretation == "YBR_FULL"
    pairs = pixels.reshape(4, 3, 4)
    assert np.array_equal(shown_values(coded)[0, :, ::2], pairs[:, :, [0, 2, 3]])
    assert np.array_equal(shown_values(coded)[0, :, 1::2], pairs[:, :, [1, 2, 3]])


# What else a dataset says


def test_tables_and_icons_of_the_old_syntax_go(store):
    kind = KINDS["8 bit"]
    arrays = arrays_of(kind)
    frames = [registry.encode(array.tobytes(), JPEG_LS, info_of(kind))[0] for array in arrays]
    frames = [frame + bytes(len(frame) % 2) for frame in frames]
    dataset = image(kind, arrays)
    icon = image(Kind(allocated=8, stored=8, rows=8, columns=8), np.zeros((1, 8, 8), "u1"))
    icon.PixelData = pydicom.encaps.encapsulate([frames[0] * 8])
    icon["PixelData"].VR, icon["PixelData"].is_undefined_length = "OB", True
    dataset.IconImageSequence = [icon]
    offsets = np.cumsum([0, *(8 + len(frame) for frame in frames[:-1])]).astype("<u8")
    dataset.ExtendedOffsetTable = offsets.tobytes()
    dataset.ExtendedOffsetTableLengths = np.array([len(frame) for frame in frames], "<u8").tobytes()
    content = stored_as(dataset, JPEG_LS, frames)
    with_empty_table = content.replace(
        pydicom.encaps.encapsulate(frames), pydicom.encaps.encapsulate(frames, has_bot=False)
    )
    keep(store, with_empty_table)
    native = opened(instance_in(store, LITTLE))
    assert "ExtendedOffsetTable" not in native
    assert "IconImageSequence" not in native
    assert np.array_equal(shown_values(native), arrays)
    as_stored = opened(payload(ask(store, ONE, accept="application/dicom; transfer-syntax=*")))
    assert "IconImageSequence" in as_stored


def test_a_native_icon_stays(store):
    kind = KINDS["8 bit"]
    dataset = image(kind, arrays_of(kind, 1))
    dataset.IconImageSequence = [
        image(Kind(allocated=8, stored=8), arrays_of(Kind(allocated=8, stored=8), 1))
    ]
    keep(store, stored_as(dataset, LITTLE))
    assert "IconImageSequence" in opened(instance_in(store, J2K))


def test_high_bits_are_moved_down(store):
    """Twelve bits at the top of sixteen: a codec has them at the bottom, and the dataset says so."""
    kind = KINDS["12 in 16"]
    arrays = arrays_of(kind, 1)
    dataset = image(kind, arrays << 4, HighBit=15)
    keep(store, stored_as(dataset, LITTLE))
    coded = opened(instance_in(store, J2K))
    assert (coded.BitsStored, coded.HighBit) == (12, 11)
    assert np.array_equal(shown_values(coded), arrays)


# Several instances


def mixed(store):
    """A CT, a report without pixels, a video, and one in RLE."""
    kind = KINDS["12 in 16"]
    arrays = arrays_of(kind, 2)
    keep(store, stored_as(image(kind, arrays), LITTLE))
    report = dataset_of("1.2.3.4.2")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    keep(store, part10(report))
    keep(store, video("1.2.3.4.3"))
    keep(store, stored_as(image(kind, arrays, "1.2.3.4.4"), RLE, rle(kind, arrays)))
    return arrays


def rle(kind, arrays):
    return [registry.encode(array.tobytes(), RLE, info_of(kind))[0] for array in arrays]


STREAM = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40


def video(instance):
    kind = Kind("YBR_FULL", 8, 8)
    dataset = image(kind, np.zeros((2, kind.rows, kind.columns, 3), "u1"), instance)
    dataset.PhotometricInterpretation, dataset.NumberOfFrames = "YBR_PARTIAL_420", 90
    return stored_as(dataset, MPEG4, [STREAM])


def labels_of(found):
    return [headers["content-type"].partition("transfer-syntax=")[2] for headers, _ in found]


@pytest.mark.parametrize("level", [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}"])
def test_of_several_instances_each_says_what_it_is(store, level):
    arrays = mixed(store)
    found = parts_of(ask(store, level, accept=of_syntax(JPEG_LS)))
    assert labels_of(found) == [JPEG_LS, LITTLE, MPEG4, JPEG_LS]
    datasets = [opened(content) for _, content in found]
    assert [dataset.file_meta.TransferSyntaxUID for dataset in datasets] == labels_of(found)
    assert [str(dataset.SOPInstanceUID) for dataset in datasets] == [f"1.2.3.4.{n}" for n in (1, 2, 3, 4)]
    for place in (0, 3):
        assert np.array_equal(shown_values(datasets[place]), arrays)
    # By default uncompressed, and the video as it is.
    found = parts_of(ask(store, level))
    assert labels_of(found) == [LITTLE, LITTLE, MPEG4, LITTLE]
    assert np.array_equal(shown_values(opened(found[3][1])), arrays)
    found = parts_of(ask(store, level, accept=of_syntax("*")))
    assert labels_of(found) == [LITTLE, LITTLE, MPEG4, RLE]


def test_none_of_several_that_can_be_had_is_not_acceptable(store):
    keep(store, video("1.2.3.4.3"), part10(dataset_of("1.2.3.4.9", pixels=b"\1\2" * 16)))
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, f"/studies/{STUDY}", accept=of_syntax(BASELINE))
    assert of_syntax("*").replace("*", LITTLE) in refusal.value.acceptable or of_syntax(MPEG4) in (
        refusal.value.acceptable
    )


def test_one_of_several_that_is_broken_goes_out_as_stored(store):
    kind = KINDS["12 in 16"]
    arrays = arrays_of(kind, 2)
    keep(store, stored_as(image(kind, arrays, "1.2.3.4.1"), RLE, rle(kind, arrays)))
    keep(store, stored_as(image(kind, arrays, "1.2.3.4.2"), RLE, [b"no RLE at all"] * 2))
    keep(store, stored_as(image(kind, arrays, "1.2.3.4.3"), RLE, rle(kind, arrays)))
    found = parts_of(ask(store, f"/studies/{STUDY}", accept=of_syntax(J2K)))
    assert labels_of(found) == [J2K, RLE, J2K]


def test_a_single_instance_without_pixels_has_no_other_form(store):
    mixed(store)
    ((headers, content),) = parts_of(ask(store, instance_path("1.2.3.4.2"), accept=of_syntax(J2K)))
    assert headers["content-type"].endswith(LITTLE)
    assert "PixelData" not in opened(content)


# Refusals, and what they list


def refused(store, path, accept):
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, path, accept=accept)
    return refusal.value.acceptable


def test_pixels_that_do_not_fit(store):
    kind = KINDS["32 bit"]
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    for path, accept in (
        (ONE, of_syntax(BASELINE)),
        (f"{ONE}/frames/1", frames_of_type("image/jpeg", BASELINE)),
    ):
        acceptable = refused(store, path, accept)
        assert not any(BASELINE in one for one in acceptable)
        assert any(RLE in one for one in acceptable)
        assert any(LITTLE in one for one in acceptable)


def test_of_several_ranges_one_that_fits_is_taken(store):
    kind = KINDS["signed 16"]
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    accept = f"{frames_of_type('image/jpeg', BASELINE)}, {frames_of_type('image/jls', JPEG_LS)};q=0.5"
    ((headers, _),) = parts_of(ask(store, f"{ONE}/frames/1", accept=accept))
    assert headers["content-type"] == f"image/jls; transfer-syntax={JPEG_LS}"
    accept = f"{of_syntax(BASELINE)}, {of_syntax(JPEG_LS)};q=0.5"
    assert labels_of(parts_of(ask(store, ONE, accept=accept))) == [JPEG_LS]


@pytest.mark.parametrize("path", [ONE, f"{ONE}/frames/1", f"{ONE}/frames/1,2"])
def test_broken_pixels_go_out_as_stored_unless_a_syntax_is_named(store, path):
    kind = KINDS["12 in 16"]
    broken = [b"no RLE at all!"] * 2
    keep(store, stored_as(image(kind, arrays_of(kind, 2)), RLE, broken))
    found = parts_of(ask(store, path))
    assert labels_of(found)[0] == RLE
    assert path == ONE or found[0][1] == broken[0]
    named = of_syntax(LITTLE) if path == ONE else frames_of_type("application/octet-stream", LITTLE)
    assert any(RLE in one for one in refused(store, path, named))


def test_attributes_without_sense_leave_the_stored_bytes(store):
    kind = KINDS["12 in 16"]
    arrays = arrays_of(kind, 1)
    dataset = image(kind, arrays, PhotometricInterpretation="NO SUCH COLOUR")
    keep(store, stored_as(dataset, RLE, rle(kind, arrays)))
    assert labels_of(parts_of(ask(store, ONE))) == [RLE]
    assert labels_of(parts_of(ask(store, f"{ONE}/frames/1"))) == [RLE]
    assert refused(store, ONE, of_syntax(J2K))


def test_floating_point_pixels_stay_native(store):
    kind = KINDS["32 bit"]
    dataset = image(kind, arrays_of(kind, 1))
    values = np.linspace(-1, 1, kind.rows * kind.columns, dtype="<f4")
    del dataset.PixelData
    dataset.FloatPixelData = values.tobytes()
    keep(store, stored_as(dataset, LITTLE))
    ((_, frame),) = parts_of(ask(store, f"{ONE}/frames/1"))
    assert frame == values.tobytes()
    for uid in (RLE, J2K, DEFLATED_FRAME):
        assert not any(uid in one for one in refused(store, ONE, of_syntax(uid)))


def test_pixel_data_without_a_frame(store):
    """Fragments of which none is a frame are no frames in any other syntax either."""
    kind = KINDS["12 in 16"]
    dataset = image(kind, arrays_of(kind, 1))
    content = stored_as(dataset, RLE, [b"xx"])
    item = b"\xfe\xff\x00\xe0\x02\0\0\0xx"
    assert content.count(item) == 1
    keep(store, content.replace(item, b""))
    assert labels_of(parts_of(ask(store, ONE))) == [RLE]
    with pytest.raises(NotFound):
        ask(store, f"{ONE}/frames/1", accept=frames_of_type("image/jp2", J2K))


# Video


def test_a_video_is_one_stream(store):
    keep(store, video("1.2.3.4.1"))
    for accept in (None, "*/*", frames_of_type("video/mp4", MPEG4), frames_of_type("video/mp4", "*")):
        headers = {"accept": accept} if accept else {}
        ((part_headers, stream),) = parts_of(ask(store, f"{ONE}/frames/1", **headers))
        assert part_headers["content-type"] == f"video/mp4; transfer-syntax={MPEG4}"
        assert stream == STREAM
    for accept in ("video/mp4", "text/html,*/*;q=0.8"):
        answer = ask(store, f"{ONE}/rendered", accept=accept, range="bytes=4-11")
        assert (answer.status, header(answer, "content-type")) == (206, "video/mp4")
        assert payload(answer) == b"ftypmp42"
    assert refused(store, ONE, of_syntax(J2K))
    assert refused(store, f"{ONE}/rendered", "image/jpeg") == (
        "video/mp4",
        'multipart/related; type="video/mp4"',
    )
    with pytest.raises(NotAcceptable):
        ask(store, f"{ONE}/thumbnail")


# Ranges, validators, lengths


def test_ranges_of_a_made_frame_are_one_answer(store):
    kind = Kind(rows=300, columns=300)
    keep(store, stored_as(image(kind, arrays_of(kind, 1)), LITTLE))
    asked = {"accept": frames_of_type("image/jphc", RPCL)}
    whole = payload(ask(store, f"{ONE}/frames/1", **asked))
    answers = [ask(store, f"{ONE}/frames/1", range=r, **asked) for r in ("bytes=0-32767", "bytes=32768-")]
    assert [answer.status for answer in answers] == [206, 206]
    assert header(answers[0], "content-range") == f"bytes 0-32767/{len(whole)}"
    assert b"".join(map(payload, answers)) == whole
    POOL.cache.put((row_of(store).record_id, 0, RPCL), b"")  # whatever is kept is the same again
    row = row_of(store)
    info = POOL.descriptions.info(store, row)
    again = transcoding.Transcoder(store, selection_of(store), row, POOL, info, RPCL)
    ((frame, _),) = POOL.results(POOL.submit(again.task([0])))
    assert frame in whole


def row_of(store):
    (row,) = store.lookup(STUDY)
    return row


def selection_of(store):
    from streamsrv.plans.selection import Selection

    return Selection(store, STUDY, None, None)


def test_what_the_client_has_is_not_made_again(store, monkeypatch):
    kind = KINDS["12 in 16"]
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    asked = [
        (f"{ONE}/frames/1", "image/jls"),
        (f"{ONE}/frames/1,2", frames_of_type("image/jls", JPEG_LS)),
        (f"/studies/{STUDY}", of_syntax(JPEG_LS)),
        (f"{ONE}/rendered", "image/gif"),
        (f"{ONE}/frames/2/rendered", "image/png"),
        (f"/studies/{STUDY}/thumbnail", "image/jpeg"),
    ]
    answers = [ask(store, path, accept=accept) for path, accept in asked]
    for answer in answers:
        if answer.release is not None:  # that of a frame which was waited for has released its segment
            answer.release()
    monkeypatch.setattr(POOL, "submit", lambda task, **_: pytest.fail("made again"))
    for (path, accept), before in zip(asked, answers, strict=True):
        answer = ask(store, path, accept=accept, if_none_match=header(before, "etag"))
        assert (answer.status, payload(answer)) == (304, b"")
    assert len({header(answer, "etag") for answer in answers}) == len(asked)


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        (f"{ONE}/frames/2", frames_of_type("image/jls", JPEG_LS), Pending),
        (f"{ONE}/frames/2/rendered", "image/png", Pending),
        (f"{ONE}/thumbnail", "image/jpeg", Pending),
        (ONE, of_syntax(JPEG_LS), Deferred),
        (f"{ONE}/rendered", "image/gif", Deferred),
        (f"{ONE}/frames/1,2", frames_of_type("image/jls", JPEG_LS), Deferred),
    ],
)
def test_one_frame_is_pending_and_more_are_deferred(store, path, accept, kind):
    keep(store, stored_as(image(KINDS["12 in 16"], arrays_of(KINDS["12 in 16"])), LITTLE))
    with closing(PixelPool(1)) as pool:
        first = ask_of(pool, store, path, accept)
        assert type(first) is kind
        made = payload(resolved(first))
        if kind is Pending:
            assert payload(ask_of(pool, store, path, accept)) == made  # an Answer: the pool keeps the frame


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("frames/2", frames_of_type("image/jls", JPEG_LS)),
        ("frames/2", "image/jls"),
        ("frames/2/rendered", "image/png"),
        ("frames/2/rendered", 'multipart/related; type="image/jpeg"'),
        ("thumbnail", "image/jpeg"),
    ],
)
def test_a_result_finishes_the_answer_without_the_store(store, path, accept, monkeypatch):
    """It is the same answer as that of a frame that is kept. The loop itself receives the result."""
    keep(store, stored_as(image(KINDS["12 in 16"], arrays_of(KINDS["12 in 16"])), LITTLE))
    arrivals = []
    pool = PixelPool(1, cached=0, watch=lambda _, receive: arrivals.append(receive))
    with closing(pool):
        for asked in ({}, {"range": "bytes=10-99"}, {"if-match": '"another"'}):
            pending = ask_of(pool, store, f"{ONE}/{path}", accept, **asked)
            while not pending.future.done():
                arrivals[0]()
            with monkeypatch.context() as context:
                context.setattr(store, "instance", lambda *_: pytest.fail("looked up again"))
                try:
                    finished = pending.answer()
                except PreconditionFailed:
                    assert "if-match" in asked
                    continue
            with monkeypatch.context() as context:
                context.setattr(pool.cache, "get", lambda _: pending.future.result())  # noqa: B023
                again = ask_of(pool, store, f"{ONE}/{path}", accept, **asked)
            assert (finished.status, finished.headers) == (again.status, again.headers)
            assert (finished.length, payload(finished)) == (again.length, payload(again))


@pytest.mark.parametrize(("conditions", "times"), [({}, 0), ({"if-none-match": '"another"'}, 1)])
def test_the_entity_tag_is_computed_after_the_frame(store, conditions, times, monkeypatch):
    """Unless the client may have it."""
    kind, tags = KINDS["12 in 16"], []
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    monkeypatch.setattr(answering, "etag_of", lambda *said: tags.append(said) or '"tag"')
    with closing(PixelPool(1, cached=0)) as pool:
        pending = ask_of(pool, store, f"{ONE}/frames/2", "image/jls", **conditions)
        pending.future.result(30)
        assert len(tags) == times
        pending.finish(b"made")
    assert len(tags) == times + 1


def test_the_error_of_a_frame_lists_what_is_acceptable(store):
    """Or the frame is sent as it is stored, if that is acceptable."""
    kind = KINDS["12 in 16"]
    keep(store, stored_as(image(kind, arrays_of(kind, 1)), RLE, [bytes(100)]))
    with closing(PixelPool(1)) as pool:
        jls = frames_of_type("image/jls", JPEG_LS)
        with pytest.raises(NotAcceptable) as refused:
            ask_of(pool, store, f"{ONE}/frames/1", jls).answer()
        assert any(RLE in each for each in refused.value.acceptable)
        answer = ask_of(
            pool, store, f"{ONE}/frames/1", 'multipart/related; type="application/octet-stream"'
        ).answer()
        ((headers, content),) = parts_of(answer)
        assert (content[:100], RLE in headers["content-type"]) == (bytes(100), True)
    store.readers.forget()
    assert not store.readers._open


class FakeProcesses:
    """A FramePool whose tasks never end."""

    def __init__(self):
        self.answers = []

    def submit(self, work, frames, *arguments, deadline, here=False):
        self.answers.append(ManualAnswer())
        return self.answers[-1]

    def close(self):
        pass


def test_a_client_that_leaves_cancels_its_frame_alone(store):
    """Unless another client waits for it."""
    kind = KINDS["12 in 16"]
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    with closing(PixelPool(1)) as pool:
        pool._pool = processes = FakeProcesses()
        first, second = (ask_of(pool, store, f"{ONE}/frames/2", "image/jls") for _ in range(2))
        (task,) = processes.answers
        first.cancel()
        assert not task.cancelled()
        second.cancel()
        assert task.cancelled()
        assert second.future.cancelled()


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_segment_that_ends_within_a_frame_is_corrupt(store, size, monkeypatch):
    """Whether the frame is copied, or read by the process that works on it."""
    monkeypatch.setattr(transcoding, "PLACED", size)
    kind = KINDS["12 in 16"]
    keep(store, stored_as(image(kind, arrays_of(kind)), LITTLE))
    accept = frames_of_type("image/jls", JPEG_LS)
    (segment,) = store.layout.segment_files().values()
    os.truncate(segment, segment.stat().st_size - 3)
    assert ask(store, f"{ONE}/frames/1", accept=accept).status == 200
    with pytest.raises(StoreCorrupt):
        ask(store, f"{ONE}/frames/{len(arrays_of(kind))}", accept=accept)


def ask_of(pool, store, path, accept, **headers):
    """The answer that the loop has."""
    return computed(store, path, pool=pool, accept=accept, **headers)


def test_long_answers_are_made_while_they_are_sent(store, monkeypatch):
    kind = KINDS["12 in 16"]
    arrays = arrays_of(kind, 7)
    keep(store, stored_as(image(kind, arrays), LITTLE))
    for module in (transcoding, frame_answers):
        monkeypatch.setattr(module, "AT_ONCE", 1)
    monkeypatch.setattr("streamsrv.retrieve.datasets.AT_ONCE", 1)
    monkeypatch.setattr(transcoding, "BATCH_FRAMES", 2)
    answer = ask(store, f"{ONE}/frames/7,1,2,3,4,5,6", accept=frames_of_type("image/jls", JPEG_LS))
    assert answer.length is None
    found = parts_of(answer)
    decoded = [registry.decode(frame, JPEG_LS, info_of(kind))[0] for _, frame in found]
    assert decoded == [arrays[n].tobytes() for n in (6, 0, 1, 2, 3, 4, 5)]
    coded = opened(instance_in(store, JPEG_LS))
    assert pydicom.encaps.parse_basic_offsets(coded.PixelData) == []
    assert np.array_equal(shown_values(coded), arrays)
    replaced(store, stored_as(image(kind, arrays), RLE, rle(kind, arrays)))
    answer = ask(store, ONE, accept=of_syntax(LITTLE))
    assert any(isinstance(piece, ByteStream) for piece in answer.plan)
    whole = payload(answer)
    assert len(whole) == answer.length
    middle = ask(store, ONE, accept=of_syntax(LITTLE), range=f"bytes=9000-{len(whole) - 500}")
    assert payload(middle) == whole[9000 : len(whole) - 499]


def test_who_leaves_cancels_what_is_under_way(store):
    kind = Kind(rows=700, columns=700)
    keep(store, stored_as(image(kind, arrays_of(kind, 12)), LITTLE))
    answer = ask(store, f"{ONE}/frames/1,2,3,4,5,6,7,8,9,10,11,12", accept=frames_of_type("image/jp2", J2K))
    chunks = answer.plan[0].chunks(0, None)
    assert next(chunks)
    assert POOL._pool.unfinished > 0
    answer.release()
    end = time.monotonic() + 10
    while POOL._pool.unfinished and time.monotonic() < end:
        time.sleep(0.01)
    assert POOL._pool.unfinished == 0
    chunks.close()


def test_the_plan_of_many_instances_is_not_made_before_it_is_sent(store, monkeypatch):
    kind = KINDS["12 in 16"]
    arrays = arrays_of(kind, 1)
    keep(store, *(stored_as(image(kind, arrays, f"1.2.3.4.{n}"), LITTLE) for n in range(1, 30)))
    orders = []
    submit = POOL.submit
    monkeypatch.setattr(POOL, "submit", lambda order: orders.append(order) or submit(order))
    answer = ask(store, f"/studies/{STUDY}", accept=of_syntax(JPEG_LS))
    assert len(orders) <= 3
    found = parts_of(answer)
    assert len(orders) == len(found) == 29
    assert set(labels_of(found)) == {JPEG_LS}


def test_a_frame_longer_than_any_encoder_makes_it(store, monkeypatch):
    monkeypatch.setattr(transcoding, "MARGIN", 0)
    kind = KINDS["8 bit"]
    keep(store, stored_as(image(kind, arrays_of(kind, 1)), RLE, [bytes(5 * 40 * 34)]))
    assert refused(store, ONE, of_syntax(LITTLE))


def test_targets_name_what_can_be_had():
    assert transcoding.targets(MPEG4) == ()
    assert transcoding.targets("1.2.3.4.5.6") == ()
    assert JXL_JPEG in transcoding.targets(BASELINE)
    assert JXL_JPEG not in transcoding.targets(LITTLE)
    assert LITTLE in transcoding.instance_targets(BIG)
    assert not instances.is_made(BIG, LITTLE)
