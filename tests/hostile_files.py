"""Part 10 files made byte by byte, for tests that need files which lie."""

import struct
import uuid

EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
UNDEFINED = 0xFFFFFFFF
# PS3.5 Table 7.1-2: these have a length of 16 bits.
SHORT_VRS = (
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO"),
    *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
)
LONG_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "SV", "UC", "UN", "UR", "UT", "UV")
SECRET = b"Hidden^Name"  # the patient's name in every file: no refusal may repeat it


def element(tag, vr, value=b"", length=None):
    """One element in Explicit VR Little Endian; `length` may lie."""
    length = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    return head + (struct.pack("<H", length) if vr in SHORT_VRS else struct.pack("<HI", 0, length)) + value


def item(content=b"", length=None):
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content) if length is None else length) + content


ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def padded(text, pad=b"\0"):
    value = text if isinstance(text, bytes) else text.encode()
    return value + pad * (len(value) % 2)


UIDS = {"sop_class": 0x00080016, "instance": 0x00080018, "study": 0x0020000D, "series": 0x0020000E}


def part10(dataset, syntax=EXPLICIT):
    body = element(0x00020010, "UI", padded(syntax))
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(body))) + body + dataset


def new_uid():
    return f"2.25.{uuid.uuid4().int}"


def identity(**uids):
    """The elements that every instance needs, by tag; a UID that is None is left out."""
    values = {"sop_class": SECONDARY_CAPTURE} | {name: new_uid() for name in ("instance", "study", "series")}
    found = {UIDS[name]: value for name, value in (values | uids).items() if value is not None}
    elements = {tag: element(tag, "UI", padded(value)) for tag, value in found.items()}
    patient = {0x00100010: element(0x00100010, "PN", padded(SECRET, b" "))}
    return elements | patient | {0x00100020: element(0x00100020, "LO", b"ID")}


def dataset(more=None, **uids):
    """`more`: tag -> element, besides the identity."""
    return b"".join(value for _, value in sorted((identity(**uids) | (more or {})).items()))


def instance(more=None, syntax=EXPLICIT, **uids):
    return part10(dataset(more, **uids), syntax)
