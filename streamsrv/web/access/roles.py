"""The roles of a user as rights and a rule: the settings `oidc_roles`, `proxy_roles`, `certificate_roles`.

    ROLE -> RIGHT RIGHT ... [where CONDITION [and CONDITION ...]]

A condition is one of a rule (query/rules.py), as `InstitutionName=A*`. In its value `{PATH}` stands for each
value of a claim. A condition that is `{PATH}` alone is a rule that the issuer has written into the claim. The
role `*` belongs to every token.

Rules of this file
- An entry whose claim is missing gives no rights, and shows no study.
- Values of claims are literal. A user may write some of them, so one with a wildcard counts as missing.
- No combination gives more than its entries: one without `where` adds its rights, to the studies that the
  others show. Of several with `where` the studies add up, with the rights that all of these entries give.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

from streamsrv.config import SettingsError
from streamsrv.errors import RuleError
from streamsrv.query.rules import NAMES, Rule, any_of, rule_from, rule_of
from streamsrv.web.access.principal import NO_RIGHTS, Right, rights_from

log = logging.getLogger("streamsrv.access")

EVERYONE = "*"
MOST_VALUES = 64  # of one claim in a condition: each is an alternative of the rule
_ENTRY = re.compile(r"(.+?)\s*->\s*(.*?)(?:\s+where\s+(.+))?", re.DOTALL)
_AND = re.compile(r"\s+and\s+(?=\w+=|\{)")
_CLAIM = re.compile(r"\{([^{}]+)\}")
_WILD = re.compile(r"[*?\\,]")


class RoleEntry(NamedTuple):
    """`conditions` hold together; empty: every study."""

    role: str
    rights: Right
    conditions: tuple[str, ...]


def parse_entry(text: str, setting: str = "oidc_roles") -> RoleEntry:
    """Raises SettingsError."""
    found = _ENTRY.fullmatch(text.strip())
    if found is None:
        raise SettingsError(f"{setting}: {text!r} is not of the form ROLE -> RIGHT ... [where CONDITION]")
    role, rights, where = found.groups()
    conditions = tuple(each.strip() for each in _AND.split(where)) if where else ()
    try:
        entry = RoleEntry(role, rights_from(re.findall(r"[^\s,]+", rights)), conditions)
        _check(conditions)
    except (ValueError, RuleError) as error:
        raise SettingsError(f"{setting}: {text!r} is refused: {error}") from None
    if not entry.rights:
        raise SettingsError(f"{setting}: {text!r} has no right")
    return entry


def _check(conditions: Sequence[str]) -> None:
    """Raises RuleError. The values of claims are not known yet."""
    for condition in conditions:
        if not _CLAIM.search(condition):
            rule_of([condition])
        elif _CLAIM.fullmatch(condition):
            if len(conditions) > 1:
                raise RuleError("a rule of a claim stands alone, without other conditions")
        elif (name := condition.partition("=")[0].strip()) not in NAMES:
            raise RuleError(f"{name!r} in a rule is not one of {', '.join(NAMES)}")
        elif len(_CLAIM.findall(condition)) > 1:
            raise RuleError("a condition has one claim at most")


def values_at(claims: object, path: str) -> list[object]:
    """The values of the claim at `path`. A name in the path may itself have dots, as URLs and the names of
    clients do. A list gives its elements."""
    if not isinstance(claims, Mapping):
        return []
    if path in claims:
        value = claims[path]
        return value if isinstance(value, list) else [value]
    for position in (place for place, letter in enumerate(path) if letter == "."):
        if found := values_at(claims.get(path[:position]), path[position + 1 :]):
            return found
    return []


class Roles:
    """`setting` is the name of that of `entries`. Raises SettingsError for entries that cannot be read."""

    def __init__(self, entries: Sequence[str], paths: Sequence[str], setting: str = "oidc_roles") -> None:
        self._entries = [parse_entry(each, setting) for each in entries]
        self._paths = paths
        self._setting = setting

    def of(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """The roles at all paths. A text is a list with blanks in between, as `scope` is."""
        found = {EVERYONE}
        for path in self._paths:
            for value in values_at(claims, path):
                found.update((value, *value.split()) if isinstance(value, str) else ())
        return frozenset(found)

    def grant(self, claims: Mapping[str, Any]) -> tuple[Right, Rule | None]:
        """The rights of the roles in the claims, and the rule or None for every study."""
        return self.granted(self.of(claims), claims)

    def granted(self, roles: frozenset[str], claims: Mapping[str, Any]) -> tuple[Right, Rule | None]:
        """As `grant`, for these roles."""
        everywhere, limited, rules = NO_RIGHTS, list[Right](), list[Rule]()
        for entry in self._entries:
            if entry.role not in roles:
                continue
            if not entry.conditions:
                everywhere |= entry.rights
                continue
            try:
                rules.append(_rule(entry, claims))
                limited.append(entry.rights)
            except RuleError as error:
                log.warning("the entry of %s for %r shows no study: %s", self._setting, entry.role, error)
                rules.append(Rule())
        if not rules:
            return everywhere, None
        try:
            return everywhere | reduce(and_, limited or [NO_RIGHTS]), any_of(rules)
        except RuleError as error:
            log.warning("the rules of a token are too many: %s", error)
            return NO_RIGHTS, Rule()


def _rule(entry: RoleEntry, claims: Mapping[str, Any]) -> Rule:
    """Raises RuleError."""
    whole = _CLAIM.fullmatch(entry.conditions[0])
    if whole is not None:
        found = values_at(claims, whole[1])
        if not found:
            raise RuleError(f"the claim {whole[1]} is missing")
        return rule_from(found)
    return any_of(rule_of(each) for each in _filled(entry.conditions, claims))


def _filled(conditions: Sequence[str], claims: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the conditions for each combination of the values of claims."""
    alternatives: list[list[str]] = [[]]
    for condition in conditions:
        texts = list(_texts(condition, claims))
        alternatives = [[*former, text] for former in alternatives for text in texts]
        if len(alternatives) > MOST_VALUES:
            raise RuleError(f"claims of the token make more than {MOST_VALUES} conditions")
    yield from alternatives


def _texts(condition: str, claims: Mapping[str, Any]) -> Iterator[str]:
    claim = _CLAIM.search(condition)
    if claim is None:
        yield condition
        return
    values = values_at(claims, claim[1])
    if not values:
        raise RuleError(f"the claim {claim[1]} is missing")
    for value in values:
        if not isinstance(value, str) or not value.strip() or _WILD.search(value):
            raise RuleError(f"the claim {claim[1]} has a value that is no plain text")
        yield condition[: claim.start()] + value + condition[claim.end() :]
