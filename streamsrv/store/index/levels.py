"""Studies and series, kept correct while instances come and go.

Strategy: the instances of a series nearly always agree on its attributes. A *variant* is a distinct set of
study and series attributes. It is kept once, with the number of its instances and the order of the latest
one. So 400 instances of a series cost one merge: a transaction counts, and `flush` writes each touched series
and study once.

The attributes of a series are those of its variants merged in the order of their latest instances; those of a
study come from all its variants. The latest stored value wins, and an empty value erases nothing. A deleted
instance leaves nothing, because its variant is gone. The result depends only on which instances exist, so a
rebuild gives the same rows.

A study is *mixed* if its instances differ in a fact that rules of access compare. A rule may show a part of
it, whose rows are made from the visible variants. The inverted lists have the values of the whole study.
Further values of its variants are listed apart (`rows.apart`). So the lists hold all parts that there may be,
and the rows of a part decide.

Rules of this file: everything happens in one transaction, and nothing is kept beyond it but a `StudyPart`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, TypeAlias

import orjson

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.query.attributes import Level, terms
from streamsrv.query.rules import FACTS, facts_of
from streamsrv.store.index.answers import SOP_CLASS, at_level, dataset_attributes, level_texts, recounted
from streamsrv.store.index.rows import (
    FACTS_BYTES,
    VARIANT_BYTES,
    LevelRow,
    PackedRow,
    Variant,
    apart,
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

LEAST_READ = 64  # rows that are read at once to find visible ones
_NEVER = bytes(24)  # before every order
_MODALITY, _MODALITIES = "00080060", "00080061"


class _StoredVariant(NamedTuple):
    """A stored variant."""

    series: str
    digest: bytes
    variant: Variant

    @property
    def attributes(self) -> JsonDataset:
        return json_object(self.variant.text)


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
        if before and _only_counts(parts, before, past, now):
            latest = next(iter(parts[0].variants.values())).latest
            answer = recounted(before.answer, past, now)
            row = LevelRow(instances, count, latest, answer, before.more, _packed(tallies))
            self._put("studies", study.encode(), row.pack())
            return
        old = dataset_attributes(Level.STUDY, before) if before else {}
        new, after = JsonDataset(), None
        listed_apart = {name for name in tallies if name[0] == "x"}
        tallies = {name: count for name, count in tallies.items() if name[0] != "x"}
        if instances > 0:
            new, latest = self._merged(Level.STUDY, prefix(study), parts, before, old)
            new = new | now
            tallies |= dict.fromkeys(self._beyond(study, new) if _is_mixed(tallies) else (), 1)
            texts = level_texts(Level.STUDY, new, now)
            after = LevelRow(instances, count, latest, *texts, _packed(tallies))
        self._replace(Level.STUDY, study.encode(), before, after, old | past, new)
        self._list_apart(study, listed_apart, {name for name in tallies if name[0] == "x"})

    # -- mixed studies

    def _beyond(self, study: str, whole: JsonDataset) -> set[str]:
        """The terms of variants that the whole study, or their whole series, has not: "x", the series or
        nothing, NUL, the term."""
        found, of_variants, attributes_of_whole = set[str](), set[bytes](), at_level(whole, Level.STUDY)
        for series, group in groupby(self._variants_under(prefix(study)), lambda each: each.series):
            several = list(group)
            parsed = [each.attributes for each in several]
            for each in parsed:
                attributes, modality = at_level(each, Level.STUDY), _modality(each)
                if attributes != attributes_of_whole or modality not in whole[_MODALITIES].get("Value", ()):
                    attributes |= {_MODALITIES: {"vr": "CS", "Value": [modality] if modality else []}}
                    of_variants |= terms(Level.STUDY, attributes)
            if len(several) > 1:
                merged, _ = merge(Level.SERIES, [each.variant for each in several])
                below = (at_level(each, Level.SERIES) for each in parsed)
                more = {term for each in below for term in terms(Level.SERIES, each)}
                more -= terms(Level.SERIES, merged)
                found |= {f"x{series}\0{term.decode('latin-1')}" for term in more}
        more = of_variants - terms(Level.STUDY, whole) if of_variants else set()
        return found | {f"x\0{term.decode('latin-1')}" for term in more}

    def _list_apart(self, study: str, before: set[str], after: set[str]) -> None:
        for names, change in (
            (before - after, self._transaction.delete),
            (after - before, self._transaction.put),
        ):
            for name in names:
                series, _, term = name[1:].partition("\0")
                entry = f"{study}\0{series}" if series else study
                change(apart(term.encode("latin-1")), entry.encode(), db=self._handles["attributes"])

    # -- both

    def _merged(
        self, level: Level, start: bytes, touched: list[_Series], before: LevelRow | None, old: JsonDataset
    ) -> tuple[JsonDataset, bytes]:
        """The merged attributes, and the order of the latest instance. If every new instance is later than
        the old ones, only its attributes are merged; else all variants are merged again."""
        if before is not None and not all(part.later_than(before) for part in touched):
            return merge(level, [found.variant for found in self._variants_under(start)])
        attributes, latest = merge(level, [each for part in touched for each in part.variants.values()])
        return old | attributes, latest

    def _variants_under(self, start: bytes) -> list[_StoredVariant]:
        return list(_variants(self._transaction, self._handles, start))

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


def _variants(
    transaction: Transaction, handles: Mapping[str, object], start: bytes
) -> Iterator[_StoredVariant]:
    cursor = transaction.cursor(db=handles["variants"])
    more = cursor.set_range(start)
    while more and (key := cursor.key()).startswith(start):
        series = key[key.index(b"\0") + 1 : -VARIANT_BYTES - 1].decode()
        yield _StoredVariant(series, key[-VARIANT_BYTES:], Variant.unpack(cursor.value()))
        more = cursor.next()


class StudyPart:
    """Some instances of a mixed study, at least one: the packed rows of the study and of its series, as they
    would be without the others."""

    __slots__ = ("_digests", "row", "series")

    def __init__(self, variants: Sequence[_StoredVariant]) -> None:
        self._digests = frozenset(each.digest for each in variants)
        self.series: dict[str, bytes] = {}
        tallies = Counter[str]()
        for series, group in groupby(variants, lambda each: each.series):
            several = list(group)
            attributes, latest = merge(Level.SERIES, [each.variant for each in several])
            count = sum(each.variant.count for each in several)
            texts = level_texts(Level.SERIES, attributes, {"00201209": _number(count)})
            self.series[series] = LevelRow(count, 0, latest, *texts, b"").pack()
            tallies["m" + _modality(attributes)] += 1
            for each in several:
                tallies["c" + each.attributes[SOP_CLASS]["Value"][0]] += each.variant.count
        del tallies["m"]
        attributes, latest = merge(Level.STUDY, [each.variant for each in variants])
        instances = sum(each.variant.count for each in variants)
        texts = level_texts(Level.STUDY, attributes, study_computed(instances, len(self.series), tallies))
        self.row = LevelRow(instances, len(self.series), latest, *texts, b"").pack()

    def holds(self, value: bytes) -> bool:
        """Whether an instance of the study, by its row, is one of these."""
        return variant_of(value) in self._digests

    def only(self, rows: Iterable[PackedRow]) -> Iterator[PackedRow]:
        """Of rows of instances, or of series, of the study: those of the part, as they are there."""
        for key, value in rows:
            _, series, *instance = key.split(b"\0")
            if instance:
                if self.holds(value):
                    yield key, value
            elif (own := self.series.get(series.decode())) is not None:
                yield key, own

    def under(
        self, read: Callable[[bytes, int], list[PackedRow]], first: bytes, size: int
    ) -> list[PackedRow]:
        """The rows from a key on, `size` at most. `read` gives those of the whole study, and so many."""
        found, step, more = list[PackedRow](), max(size, LEAST_READ), True
        while more and len(found) < size:
            rows = read(first, step)
            found += self.only(rows)
            more = len(rows) == step
            first = rows[-1][0] + b"\0" if rows else first
        return found[:size]

    @property
    def facts(self) -> set[bytes]:
        """The digests of the facts of these instances."""
        return {digest[:FACTS_BYTES] for digest in self._digests}


def part_of(
    transaction: Transaction, handles: Mapping[str, object], study: str, shows: Callable[[bytes], bool]
) -> StudyPart | bool:
    """The instances of a study that `shows` accepts, by the row of a study with this instance alone. True if
    these are all, False if there are none."""
    found = list(_variants(transaction, handles, prefix(study)))
    shown = [each for each in found if shows(_row_of_facts(each.variant.text))]
    return StudyPart(shown) if 0 < len(shown) < len(found) else bool(shown)


def facts_under(transaction: Transaction, handles: Mapping[str, object], study: str) -> set[bytes]:
    """The digests of the facts of all instances of a study."""
    return {each.digest[:FACTS_BYTES] for each in _variants(transaction, handles, prefix(study))}


def _row_of_facts(text: bytes) -> bytes:
    tallies = _packed(dict.fromkeys(fact_names(text), 1))
    return LevelRow(0, 0, _NEVER, b"", b"", tallies).pack()


def fact_names(text: bytes) -> list[str]:
    """The facts of a variant as they are tallied: "v", tag and value."""
    facts = facts_of(json_object(text))
    return [f"v{tag}{value}" for tag, values in facts.items() for value in values]


def fact_reader(tag: str) -> Callable[[bytes], list[bytes]]:
    """Reads the facts of one attribute from the row of a study, as they are in JSON text. To parse the row
    takes five times as long."""
    # In a JSON string a backslash stands before each quote, so a name begins here and nowhere else.
    find = re.compile(rb'(?<=[{,])"v%b((?:[^"\\]|\\.)*)":' % tag.encode()).findall
    return lambda value: find(value, tallies_at(value))


def _is_mixed(tallies: Mapping[str, int]) -> bool:
    """Whether an attribute has more than one fact."""
    return sum(name[0] == "v" for name in tallies) > len(FACTS)


def _packed(tallies: Mapping[str, int]) -> bytes:
    return orjson.dumps(tallies, option=orjson.OPT_SORT_KEYS)


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
    those above zero; and the terms that are listed apart."""
    tallies = Counter(json_object(before.tallies) if before else {})
    for part in parts:
        tallies["m" + part.modality_before] -= 1
        tallies["m" + part.modality] += 1
        for sop_class, change in part.classes.items():
            tallies["c" + sop_class] += change
        for name, change in part.facts.items():
            tallies[name] += change
    return {name: count for name, count in tallies.items() if count > 0 and name != "m"}
