"""streamsrv/wire/accept.py"""

from __future__ import annotations

import pytest

from streamsrv.dicom.syntaxes import SYNTAXES
from streamsrv.errors import NotAcceptable
from streamsrv.wire.accept import (
    EXPLICIT,
    MEDIA_SYNTAXES,
    METADATA_OFFERS,
    RULES,
    STORE_OFFERS,
    InstancesChoice,
    Offer,
    Resource,
    Takes,
    canonical,
    choose_bulk,
    choose_frames,
    choose_image,
    choose_instances,
    choose_json,
    parse_accept,
)

IMPLICIT, BIG_ENDIAN, DEFLATED, RAW_ITEMS = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.1.98",
)
JPEG, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JLS, JLS_LOSSY = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
J2K, RLE, HTJ2K, PRIVATE = (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.202",
    "1.2.3.4",
)
OCTETS = "application/octet-stream"
MULTI = "multipart/related; type={}"

# What OHIF asks for when it shows whole slide images (viewers.md).
OHIF_MICROSCOPY = ", ".join(
    f'multipart/related; type="{media_type}"; transfer-syntax={syntax}'
    for media_type, syntax in [
        ("image/jls", JLS),
        ("image/jls", JLS_LOSSY),
        ("image/jp2", J2K),
        ("image/jp2", "1.2.840.10008.1.2.4.91"),
        ("image/jpx", "1.2.840.10008.1.2.4.92"),
        ("image/jpx", "1.2.840.10008.1.2.4.93"),
        (OCTETS, "*"),
        ("image/jpeg", JPEG),
    ]
)


def frames(header: str | None, stored: str, media_type: str, query: tuple[str, ...] = (), **options) -> str:
    options.setdefault("single", True)
    try:
        return str(choose_frames(parse_accept(header, query), stored, media_type, **options))
    except NotAcceptable:
        return "406"


def parts(media_type: str, syntax: str) -> str:
    return f'multipart/related; type="{media_type}"; transfer-syntax={syntax}'


# Frames: each row of the table with a stored JPEG and a stored native image.

