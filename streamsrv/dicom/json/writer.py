"""Writes the events of a dataset as DICOM JSON text (PS3.18 Annex F), in bounded memory.

Strategy: elements become dicts, and one orjson call writes a whole dataset. When the pending elements
exceed SPILL, the writer writes all complete ones and the opening brackets of the open containers. So a
sequence of a million items is never in memory as a whole.

Rules:
- Attributes ascend by tag (F.2.2). Elements out of order are sorted while they are pending; later they are
  left out with a warning.
- Group lengths (F.2.2) and elements of group 0002 are left out. An empty value has no "Value" (F.2.5). Bulk
  values are BulkDataURI with a slot (instance.py).
- RetrieveURL (0008,1190) and Available Transfer Syntax UID (0008,3002) are added in their places.
- A value that breaks the rules of its VR causes a warning.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import orjson

from streamsrv.dicom.charsets import CharacterSets, character_sets_of
from streamsrv.dicom.elements import ITEM, ITEM_END, SEQUENCE_END, Event
from streamsrv.dicom.instance import AttributeWarning, BulkValue, JsonDataset, JsonElement
from streamsrv.dicom.tags import KEYS
from streamsrv.dicom.values import Converter, converters_for, lenient
from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import InstanceRefused

SLOT = orjson.Fragment(b'"\0"')  # the instance's own URL
SPILL = 128 * 1024  # estimated bytes of pending text
PACKS = 8  # a spill
PIECE = 256 * 1024  # bytes that are emitted at once, at most
OVERHEAD = 48  # of one element: tag, vr, brackets
SPECIFIC_CHARACTER_SET = 0x00080005


_NO_MEMBERS: JsonDataset = {}


class _Open:
    """An incomplete dataset or, with a `key`, sequence. `convert` is for its character set."""

    __slots__ = ("convert", "count", "filled", "items", "key", "members", "sets", "through", "written")

    def __init__(self, key: str, sets: CharacterSets, convert: dict[str, Converter]) -> None:
        self.key = key  # the tag of a sequence
        self.sets = sets
        self.convert = convert
        self.members: JsonDataset = _NO_MEMBERS if key else {}
        self.items: list[JsonDataset | orjson.Fragment] = []
        self.count = 0  # items of a sequence, with the written ones.
        self.written = False  # the opening bracket is written.
        self.filled = False  # a member is written: a comma is next.
        self.through = ""  # the last tag of a dataset that is written


class MetadataWriter:
    """Writes one instance. Then `kept` holds the top-level elements of `keep`, `bulk` the bulk values."""

    def __init__(
        self,
        emit: Callable[[bytes], None],
        keep: frozenset[str],
        extra: JsonDataset,
        limits: ReadLimits,
        little: bool,
    ) -> None:
        self._keep = keep
        self.kept: JsonDataset = {}
        self.bulk: list[BulkValue] = []
        self.warnings: list[AttributeWarning] = []
        self.length = 0
        self.slots = 0
        self._emit = emit
        self._extra = extra
        self._limits = limits
        self._little = little
        sets, _ = character_sets_of(())
        self._stack = [_Open("", sets, converters_for(sets, little))]
        self._stack[0].written = True
        self._out: list[bytes] = []
        self._pending = 0
        self._attributes = 0  # written at the top level

    def element(self, key: str) -> JsonElement | None:
        """A top-level element of `keep`, if it has been read."""
        return self._stack[0].members.get(key) or self.kept.get(key)

    def write(self, events: Iterable[Event]) -> None:
        """The loop over all events. One call per event would add a quarter to its time, so methods handle the
        ends of containers, bulk values and invalid values only."""
        self._out.append(b"{")
        stack = self._stack
        top = stack[0]
        members, convert = top.members, top.convert
        pending = enough = 0
        for tag, vr, offset, length, value in events:
            if value is not None:
                if not tag & 0xFFFF:
                    continue
                key = KEYS.get(tag) or f"{tag:08X}"
                try:
                    members[key] = convert[vr](value)
                except (ValueError, struct.error):
                    members[key] = self._odd(key, vr, value)
                pending += length + OVERHEAD
                if tag == SPECIFIC_CHARACTER_SET:
                    convert = self._character_set(members[key])
            else:
                pending += 8
                if tag == ITEM:
                    top.count += 1
                    if length:
                        top = _Open("", top.sets, top.convert)
                        stack.append(top)
                    else:  # its end is the next event
                        top.items.append({})
                elif tag == ITEM_END:
                    if not top.key:
                        stack.pop()
                        self._close_item(top, stack[-1])
                elif tag == SEQUENCE_END:
                    stack.pop()
                    self._close_sequence(top, stack[-1])
                elif vr == "SQ":
                    pending += OVERHEAD
                    stack.append(_Open(KEYS.get(tag) or f"{tag:08X}", top.sets, top.convert))
                elif tag & 0xFFFF:
                    pending += self._bulk_value(f"{tag:08X}", vr, offset, length)
                top = stack[-1]
                members, convert = top.members, top.convert
            if pending > enough:
                enough = self._pack(pending)
                pending = 0
        self._finish()

    def _pack(self, pending: int) -> int:
        """Writes if more than SPILL bytes are pending. Makes text of the complete items, because the garbage
        collector visits objects again and again. Returns after how many bytes the next call is due."""
        self._pending += pending
        if self._pending > SPILL:
            self._spill()
        for node in self._stack:
            if len(node.items) > 1:
                node.items[:] = [orjson.Fragment(orjson.dumps(node.items)[1:-1])]
        return min(SPILL // PACKS, SPILL - self._pending)

    def _bulk_value(self, key: str, vr: str, offset: int, length: int) -> int:
        """Returns the estimated bytes of its text."""
        path = "/".join([*self._path(), key])
        self.bulk.append(BulkValue(path, vr, offset, length))
        uri = orjson.Fragment(b'"\0/bulkdata/%s"' % path.encode())
        self._stack[-1].members[key] = {"vr": vr, "BulkDataURI": uri}
        return len(path) + OVERHEAD

    def _path(self) -> list[str]:
        """Returns tag and item index of each open sequence."""
        path = []
        for node in self._stack:
            if node.key:
                path += [node.key, str(node.count - 1)]
        return path

    def _character_set(self, element: JsonElement) -> dict[str, Converter]:
        """Sets the Specific Character Set of the open dataset. Returns its converters."""
        terms = tuple(str(term or "") for term in element.get("Value", ()))
        sets, reason = character_sets_of(terms)
        if reason:
            self.warn("00080005", reason)
        top = self._stack[-1]
        top.sets, top.convert = sets, converters_for(sets, self._little)
        return top.convert

    def _odd(self, key: str, vr: str, value: bytes) -> JsonElement:
        element, reason = lenient(vr, value, self._stack[-1].sets, self._little)
        self.warn("/".join([*self._path(), key]) if len(self._stack) > 1 else key, reason)
        return element

    def warn(self, tag: str, reason: str) -> None:
        if len(self.warnings) < self._limits.max_warnings:
            self.warnings.append(AttributeWarning(tag, reason))

    def _close_item(self, node: _Open, sequence: _Open) -> None:
        if node.written:
            self._write_members(node, None)
            self._out.append(b"}")
        else:
            sequence.items.append(_sorted(node.members))

    def _close_sequence(self, node: _Open, dataset: _Open) -> None:
        if node.written:
            self._write_items(node)
            self._out.append(b"]}")
        else:
            dataset.members[node.key] = {"vr": "SQ", "Value": node.items} if node.items else {"vr": "SQ"}

    def _spill(self) -> None:
        """Writes the complete elements, from the outermost container to the innermost, and the opening
        brackets of the containers."""
        stack = self._stack
        self._pending = 0
        for node, inner in zip(stack, [*stack[1:], None], strict=True):
            if node.key:
                if not node.count:
                    break  # if it stays empty it has no "Value"
                self._write_items(node)
            else:
                self._write_members(node, inner.key if inner else max(node.members, default=""))
            if inner and (inner.count or not inner.key) and not inner.written:
                self._count_attributes(node is stack[0])
                self._comma(node)
                self._out.append(b'"%s":{"vr":"SQ","Value":[' % inner.key.encode() if inner.key else b"{")
                inner.written = True
                node.through = max(node.through, inner.key)
        self._flush()

    def _write_items(self, node: _Open) -> None:
        if node.items:
            self._comma(node)
            self._out.append(orjson.dumps(node.items)[1:-1])
            node.items.clear()

    def _write_members(self, node: _Open, boundary: str | None) -> None:
        """Writes the complete elements of a dataset; at the top level also those of `extra` before
        `boundary`."""
        members = node.members
        if node.through:
            for key in [key for key in members if key <= node.through]:
                del members[key]
                self.warn(key, "out of order: left out of the metadata")
        if node is self._stack[0]:
            self._count_attributes(len(members))
            for key in self._keep & members.keys():
                self.kept[key] = members[key]
            for key in [key for key in self._extra if boundary is None or key < boundary]:
                members[key] = self._extra.pop(key)
        if members:
            ordered = _sorted(members)
            if next(iter(ordered)) < "0003":
                ordered = {key: ordered[key] for key in ordered if key[:4] != "0002"}
            if ordered:
                self._comma(node)
                self._out.append(orjson.dumps(ordered)[1:-1])
                node.through = max(node.through, next(reversed(ordered)))
            members.clear()

    def _count_attributes(self, number: int) -> None:
        """Counts attributes of the dataset itself, not of its items. Raises InstanceRefused."""
        self._attributes += number
        limit = self._limits.max_attributes
        if limit and self._attributes > limit:
            raise InstanceRefused(
                f"more than {limit:,} attributes at the top level of the dataset (max_attributes)"
            )

    def _comma(self, node: _Open) -> None:
        if node.filled:
            self._out.append(b",")
        node.filled = True

    def _finish(self) -> None:
        self._write_members(self._stack[0], None)
        self._out.append(b"}")
        self._flush()
        if len({value.path for value in self.bulk}) < len(self.bulk):
            self.bulk = list({value.path: value for value in self.bulk}.values())

    def _flush(self) -> None:
        text = b"".join(self._out)
        self._out.clear()
        self.length += len(text)
        self.slots += text.count(b"\0")
        if self.length > self._limits.max_metadata:
            raise InstanceRefused(f"more than {self._limits.max_metadata:,} bytes of metadata")
        for at in range(0, len(text), PIECE):
            self._emit(text[at : at + PIECE])


def _sorted(members: JsonDataset) -> JsonDataset:
    if len(members) < 2:
        return members
    keys = list(members)
    ordered = sorted(keys)
    return members if keys == ordered else {key: members[key] for key in ordered}


def plain(element: JsonElement) -> JsonElement:
    """The element without `orjson.Fragment`s: a slot becomes the character U+0000."""
    if "BulkDataURI" in element or element["vr"] == "SQ":
        plain: JsonElement = orjson.loads(orjson.dumps(element).replace(b"\0", b"\\u0000"))
        return plain
    return element
