"""The level of each attribute in the study root information model (PS3.4 C.6.2.1).

Strategy: the table of searchable attributes decides, if it has a row. Else the module of PS3.3 decides (A.1,
C.7). Attributes of the patient and study modules belong to the study. Those of the modules for series,
equipment and frame of reference belong to the series. All others belong to the instance. An attribute in
modules of several levels belongs to the highest one. A private attribute has no level.
"""

from __future__ import annotations

from streamsrv.query.attributes import BY_TAG, Level, Path


def _tags(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Patient, clinical trial, study and its requests, visit.
_STUDY_GROUPS = frozenset(("0010", "0012", "0032", "0038"))
_STUDY = _tags("""
    00080020 00080030 00080050 00080051 00080061 00080062 00080063 00080090 00080096 0008009C 0008009D
    00081030 00081032 00081048 00081049 00081060 00081062 00081080 00081084 00081110 00081120 0020000D
    00200010 00201000 00201070 00401012
""")
_SERIES = _tags("""
    00080021 00080031 00080060 00080064 00080068 00080070 00080080 00080081 00081010 0008103E 0008103F
    00081040 00081041 00081050 00081052 00081070 00081072 00081090 00081111 00081250 00102210 00120060
    00120071 00120072 00120073 0016004D 0016004E 0016004F 00160050 00160051 00180015 00180026 00180071
    00180073 00180074 00180075 00181000 00181002 00181008 0018100A 0018100B 00181010 00181016 00181018
    00181019 00181020 00181022 00181023 00181030 00181050 00181061 00181064 0018106A 0018106C 00181080
    00181085 00181086 00181088 00181100 00181120 00181121 00181147 00181149 00181160 00181180 00181181
    00181190 00181200 00181201 00181204 00181205 00181210 00181260 00181261 00181800 00181801 00181802
    00181803 00185100 00185101 0020000E 00200011 00200052 00200060 00200200 00201040 00209307 00209308
    00209309 0020930A 0020930B 0020930C 00209312 00209313 00280051 00280108 00280109 00280120 00400244
    00400245 00400250 00400251 00400253 00400254 00400260 00400261 00400275 00400280 00540013 00540016
    00540061 00540071 00540081 00540101 00540202 00540410 00540414 00540501 00541000 00541001 00541002
    00541004 00541006 00541100 00541101 00541102 00541103 00541104 00541105 00541200 00541201 00541202
    00541203 00541210 00541220 00800013 300A0700
""")
_INSTANCE = frozenset(("00100028", "00109431"))


def level_of(path: Path) -> Level | None:
    """The level of the outermost attribute of a path; None for a private one."""
    tag = path[0]
    row = BY_TAG.get(tag)
    if row is not None:
        return row.level
    if int(tag[3], 16) % 2:
        return None
    if tag in _SERIES:
        return Level.SERIES
    of_study = tag in _STUDY or (tag[:4] in _STUDY_GROUPS and tag not in _INSTANCE)
    return Level.STUDY if of_study else Level.INSTANCE


def is_below(path: Path, level: Level) -> bool:
    """Whether results of this level lack the attribute, because it belongs to a lower one (PS3.18
    10.6.3.3.1, 10.6.3.3.2)."""
    found = level_of(path)
    return found is not None and found > level
