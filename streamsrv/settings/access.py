"""The settings about access: authentication, logins, certificates and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from streamsrv.settings.rows import not_a_header, not_an_endpoint, not_an_issuer, setting

TABLES_OF_ACCESS = {
    "access": "Authentication of clients",
    "oidc": "Logins by an OpenID Connect issuer, and its access tokens",
    "tls": "Certificate, key, and certificates of clients",
    "audit": "The audit trail",
}
_access, _oidc, _tls, _audit = (partial(setting, table) for table in TABLES_OF_ACCESS)


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """A part of `Settings`."""

    auth: str = _access(
        "auto",
        "",
        "Whether each request needs credentials. auto: none on a loopback `host`, required on others. The "
        "page, the viewer and health answer without.",
        choices=("auto", "none", "required"),
    )
    session_time: float = _access(
        43_200.0,
        "seconds",
        "How long a browser stays signed in. A session ends earlier with the key or link that began it.",
        least=60,
    )
    share_time: float = _access(
        2_592_000.0, "seconds", "The longest time for which users can share a study by a link.", least=60
    )

    rules_memory: int = _access(
        64 << 20,
        "bytes, worker",
        "Memory for the studies of rules of access: 330 bytes for each that a rule shows, or hides if these "
        "are few. Half of it is for one rule at most. Searches of a rule with more decide on each study.",
    )

    proxy_user_header: str = _access(
        "",
        "header",
        "The header in which `trusted_proxies` name the user that they have authenticated, such as "
        "X-Forwarded-User. The proxy has to replace this header of its clients. Empty: none.",
        wrong=not_a_header,
    )
    proxy_groups_header: str = _access(
        "",
        "header",
        "The header in which the proxy lists the groups of the user, with commas in between. Empty: none.",
        wrong=not_a_header,
    )
    proxy_roles: tuple[str, ...] = _access(
        ("* -> search read store",),
        "GROUP -> RIGHTS [where ...]",
        "Rights of users of the proxy by group, as in `oidc_roles`; `user:NAME` stands for one user. In a "
        "condition `{user}` is the user, and `{groups}` are the groups.",
    )
    certificate_name: str = _access(
        "subject",
        "",
        "The part of a client certificate that names its holder: the subject as in RFC 4514, its common "
        "name, or the first alternative name of a kind.",
        choices=("subject", "common-name", "email", "dns", "uri"),
    )
    certificate_roles: tuple[str, ...] = _access(
        ("* -> search read store",),
        "NAME -> RIGHTS [where ...]",
        "Rights of holders of client certificates by name, as in `oidc_roles`. In a condition `{name}` is "
        "the name.",
    )

    failed_logins: int = _access(
        300,
        "logins a minute, address and worker",
        "Requests of one address with credentials that are not valid. Others of this kind are answered with "
        "429 and Retry-After; valid credentials still work. 0: no limit.",
    )

    oidc_issuer: str = _oidc(
        "",
        "URL",
        "The issuer of access tokens (JWT), exactly as its metadata spell it. The server reads keys and "
        "endpoints under its /.well-known/openid-configuration. Empty: no tokens.",
        wrong=not_an_issuer,
    )
    oidc_audience: tuple[str, ...] = _oidc(
        (), "names or URIs", "A token is accepted if its `aud` has one of these names of this server."
    )
    oidc_roles_claim: tuple[str, ...] = _oidc(
        ("roles", "realm_access.roles", "groups"),
        "paths",
        "Claims with the roles of a user: a list of texts, or one text with blanks in between. A dot leads "
        "into an object.",
    )
    oidc_roles: tuple[str, ...] = _oidc(
        ("* -> search read store",),
        "ROLE -> RIGHTS [where ...]",
        "Rights of a role: `radiologist -> search read`, and perhaps the studies that it sees: "
        "`ward-a -> search read where InstitutionName=A*`. Every token has the role `*`. In a condition "
        "`{claim}` is a claim of the token.",
    )
    oidc_client_id: str = _oidc(
        "", "name", "The name of this server at the issuer, for logins in the browser. Empty: no such logins."
    )
    oidc_client_secret_file: str = _oidc(
        "",
        "file",
        "The secret of this server at the issuer, in the first line. Empty: a public client, with PKCE only.",
    )
    oidc_scopes: tuple[str, ...] = _oidc(
        ("profile",), "names", "Scopes that a login in the browser asks for, in addition to `openid`."
    )
    oidc_ca_file: str = _oidc(
        "", "file", "Certificates in PEM that vouch for the issuer. Empty: those of the system."
    )
    oidc_allow_http: bool = _oidc(
        False,
        "yes or no",
        "Allows an issuer without TLS on another machine. Anyone on the way can then make valid tokens.",
    )

    tls_certificate: str = _tls(
        "",
        "file",
        "The certificate of the server in PEM, with the chain behind it. With it, the port speaks HTTPS "
        "only. SIGHUP reads this file and the next two again. Empty: HTTP.",
    )
    tls_key: str = _tls(
        "",
        "file",
        "The private key in PEM, without a password. Only its owner and group may read it. Empty: the key is "
        "in `tls_certificate`.",
    )
    tls_client_ca: str = _tls(
        "",
        "file",
        "Certificates in PEM of the authorities that sign certificates of clients. Empty: clients are not "
        "asked for one.",
    )
    tls_client_certificates: str = _tls(
        "required",
        "",
        "With `tls_client_ca`: whether a client without a certificate may connect.",
        choices=("optional", "required"),
    )
    tls_min_version: str = _tls(
        "1.2",
        "",
        "The oldest version of TLS that is accepted.",
        choices=("1.2", "1.3"),
    )
    hsts_max_age: int = _tls(
        0,
        "seconds",
        "The time for which browsers use HTTPS only for this name, on all its ports "
        "(Strict-Transport-Security, RFC 6797). 0: no such header.",
    )

    audit: str = _audit(
        "auto",
        "",
        "Records logins, searches, reads, stores and deletes. auto: if requests need a login.",
        choices=("auto", "on", "off"),
    )
    audit_folder: str = _audit(
        "",
        "folder",
        "The folder of the audit trail, of this server alone. Empty: the folder `audit` in `data`.",
    )
    audit_file_size: int = _audit(64 << 20, "bytes", "At this size the next file begins.", least=1 << 12)
    audit_keep_days: float = _audit(0.0, "days", "The age at which a file of the trail is removed. 0: never.")
    audit_syslog: str = _audit(
        "",
        "host:port",
        "A syslog receiver over TLS, for the audit trail as messages of DICOM PS3.15 A.5. The usual port is "
        "6514. Empty: none.",
        wrong=not_an_endpoint,
    )
    audit_syslog_ca: str = _audit("", "PEM file", "Signs the receiver's certificate. Empty: the system's.")
    audit_syslog_certificate: str = _audit("", "PEM file", "Certificate and key of this sender, if needed.")
