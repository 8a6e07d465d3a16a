"""The registry of framecodecs and the answers of the server agree."""

import pytest

from framecodecs.registry import SYNTAXES
from streamsrv.dicom.syntaxes import lookup
from streamsrv.pixels import transcoding


@pytest.mark.parametrize("row", SYNTAXES.values(), ids=lambda row: row.name)
def test_a_row_is_what_answers_say(row):
    known = lookup(row.uid)
    assert (known.media_type, known.lossy, known.encapsulated) == (
        row.media_type,
        row.lossy,
        row.encapsulated,
    )


@pytest.mark.parametrize("row", SYNTAXES.values(), ids=lambda row: row.name)
def test_what_has_an_encoder_can_be_asked_for(row):
    """From every syntax that has a decoder; tests/retrieve/test_transcoding.py does it."""
    sources = [uid for uid in SYNTAXES if row.uid in transcoding.instance_targets(uid)]
    if not row.encapsulated and row.uid != transcoding.EXPLICIT_VR_LITTLE_ENDIAN:
        assert not sources  # never sent (PS3.18 8.7.3), or as good as uncompressed
    elif row.encode_libraries:
        others = [other.uid for other in SYNTAXES.values() if other.decode_libraries]
        own = [] if row.uid == transcoding.EXPLICIT_VR_LITTLE_ENDIAN else [row.uid]
        assert set(sources) == set(others) - set(own)
    else:
        is_recompression = row.uid == "1.2.840.10008.1.2.4.111"
        assert sources == (["1.2.840.10008.1.2.4.50"] if is_recompression else [])