FRAME_ROWS = [
    # asked for, JPEG stored, native stored
    (None, parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    ("*/*", parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    ("multipart/related", parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    ('multipart/related; type="*/*"', parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    ('multipart/related; type="*/*"; transfer-syntax=*', parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    (f"*/*; transfer-syntax={JPEG}", parts("image/jpeg", JPEG), "406"),
    (f"*/*; transfer-syntax={EXPLICIT}", "406", parts(OCTETS, EXPLICIT)),
    (MULTI.format(OCTETS), parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    (MULTI.format(OCTETS) + "; transfer-syntax=*", parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    (MULTI.format(OCTETS) + f"; transfer-syntax={EXPLICIT}", "406", parts(OCTETS, EXPLICIT)),
    (MULTI.format(OCTETS) + f"; transfer-syntax={JPEG}", parts("image/jpeg", JPEG), "406"),
    (MULTI.format(OCTETS) + f"; transfer-syntax={IMPLICIT}", "406", "406"),
    (OCTETS, f"image/jpeg; transfer-syntax={JPEG}", f"{OCTETS}; transfer-syntax={EXPLICIT}"),
    (
        f"{OCTETS}; transfer-syntax=*",
        f"image/jpeg; transfer-syntax={JPEG}",
        f"{OCTETS}; transfer-syntax={EXPLICIT}",
    ),
    ("application/*", f"image/jpeg; transfer-syntax={JPEG}", f"{OCTETS}; transfer-syntax={EXPLICIT}"),
    (MULTI.format("image/jpeg"), parts("image/jpeg", JPEG), "406"),
    (MULTI.format("image/jpeg") + "; transfer-syntax=*", parts("image/jpeg", JPEG), "406"),
    (MULTI.format("image/jpeg") + f"; transfer-syntax={JPEG}", parts("image/jpeg", JPEG), "406"),
    (MULTI.format("image/jpeg") + f"; transfer-syntax={JPEG_LOSSLESS}", "406", "406"),
    (MULTI.format("image/jls") + f"; transfer-syntax={JPEG}", "406", "406"),
    ("image/jpeg", f"image/jpeg; transfer-syntax={JPEG}", "406"),
    ("image/*", f"image/jpeg; transfer-syntax={JPEG}", "406"),
    (MULTI.format("image/*") + "; transfer-syntax=*", parts("image/jpeg", JPEG), "406"),
    (MULTI.format("image/*") + f"; transfer-syntax={JPEG}", parts("image/jpeg", JPEG), "406"),
    (MULTI.format("video/*"), "406", "406"),
    ("application/dicom", "406", "406"),
    ("text/html", "406", "406"),
    (OHIF_MICROSCOPY, parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    ("*/*;q=0.1, image/jls", parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    (f"*/*, image/jpeg; transfer-syntax={JPEG};q=0", parts("image/jpeg", JPEG), parts(OCTETS, EXPLICIT)),
    (
        f"multipart/related, {MULTI.format('image/jpeg')}; transfer-syntax={JPEG};q=0",
        "406",
        parts(OCTETS, EXPLICIT),
    ),
]


@pytest.mark.parametrize(("header", "jpeg", "native"), FRAME_ROWS)
def test_frames_that_are_never_transcoded(header: str | None, jpeg: str, native: str) -> None:
    assert frames(header, JPEG, "image/jpeg") == jpeg
    for stored in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, RAW_ITEMS):
        assert frames(header, stored, OCTETS) == native


TRANSCODED_ROWS = [
    # asked for; J2K stored, which can be made into explicit, JPEG-LS and JPEG lossless
    (None, parts(OCTETS, EXPLICIT)),
    ("*/*", parts(OCTETS, EXPLICIT)),
    ("multipart/related", parts(OCTETS, EXPLICIT)),
    ("text/html,*/*;q=0.8", parts(OCTETS, EXPLICIT)),
    ("*/*; transfer-syntax=*", parts("image/jp2", J2K)),
    (f"*/*, {MULTI.format('image/jp2')};q=0.1", parts("image/jp2", J2K)),
    (MULTI.format(OCTETS), parts(OCTETS, EXPLICIT)),
    (OCTETS, f"{OCTETS}; transfer-syntax={EXPLICIT}"),
    (MULTI.format(OCTETS) + "; transfer-syntax=*", parts("image/jp2", J2K)),
    (MULTI.format(OCTETS) + f"; transfer-syntax={JLS}", parts("image/jls", JLS)),
    (MULTI.format(OCTETS) + f"; transfer-syntax={RLE}", "406"),
    (MULTI.format("image/jls"), parts("image/jls", JLS)),
    (MULTI.format("image/jls") + "; transfer-syntax=*", parts("image/jls", JLS)),
    (MULTI.format("image/jls") + f"; transfer-syntax={JLS_LOSSY}", "406"),
    (MULTI.format("image/jpeg"), parts("image/jpeg", JPEG_LOSSLESS)),
    (MULTI.format("image/dicom+jpeg"), parts("image/jpeg", JPEG_LOSSLESS)),
    (MULTI.format("image/*"), parts("image/jp2", J2K)),
    (f"*/*; transfer-syntax={JLS}", parts("image/jls", JLS)),
    (f"{MULTI.format('image/jls')}, {MULTI.format('image/jpeg')}", parts("image/jls", JLS)),
    (f"{MULTI.format('image/jls')};q=0.5, {MULTI.format('image/jpeg')}", parts("image/jpeg", JPEG_LOSSLESS)),
    (f"{MULTI.format('image/jls')}, {MULTI.format('image/jp2')};q=0.1", parts("image/jp2", J2K)),
    (OHIF_MICROSCOPY, parts("image/jp2", J2K)),
]


@pytest.mark.parametrize(("header", "answer"), TRANSCODED_ROWS)
def test_frames_that_can_be_transcoded(header: str | None, answer: str) -> None:
    assert frames(header, J2K, "image/jp2", transcodable=(EXPLICIT, JLS, JPEG_LOSSLESS)) == answer


def test_every_stored_syntax_goes_out_under_its_own_media_type() -> None:
    for media_type, syntaxes in MEDIA_SYNTAXES.items():
        for syntax in syntaxes:
            assert frames(
                "multipart/related; type=application/octet-stream; transfer-syntax=*", syntax, media_type
            ) == parts(media_type, syntax)
            assert frames(MULTI.format(media_type), syntax, media_type) == parts(media_type, syntax)
            assert frames(parts(media_type, syntax), syntax, media_type) == parts(media_type, syntax)
    assert frames(
        "multipart/related; type=application/octet-stream; transfer-syntax=*", PRIVATE, OCTETS
    ) == parts(OCTETS, PRIVATE)
    assert frames(
        parts("video/H265", "1.2.840.10008.1.2.4.107"), "1.2.840.10008.1.2.4.107", "video/H265"
    ) == parts("video/H265", "1.2.840.10008.1.2.4.107")
    assert (
        frames("video/mpeg", "1.2.840.10008.1.2.4.100", "video/mpeg2")
        == "video/mpeg2; transfer-syntax=1.2.840.10008.1.2.4.100"
    )
    assert frames(MULTI.format(OCTETS), PRIVATE, OCTETS) == parts(OCTETS, PRIVATE)


def test_several_frames_never_go_into_a_single_part() -> None:
    for header in (OCTETS, f"{OCTETS}; transfer-syntax=*", "image/jpeg", "image/*", "application/*"):
        assert frames(header, JPEG, "image/jpeg", single=False) == "406"
    assert frames("*/*", JPEG, "image/jpeg", single=False) == parts("image/jpeg", JPEG)
    assert frames("image/jpeg, multipart/related;q=0.1", JPEG, "image/jpeg", single=False) == parts(
        "image/jpeg", JPEG
    )


def test_one_frame_goes_out_in_the_form_asked_for_first() -> None:
    both = f"image/jpeg, {MULTI.format('image/jpeg')}"
    assert frames(both, JPEG, "image/jpeg") == f"image/jpeg; transfer-syntax={JPEG}"
    assert frames(f"{MULTI.format('image/jpeg')}, image/jpeg", JPEG, "image/jpeg") == parts(
        "image/jpeg", JPEG
    )


def test_query_parameter_beats_the_header() -> None:
    assert (
        frames("image/jls", JPEG, "image/jpeg", query=("image/jpeg",))
        == f"image/jpeg; transfer-syntax={JPEG}"
    )
    assert frames("*/*", JPEG, "image/jpeg", query=("image/jls",)) == parts("image/jpeg", JPEG)


def test_refusal_of_frames_says_what_would_do() -> None:
    with pytest.raises(NotAcceptable) as caught:
        choose_frames(
            parse_accept("image/png"), JPEG, "image/jpeg", transcodable=(EXPLICIT, JPEG), single=True
        )
    assert caught.value.acceptable == (
        parts("image/jpeg", JPEG),
        parts(OCTETS, EXPLICIT),
        f"image/jpeg; transfer-syntax={JPEG}",
        f"{OCTETS}; transfer-syntax={EXPLICIT}",
    )
    for acceptable in caught.value.acceptable:
        assert frames(acceptable, JPEG, "image/jpeg", transcodable=(EXPLICIT, JPEG)) == acceptable
    with pytest.raises(NotAcceptable) as caught:
        choose_frames(parse_accept("image/png"), JPEG, "image/jpeg", single=False)
    assert caught.value.acceptable == (parts("image/jpeg", JPEG),)


# Instances

DICOM = 'multipart/related; type="application/dicom"'
INSTANCE_ROWS = [
    # asked for, then what goes out of explicit, implicit and JPEG: "M" in parts, "S" alone
    (None, ("M", EXPLICIT), ("M", EXPLICIT), ("M", JPEG)),
    ("*/*", ("M", EXPLICIT), ("M", EXPLICIT), ("M", JPEG)),
    ('multipart/related; type="*/*"', ("M", EXPLICIT), ("M", EXPLICIT), ("M", JPEG)),
    (f"{DICOM}; transfer-syntax=*", ("M", EXPLICIT), ("M", EXPLICIT), ("M", JPEG)),
    (DICOM, ("M", EXPLICIT), ("M", EXPLICIT), ("M", JPEG)),
    (f"{DICOM}; transfer-syntax={EXPLICIT}", ("M", EXPLICIT), ("M", EXPLICIT), None),
    (f"{DICOM}; transfer-syntax={JPEG}", None, None, ("M", JPEG)),
    ("application/dicom; transfer-syntax=*", ("S", EXPLICIT), ("S", EXPLICIT), ("S", JPEG)),
    ("application/dicom", ("S", EXPLICIT), ("S", EXPLICIT), ("S", JPEG)),
    ("application/*", ("S", EXPLICIT), ("S", EXPLICIT), ("S", JPEG)),
    (f"application/dicom, {DICOM}; transfer-syntax=*", ("S", EXPLICIT), ("S", EXPLICIT), ("S", JPEG)),
    (f"application/dicom; transfer-syntax={JPEG}, */*;q=0.1", ("M", EXPLICIT), ("M", EXPLICIT), ("S", JPEG)),
    (OCTETS, None, None, None),
    ("application/dicom+json", None, None, None),
    ("image/jpeg", None, None, None),
]


@pytest.mark.parametrize(("header", "explicit", "implicit", "jpeg"), INSTANCE_ROWS)
def test_instances_that_are_never_transcoded(header: str | None, explicit, implicit, jpeg) -> None:
    for stored, expected in (
        (EXPLICIT, explicit),
        (IMPLICIT, implicit),
        (BIG_ENDIAN, implicit),
        (JPEG, jpeg),
    ):
        ranges = parse_accept(header)
        if expected is None:
            with pytest.raises(NotAcceptable) as caught:
                choose_instances(ranges, [stored], single=True)
            acceptable = caught.value.acceptable
            for form in (DICOM, "application/dicom"):
                assert f"{form}; transfer-syntax={stored}" in acceptable
            assert list(acceptable[-2:]) == [MULTI.format(f'"{OCTETS}"'), "application/zip"]
        else:
            form, syntax = expected
            chosen = choose_instances(ranges, [stored], single=True)
            assert chosen == InstancesChoice(form == "M", {stored: syntax})


@pytest.mark.parametrize("stored", [IMPLICIT, BIG_ENDIAN])
def test_a_syntax_that_goes_out_only_if_it_is_named(stored: str) -> None:
    def sent(header: str, syntax: str = stored) -> str:
        return choose_instances(parse_accept(header), [syntax], single=True).syntaxes[syntax]

    for form in (DICOM, "application/dicom", "*/*"):
        assert sent(f"{form}; transfer-syntax={stored}") == stored
        assert sent(f"{form}; transfer-syntax=*") == EXPLICIT
        assert sent(form) == EXPLICIT
        for other in {IMPLICIT, BIG_ENDIAN, EXPLICIT, JPEG} - {stored}:
            with pytest.raises(NotAcceptable):
                sent(f"{form}; transfer-syntax={stored}", other)


def test_several_instances_are_each_answered() -> None:
    stored = [EXPLICIT, IMPLICIT, JPEG, DEFLATED]
    every = choose_instances(parse_accept(f"{DICOM}; transfer-syntax=*"), stored, single=False)
    assert every == InstancesChoice(
        True, {EXPLICIT: EXPLICIT, IMPLICIT: EXPLICIT, JPEG: JPEG, DEFLATED: DEFLATED}
    )
    two = f"{DICOM}; transfer-syntax={EXPLICIT}, {DICOM}; transfer-syntax={JPEG}"
    chosen = choose_instances(parse_accept(two), stored, transcodable={DEFLATED: (EXPLICIT,)}, single=False)
    assert chosen.syntaxes == {EXPLICIT: EXPLICIT, IMPLICIT: EXPLICIT, JPEG: JPEG, DEFLATED: EXPLICIT}
    with pytest.raises(NotAcceptable) as caught:
        choose_instances(parse_accept(two), stored, single=False)
    bulk = 'multipart/related; type="application/octet-stream"'
    assert caught.value.acceptable == (f"{DICOM}; transfer-syntax={DEFLATED}", bulk, "application/zip")
    with pytest.raises(NotAcceptable):
        choose_instances(parse_accept("application/dicom; transfer-syntax=*"), [EXPLICIT], single=False)


def test_a_media_type_has_one_spelling() -> None:
    """That of answers; clients may use capital letters and older names."""
    for row in SYNTAXES.values():
        assert row.media_type in MEDIA_SYNTAXES
    for media_type in MEDIA_SYNTAXES:
        assert canonical(media_type.upper()) == media_type
    for asked, sent in (
        ("video/H265", "video/H265"),
        ("video/mpeg2", "video/mpeg2"),
        ("video/mpeg", "video/mpeg2"),
    ):
        assert choose_image(parse_accept(asked), (sent,)) == Offer(sent)


@pytest.mark.parametrize(
    ("header", "bulk"),
    [
        (MULTI.format(OCTETS), True),
        (MULTI.format("image/jls"), True),
        (MULTI.format("video/*") + "; transfer-syntax=*", True),
        (f"{MULTI.format(OCTETS)}, {DICOM};q=0.9", True),
        (f"{MULTI.format(OCTETS)};q=0.9, {DICOM}", False),
        (f"{MULTI.format(OCTETS)};q=0, */*", False),
        (f"{MULTI.format(OCTETS)};q=0.1, */*", False),
        (MULTI.format("application/*"), False),
        (None, False),
    ],
)
def test_bulk_data_of_instances(header: str | None, bulk: bool) -> None:
    form = choose_instances(parse_accept(header), [EXPLICIT], single=True).form
    assert form == (OCTETS if bulk else "application/dicom")


@pytest.mark.parametrize("other", [MULTI.format(OCTETS), "application/zip"])
def test_a_single_part_of_several_instances_hides_no_other_form(other: str) -> None:
    ranges = parse_accept(f"application/dicom, {other};q=0.5")
    assert choose_instances(ranges, [EXPLICIT], single=True).form == "application/dicom"
    form = choose_instances(ranges, [EXPLICIT, JPEG], single=False).form
    assert form == (OCTETS if OCTETS in other else other)


def test_instances_are_transcoded_or_kept() -> None:
    options = {"transcodable": {JPEG: (EXPLICIT, JLS)}, "single": True}
    for header, syntax in [
        (None, EXPLICIT),
        (DICOM, EXPLICIT),
        ("*/*", EXPLICIT),
        ("multipart/related", EXPLICIT),
        ("*/*; transfer-syntax=*", JPEG),
        (f"*/*, application/dicom; transfer-syntax={JPEG};q=0.1", JPEG),
        (f"{DICOM}; transfer-syntax={JLS}", JLS),
    ]:
        assert choose_instances(parse_accept(header), [JPEG], **options).syntaxes == {JPEG: syntax}


# Datasets as text, images, bulk data


@pytest.mark.parametrize(
    ("header", "metadata", "store"),
    [
        (None, 0, 0),
        ("*/*", 0, 0),
        ("application/*", 0, 0),
        ("application/dicom+json", 0, 0),
        ("application/dicom+json; charset=utf-8", 0, 0),
        ("application/dicom+json; charset=iso-8859-1", None, None),
        ("*/*; charset=iso-8859-1", None, None),
        ("application/dicom+json; charset=iso-8859-1, application/json;q=0.1", 1, 1),
        ("application/dicom+json; transfer-syntax=*", 0, 0),
        ("application/json", 1, 1),
        ("application/json, application/dicom+json", 1, 1),
        ("application/json;q=0.9, application/dicom+json", 0, 0),
        ('multipart/related; type="application/dicom+xml"', 2, None),
        ("application/dicom+xml", None, 2),
        ("application/dicom+xml, */*;q=0.1", 0, 2),
        ('multipart/related; type="*/*"', 2, 0),
        ("multipart/related", 2, 0),
        ("text/html,application/xhtml+xml,*/*;q=0.8", 0, 0),
        ("image/jpeg", None, None),
        ('multipart/related; type="application/dicom"', None, None),
        ("*/*;q=0", None, None),
    ],
)
def test_datasets_as_text(header: str | None, metadata: int | None, store: int | None) -> None:
    for offers, expected in ((METADATA_OFFERS, metadata), (STORE_OFFERS, store)):
        if expected is None:
            with pytest.raises(NotAcceptable) as caught:
                choose_json(parse_accept(header), offers)
            assert caught.value.acceptable == tuple(str(offer) for offer in offers)
        else:
            assert choose_json(parse_accept(header), offers) == offers[expected]


def test_wildcard_in_parts_is_taken_where_nothing_comes_in_parts() -> None:
    assert choose_json(parse_accept('multipart/related; type="*/*"')) == Offer("application/dicom+json")


@pytest.mark.parametrize(
    ("header", "query", "one", "several"),
    [
        (None, (), "image/jpeg", 'multipart/related; type="image/jpeg"'),
        ("*/*", (), "image/jpeg", 'multipart/related; type="image/jpeg"'),
        ("image/*", (), "image/jpeg", "image/gif"),
        ("image/png", (), "image/png", None),
        ("image/png, image/jpeg", (), "image/png", None),
        (
            "image/jxl,image/avif,image/webp,*/*;q=0.8",
            ("image/jpeg",),
            "image/jpeg",
            'multipart/related; type="image/jpeg"',
        ),
        ('multipart/related; type="application/octet-stream"', ("image/jpeg",), "image/jpeg", None),
        ('multipart/related; type="application/octet-stream"', (), None, None),
        (
            'multipart/related; type="image/png"',
            (),
            'multipart/related; type="image/png"',
            'multipart/related; type="image/png"',
        ),
        ("image/webp", (), "image/webp", None),
        ("image/tiff", (), None, None),
        ("image/jpeg;q=0, image/*", (), "image/png", "image/gif"),
    ],
)
def test_images(header: str | None, query: tuple[str, ...], one: str | None, several: str | None) -> None:
    for single, expected in ((True, one), (False, several)):
        ranges = parse_accept(header, query)
        if expected is None:
            with pytest.raises(NotAcceptable) as caught:
                choose_image(ranges, single=single)
            assert 'multipart/related; type="image/jpeg"' in caught.value.acceptable
        else:
            assert str(choose_image(ranges, single=single)) == expected


def test_rendered_pdf_goes_to_a_browser() -> None:
    asked = parse_accept("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
    assert choose_image(asked, ("application/pdf",)) == Offer("application/pdf")


@pytest.mark.parametrize(
    ("header", "one", "several"),
    [
        (None, True, True),
        ("*/*", True, True),
        ('multipart/related; type="application/octet-stream"', True, True),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", True, True),
        ("application/octet-stream", False, None),
        ("application/octet-stream, multipart/related;q=0.5", False, True),
        ("image/jpeg", None, None),
    ],
)
def test_bulk_data(header: str | None, one: bool | None, several: bool | None) -> None:
    for single, multipart in ((True, one), (False, several)):
        if multipart is None:
            with pytest.raises(NotAcceptable):
                choose_bulk(parse_accept(header), single=single)
        else:
            assert choose_bulk(parse_accept(header), single=single) == Offer(OCTETS, multipart)


# The table itself


def test_every_decision_is_used() -> None:
    assert {takes for rule in RULES.values() for takes in rule} == set(Takes)


ROWS = [(*key, form, takes) for key, rule in RULES.items() for form, takes in enumerate(rule)]


@pytest.mark.parametrize(("resource", "media_type", "form", "takes"), ROWS)
def test_rules_hold_for_a_stored_syntax(resource: Resource, media_type: str, form: int, takes: Takes) -> None:
    """Each row, for a JPEG-LS image that can be transcoded into each syntax of the rows."""
    media_type = "image/jls" if "image" in media_type else media_type
    named = ("", "; transfer-syntax=*", f"; transfer-syntax={JLS}")[form]
    ranges = parse_accept(f'multipart/related; type="{media_type}"{named}')
    made = EXPLICIT, JLS
    if resource is Resource.FRAMES:
        sent = choose_frames(ranges, JLS_LOSSY, "image/jls", transcodable=made, single=True).syntax
    else:
        chosen = choose_instances(ranges, [JLS_LOSSY], transcodable={JLS_LOSSY: made}, single=True)
        sent = chosen.syntaxes[JLS_LOSSY]
    expected = {
        Takes.STORED: JLS_LOSSY,
        Takes.UNCOMPRESSED: EXPLICIT,
        Takes.OF_TYPE: JLS_LOSSY,
        Takes.NAMED: JLS,
    }
    assert sent == expected[takes]
