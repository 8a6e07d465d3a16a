"""Names in certificates of clients."""

import pytest

from streamsrv.web.client_certificate import ClientCertificate

FOUND = {
    "subject": (
        (("countryName", "CH"),),
        (("organizationName", "Spital, West"),),
        (("commonName", "device"),),
        (("commonName", 'the "best"'), ("userId", " 7 ")),
    ),
    "subjectAltName": (("DNS", "a.example"), ("DNS", "b.example"), ("email", "a@b.example")),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("subject", 'CN=the \\"best\\"+UID=\\ 7\\ ,CN=device,O=Spital\\, West,C=CH'),
        ("common-name", 'the "best"'),
        ("dns", "a.example"),
        ("email", "a@b.example"),
        ("uri", ""),
    ],
)
def test_the_part_that_names_the_holder(kind, name):
    assert ClientCertificate("00", FOUND, 0.0).name(kind) == name


def test_no_value_pretends_to_be_another_attribute():
    one = ClientCertificate("00", {"subject": ((("commonName", "a,O=b"),),)}, 0.0)
    two = ClientCertificate("00", {"subject": ((("organizationName", "b"),), (("commonName", "a"),))}, 0.0)
    assert one.name("subject") != two.name("subject") == "CN=a,O=b"
