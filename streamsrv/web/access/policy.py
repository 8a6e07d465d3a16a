"""The settings about access: whether requests need a principal, and whether the server may start so."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from streamsrv.config import SettingsError
from streamsrv.errors import StoreError
from streamsrv.oidc.fetching import FetchFailed, Trust
from streamsrv.settings import Settings
from streamsrv.store import Documents, make_private
from streamsrv.web.access.grants import grants_of
from streamsrv.web.access.peers import CertificateHolders, ProxyUsers
from streamsrv.web.access.roles import Roles
from streamsrv.web.hosts import is_loopback

log = logging.getLogger("streamsrv.access")


def needs_principal(settings: Settings) -> bool:
    """Whether requests without a principal are refused."""
    if settings.auth != "auto":
        return settings.auth == "required"
    remote = not is_loopback(settings.host) and not settings.allow_remote_without_authentication
    return remote or bool(settings.oidc_issuer or names_peers(settings))


def names_peers(settings: Settings) -> bool:
    """Whether connections bring identities: certificates of clients, or users that a proxy names."""
    return bool(settings.tls_client_ca or settings.proxy_user_header)


def has_way_in(settings: Settings) -> bool:
    """Whether any principal can authenticate."""
    if names_peers(settings) or settings.oidc_issuer:
        return True
    grants = grants_of(settings)
    with contextlib.closing(grants.documents):
        return bool(grants.names())


def check_start(settings: Settings) -> None:
    """Raises SettingsError if this server would be open to other machines, or closed to all. Raises
    StoreError if others can write grants."""
    remote = not is_loopback(settings.host) and not settings.allow_remote_without_authentication
    if remote and not needs_principal(settings):
        raise SettingsError(
            f"other machines can reach {settings.host}, and auth is none: they could read and delete every "
            "study. To allow that, set --allow-remote-without-authentication"
        )
    check_issuer(settings)
    check_peers(settings)
    with contextlib.closing(grants_of(settings).documents) as documents:
        protect_grants(documents)
    if remote and needs_principal(settings) and not has_way_in(settings):
        raise SettingsError(
            f"other machines can reach {settings.host}, and nothing lets a client in: make a key with "
            f"`streamsrv key add NAME --data {settings.data} --rights search,read`. To serve without "
            "authentication, set --allow-remote-without-authentication"
        )


def check_issuer(settings: Settings) -> None:
    """Raises SettingsError for settings with which no token can be valid."""
    Roles(settings.oidc_roles, settings.oidc_roles_claim)
    if not settings.oidc_issuer:
        return
    if not settings.oidc_audience:
        raise SettingsError(
            "oidc_issuer needs oidc_audience: without it every token of the issuer would be valid, also one "
            "for another service"
        )
    try:
        trust_of(settings).check(settings.oidc_issuer)
    except FetchFailed as error:
        raise SettingsError(f"oidc_issuer: {error.detail}. To allow that, set oidc_allow_http") from None
    if settings.oidc_ca_file and not os.access(settings.oidc_ca_file, os.R_OK):
        raise SettingsError(f"oidc_ca_file: {settings.oidc_ca_file} cannot be read")


def check_peers(settings: Settings) -> None:
    """Raises SettingsError for settings with which no connection brings an identity."""
    ProxyUsers(settings)
    CertificateHolders(settings)
    if settings.proxy_groups_header and not settings.proxy_user_header:
        raise SettingsError("proxy_groups_header has no effect without proxy_user_header")
    if settings.proxy_user_header and not settings.trusted_proxies:
        raise SettingsError(
            "proxy_user_header needs trusted_proxies: from any other peer the header means nothing"
        )


def trust_of(settings: Settings) -> Trust:
    return Trust(settings.oidc_ca_file, settings.oidc_allow_http)


def protect_grants(documents: Documents) -> None:
    """Takes the permissions of others from the folder, if there is one. Raises StoreError if they can write
    to it all the same."""
    folder = documents.folder
    if folder is None:
        return
    try:
        if make_private(folder):
            log.warning("other users could write to %s until now: check `streamsrv key list`", folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(f"other users can use {folder}: {error.strerror}") from None


def remarks(settings: Settings) -> Iterator[str]:
    """Yields sentences for the log at start."""
    grants = grants_of(settings)
    with contextlib.closing(grants.documents):
        if not needs_principal(settings) and grants.names():
            yield "there are keys, and auth is none: every client has all rights. Set auth to required"
        yield from (found.detail for found in grants.all() if isinstance(found, Exception))
    secret = settings.oidc_client_secret_file
    if secret and os.path.exists(secret) and os.stat(secret).st_mode & 0o007:
        yield f"every user of this machine can use {secret}, the secret of oidc_client_id"
