"""SOP classes of services: Storage Commitment, and the information models of Query/Retrieve with their levels
(PS3.4 C.6, C.3.4, J.3)."""

from __future__ import annotations

from typing import NamedTuple

from streamsrv.query.attributes import Level

_LEVELS = {"STUDY": Level.STUDY, "SERIES": Level.SERIES, "IMAGE": Level.INSTANCE}


class InformationModel(NamedTuple):
    """A patient is no level of the index: its studies are grouped."""

    name: str
    levels: tuple[str, ...]

    def index_level(self, level: str) -> Level:
        return _LEVELS.get(level, Level.STUDY)


PATIENT_ROOT = InformationModel("Patient Root", ("PATIENT", "STUDY", "SERIES", "IMAGE"))
STUDY_ROOT = InformationModel("Study Root", ("STUDY", "SERIES", "IMAGE"))
PATIENT_STUDY_ONLY = InformationModel("Patient/Study Only", ("PATIENT", "STUDY"))
_MODELS = {"1": PATIENT_ROOT, "2": STUDY_ROOT, "3": PATIENT_STUDY_ONLY}
_ROOT = "1.2.840.10008.5.1.4.1.2."

COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"  # push model
FIND = {f"{_ROOT}{number}.1": model for number, model in _MODELS.items()}
MOVE = {f"{_ROOT}{number}.2": model for number, model in _MODELS.items()}
GET = {f"{_ROOT}{number}.3": model for number, model in _MODELS.items()}
