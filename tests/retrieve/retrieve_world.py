"""A store with made instances, and requests to it without HTTP."""

import io
import re
import weakref

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from streamsrv.ingest import Ingest
from streamsrv.pixels.pool import PixelPool
from streamsrv.retrieve import Retrieve
from streamsrv.wire.answers import Literal, Request, Span, resolved
from streamsrv.wire.multipart import MultipartParser, PartBegin, PartEnd, Payload, content_type_of
from streamsrv.wire.resources import parse_query, target_of

STUDY, SERIES = "1.2.3", "1.2.3.4"
SECRET = b"profile bytes " * 100
POOL = PixelPool(1)  # starts no process before it has to decode


def instance_path(instance, series=SERIES, study=STUDY):
    return f"/studies/{study}/series/{series}/instances/{instance}"


def dataset_of(instance, *, series=SERIES, study=STUDY, pixels=b"\1\2" * 16):
    """A small CT with a nested bulk value."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.PatientName, dataset.Modality = "ID1", "Doe^Jane", "CT"
    optical = Dataset()
    optical.ICCProfile, optical.OpticalPathIdentifier = SECRET, "1"
    dataset.OpticalPathSequence = [optical]
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.PixelData = 0, pixels
    dataset["PixelData"].VR = "OW"
    return dataset


def part10(dataset, syntax=ExplicitVRLittleEndian):
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def keep(store, *contents, content_type="application/dicom"):
    """Store Part 10 files, or bodies of another type."""
    for content in contents:
        ingest = Ingest(store, content_type=content_type)
        ingest.begin()
        ingest.feed(content)
        result = ingest.finish()
        assert not result.failed, result.failed


ROOMS = weakref.WeakKeyDictionary()  # store -> (pool, Retrieve)


def room_of(store, pool=None):
    """The same one as long as the pool is the same."""
    pool = pool or POOL
    if store not in ROOMS or ROOMS[store][0] is not pool:
        ROOMS[store] = pool, Retrieve(store, pool)
    return ROOMS[store][1]


def ask(store, path, *, method="GET", pool=None, **headers):
    """The answer to a request; header names with underscores."""
    return resolved(computed(store, path, method=method, pool=pool, **headers))


def computed(store, path, *, method="GET", pool=None, **headers):
    """The same, be it pending or deferred."""
    place, _, query = path.partition("?")
    names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    request = Request(method, f"/v2{place}", parse_query(query), names, "http://h/v2", 2)
    return room_of(store, pool).answer(request, target_of(f"/v2{place}"))


def payload(answer):
    """All bytes of an answer, which is given back; their number is what the answer says."""
    parts = []
    for piece in answer.plan:
        if isinstance(piece, Literal):
            parts.append(piece.payload)
        elif isinstance(piece, Span):
            parts.append(pread(*answer.file_at(piece.segment, piece.offset), piece.length))
        else:
            parts += piece.chunks(0, piece.length)
    if answer.release:
        answer.release()
    whole = b"".join(parts)
    assert answer.length in (None, len(whole))
    return whole


def pread(descriptor, offset, length):
    with open(descriptor, "rb", closefd=False, buffering=0) as source:
        source.seek(offset)
        return source.read(length)


def header(answer, name):
    values = [value for each, value in answer.headers if each.lower() == name.lower()]
    assert len(values) <= 1
    return values[0] if values else None


def parts_of(answer, besides=()):
    """(headers, bytes) of each part of a multipart answer. Media types `besides` its own may occur."""
    media = content_type_of(header(answer, "content-type"))
    assert media.type == "multipart/related"
    boundary, body = media.parameters["boundary"].encode(), payload(answer)
    assert body.startswith(b"--" + boundary)
    parser = MultipartParser(boundary)
    parts = []
    for event in parser.feed(body):
        if isinstance(event, PartBegin):
            parts.append((event.headers, bytearray()))
        elif isinstance(event, Payload):
            parts[-1][1].extend(event.view)
        else:
            assert isinstance(event, PartEnd) or event is not None
    parser.close()
    for headers, _ in parts:
        label = headers["content-type"]
        assert label in besides or re.match(re.escape(media.parameters["type"]), label)
    return [(headers, bytes(text)) for headers, text in parts]
