"""Access tokens: which of them the verifier takes (RFC 7519, RFC 8725, RFC 9068)."""

import base64
import json
import re
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.web.access.roles import Roles
from streamsrv.web.access.tokens import LEEWAY, TokenRefused, TokenVerifier, UnknownKey, VerificationKeys

ISSUER, AUDIENCE = "https://login.example/realms/clinic", "streamsrv"


def rsa_key(bits=2048):
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


RSA = rsa_key()
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(private, kid, **more):
    algorithm = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
    }
    kinds = [each for kind, each in algorithm.items() if isinstance(private, kind)]
    kind = kinds[0] if kinds else jwt.algorithms.OKPAlgorithm
    return kind.to_jwk(private.public_key(), as_dict=True) | {"kid": kid} | more


KEYS = [jwk(RSA, "rsa", use="sig"), jwk(EC, "ec"), jwk(ED, "ed")]


def claims(**more):
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "iat": now, "exp": now + 300, "scope": "openid"}
    return {name: value for name, value in (usual | more).items() if value is not None}


def token(body=None, key=RSA, algorithm="RS256", **header):
    return jwt.encode(body or claims(), key, algorithm, headers={"kid": "rsa"} | header)


def verify(text, keys=KEYS, audiences=(AUDIENCE,)):
    return TokenVerifier(ISSUER, audiences).verify(text, VerificationKeys(keys))


def without_signature(header, body):
    parts = (json.dumps(each).encode() for each in (header, body))
    return ".".join([*(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in parts), ""])


def good_tokens():
    """Made when the test runs: some of them end soon."""
    return [
        token(),
        *(token(algorithm=name) for name in ("RS512", "PS256")),
        token(key=EC, algorithm="ES256", kid="ec"),
        token(key=ED, algorithm="EdDSA", kid="ed"),
        token(claims(aud=["account", AUDIENCE])),
        token(claims(scope=None), typ="at+jwt"),
        token(claims(scope=None, typ="Bearer", nonce="1", azp="viewer")),  # Keycloak
        token(claims(scope=None, scp="Studies.Read", ver="2.0")),  # Entra, a user
        token(claims(scope=None, roles=["reader"], azp="1", azpacr="1")),  # Entra, an application
        token(claims(exp=int(time.time()) - LEEWAY + 10)),
        token(claims(nbf=int(time.time()) + LEEWAY - 10)),
        jwt.encode(claims(), ED, "EdDSA"),  # it names no key, and one of them fits
    ]


def test_good_tokens():
    for text in good_tokens():
        found = verify(text)
        assert found.subject == "anna"
        assert found.until == found.claims["exp"] + LEEWAY


def public_pem():
    return RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hmac_with_public_key():
    signing = without_signature({"alg": "HS256", "kid": "rsa", "typ": "JWT"}, claims()).rstrip(".")
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = algorithm.sign(signing.encode(), public_pem())
    return f"{signing}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def altered():
    head, _, signature = token().split(".")
    other = without_signature({}, claims(sub="root")).split(".")[1]
    return f"{head}.{other}.{signature}"


def bad_tokens():
    """Name -> the token, and the reason for its refusal."""
    old, soon = int(time.time()) - LEEWAY - 5, int(time.time()) + LEEWAY + 30
    return {
        "empty": ("", "three parts"),
        "no JWT": ("abc", "three parts"),
        "encrypted": ("ey.ey.ey.ey.ey", "three parts"),
        "no header": ("ey!.e30.AA", "no JSON object"),
        "a header in a list": (
            f"{base64.urlsafe_b64encode(b'[[[[' * 900).decode()}.e30.AA",
            "no JSON object",
        ),
        "alg none": (without_signature({"alg": "none", "typ": "JWT"}, claims()), "algorithm"),
        "alg None": (without_signature({"alg": "None", "typ": "JWT"}, claims()), "algorithm"),
        "alg a list": (without_signature({"alg": ["RS256"]}, claims()), "algorithm"),
        "no signature": (without_signature({"alg": "RS256", "kid": "rsa"}, claims()), "ignature"),
        "HS256 with the public key": (hmac_with_public_key(), "algorithm"),
        "altered": (altered(), "ignature"),
        "another key": (token(key=rsa_key()), "ignature"),
        "a key of another kind": (token(key=EC, algorithm="ES256"), "no such key"),
        "unknown key": (token(kid="new"), "no such key"),
        "key id a number": (without_signature({"alg": "RS256", "kid": 1}, claims()), "key id"),
        "issuer": (token(claims(iss="https://login.example/realms/other")), "issuer"),
        "issuer with a slash": (token(claims(iss=ISSUER + "/")), "issuer"),
        "no issuer": (token(claims(iss=None)), "iss"),
        "audience": (token(claims(aud="account")), "udience"),
        "part of the audience": (token(claims(aud="stream")), "udience"),
        "no audience": (token(claims(aud=None)), "aud"),
        "expired": (token(claims(exp=old)), "expired"),
        "no end": (token(claims(exp=None)), "exp"),
        "end in words": (token(claims(exp="never")), "malformed|exp"),
        "endless": (token(claims(exp=float("inf"))), "malformed|exp|infinity"),
        "not yet": (token(claims(nbf=soon)), "nbf"),
        "made in the future": (token(claims(iat=soon)), "iat"),
        "no subject": (token(claims(sub=None)), "sub"),
        "empty subject": (token(claims(sub="")), "subject"),
        "a line break in the subject": (token(claims(sub="anna\nroot")), "subject"),
        **{
            name: (token(**{name: value}), f"header has {name}")
            for name, value in {
                "jku": "https://evil.example/keys",
                "x5u": "https://evil.example/certificate",
                "jwk": jwk(rsa_key(), "rsa"),
                "x5c": ["AA"],
                "crit": ["exp"],
            }.items()
        },
        "ID token": (token(claims(scope=None, nonce="1", at_hash="2")), "ID token"),
        "ID token without a hash": (token(claims(scope=None, nonce="1", azp="viewer")), "ID token"),
        "ID token of Keycloak": (token(claims(typ="ID", scope=None)), "no access token"),
        "ID token with nonce and scope": (token(claims(nonce="1")), "ID token"),
        "refresh token": (token(claims(typ="Refresh")), "no access token"),
        "ID token of Cognito": (token(claims(token_use="id")), "no access token"),
        "logout token": (token(claims(events={})), "logout"),
        "logout type": (token(typ="logout+jwt"), "type"),
        "bound to a key": (token(claims(cnf={"jkt": "1"})), "bound"),
        "too long": (token(claims(groups=["x" * 40] * 150)), "bytes"),
        "10,000 claims": (token(claims(**{f"c{number}": 1 for number in range(10_000)})), "bytes"),
        "a deep claim": (
            jwt.api_jws.encode(b'{"a":' + b"[" * 5000, RSA, "RS256", {"kid": "rsa"}),
            "malformed|recursion",
        ),
    }


