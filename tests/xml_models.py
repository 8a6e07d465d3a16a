"""Native DICOM Model documents read by xml.etree: the schema of PS3.19 A.1.6 as checks, and back to DICOM
JSON."""

import re
from xml.etree import ElementTree

from streamsrv.dicom.elements import BINARY_VRS, SHORT_VRS
from streamsrv.dicom.values import NUMBERS

MODEL = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
VRS = {"SQ", "PN", "SV", "UC", "UR", "UT", "UV", *SHORT_VRS.values(), *BINARY_VRS}
CONTENT = {"BulkData", "Value", "Item", "PersonName", "InlineBinary"}


def parsed(document):
    return ElementTree.fromstring(document)


def name_of(node):
    assert node.tag.startswith(MODEL), node.tag
    return node.tag.removeprefix(MODEL)


def check_model(root):
    """Every rule of the schema, and the numbering of A.1.5."""
    assert name_of(root) == "NativeDicomModel"
    assert root.attrib == {"{http://www.w3.org/XML/1998/namespace}space": "preserve"}
    check_dataset(root)


def check_dataset(node):
    assert not (node.text or "").strip()
    for attribute in node:
        assert name_of(attribute) == "DicomAttribute"
        assert set(attribute.attrib) <= {"tag", "vr", "keyword", "privateCreator"}
        assert re.fullmatch("[0-9A-F]{8}", attribute.get("tag"))
        assert attribute.get("vr") in VRS
        assert re.fullmatch(r"[A-Za-z0-9]+|", attribute.get("keyword", ""))
        if "privateCreator" in attribute.attrib:
            assert int(attribute.get("tag")[:4], 16) % 2
            assert attribute.get("tag")[4:6] == "00"
        kinds = {name_of(child) for child in attribute}
        assert len(kinds) <= 1
        assert kinds <= CONTENT
        for number, child in enumerate(attribute, 1):
            CHECKS[name_of(child)](child, number, attribute.get("vr"))


def check_value(node, number, vr):
    assert vr not in ("SQ", "PN")
    assert node.attrib == {"number": str(number)}
    assert not len(node)


def check_item(node, number, vr):
    assert vr == "SQ"
    assert node.attrib == {"number": str(number)}
    check_dataset(node)


def check_name(node, number, vr):
    assert vr == "PN"
    assert node.attrib == {"number": str(number)}
    groups = [name_of(group) for group in node]
    assert groups == [group for group in GROUPS if group in groups]
    for group in node:
        parts = [name_of(part) for part in group]
        assert parts == [part for part in COMPONENTS if part in parts]


def check_single(node, number, vr):
    assert number == 1
    assert not len(node)
    if name_of(node) == "BulkData":
        assert len(node.attrib) == 1
        assert node.get("uri") or node.get("uuid")
        assert node.text is None
    else:
        assert not node.attrib
        assert re.fullmatch(r"[A-Za-z0-9+/=]+", node.text)


CHECKS = {
    "Value": check_value,
    "Item": check_item,
    "PersonName": check_name,
    "BulkData": check_single,
    "InlineBinary": check_single,
}


def json_of(node):
    """The dataset of a model or an item as DICOM JSON."""
    blocks, dataset = {}, {}
    for attribute in node:
        tag, creator = attribute.get("tag"), attribute.get("privateCreator")
        if creator is not None:
            tag = f"{tag[:4]}{blocks[tag[:4], creator]}{tag[6:]}"
        dataset[tag] = element = {"vr": attribute.get("vr")}
        for child in attribute:
            READERS[name_of(child)](element, child)
        if int(tag[:4], 16) % 2 and tag[4:6] == "00" and tag[6] != "0" and "Value" in element:
            blocks[tag[:4], element["Value"][0].strip(" ")] = tag[6:]
    return dataset


def read_value(element, node):
    text, vr = node.text, element["vr"]
    value = text
    if text is not None and (vr in NUMBERS or vr in ("DS", "IS")):
        try:
            value = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
        except ValueError:
            value = text
    element.setdefault("Value", []).append(value)


def read_name(element, node):
    groups = {name_of(group): "^".join(part.text or "" for part in group) for group in node}
    element.setdefault("Value", []).append(groups or None)


READERS = {
    "Value": read_value,
    "PersonName": read_name,
    "Item": lambda element, node: element.setdefault("Value", []).append(json_of(node)),
    "BulkData": lambda element, node: element.update(BulkDataURI=node.get("uri")),
    "InlineBinary": lambda element, node: element.update(InlineBinary=node.text),
}
