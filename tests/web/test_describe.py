"""The description of this service for machines: complete, valid, and the same in all its forms."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from web_world import Raw

from streamsrv.query.attributes import QUERY_ATTRIBUTES
from streamsrv.web import describe
from streamsrv.web.operations import described_routes, matching_keys, operations
from streamsrv.wire.accept import parse_accept
from streamsrv.wire.resources import FOLLOWING, PAGES, ROUTES, SHARING, Kind

BASE = "https://example.org/pacs/v2"
ROUTE_NAMES = [route.template or "/" for route in described_routes()]


async def ask(port, line, *headers):
    raw = await Raw.connect(port)
    await raw.send("\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode())
    answer = await raw.answer(body=not line.startswith("HEAD"))
    await raw.close()
    return answer


@pytest.mark.no_cover
def test_it_is_openapi():
    from openapi_spec_validator import OpenAPIV31SpecValidator  # builds 38 grammars: a third of a collection

    OpenAPIV31SpecValidator(describe.document(BASE)).validate()


def test_every_route_and_method_is_described():
    paths = describe.document(BASE)["paths"]
    assert list(paths) == ROUTE_NAMES
    for route in described_routes():
        described = {name for name in paths[route.template or "/"] if name != "servers"}
        assert described == {method.lower() for method in route.allow}


@pytest.mark.parametrize("route", described_routes(), ids=ROUTE_NAMES)
def test_the_representation_of_a_route_is_described(route):
    for operation in operations(route):
        if operation.method == "GET":
            assert route.representation.partition(";")[0] in operation.answers[200]
        assert {parameter.name for parameter in operation.parameters if parameter.place == "path"} == {
            each[1:-1] for each in route.template.split("/") if each.startswith("{")
        }
        if operation.method == "HEAD":
            assert not any(operation.answers.values())


def test_searches_name_what_they_must_match():
    level = {route.template: route for route in ROUTES}
    names = {parameter.name for parameter in matching_keys(level["/instances"])}
    assert names == {row.keyword for row in QUERY_ATTRIBUTES if row.required and "." not in row.tag}
    assert "Modality" not in {parameter.name for parameter in matching_keys(level["/studies"])}


@pytest.mark.no_cover
async def test_over_http(port):
    for version in (1, 2):
        status, headers, payload = await ask(port, f"GET /v{version}/openapi.json")
        assert (status, headers["content-type"]) == (200, "application/json")
        document = json.loads(payload)
        assert document["servers"] == [{"url": f"http://localhost/v{version}"}]
        assert document["paths"]["/health/live"]["servers"] == [{"url": "http://localhost"}]
        status, headers, payload = await ask(port, f"GET /v{version}/api.yaml")
        assert (status, headers["content-type"]) == (200, "application/yaml")
        assert yaml.safe_load(payload) == document
        assert (await ask(port, f"GET /v{version}/api.yaml", f"If-None-Match: {headers['etag']}"))[0] == 304
        status, head, _ = await ask(port, f"HEAD /v{version}/api.yaml")
        assert (status, head["content-length"]) == (200, str(len(payload)))


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v2", "/v2/"])
async def test_the_base_url_has_capabilities(port, path):
    status, headers, payload = await ask(port, f"GET {path}")
    options = await ask(port, f"OPTIONS {path}")
    assert (status, headers["content-type"], payload) == (200, "application/vnd.sun.wadl+xml", options[2])
    assert (await ask(port, f"GET {path}", f"If-None-Match: {headers['etag']}"))[0] == 304
    as_json = await ask(port, f"GET {path}?accept=application/json", "Accept: text/html")
    assert as_json[2] == (await ask(port, f"GET /{path.strip('/')}/openapi.json"))[2]
    assert (await ask(port, f"GET {path}", "Accept: image/png"))[0] == 406


async def test_capabilities_as_json(port):
    status, headers, payload = await ask(port, "OPTIONS /v2/studies", "Accept: application/json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert headers["allow"] == "get, post, head, options"
    assert payload == (await ask(port, "GET /v2/openapi.json"))[2]
    assert (await ask(port, "OPTIONS /v2/studies", "Accept: image/png"))[0] == 406


def test_capabilities_name_parameters_and_statuses():
    (route,) = (route for route in ROUTES if route.template == "/studies/{study}/series")
    answer = describe.capabilities(BASE, route, parse_accept("*/*"))
    document = ElementTree.fromstring(answer.plan[0].payload)
    space = "{http://wadl.dev.java.net/2009/02}"
    resource = next(document.iter(f"{space}resource"))
    assert [each.get("style") for each in resource.findall(f"{space}param")] == ["template"]
    (method,) = resource.findall(f"{space}method")
    names = {each.get("name") for each in method.iter(f"{space}param")}
    assert {"Modality", "limit", "orderby", "If-None-Match"} <= names
    types = [each.get("mediaType") for each in method.find(f"{space}response[@status='200']")]
    assert types == ["application/dicom+json", "application/json", "multipart/related"]


def test_only_known_kinds_are_described():
    assert {route.kind for route in described_routes()} == set(Kind) - {
        route.kind for route in (*PAGES, *SHARING, *FOLLOWING)
    }
