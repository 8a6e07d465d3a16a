"""Studies and series, kept true while instances come and go.

Strategy: the instances of a series nearly always agree on its attributes. Each set of study and series
attributes that occurs is kept once, as a *variant*, with the number of instances that share it and the order
of the latest. So 400 instances of a series cost one merge: a transaction only counts, and `flush` writes each
touched series and study once.

The attributes of a series are those of its variants laid over each other in the order of their latest
instances, a study's those of all its series' variants: the latest stored wins, an empty value erases nothing,
and what a deleted instance said is gone, because its variant is. The outcome depends on which instances there
are and not on how they came, so a rebuild gives the same rows.

Rules of this file: everything happens inside the writer's transaction; nothing here is kept beyond it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.store.index_answers import at_level, dataset_attributes, level_texts
from streamsrv.store.index_environment import Transaction
from streamsrv.store.index_rows import LevelRow, Variant, json_object, order_in, prefix, variant_of
from streamsrv.store.index_terms import terms
from streamsrv.store.query import Level
from streamsrv.store.rows import InstanceKey

_NEVER = bytes(24)  # before every order


@dataclass(slots=True)
class _Series:
    """What a transaction has done to one series. `variants` holds those touched, by digest."""

    study: str
    series: str
    before: LevelRow | None
    variants: dict[bytes, Variant] = field(default_factory=dict)
    unsettled: set[bytes] = field(default_factory=set)  # variants whose latest instance was removed
    added: int = 0
    removed: int = 0
    oldest: bytes = b"\xff" * 24  # of those added
    classes: Counter[str] = field(default_factory=Counter)


class Levels:
    def __init__(self, transaction: Transaction, handles: dict[str, object]) -> None:
        self._transaction = transaction
        self._handles = handles
        self._series: dict[tuple[str, str], _Series] = {}

    def add(self, key: InstanceKey, order: bytes, digest: bytes, text: bytes, sop_class: str) -> None:
        series = self._touched(key)
        variant = self._variant(series, digest)
        if variant is None:
            variant = series.variants[digest] = Variant(0, _NEVER, text)
        variant.text = variant.text or text
        variant.count += 1
        if order > variant.latest:
            variant.latest = order
            series.unsettled.discard(digest)
        series.added += 1
        series.oldest = min(series.oldest, order)
        series.classes[sop_class] += 1

    def remove(self, key: InstanceKey, order: bytes, digest: bytes, sop_class: str) -> None:
        series = self._touched(key)
        variant = self._variant(series, digest)
        if variant is not None:
            variant.count -= 1
            if order == variant.latest:
                series.unsettled.add(digest)
        series.removed += 1
        series.classes[sop_class] -= 1

    def flush(self) -> None:
        """Write every touched series, then every touched study."""
        studies: dict[str, list[tuple[_Series, LevelRow | None]]] = {}
        for series in self._series.values():
            self._flush_variants(series)
            studies.setdefault(series.study, []).append((series, self._flush_series(series)))
        for study, parts in studies.items():
            self._flush_study(study, parts)
        self._series = {}

    # -- series

    def _touched(self, key: InstanceKey) -> _Series:
        series = self._series.get(key[:2])
        if series is None:
            value = self._get("series", f"{key.study}\0{key.series}".encode())
            series = _Series(key.study, key.series, LevelRow.unpack(value) if value else None)
            self._series[key[:2]] = series
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
        unsettled = {digest for digest in series.unsettled if series.variants[digest].count > 0}
        for digest, order in self._latest(start, unsettled).items():
            series.variants[digest].latest = order
        for digest, variant in series.variants.items():
            if variant.count > 0:
                self._put("variants", start + digest, variant.pack())
            else:
                self._transaction.delete(start + digest, db=self._handles["variants"])

    def _latest(self, start: bytes, digests: set[bytes]) -> dict[bytes, bytes]:
        """Found again among the surviving instances of the series."""
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

    def _flush_series(self, series: _Series) -> LevelRow | None:
        key = f"{series.study}\0{series.series}".encode()
        count = (series.before.instances if series.before else 0) + series.added - series.removed
        if count <= 0:
            self._replace(Level.SERIES, key, series.before, None, {})
            if series.before:
                self._transaction.delete(
                    b"s" + series.series.encode(), series.study.encode(), db=self._handles["uids"]
                )
            return None
        attributes, latest = self._merged(
            Level.SERIES, prefix(series.study, series.series), [series], series.before
        )
        computed = {"00201209": _number("IS", count)}
        row = LevelRow(count, 0, latest, *level_texts(Level.SERIES, attributes, computed), b"")
        self._replace(Level.SERIES, key, series.before, row, attributes)
        if not series.before:
            self._put("uids", b"s" + series.series.encode(), series.study.encode())
        return row

    # -- studies

    def _flush_study(self, study: str, parts: list[tuple[_Series, LevelRow | None]]) -> None:
        value = self._get("studies", study.encode())
        before = LevelRow.unpack(value) if value else None
        tallies = _tally(before, parts)
        instances = (before.instances if before else 0) + sum(part.added - part.removed for part, _ in parts)
        if instances <= 0:
            self._replace(Level.STUDY, study.encode(), before, None, {})
            return
        series = (before.series if before else 0) + sum(
            (row is not None) - (part.before is not None) for part, row in parts
        )
        attributes, latest = self._merged(Level.STUDY, prefix(study), [part for part, _ in parts], before)
        computed = study_computed(instances, series, tallies)
        texts = level_texts(Level.STUDY, attributes, computed)
        row = LevelRow(instances, series, latest, *texts, orjson.dumps(tallies, option=orjson.OPT_SORT_KEYS))
        self._replace(Level.STUDY, study.encode(), before, row, attributes | computed)

    # -- both

    def _merged(
        self, level: Level, start: bytes, touched: list[_Series], before: LevelRow | None
    ) -> tuple[JsonDataset, bytes]:
        """The attributes and the order of the latest instance. Where every new instance is later than all
        before, its attributes are laid over the old ones; else all variants are laid over each other
        again."""
        appended = before is not None and all(
            part.oldest > before.latest and not part.removed for part in touched
        )
        if before is None or not appended:
            return merge(level, self._variants_under(start))
        variants = [variant for part in touched for variant in part.variants.values()]
        attributes, latest = merge(level, variants)
        return dataset_attributes(level, before) | attributes, latest

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
        attributes: JsonDataset,
    ) -> None:
        name = ("studies", "series")[level]
        old = terms_of(level, before) if before else set()
        new = terms(level, attributes) if after else set()
        for term in old - new:
            self._transaction.delete(term, key, db=self._handles["attributes"])
        for term in new - old:
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
    """Variants laid over each other, the one with the latest instance on top."""
    merged: JsonDataset = {}
    latest = _NEVER
    for variant in sorted(variants, key=lambda variant: variant.latest):
        merged.update(at_level(orjson.loads(variant.text), level))
        latest = variant.latest
    return merged, latest


def terms_of(level: Level, row: LevelRow) -> set[bytes]:
    """The inverted list entries that a stored row has."""
    attributes = dataset_attributes(level, row)
    if level is Level.STUDY:
        attributes |= study_computed(row.instances, row.series, json_object(row.tallies))
    return terms(level, attributes)


def _number(vr: str, number: int) -> JsonElement:
    return {"vr": vr, "Value": [number]}


def study_computed(instances: int, series: int, tallies: dict[str, int]) -> JsonDataset:
    """What a study's answer says about its series and instances."""
    modalities = sorted(name[1:] for name in tallies if name[0] == "m")
    classes = sorted(name[1:] for name in tallies if name[0] == "c")
    return {
        "00080061": {"vr": "CS", "Value": modalities} if modalities else {"vr": "CS"},
        "00080062": {"vr": "UI", "Value": classes} if classes else {"vr": "UI"},
        "00201206": _number("IS", series),
        "00201208": _number("IS", instances),
    }


def modality_of(row: LevelRow | None) -> str | None:
    """The modality under which a series counts in its study."""
    if row is None:
        return None
    element = dataset_attributes(Level.SERIES, row).get("00080060")
    return str(element["Value"][0]).strip() or None if element else None


def _tally(before: LevelRow | None, parts: list[tuple[_Series, LevelRow | None]]) -> dict[str, int]:
    """Series by modality ("mCT") and instances by SOP class ("c1.2.840..."), those above zero."""
    tallies = Counter(json_object(before.tallies) if before else {})
    for part, row in parts:
        for name, change in ((modality_of(part.before), -1), (modality_of(row), 1)):
            if name is not None:
                tallies["m" + name] += change
        for sop_class, change in part.classes.items():
            tallies["c" + sop_class] += change
    return {name: count for name, count in tallies.items() if count > 0}
