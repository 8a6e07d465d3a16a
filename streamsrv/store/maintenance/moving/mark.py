"""The state of a move: a row of `about` in the index of the target.

Rules of this file
- While the row is there, only the move may open the target for writing (store.py). So everything in the
  target was brought by the move.
- The row is written after the instances that it counts are durable.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from streamsrv.errors import StoreCorrupt, StoreError
from streamsrv.store.store import MOVE, Store, require_no_move


@dataclass(slots=True)
class MoveState:
    """`source` is the id of the source. If all instances were compared since, the target has the changes of
    the source up to the sequence `position` of this `epoch`. Instances of the target with a serial up to
    `verified` were read again; of those up to `until`, the ones up to the key `after` (UIDs with slashes)."""

    source: str
    epoch: str
    position: int
    verified: int = 0
    until: int = 0
    after: str = ""


def begun(source: Store, target: Store) -> MoveState:
    """The state of the move between the two; begins it if the target is new. Raises StoreError if the target
    is another one's, or the source the target of a move that has not ended."""
    require_no_move(source.index)
    if source.store_id == target.store_id:
        raise StoreError("source and target are the same store")
    text = target.index.about().get(MOVE)
    if text is not None:
        state = _state_from(text)
        if state.source != source.store_id:
            raise StoreError(
                f"the target was begun by a move of store {state.source}, and the source is store "
                f"{source.store_id}: nothing was changed. Name the source of that move, or another target"
            )
        return state
    if target.index.latest_change() is not None or target.index.segments():
        raise StoreError(
            "the target has, or had, instances of its own: nothing was changed. Name an empty folder, or an "
            "empty database and another prefix of the bucket"
        )
    state = MoveState(source.store_id, source.index.about()["epoch"], last_sequence(source))
    save(target, state)
    return state


def last_sequence(store: Store) -> int:
    """That of its latest change, 0 without one."""
    last = store.latest_change()
    return last.sequence if last is not None else 0


def save(target: Store, state: MoveState) -> None:
    target.index.note(MOVE, json.dumps(asdict(state)))


def end(target: Store) -> None:
    """From now on servers may open the target."""
    target.index.note(MOVE, "")


def _state_from(text: str) -> MoveState:
    try:
        return MoveState(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise StoreCorrupt("the state of the move cannot be read: begin again with another target") from error