def refusal_of(text):
    try:
        verify(text)
    except TokenRefused as refusal:
        return refusal
    return None


def test_bad_tokens():
    for name, (text, reason) in bad_tokens().items():
        refusal = refusal_of(text)
        assert refusal is not None, name
        assert re.search(reason, str(refusal)), name
        assert isinstance(refusal, UnknownKey) == ("no such key" in reason), name


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "kid": "rsa", "k": base64.urlsafe_b64encode(public_pem()).decode()},
        jwk(RSA, "rsa", use="enc"),
        jwk(RSA, "rsa", key_ops=["encrypt"]),
        jwk(RSA, "rsa", alg="RS512"),
        {"kty": "RSA", "kid": "rsa", "n": "AA", "e": "AQAB"},
        {"kty": "RSA", "kid": "rsa", "n": 1, "e": []},
        {"kid": "rsa"},
    ],
)
def test_unusable_keys(key):
    with pytest.raises(TokenRefused):
        verify(token(), [key])


def test_a_short_key_is_refused():
    short = rsa_key(1024)
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        text = token(key=short)
    with pytest.raises(TokenRefused, match="InvalidKeyError"):
        verify(text, [jwk(short, "rsa")])


def test_a_key_id_may_occur_twice():
    """RFC 7517 4.5: keys of different types for one purpose may share their id."""
    assert verify(token(key=EC, algorithm="ES256"), [jwk(RSA, "rsa"), jwk(EC, "rsa")])


def test_a_token_names_its_key_if_several_fit():
    with pytest.raises(TokenRefused, match="several"):
        verify(jwt.encode(claims(), RSA, "RS256"), [jwk(RSA, "a"), jwk(rsa_key(), "b")])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
CLAIMS = ("iss", "aud", "sub", "exp", "nbf", "iat", "jti", "scope", "typ", "nonce", "token_use", "roles")
HEADERS = ("alg", "kid", "typ", "jku", "crit", "b64", "cty")


def signed(header, body):
    """A token with any header and claims, signed by the Ed25519 key."""
    text = without_signature(header, body).rstrip(".")
    return f"{text}.{base64.urlsafe_b64encode(ED.sign(text.encode())).decode().rstrip('=')}"


@pytest.mark.no_cover
@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(CLAIMS), VALUES), st.dictionaries(st.sampled_from(HEADERS), VALUES))
def test_whatever_an_issuer_signs_is_accepted_or_refused(changes, header):
    """No other exception, which would be an answer with 500."""
    text = signed({"alg": "EdDSA", "kid": "ed"} | header, claims() | changes)
    if refusal_of(text) is None:
        found = verify(text)
        assert found.subject == found.claims["sub"]
        grant = Roles(["* -> search", "a -> read where PatientID={roles}"], ["roles", "scope"]).grant(
            found.claims
        )
        assert grant[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_token_with_a_changed_byte_is_refused(data):
    text = token(key=ED, algorithm="EdDSA", kid="ed")
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(max_codepoint=0x17F).filter(lambda each: each != text[place]))
    changed = text[:place] + other + text[place + 1 :]
    assert refusal_of(changed) is not None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(("kty", "kid", "use", "alg", "n", "e")), VALUES), max_size=3))
def test_a_key_set_of_anything_accepts_nothing(keys):
    text = token()
    with pytest.raises(TokenRefused):
        verify(text, [{"kty": "RSA", "kid": "rsa"} | key for key in keys])
