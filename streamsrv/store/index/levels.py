"""Studies and series, kept correct while instances come and go.

Strategy: the instances of a series nearly always agree on its attributes. A *variant* is a distinct set of
study and series attributes. It is kept once, with the number of its instances and the order of the latest
one. So 400 instances of a series cost one merge: a transaction counts, and `flush` writes each touched series
and study once.

The attributes of a series are those of its variants merged in the order of their latest instances; those of a
study come from all its variants. The latest stored value wins, and an empty value erases nothing. A deleted
instance leaves nothing, because its variant is gone. The result depends only on which instances exist, so a
rebuild gives the same rows.

Rules of this file: everything happens in the writer's transaction, and nothing is kept beyond it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import orjson

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.query.attributes import Level, terms
from streamsrv.query.rules import Alternative, Rule, facts_of
from streamsrv.store.index.answers import at_level, dataset_attributes, level_texts, recounted
from streamsrv.store.index.rows import (
    LevelRow,
    Variant,
    json_object,
    order_from,
    order_in,
    prefix,
    tallies_at,
    variant_of,
)
from streamsrv.store.ordered_map import Transaction
from streamsrv.store.rows import InstanceKey

Removed: TypeAlias = tuple[bytes, int, bytes]  # variant, stored at, record id of an instance

_NEVER = bytes(24)  # before every order
_MODALITY = "00080060"


@dataclass(slots=True)
class _Series:
    """The changes of a transaction to one series. `variants` are the touched ones, by digest. The modalities
    are those under which the series counts in its study, before and after."""

    study: str
    series: str
    before: LevelRow | None
    after: LevelRow | None = None
    variants: dict[bytes, Variant] = field(default_factory=dict)
    stale: set[bytes] = field(default_factory=set)  # variants whose latest instance was removed
    added: int = 0
    removed: int = 0
    oldest: bytes = b"\xff" * 24  # of those added
    classes: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)  # of variants that came and went
    modality_before: str = ""
    modality: str = ""

    @property
    def key(self) -> bytes:
        return f"{self.study}\0{self.series}".encode()

    @property
    def grown(self) -> int:
        return self.added - self.removed

    def later_than(self, before: LevelRow) -> bool:
        """True if nothing was removed and all new instances are later than the old ones."""
        return not self.removed and self.oldest > before.latest

    def repeats(self, before: LevelRow) -> bool:
        """True if all new instances have the variant of the latest old one, so that only counts change."""
        touched = list(self.variants.values())
        return self.later_than(before) and len(touched) == 1 and touched[0].was == before.latest


class Levels:
    def __init__(self, transaction: Transaction, handles: dict[str, object]) -> None:
        self._transaction = transaction
        self._handles = handles
        self._series: dict[tuple[str, str], _Series] = {}

    def add(self, key: InstanceKey, order: bytes, digest: bytes, text: bytes, sop_class: str) -> None:
        series = self._touched(key.study, key.series)
        variant = self._variant(series, digest)
        if variant is None:
            variant = series.variants[digest] = Variant(0, _NEVER, text)
        variant.text = variant.text or text
        variant.count += 1
        if order > variant.latest:
            variant.latest = order
            series.stale.discard(digest)
        series.added += 1
        series.oldest = min(series.oldest, order)
        series.classes[sop_class] += 1

    def remove(self, key: bytes, removed_instances: Sequence[Removed], classes: Mapping[bytes, int]) -> None:
        """Instances of one series (study \\0 series); `classes` counts them by SOP class."""
        study, _, uid = key.decode().partition("\0")
        series = self._touched(study, uid)
        counts = Counter([digest for digest, _, _ in removed_instances])
        orders = removed_instances if len(counts) == 1 else set(removed_instances)
        for digest, count in counts.items():
            variant = self._variant(series, digest)
            if variant is not None:
                variant.count -= count
                if variant.count <= 0 or (digest, *order_from(variant.latest)) in orders:
                    series.stale.add(digest)
        series.removed += len(removed_instances)
        for sop_class, count in classes.items():
            series.classes[sop_class.decode()] -= count

    def flush(self) -> None:
        """Write every touched series, then every touched study."""
        studies: dict[str, list[_Series]] = {}
        for series in self._series.values():
            self._flush_variants(series)
            self._flush_series(series)
            studies.setdefault(series.study, []).append(series)
        for study, parts in studies.items():
            self._flush_study(study, parts)
        self._series = {}

    # -- series

    def _touched(self, study: str, uid: str) -> _Series:
        series = self._series.get((study, uid))
        if series is None:
            value = self._get("series", f"{study}\0{uid}".encode())
            series = _Series(study, uid, LevelRow.unpack(value) if value else None)
            self._series[study, uid] = series
        return series

    def _variant(self, series: _Series, digest: bytes) -> Variant | None:
        variant = series.variants.get(digest)
        if variant is None:
            value = self._get("variants", prefix(series.study, series.series) + digest)
            if value is not None:
                variant = series.variants[digest] = Variant.unpack(value)
        return variant

    def _flush_variants(self, series: _Series) -> None:
        start = prefix(series.study, series.series)
        stale = {digest for digest in series.stale if series.variants[digest].count > 0}
        for digest, order in self._latest(start, stale).items():
            series.variants[digest].latest = order
        for digest, variant in series.variants.items():
            if (change := (variant.count > 0) - bool(variant.was)) != 0:
                for name in fact_names(variant.text):
                    series.facts[name] += change
            if variant.count > 0:
                self._put("variants", start + digest, variant.pack())
            else:
                self._transaction.delete(start + digest, db=self._handles["variants"])

    def _latest(self, start: bytes, digests: set[bytes]) -> dict[bytes, bytes]:
        """The latest order of each variant, from the remaining instances of the series."""
        found: dict[bytes, bytes] = {}
        if not digests:
            return found
        cursor = self._transaction.cursor(db=self._handles["instances"])
        more = cursor.set_range(start)
        while more and cursor.key().startswith(start):
            value = cursor.value()
            digest = variant_of(value)
            if digest in digests:
                found[digest] = max(found.get(digest, _NEVER), order_in(value))
            more = cursor.next()
        return found

    def _flush_series(self, series: _Series) -> None:
        before = series.before
        count = (before.instances if before else 0) + series.grown
        numbers = {"00201209": _number(count)}
        if before and series.repeats(before):
            answer = recounted(before.answer, {"00201209": _number(before.instances)}, numbers)
            latest = next(iter(series.variants.values())).latest
            series.after = LevelRow(count, 0, latest, answer, before.more, b"")
            self._put("series", series.key, series.after.pack())
            return
        old = dataset_attributes(Level.SERIES, before) if before else {}
        new: JsonDataset = {}
        if count > 0:
            new, latest = self._merged(
                Level.SERIES, prefix(series.study, series.series), [series], before, old
            )
            series.after = LevelRow(count, 0, latest, *level_texts(Level.SERIES, new, numbers), b"")
        self._replace(Level.SERIES, series.key, before, series.after, old, new)
        self._name_series(series)
        series.modality_before, series.modality = _modality(old), _modality(new)

    def _name_series(self, series: _Series) -> None:
        name, study = b"s" + series.series.encode(), series.study.encode()
        if series.after and not series.before:
            self._put("uids", name, study)
        elif series.before and not series.after:
            self._transaction.delete(name, study, db=self._handles["uids"])

    # -- studies

    def _flush_study(self, study: str, parts: list[_Series]) -> None:
        value = self._get("studies", study.encode())
        before = LevelRow.unpack(value) if value else None
        tallies = _tally(before, parts)
        instances = (before.instances if before else 0) + sum(part.grown for part in parts)
        count = (before.series if before else 0) + sum(bool(part.after) - bool(part.before) for part in parts)
        now = study_computed(instances, count, tallies)
        past = study_computed(before.instances, before.series, json_object(before.tallies)) if before else {}
        packed = orjson.dumps(tallies, option=orjson.OPT_SORT_KEYS)
        if before and _only_counts(parts, before, past, now):
            latest = next(iter(parts[0].variants.values())).latest
            answer = recounted(before.answer, past, now)
            row = LevelRow(instances, count, latest, answer, before.more, packed)
            self._put("studies", study.encode(), row.pack())
            return
        old = dataset_attributes(Level.STUDY, before) if before else {}
        new, after = JsonDataset(), None
        if instances > 0:
            new, latest = self._merged(Level.STUDY, prefix(study), parts, before, old)
            after = LevelRow(instances, count, latest, *level_texts(Level.STUDY, new, now), packed)
            new = new | now
        self._replace(Level.STUDY, study.encode(), before, after, old | past, new)

    # -- both

    def _merged(
        self, level: Level, start: bytes, touched: list[_Series], before: LevelRow | None, old: JsonDataset
    ) -> tuple[JsonDataset, bytes]:
        """The merged attributes, and the order of the latest instance. If every new instance is later than
        the old ones, only its attributes are merged; else all variants are merged again."""
        if before is not None and not all(part.later_than(before) for part in touched):
            return merge(level, self._variants_under(start))
        attributes, latest = merge(level, [each for part in touched for each in part.variants.values()])
        return old | attributes, latest

    def _variants_under(self, start: bytes) -> list[Variant]:
        found = []
        cursor = self._transaction.cursor(db=self._handles["variants"])
        more = cursor.set_range(start)
        while more and cursor.key().startswith(start):
            found.append(Variant.unpack(cursor.value()))
            more = cursor.next()
        return found

    def _replace(
        self,
        level: Level,
        key: bytes,
        before: LevelRow | None,
        after: LevelRow | None,
        old: JsonDataset,
        new: JsonDataset,
    ) -> None:
        """Write or delete a row, and its entries in the inverted lists."""
        name = ("studies", "series")[level]
        if before is None or after is None or old != new:
            listed = terms(level, old) if before else set()
            listing = terms(level, new) if after else set()
            for term in listed - listing:
                self._transaction.delete(term, key, db=self._handles["attributes"])
            for term in listing - listed:
                self._put("attributes", term, key)
        if after:
            self._put(name, key, after.pack())
        elif before:
            self._transaction.delete(key, db=self._handles[name])

    def _get(self, name: str, key: bytes) -> bytes | None:
        value: bytes | None = self._transaction.get(key, db=self._handles[name])
        return value

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value, db=self._handles[name])


def merge(level: Level, variants: Iterable[Variant]) -> tuple[JsonDataset, bytes]:
    """Merge variants; the one with the latest instance wins."""
    merged: JsonDataset = {}
    latest = _NEVER
    for variant in sorted(variants, key=lambda variant: variant.latest):
        merged.update(at_level(json_object(variant.text), level))
        latest = variant.latest
    return merged, latest


def fact_names(text: bytes) -> list[str]:
    """The facts of a variant as they are tallied: "v", tag and value."""
    facts = facts_of(json_object(text))
    return [f"v{tag}{value}" for tag, values in facts.items() for value in values]


def facts_in(value: bytes) -> dict[str, list[str]]:
    """The facts of all instances in the row of a study, for rules of access."""
    found: dict[str, list[str]] = {}
    for name in json_object(value[tallies_at(value) :]):
        if name[0] == "v":
            found.setdefault(name[1:9], []).append(name[9:])
    return found


def outside(
    row_of: Callable[[bytes], bytes | None], new: Sequence[tuple[Rule | None, InstanceKey, bytes]]
) -> list[bool]:
    """Which of these instances, or studies with them, their senders would not see. Each of `new` is the rule
    of its sender, its key and its variant; those before it count as stored. `row_of` gives the row of a
    study."""
    left: dict[tuple[Rule, str], Sequence[Alternative]] = {}
    found = []
    for rule, (study, _, _), variant in new:
        if rule is None:
            found.append(False)
            continue
        if (rule, study) not in left:
            value = row_of(study.encode())
            known = facts_in(value) if value is not None else None
            shown = rule.alternatives
            left[rule, study] = [each for each in shown if known is None or each.accepts(study, known)]
        facts = facts_of(json_object(variant))
        met = [each for each in left[rule, study] if each.accepts(study, facts)]
        left[rule, study] = met or left[rule, study]
        found.append(not met)
    return found


def fact_reader(tag: str) -> Callable[[bytes], list[bytes]]:
    """Reads the values of one attribute from the row of a study, as they are in JSON text. This takes a fifth
    of the time of `facts_in`."""
    # In a JSON string a backslash stands before each quote, so a name begins here and nowhere else.
    find = re.compile(rb'(?<=[{,])"v%b((?:[^"\\]|\\.)*)":' % tag.encode()).findall
    return lambda value: find(value, tallies_at(value))


def _number(number: int) -> JsonElement:
    return {"vr": "IS", "Value": [number]}


def study_computed(instances: int, series: int, tallies: dict[str, int]) -> JsonDataset:
    """The attributes of a study that are computed from its series and instances."""
    modalities = sorted(name[1:] for name in tallies if name[0] == "m")
    classes = sorted(name[1:] for name in tallies if name[0] == "c")
    return {
        "00080061": {"vr": "CS", "Value": modalities} if modalities else {"vr": "CS"},
        "00080062": {"vr": "UI", "Value": classes} if classes else {"vr": "UI"},
        "00201206": _number(series),
        "00201208": _number(instances),
    }


def _only_counts(parts: list[_Series], before: LevelRow, past: JsonDataset, now: JsonDataset) -> bool:
    """Whether only the counts in the row of a study change."""
    same = all(past[tag] == now[tag] for tag in ("00080061", "00080062"))
    return same and len(parts) == 1 and parts[0].repeats(before)


def _modality(attributes: JsonDataset) -> str:
    """The modality of a series, for the counts of its study."""
    element = attributes.get(_MODALITY)
    return str(element["Value"][0]).strip() if element else ""


def _tally(before: LevelRow | None, parts: list[_Series]) -> dict[str, int]:
    """Series by modality ("mCT"), instances by SOP class ("c1.2.840...") and variants by fact (`fact_names`),
    those above zero."""
    tallies = Counter(json_object(before.tallies) if before else {})
    for part in parts:
        tallies["m" + part.modality_before] -= 1
        tallies["m" + part.modality] += 1
        for sop_class, change in part.classes.items():
            tallies["c" + sop_class] += change
        for name, change in part.facts.items():
            tallies[name] += change
    return {name: count for name, count in tallies.items() if count > 0 and name != "m"}
