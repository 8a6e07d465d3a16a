"""One change of the store as JSON, with the names of the change feed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from streamsrv.store import Change, ChangeKind, InstanceRow, Store, unpacked

_ACTIONS = {ChangeKind.STORED: "create", ChangeKind.REPLACED: "update", ChangeKind.DELETED: "delete"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CURRENT, REPLACED, DELETED = "current", "replaced", "deleted"


def time_text(at: int) -> str:
    """RFC 3339, in UTC; `at` is in microseconds since 1970."""
    moment = _EPOCH + timedelta(microseconds=at)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def members_of(change: Change, state: str) -> dict[str, Any]:
    """The members of a change but for its metadata."""
    study, series, instance = change.key
    return {
        "sequence": change.sequence,
        "studyInstanceUid": study,
        "seriesInstanceUid": series,
        "sopInstanceUid": instance,
        "action": _ACTIONS[change.kind],
        "timestamp": time_text(change.at),
        "state": state,
    }


class ChangedInstances:
    """The instances of some changes, as they are now: all are of one version of the index."""

    def __init__(self, store: Store, changes: Sequence[Change]) -> None:
        keys = dict.fromkeys(change.key for change in changes)
        found = map(unpacked, store.index.packed_rows(keys))
        self._rows: Mapping[tuple[str, str, str], InstanceRow] = {row.key: row for row in found}

    def state(self, change: Change) -> str:
        """`current` if the instance is still that of the change, `replaced` if another one has its UIDs."""
        row = self._rows.get(change.key)
        if row is None:
            return DELETED
        same = row.record_id == change.record_id and change.kind is not ChangeKind.DELETED
        return CURRENT if same else REPLACED

    def row(self, change: Change) -> InstanceRow | None:
        """The row of the instance, if the change is current."""
        return self._rows[change.key] if self.state(change) == CURRENT else None
