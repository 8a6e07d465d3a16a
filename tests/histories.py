"""What several clients did to one thing at once, and whether a single order of events explains what they
saw.

A thing is a register: absent (None) or one of the versions that were stored. Each operation took effect
at one moment between its begin and its end; one that was never answered at some moment, or never. A
history is explained if the operations can be put into an order that keeps to those times and gives every
answer that was given.
"""

from dataclasses import dataclass

FOR_EVER = float("inf")
IMPOSSIBLE = object()
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Operation:
    """`answer` is None where none came. `version` is what a store stores and a read reads."""

    kind: str
    begin: float
    end: float
    answer: str | None
    version: str | None = None


def stored(operation, state, replacing):
    match operation.answer:
        case "stored":
            return operation.version if replacing or state is None else IMPOSSIBLE
        case "refused":
            return state if state is not None and not replacing else IMPOSSIBLE
    return operation.version if replacing or state is None else state


def deleted(operation, state, _):
    if operation.answer == "absent":
        return None if state is None else IMPOSSIBLE
    if operation.answer == "deleted" and state is None:
        return IMPOSSIBLE
    return None


def deleted_with_others(operation, state, _):
    """Of a series or study: there may have been others in it."""
    return IMPOSSIBLE if operation.answer == "absent" and state is not None else None


def read(operation, state, _):
    return state if operation.version == state else IMPOSSIBLE


EFFECTS = {"store": stored, "delete": deleted, "delete-above": deleted_with_others, "read": read}


def last_states(operations, first, *, replacing):
    """Every state in which the thing may be in the end; empty if nothing explains the history."""
    operations = sorted(operations, key=lambda operation: operation.begin)
    everything = (1 << len(operations)) - 1
    unanswered = sum(1 << place for place, each in enumerate(operations) if each.answer is None)
    seen, ends = set(), set()
    waiting = [(0, first)]  # which of them have taken effect, as bits; the state after them
    while waiting:
        step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        assert len(seen) < MOST_STEPS, "too many operations at once to be judged"
        done, state = step
        if done | unanswered == everything:
            ends.add(state)
        for place in candidates(operations, done):
            after = EFFECTS[operations[place].kind](operations[place], state, replacing)
            if after is not IMPOSSIBLE:
                waiting.append((done | 1 << place, after))
    return ends


def candidates(operations, done):
    """Which may take effect next: those that began before any of the rest had ended."""
    horizon, place = FOR_EVER, (~done & (done + 1)).bit_length() - 1
    found = []
    while place < len(operations) and operations[place].begin <= horizon:
        if not done >> place & 1:
            horizon = min(horizon, operations[place].end)
            found.append(place)
        place += 1
    return [place for place in found if operations[place].begin <= horizon]
