"""Which presentation contexts are accepted, and with which transfer syntax (PS3.8 7.1.1.13, PS3.4 Annex B).
Sans-IO.

Rules of this file
- Each storage SOP class is accepted, also a private or future one. Classes whose instances belong to no study
  are not, because an instance is stored by its study.
- The bytes stay as they come, so each transfer syntax is accepted. Of several the first one counts, because
  that order is the sender's. Implicit VR and big endian come after the others, because explicit VR little
  endian tells the VR and every reader takes it. Syntaxes without a row in dicom/syntaxes.py come last.
- Datasets of Query/Retrieve and Storage Commitment are in Explicit or Implicit VR Little Endian.
- A peer may be the SCP of a storage class: C-GET sends its instances to it.
- Each query is relational, and dates are combined with times. So both are told if the peer negotiates them.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamsrv.dicom.syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    SYNTAXES,
)
from streamsrv.dimse.protocol.models import COMMITMENT, FIND, GET, MOVE
from streamsrv.dimse.protocol.pdus import AcceptedContext, ProposedContext

VERIFICATION = "1.2.840.10008.1.1"
ACCEPTED, NO_ABSTRACT_SYNTAX, NO_TRANSFER_SYNTAX = 0, 3, 4  # PS3.8 Table 9-18
DICOM_ROOT = "1.2.840.10008."
STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
# Storage SOP classes of other branches (PS3.6 Table A-1), whose instances belong to a study.
STORAGE = frozenset(
    (
        "1.2.840.10008.5.1.1.27",  # Stored Print
        "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image
        "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image
        "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction (trial)
        "1.2.840.10008.5.1.4.34.7",  # RT Beams Delivery Instruction
        "1.2.840.10008.5.1.4.34.10",  # RT Brachy Application Setup Delivery Instruction
    )
)
# Below STORAGE_ROOT: protocols and inventories without a study, and their query and retrieve classes.
WITHOUT_STUDY = tuple(
    f"{STORAGE_ROOT}{each}" for each in ("200.1", "200.3", "200.4", "200.5", "200.6", "200.7")
)
INVENTORIES = f"{STORAGE_ROOT}201."
_OF_IDENTIFIERS = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
_LAST = {IMPLICIT_VR_LITTLE_ENDIAN: 1, EXPLICIT_VR_BIG_ENDIAN: 2}
_UNKNOWN = 3


def is_storage(abstract_syntax: str) -> bool:
    """Whether it may be a storage SOP class with instances of studies. A private class may be another one."""
    if not abstract_syntax.startswith(DICOM_ROOT) or abstract_syntax in STORAGE:
        return True
    excluded = abstract_syntax in WITHOUT_STUDY or abstract_syntax.startswith(INVENTORIES)
    return abstract_syntax.startswith(STORAGE_ROOT) and not excluded


def accept(proposed: Sequence[ProposedContext]) -> list[AcceptedContext]:
    """The answer to each context, in their order."""
    return [_answer(each) for each in proposed]


def _answer(context: ProposedContext) -> AcceptedContext:
    if context.abstract_syntax in (*FIND, *GET, *MOVE, COMMITMENT):
        found = [each for each in _OF_IDENTIFIERS if each in context.transfer_syntaxes]
        result = ACCEPTED if found else NO_TRANSFER_SYNTAX
        return AcceptedContext(context.number, result, (found or context.transfer_syntaxes)[0])
    syntax = min(context.transfer_syntaxes, key=_rank)
    is_known = context.abstract_syntax == VERIFICATION or is_storage(context.abstract_syntax)
    return AcceptedContext(context.number, ACCEPTED if is_known else NO_ABSTRACT_SYNTAX, syntax)


def _rank(syntax: str) -> int:
    return _LAST.get(syntax, 0) if syntax in SYNTAXES else _UNKNOWN


def extended(proposed: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The answers to the items of extended negotiation (PS3.4 C.5.1.1): relational queries and retrieves,
    dates combined with times, and fuzzy matching of names if it is asked for. Bytes behind these are zero."""
    answers = []
    for uid, asked in proposed:
        if uid in FIND:
            told = bytes((1, 1, asks_fuzzy(asked)))
        elif uid in GET or uid in MOVE:
            told = b"\1"
        else:
            continue
        answers.append((uid, told[: len(asked)].ljust(len(asked), b"\0")))
    return answers


def roles(proposed: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The answers to the items of role selection: the peer may be the SCP of storage classes, for C-GET."""
    return [(uid, scu, scp if is_storage(uid) else 0) for uid, scu, scp in proposed]


def asks_fuzzy(information: bytes) -> bool:
    return information[2:3] == b"\1"
