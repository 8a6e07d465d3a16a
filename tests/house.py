"""The house and the journeys of docs/architecture.md, from the table of floors and the imports of the source.
As a script it writes the drawing into the page.
"""

import ast
import re
from collections import defaultdict

from test_floors import FLOORS, MODULES, ROOT, STRANGERS, arrows

PAGE = ROOT / "docs" / "architecture.md"
OPENING, CLOSING = "<!-- house -->\n", "<!-- end -->"
PURPOSES = {
    "streamsrv.web": "HTTP on sockets; alone imports tornado",
    "streamsrv.dimse": "DICOM's network protocol on sockets",
    "streamsrv.retrieve": "answers of retrieve transactions",
    "streamsrv.pixels": "decoded, encoded and rendered pixels",
    "streamsrv.events": "changes of the store as clients are told them",
    "streamsrv.ingest": "store transactions",
    "streamsrv.plans": "the parts of every answer",
    "streamsrv.search": "answers of search transactions",
    "streamsrv.store": "segments and index; alone touches their files",
    "framecodecs": "frames into frames; knows no server",
    "streamsrv.query": "searches as values",
    "streamsrv.reports": "structured reports and documents as pages",
    "streamsrv.audit": "the audit trail: its files and messages",
    "streamsrv.dicom": "Part 10, values, DICOM JSON; sans-IO",
    "streamsrv.oidc": "documents and keys of an issuer of tokens",
    "streamsrv.wire": "HTTP and MIME; sans-IO",
}


def short(room: str) -> str:
    return room.removeprefix("streamsrv.")


def groups() -> dict[int, dict[str, list[str]]]:
    """Floor -> name of a group -> its rooms. The single modules of a floor are one group."""
    floors: dict[int, dict[str, list[str]]] = defaultdict(dict)
    singles: dict[int, list[str]] = defaultdict(list)
    for room, floor in FLOORS.items():
        if room in PURPOSES:
            floors[floor][short(room)] = [room]
        elif room != "streamsrv" and not room.endswith("__main__"):
            singles[floor].append(room)
    for floor, rooms in singles.items():
        floors[floor][", ".join(sorted(map(short, rooms)))] = rooms
    return dict(sorted(floors.items(), reverse=True))


def imported(rooms: list[str]) -> list[str]:
    """Other rooms that these import: the higher ones first, single modules by their floor."""
    found = {
        MODULES[target].room
        for module in MODULES.values()
        if module.room in rooms
        for target in arrows(module)
    } - {*rooms, "streamsrv"}
    named = sorted((room for room in found if room in PURPOSES), key=lambda room: (-FLOORS[room], room))
    plain = sorted({f"floor {FLOORS[room]}" for room in found if room not in PURPOSES}, reverse=True)
    return [*map(short, named), *plain]


def drawing() -> str:
    lines = ["| floor | room | purpose | imports |", "| --- | --- | --- | --- |"]
    for floor, rooms in groups().items():
        for name, members in rooms.items():
            purpose = PURPOSES.get(members[0], "composition root, processes, verbs" if floor else "base")
            lines.append(f"| {floor} | {name} | {purpose} | {', '.join(imported(members)) or '-'} |")
    strangers: dict[int, set[str]] = defaultdict(set)
    for pair in STRANGERS:
        if "streamsrv" not in pair:
            strangers[FLOORS[pair[0]]] |= set(map(short, pair))
    named = "; ".join(" and ".join(sorted(rooms)) for _, rooms in sorted(strangers.items()))
    lines += ["", f"Strangers on a floor: {named.replace(' and ', ', ')}."]
    return "\n".join(lines)


def filled(page: str) -> str:
    start = page.index(OPENING) + len(OPENING)
    return f"{page[:start]}\n{drawing()}\n\n{page[page.index(CLOSING, start) :]}"


def journeys(page: str) -> dict[str, list[tuple[str, str]]]:
    """Name -> (`>` or `<`, stop), of the rows `| name | `a.b` > `c.d:function` < ... |` of the page."""
    rows = re.findall(r"^\| ([^|]+?) \| (`[^|]+` > [^|]+?) \|$", page, re.M)
    return {name: re.findall(r"([<>]) `([^`]+)`", f"> {stops}") for name, stops in rows}


def module_of(stop: str):
    name = stop.partition(":")[0]
    return MODULES[name if name.startswith("framecodecs") else f"streamsrv.{name}"]


def leads(here: str, there: str) -> bool:
    """Whether the module of `here` uses the function of `there`, or imports its module if it names none."""
    source, target, function = module_of(here), module_of(there), there.partition(":")[2]
    if not function:
        return target.name in arrows(source) or any(
            name.startswith(target.name + ".") for name in arrows(source) if target.is_package
        )
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for _, node in source.nodes
        if isinstance(node, ast.Attribute | ast.Name)
    }
    return function in names and function in defined(target)


def defined(module) -> set[str]:
    """Functions and classes; of the composition root also the functions that it passes by keyword."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for _, node in module.nodes if isinstance(node, kinds)}
    if module.name == "streamsrv.server":
        names |= {node.arg for _, node in module.nodes if isinstance(node, ast.keyword) and node.arg}
    return names


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
