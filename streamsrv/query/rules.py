"""Rules of access: which instances a principal may see.

Strategy: a rule has alternatives, and each is a set of conditions on a few attributes of instances. They are
written as the parameters of a search (conditions.py). An instance meets a condition if every value that it
has meets it, so an instance without a value does not. It is visible if one alternative holds for it. So a
principal sees an instance that it stores within its rule, also in a study with instances of others.

Rules
- A condition that everything meets is refused: an empty text in a script would open the whole store.
- A rule without alternatives shows nothing. A principal without a rule (None) sees everything.
- The facts of an instance are the values of these attributes, one or several each, "" for none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.tags import tag_of
from streamsrv.errors import BadRequest, RuleError
from streamsrv.query.attributes import BY_TAG, QueryAttribute
from streamsrv.query.conditions import Condition, ValueCondition
from streamsrv.query.matching import Matcher, OneOf, Universal, matcher_of
from streamsrv.query.values import name_groups

STUDY_UID, MODALITIES, MODALITY = "0020000D", "00080061", "00080060"
# The attributes that a condition may name, with those of an instance that it compares.
COMPARED = {
    "00100020": "00100020",  # PatientID
    "00080050": "00080050",  # AccessionNumber
    "00080080": "00080080",  # InstitutionName
    "00080090": "00080090",  # ReferringPhysicianName
    "00080020": "00080020",  # StudyDate
    MODALITIES: MODALITY,
    STUDY_UID: STUDY_UID,
}
_STUDY = BY_TAG[STUDY_UID].keyword
NAMES = tuple(BY_TAG[tag].keyword for tag in COMPARED)
# The attributes of an instance that facts hold; the UID of its study is known anyway.
FACTS = tuple(tag for tag in COMPARED.values() if tag != STUDY_UID)
# Of one rule: each is compared with the facts of every study.
MOST_ALTERNATIVES, MOST_CONDITIONS = 64, 16
_WORST = "that would show every study: leave the condition out"

Facts: TypeAlias = Mapping[str, Collection[str]]  # tag of an instance -> its values as text
ConditionTexts: TypeAlias = tuple[tuple[str, str], ...]  # keywords and values, in order


@dataclass(frozen=True, slots=True)
class RuleCondition:
    """One condition. `row` is the attribute that it names, `compared` the tag of the facts."""

    row: QueryAttribute
    compared: str
    matcher: Matcher

    def accepts(self, text: str) -> bool:
        """Whether one value of an instance meets it."""
        return self.matcher.matches(({"vr": self.row.vr, "Value": [text]},)) if text else False

    @property
    def values(self) -> frozenset[str] | None:
        """The texts that meet it, if they are a list of codes or UIDs."""
        return self.matcher.forms if isinstance(self.matcher, OneOf) else None

    @property
    def listed(self) -> tuple[Condition, ...]:
        """The condition of a search whose inverted list holds all studies with visible instances."""
        return ValueCondition(self.row.path, self.row, self.matcher).listed


@dataclass(frozen=True, slots=True)
class Alternative:
    """Conditions that hold together; at least one. Equal texts mean equal conditions."""

    texts: ConditionTexts
    conditions: tuple[RuleCondition, ...] = field(compare=False, repr=False)

    @property
    def studies(self) -> frozenset[str] | None:
        """The only studies that it shows instances of; None if it names none."""
        named = [each.values for each in self.conditions if each.compared == STUDY_UID]
        return named[0] if named else None

    def accepts(self, study: str, facts: Facts) -> bool:
        """Whether all values of an instance meet all conditions."""
        for condition in self.conditions:
            texts = (study,) if condition.compared == STUDY_UID else facts.get(condition.compared)
            if not texts or not all(map(condition.accepts, texts)):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Rule:
    """The instances that a principal may see: those that one of the alternatives shows. Hashable."""

    alternatives: tuple[Alternative, ...] = ()

    @property
    def document(self) -> list[dict[str, str]]:
        """The rule as JSON, from which `rule_from` makes an equal one."""
        return [dict(each.texts) for each in self.alternatives]

    @property
    def names_modality(self) -> bool:
        """Whether it compares modalities."""
        return any(each.compared == MODALITY for one in self.alternatives for each in one.conditions)

    def accepts(self, study: str, facts: Facts) -> bool:
        """Whether one alternative holds for an instance."""
        return any(each.accepts(study, facts) for each in self.alternatives)


def rule_of(conditions: Iterable[str], studies: Iterable[str] = ()) -> Rule:
    """The rule of conditions that hold together, each as `Attribute=value`; with `studies` only for these. It
    shows nothing without both. Raises RuleError."""
    pairs = [_split(each) for each in conditions]
    named = list(studies)
    if named:
        pairs.append(("StudyInstanceUID", ",".join(named)))
    return Rule((_alternative(pairs),)) if pairs else Rule()


def rule_from(value: object) -> Rule:
    """The rule in a setting, a file or a claim. A text is one condition. A mapping of attributes to values
    holds conditions that apply together. A list has such texts and mappings as alternatives. Raises
    RuleError."""
    several = value if isinstance(value, list | tuple) else [value]
    return _joined([_alternative(list(_pairs(each))) for each in several])


def any_of(rules: Iterable[Rule]) -> Rule:
    """Shows each instance that one of the rules shows; nothing without rules."""
    return _joined([each for rule in rules for each in rule.alternatives])


def limited_to(rule: Rule | None, study: str) -> Rule:
    """Shows the instances of one study that the rule shows."""
    if rule is None:
        return rule_of((), (study,))
    return _joined(
        [
            _alternative([pair for pair in each.texts if pair[0] != _STUDY] + [(_STUDY, study)])
            for each in rule.alternatives
            if each.studies is None or study in each.studies
        ]
    )


def facts_of(attributes: JsonDataset) -> dict[str, list[str]]:
    """The facts of one instance."""
    return {tag: _texts(attributes, tag) for tag in FACTS}


def _texts(attributes: JsonDataset, tag: str) -> list[str]:
    values = attributes.get(tag, {}).get("Value", ())
    return list(dict.fromkeys(map(_text, values))) or [""]


def _text(value: Any) -> str:
    text = "=".join(name_groups(value)) if isinstance(value, dict) else "" if value is None else str(value)
    return text.strip()


def _joined(alternatives: list[Alternative]) -> Rule:
    if len(alternatives) > MOST_ALTERNATIVES:
        raise RuleError(f"a rule has at most {MOST_ALTERNATIVES} alternatives")
    return Rule(tuple(dict.fromkeys(alternatives)))


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RuleError("a condition of a rule is not of the form Attribute=value")
    return name, value


def _pairs(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield _split(value)
    elif isinstance(value, Mapping) and all(isinstance(each, str) for each in (*value, *value.values())):
        yield from value.items()
    else:
        raise RuleError(
            "a rule is a text Attribute=value, a mapping of attributes to texts, or a list of these"
        )


def _alternative(pairs: list[tuple[str, str]]) -> Alternative:
    if not 0 < len(pairs) <= MOST_CONDITIONS:
        raise RuleError(f"the conditions of a rule are 1 to {MOST_CONDITIONS}")
    found = {each.row.tag: (each, text) for each, text in map(_condition, pairs)}
    if len(found) < len(pairs):
        raise RuleError("a rule names an attribute twice: conditions of one rule all have to hold")
    ordered = sorted(found.values(), key=lambda each: each[0].row.keyword)
    texts = tuple((condition.row.keyword, text) for condition, text in ordered)
    return Alternative(texts, tuple(condition for condition, _ in ordered))


def _condition(pair: tuple[str, str]) -> tuple[RuleCondition, str]:
    name, text = pair[0].strip(), pair[1].strip()
    tag = tag_of(name) or ""
    if tag not in COMPARED:
        raise RuleError(f"{name[:80]!r} in a rule is not one of {', '.join(NAMES)}")
    row = BY_TAG[tag]
    try:
        matcher = matcher_of(row.keyword, row.vr, text)
    except BadRequest as error:
        raise RuleError(error.detail) from error
    if isinstance(matcher, Universal):
        raise RuleError(f"{row.keyword} in a rule has no value, {_WORST}")
    return RuleCondition(row, COMPARED[tag], matcher), text
