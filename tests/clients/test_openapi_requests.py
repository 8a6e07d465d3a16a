"""Whatever the OpenAPI description allows is asked of a real server: nothing fails, and no answer has a
status, a media type or a body that is not described.

Identifiers are mostly those of the clinic, and hostile texts go in beside allowed ones. What deletes gets
made up identifiers only.
"""

import clinic as world
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from live_server import start_server
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from streamsrv.web.describe import document

EXAMPLES = {"GET": 6, "POST": 8, "DELETE": 5, "HEAD": 3, "OPTIONS": 2}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
KNOWN = {
    "study": [world.CT_STUDY, world.SLIDE_STUDY, world.OTHER_STUDY],
    "series": [world.CT_SERIES, world.SLIDE_SERIES, world.PALETTE_SERIES, world.LETTER_SERIES],
    "instance": [world.CT_INSTANCES[0], world.SLIDE, world.PALETTE, world.LETTER],
    "frames": ["1", "1,1", "2,1", "9"],
    "frame": [1, 2, 9],
    "path": ["7FE00010", "00420011", "00281201", "00480105/0/00282000"],
}
QUERIES = {
    "includefield": ["all", "PatientName", "00400275.00400009", "Nonsense"],
    "orderby": ["PatientName", "-StudyDate,StudyInstanceUID", "Modality"],
    "accept": [
        "*/*",
        "application/dicom+json",
        "image/png",
        "application/dicom",
        'multipart/related; type="*/*"',
    ],
    "viewport": ["8,8", "4,4,1,1,3,3", "0,0"],
    "window": ["40,400,linear", "0,1,sigmoid", "1,2,3"],
    "StudyDate": ["20240115", "20240101-20240301"],
    "PatientName": ["doe*", "*"],
}
OPERATIONS = [
    (method.upper(), template)
    for template, path in document("http://server/v2")["paths"].items()
    for method in path
    if method != "servers"
]


@schemathesis.serializer("multipart/related")
def write_parts(context, value):
    return str(value).encode()


@schemathesis.serializer("application/dicom")
def write_dicom(context, value):
    return str(value).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One of its own: what is allowed here changes it."""
    running = start_server(tmp_path_factory.mktemp("openapi") / "server", workers=1)
    world.store(f"{running.url}/studies", map(world.file_of, world.everything()))
    yield running
    running.end()


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def tame(case, data):
    """Parameters as clients send them, in place of some of those that were made up."""
    mix = st.integers(0, 3)
    if case.method != "DELETE":
        for name in case.path_parameters or {}:
            if data.draw(mix):
                case.path_parameters[name] = data.draw(st.sampled_from(KNOWN[name]))
    for name in list(case.query or {}):
        if name in QUERIES and data.draw(mix):
            case.query[name] = data.draw(st.sampled_from(QUERIES[name]))
        elif data.draw(mix) == 0:
            del case.query[name]
    if case.method == "POST" and data.draw(mix):
        case.body, case.media_type = data.draw(st.sampled_from(BODIES))
        case.headers["Content-Type"] = case.media_type


BODIES = [
    ("--b\r\n\r\n\r\n--b--", 'multipart/related; type="application/dicom"; boundary=b'),
    ("--b--", 'multipart/related; type="application/dicom"; boundary=b'),
    ("--b\r\n", 'multipart/related; type="application/dicom"; boundary=b'),
    ("", "application/dicom"),
    ("{}", "application/json"),
]


@pytest.mark.parametrize(("method", "template"), OPERATIONS, ids=[" ".join(each) for each in OPERATIONS])
def test_nothing_fails_and_nothing_is_undescribed(schema, method, template):
    operation = schema[template][method]
    modes = st.sampled_from([GenerationMode.POSITIVE, GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

    @seed(20240115)
    @settings(
        max_examples=EXAMPLES[method],
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def ask(data):
        case = data.draw(operation.as_strategy(generation_mode=data.draw(modes)))
        tame(case, data)
        # A range of a compressed text is valid (RFC 9110 14), and the client cannot decompress it.
        answer = case.call(headers={"Accept-Encoding": "identity"} if "Range" in case.headers else None)
        # A part of a JSON text is none.
        case.validate_response(answer, checks=CHECKS[: 3 if answer.status_code == 206 else 4])

    ask()
