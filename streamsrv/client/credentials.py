"""The credentials of the client: arguments of the command line to request headers and a TLS context. All
verbs that ask a service share them.

Rules
- Each secret can come from a file, because other users of the machine can read arguments.
- No message has a secret: messages of http.client, netrc and argparse would quote it, so values are checked
  before. `redact` also covers a service that repeats a secret in its answer.
- The headers belong to one origin (RFC 6454). A client that follows a redirect to another one asks
  `same_origin` before.
- A token file is read again for each request, so a token that another program renews stays valid.
"""

from __future__ import annotations

import argparse
import base64
import getpass
import ipaddress
import netrc
import re
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamsrv.client.client_credentials import ClientLogin
from streamsrv.config import SettingsError

AUTHORIZATION = "authorization"
# Headers that belong to the client, because they describe the message that it makes.
OWN_HEADERS = frozenset(
    (
        *("accept", "connection", "content-encoding", "content-length", "content-type", "expect", "host"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    )
)
# The arguments that name a file.
FILES = (
    *("token_file", "password_file", "netrc_file", "oidc_client_credentials"),
    *("cacert", "cert", "key"),
)
LONGEST_SECRET = 64 << 10  # bytes of a file with a secret
SHORTEST_REDACTED = 4  # characters: to replace each "1" would destroy the message
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")  # 5.5
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 2.1
PORTS = {"http": 80, "https": 443}


class Credentials:
    """The proofs of identity for one origin. `authorization` returns the value of the header, or None; it is
    called for each request and raises SettingsError. `refused` is called before that, if the service has
    refused the value. `context` is None for http."""

    def __init__(
        self,
        authorization: Callable[[], str | None] = lambda: None,
        headers: Sequence[tuple[str, str]] = (),
        context: ssl.SSLContext | None = None,
        secrets: Sequence[str] = (),
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.authorization = authorization
        self.refused = refused
        self.headers = tuple(headers)
        self.context = context
        self._secrets = {*secrets, *(value for _, value in headers)}

    def request_headers(self) -> list[tuple[str, str]]:
        value = self.authorization()
        if value is None:
            return list(self.headers)
        self._secrets |= {value, value.partition(" ")[2]}
        return [*self.headers, ("Authorization", value)]

    def redact(self, text: str) -> str:
        """The text without the secrets of which this object knows."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= SHORTEST_REDACTED:
                text = text.replace(secret, "***")
        return text


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises ValueError for another scheme or a malformed port."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError("not an http or https URL")
    return parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme]


def same_origin(one: str, other: str) -> bool:
    try:
        return origin_of(one) == origin_of(other)
    except ValueError:
        return False


def service_url(text: str) -> str:
    """The type of `--url`. The message of a refusal never quotes a password."""
    try:
        parts = urlsplit(text)
        origin_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_without_login(text)!r} is not an http or https URL") from None
    if parts.username is not None or parts.password is not None:
        raise argparse.ArgumentTypeError(
            "a URL with a name or password is not accepted: use --user or --netrc"
        )
    return text


def _without_login(text: str) -> str:
    return re.sub(r"[^/]*@", "", text)


def add_arguments(parser: argparse.ArgumentParser, prefix: str = "", title: str = "credentials") -> None:
    """The arguments that `credentials_of` reads. All names begin with `prefix`, such as `to-`."""
    group = parser.add_argument_group(title)

    def add(to: argparse._ActionsContainer, name: str, **options: Any) -> None:
        dest = (prefix + name).replace("-", "_")
        to.add_argument(f"--{prefix}{name}", dest=dest, **options)

    ways = group.add_mutually_exclusive_group()
    add(ways, "token-file", metavar="FILE", help="a bearer token or key; `-` is standard input")
    password = f"--{prefix}password-file"
    add(ways, "user", metavar="NAME", help=f"a name; the password is asked for, or in {password}")
    add(ways, "netrc", action="store_true", help="name and password are in ~/.netrc")
    add(ways, "netrc-file", metavar="FILE", type=Path, help="name and password are in FILE")
    add(
        ways,
        "oidc-client-credentials",
        metavar="FILE",
        type=Path,
        help="tokens of an OpenID Connect issuer; FILE is TOML with issuer, client_id and client_secret",
    )
    add(group, "password-file", metavar="FILE", help=f"the password of --{prefix}user; `-` is standard input")
    add(
        group,
        "header",
        metavar="LINE",
        action="append",
        default=[],
        help="a request header `Name: value`, or `@FILE` with one header a line; several are possible",
    )
    trust = "trust these certificates (PEM) instead of the system's"
    add(group, "cacert", metavar="FILE", type=Path, help=trust)
    add(group, "cert", metavar="FILE", type=Path, help="the certificate of this client (PEM)")
    key = f"the private key of --{prefix}cert, if that file has none"
    add(group, "key", metavar="FILE", type=Path, help=key)


def arguments_of(pairs: Sequence[tuple[str, str]]) -> argparse.Namespace:
    """Arguments for `credentials_of`, as names and values: `user`, `header`, and FILES."""
    headers = [value for name, value in pairs if name == "header"]
    files = {name: Path(value) for name, value in pairs if name in FILES}
    found = dict.fromkeys(FILES) | files | {"user": dict(pairs).get("user")}
    return argparse.Namespace(**found, netrc=False, header=headers, quiet=True)


def credentials_of(args: argparse.Namespace, url: str, prefix: str = "") -> Credentials:
    """Raises SettingsError if a file cannot be read or has no valid secret."""
    if prefix:
        start = prefix.replace("-", "_")
        named = {key.removeprefix(start): value for key, value in vars(args).items() if key.startswith(start)}
        args = argparse.Namespace(**{**vars(args), **named})
    headers = [header for line in args.header for header in _headers_of(line)]
    names = {name.lower() for name, _ in headers}
    ways = (args.token_file, args.user, args.netrc, args.netrc_file, args.oidc_client_credentials)
    if AUTHORIZATION in names and any(ways):
        raise SettingsError("--header gives Authorization, and so does another argument: use one of them")
    if args.password_file and not args.user:
        raise SettingsError("--password-file needs --user")
    context = _context_of(args, url)
    if args.oidc_client_credentials:
        login = ClientLogin(args.oidc_client_credentials, args.cacert)
        credentials = Credentials(login, headers, context, (login.secret,), login.forget)
    else:
        authorization, secrets = _authorization_of(args, url)
        credentials = Credentials(authorization, headers, context, secrets)
    value = credentials.authorization()  # a fault is found before the first request
    if (value is not None or headers) and not args.quiet and not _confidential(url):
        print(
            "streamsrv: the URL is not https: others in the network can read the credentials", file=sys.stderr
        )
    return credentials


def _confidential(url: str) -> bool:
    scheme, host, _ = origin_of(url)
    if scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# Authorization


def _authorization_of(args: argparse.Namespace, url: str) -> tuple[Callable[[], str | None], Sequence[str]]:
    if args.token_file:
        return _bearer(args.token_file), ()
    if args.user:
        name, password = _user(args)
    elif args.netrc or args.netrc_file:
        name, password = _netrc_entry(args.netrc_file, origin_of(url)[1])
    else:
        return (lambda: None), ()
    value = _basic(name, password)
    return (lambda: value), (password,)


def _bearer(file: str) -> Callable[[], str]:
    if file != "-":
        return lambda: "Bearer " + _token(_secret_in(file), file)
    value = "Bearer " + _token(_secret_in(file), "standard input")
    return lambda: value


def _token(text: str, where: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise SettingsError(
            f"{where} is not a bearer token (RFC 6750): one line of letters, digits and -._~+/="
        )
    return text


def _basic(name: str, password: str) -> str:
    """RFC 7617 2, in UTF-8."""
    if any(ord(character) < 32 or ord(character) == 127 for character in name + password):
        raise SettingsError("a name or password has a control character")
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode("ascii")


def _user(args: argparse.Namespace) -> tuple[str, str]:
    name, colon, password = args.user.partition(":")
    if args.password_file:
        if colon:
            raise SettingsError("--user has a password, and so does --password-file: use one of them")
        return name, _secret_in(args.password_file)
    if colon:
        sentence = "other users of this machine can read a password in the arguments: use --password-file"
        print(f"streamsrv: {sentence}", file=sys.stderr)
        return name, password
    if not sys.stdin.isatty():
        raise SettingsError(
            "--user needs --password-file, because there is no terminal to ask for the password"
        )
    return name, getpass.getpass(f"Password of {name}: ")


def _netrc_entry(file: Path | None, host: str) -> tuple[str, str]:
    """Name and password for the host. Messages of the module netrc quote the file, so they are dropped."""
    path = file or _default_netrc()
    try:
        entry = netrc.netrc(str(path)).authenticators(host)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except netrc.NetrcParseError as error:
        raise SettingsError(f"{path}, line {error.lineno}: malformed") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8") from None
    if entry is None:
        raise SettingsError(f"{path} has no entry for {host}")
    return entry[0] or "", entry[2] or ""


def _default_netrc() -> Path:
    """Windows has `_netrc` where no `.netrc` exists, as curl."""
    usual, windows = Path.home() / ".netrc", Path.home() / "_netrc"
    return windows if windows.exists() and not usual.exists() else usual


def _secret_in(file: str) -> str:
    """The text of a file without a line end, or of standard input."""
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(LONGEST_SECRET + 1)
        else:
            with open(file, "rb") as stream:
                raw = stream.read(LONGEST_SECRET + 1)
        text = raw.decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text") from None
    if not text:
        raise SettingsError(f"{file} is empty")
    if len(raw) > LONGEST_SECRET or "\n" in text:
        raise SettingsError(f"{file} has more than one line")
    return text


# Other headers, TLS


def _headers_of(argument: str) -> Iterator[tuple[str, str]]:
    if not argument.startswith("@"):
        yield _header(argument, "--header")
        return
    path = Path(argument[1:])
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text") from None
    yield from (
        _header(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    )


def _header(line: str, where: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: a header is `Name: value`")
    if not _VALUE.fullmatch(value):
        raise SettingsError(
            f"{where}: the value of {name} is empty or has characters that a header cannot have"
        )
    if name.lower() in OWN_HEADERS:
        raise SettingsError(f"{where}: the client itself sets {name}")
    return name, value


def _context_of(args: argparse.Namespace, url: str) -> ssl.SSLContext | None:
    if origin_of(url)[0] != "https":
        if args.cacert or args.cert or args.key:
            raise SettingsError("--cacert, --cert and --key need an https URL")
        return None
    if args.key and not args.cert:
        raise SettingsError("--key needs --cert")
    context = _trusting(args.cacert)
    if args.cert:
        _add_certificate(context, args.cert, args.key)
    return context


def _trusting(cacert: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(cacert) if cacert else None)
    except ssl.SSLError:
        raise SettingsError(f"{cacert} has no certificate in PEM") from None
    except OSError as error:
        raise SettingsError(f"{cacert}: {error.strerror or 'cannot be read'}") from None


def _add_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    def password() -> str:
        if not sys.stdin.isatty():
            raise SettingsError(
                f"{key or cert} is encrypted, and there is no terminal to ask for its password"
            )
        return getpass.getpass(f"Password of {key or cert}: ")

    try:
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError:
        raise SettingsError(
            f"{cert} and {key or cert} are not a certificate and its private key in PEM"
        ) from None
    except OSError as error:
        raise SettingsError(f"{cert} or {key or cert}: {error.strerror or 'cannot be read'}") from None
