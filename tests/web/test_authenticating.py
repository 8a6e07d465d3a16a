"""The object that authenticates the requests of a worker, with a clock of the test."""

from types import SimpleNamespace

import pytest
from access_world import files_of
from web_world import settings_of

from streamsrv.errors import RenewalPending, Unauthorized
from streamsrv.query.rules import Rule
from streamsrv.web.access.access import Access
from streamsrv.web.access.browser.sessions import Sessions
from streamsrv.web.access.browser.sign_in import SignIn
from streamsrv.web.access.grants import grants_in
from streamsrv.web.access.principal import ALL_RIGHTS, CHANGING, Principal, Right
from streamsrv.web.client_certificate import ClientCertificate
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller

ORIGIN = Caller("https://pacs.example", "192.0.2.1", "192.0.2.1")


class Changing:
    """A way in whose changes the test decides."""

    def __init__(self, found=None):
        self.changes = []
        self.found = found

    def principal(self, head, authorization):
        return self.found

    def refresh(self):
        found = self.changes.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def test_a_certificate_that_ends_on_an_open_connection_is_refused(tmp_path):
    now = [100.0]
    settings = settings_of(data=str(tmp_path), auth="required", certificate_roles=("* -> search",))
    access = Access(settings, clock=lambda: now[0])
    holder = ClientCertificate("00", {"subject": ((("commonName", "anna"),),)}, 200.0)
    head = Head("GET", "/v2/studies", "HTTP/1.1", {}, "192.0.2.1", holder)
    admitted = access.admit(head, ORIGIN)
    assert (admitted.principal.name, admitted.principal.rights) == ("cert:CN=anna", Right.SEARCH)
    assert access.holds(admitted)
    now[0] = 200.0
    assert not access.holds(admitted)
    with pytest.raises(Unauthorized) as refusal:
        access.admit(head, ORIGIN)
    assert "have ended" in refusal.value.reason


def test_callers_are_asked_again_if_changes_cannot_be_looked_for(tmp_path):
    first, second = Changing(), Changing()
    access = Access(settings_of(data=str(tmp_path), auth="required"), (first, second))
    first.changes, second.changes = [False, False, True], [False, OSError("disk"), False]
    access.refresh()
    assert access.epoch == 0
    with pytest.raises(OSError, match="disk"):
        access.refresh()
    assert access.epoch == 1
    access.refresh()
    assert access.epoch == 2


def session_of(access, data, **ends):
    """The head of a request with the session of an issuer's user."""
    grants = grants_in(data)
    sessions = Sessions(grants, grants.find, 1000.0, lambda: 100.0)
    secret = sessions.begin_as(Principal("oidc:anna", ALL_RIGHTS), "Anna", lambda secret: ends)
    headers = {"cookie": f"__Host-streamsrv={secret}", "sec-fetch-site": "same-origin"}
    return lambda path, **more: Head("GET", path, "HTTP/1.1", headers | more, "192.0.2.1")


@pytest.mark.parametrize("path", ["/", "/v2/studies"])
def test_the_page_waits_for_the_renewal_of_a_session_as_data_do(tmp_path, path):
    access = Access(settings_of(data=str(tmp_path), auth="required"), clock=lambda: 100.0)
    access.renew_with(SimpleNamespace(renew=lambda session, secret: True))
    ask = session_of(access, tmp_path, ends=90.0)
    with pytest.raises(RenewalPending):
        access.admit(ask(path), ORIGIN)


def test_the_user_of_the_page_is_that_of_the_credentials_which_count(tmp_path):
    ben = Changing(Principal("key:ben", ALL_RIGHTS))
    for ways, user, session in (((), "Anna", True), ((ben,), "ben", False)):
        access = Access(settings_of(data=str(tmp_path), auth="required"), ways, lambda: 100.0)
        more = {"authorization": "Bearer ben"} if ways else {}
        head = session_of(access, tmp_path)("/page/server.json", **more)
        visitor = access.visitor(head, access.admit(head, ORIGIN))
        assert (visitor.facts()["user"], visitor.session) == (user, session)


@pytest.mark.parametrize("auth", ["none", "required"])
def test_nobody_changes_anything_on_a_read_only_server(tmp_path, auth):
    settings = settings_of(data=str(tmp_path), auth=auth, read_only=True)
    access = Access(settings, clock=lambda: 100.0)
    caller = access.admit(session_of(access, tmp_path)("/v2/studies"), ORIGIN)
    assert caller.principal.rights == ALL_RIGHTS & ~CHANGING


@pytest.mark.parametrize("rule", [None, Rule()])
def test_a_key_that_was_revoked_a_moment_ago_makes_no_link(tmp_path, rule):
    """Such a link would live on without its key."""
    sign_in = SignIn(settings_of(data=str(tmp_path)))
    caller = ORIGIN._replace(principal=Principal("key:gone", ALL_RIGHTS, rule))
    with pytest.raises(Unauthorized) as refusal:
        sign_in.share(caller, "1.2", {})
    assert "revoked" in refusal.value.reason
    assert files_of(sign_in.grants) == []
