"""Compares the imports, names, sizes and state of the source with the rules of docs/architecture.md.

An import goes to a lower floor, or stays on its floor without a cycle. Strangers do not import each other.
Each test covers all modules, because a test a module takes minutes.
"""

import ast
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Room -> floor. A room is a package or a module of streamsrv; the longest matching name counts.
FLOORS = {
    "streamsrv": 0,  # the package itself: version and nothing else
    "streamsrv.errors": 0,
    "streamsrv.config": 0,
    "streamsrv.settings": 0,
    "streamsrv.boot_clock": 0,
    "streamsrv.bounded_cache": 0,
    "streamsrv.metrics": 0,
    "streamsrv.run_table": 0,
    "streamsrv.dicom": 1,
    "streamsrv.wire": 1,
    "streamsrv.oidc": 1,
    "streamsrv.query": 2,
    "streamsrv.audit": 2,
    "streamsrv.reports": 2,
    "streamsrv.store": 3,
    "framecodecs": 3,
    "streamsrv.events": 4,
    "streamsrv.ingest": 4,
    "streamsrv.plans": 4,
    "streamsrv.search": 4,
    "streamsrv.pixels": 5,
    "streamsrv.retrieve": 6,
    "streamsrv.web": 7,
    "streamsrv.dimse": 7,
    "streamsrv.client": 8,
    "streamsrv.companions": 8,
    "streamsrv.listening": 8,
    "streamsrv.options": 8,
    "streamsrv.samples": 8,
    "streamsrv.server": 8,
    "streamsrv.serving": 8,
    "streamsrv.supervisor": 8,
    "streamsrv.tools": 8,
    "streamsrv.cli": 8,
    "streamsrv.verbs": 8,
    "streamsrv.__main__": 8,
}
# Rooms of one floor that do not know each other.
STRANGERS = [
    ("streamsrv.dicom", "streamsrv.wire"),
    ("streamsrv.wire", "streamsrv.dicom"),
    *(
        (room, stranger)
        for room in ("streamsrv.events", "streamsrv.ingest", "streamsrv.plans", "streamsrv.search")
        for stranger in ("streamsrv.events", "streamsrv.ingest", "streamsrv.plans", "streamsrv.search")
        if room != stranger
    ),
    ("framecodecs", "streamsrv"),
]
# Rooms that are entered by one name: the names that its `__init__` lists.
ENTRANCES = ["streamsrv.store", "streamsrv.store.index"]
# Inside of them, but each verb imports its module, so that no other process loads it.
BY_MODULE = "streamsrv.store.maintenance"
MODULES_IN_A_FOLDER = 16
FLOOR_ZERO_IMPORTS = {"streamsrv", "streamsrv.errors", "streamsrv.settings"}
TORNADO_ROOM = "streamsrv.web"
ASYNCHRONOUS_ROOMS = ("streamsrv.web", "streamsrv.dimse")

MODULE_LINES = 500
FUNCTION_LINES = 60
NINE_OF_TEN = 30
MEDIAN = 8
SIBLINGS = 3
# Codecs have the names of their standards.
CODECS = {"codecs/framecodecs/coders/jpeg"}

# Methods that change a container, and classes whose objects change.
CHANGES = frozenset(
    ("add", "append", "appendleft", "clear", "discard", "extend", "insert", "move_to_end", "pop", "popitem")
) | {"popleft", "put", "remove", "setdefault", "update"}
STATEFUL = frozenset(("Condition", "ContextVar", "Counter", "Lock", "OrderedDict", "RLock", "SizedCache")) | {
    "ThreadPoolExecutor",
    "bytearray",
    "count",
    "cycle",
    "defaultdict",
    "deque",
    "local",
    "WeakKeyDictionary",
    "WeakValueDictionary",
}

LEFT_OR_SILENCED = re.compile(r"#.*(\b(TODO|FIXME|XXX|HACK)\b|type: ignore(?!\[)|noqa(?!: [A-Z]))")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BANNED_WORDS = {"utils", "util", "helpers", "helper", "manager", "common"}


@dataclass(frozen=True, eq=False)
class Module:
    name: str
    path: Path
    text: str
    tree: ast.Module

    @cached_property
    def room(self) -> str:
        candidates = (room for room in FLOORS if self.name == room or self.name.startswith(room + "."))
        return max(candidates, key=len, default="")

    @cached_property
    def nodes(self) -> list[tuple[str, ast.AST]]:
        """Every node below the module, with the dotted name of the function or class around it."""
        found: list[tuple[str, ast.AST]] = []

        def below(node: ast.AST, prefix: str) -> None:
            for child in ast.iter_child_nodes(node):
                named = isinstance(child, DEFINITIONS)
                name = f"{prefix}.{child.name}" if named else prefix
                found.append((name, child))
                below(child, name)

        below(self.tree, self.name)
        return found

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def modules_of(source_root: Path, package: str) -> Iterator[Module]:
    for path in sorted((source_root / package).rglob("*.py")):
        relative = path.relative_to(source_root).with_suffix("")
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        text = path.read_text(encoding="utf-8")
        yield Module(".".join(parts), path, text, ast.parse(text, str(path)))


MODULES = {
    module.name: module
    for module in (*modules_of(ROOT, "streamsrv"), *modules_of(ROOT / "codecs", "framecodecs"))
}
SOURCES = [*MODULES.values(), *modules_of(ROOT, "perf")]


def imported_names(module: Module, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Full dotted names; `from a import b` yields a.b if that is a module of ours, else a."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.name.split(".")
                above = parts[: len(parts) - node.level + module.is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


@cache
def all_imports(module: Module) -> list[str]:
    return list(imported_names(module, (node for _, node in module.nodes)))


@cache
def arrows(module: Module) -> set[str]:
    return {name for name in all_imports(module) if name in MODULES} - {module.name}


@cache
def functions_of(module: Module) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    found = []
    for name, node in module.nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append((name, node))
    return found


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def changing_state(module: Module) -> Iterator[str]:
    """Names whose value is an object that changes, an empty container that is no constant, or that a function
    changes."""
    held = dict(module_level(module.tree))
    for name, value in held.items():
        is_filled_later = (
            ast.unparse(value) in ("{}", "[]", "set()", "dict()", "list()") and not name.isupper()
        )
        if is_filled_later or called_name(value) in STATEFUL:
            yield f"{module.name}.{name}"
    for function, node in module.nodes:
        if function == module.name:
            continue
        if isinstance(node, ast.Global):
            yield from (f"{module.name}.{name}" for name in node.names)
        elif (name := changed_name(node)) in held:
            yield f"{module.name}.{name}"


def module_level(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of each assignment at module level."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
                yield target.id, node.value


def called_name(value: ast.expr) -> str:
    """`b` of `a.b(...)` and of `b[T](...)`."""
    if not isinstance(value, ast.Call):
        return ""
    function = value.func.value if isinstance(value.func, ast.Subscript) else value.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def changed_name(node: ast.AST) -> str:
    """The name whose object this statement or call changes: `x[k] = v`, `x.a = v`, `del x[k]`, `x.add(v)`."""
    targets: list[ast.expr] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        targets = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
        return getattr(node.func.value, "id", "")
    for target in targets:
        if isinstance(target, (ast.Subscript, ast.Attribute)):
            return getattr(target.value, "id", "")
    return ""


# --- arrows ---


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def test_the_modules_are_found():
    assert {"streamsrv.errors", "streamsrv.dicom.instance", "streamsrv.wire.answers"} <= MODULES.keys()
    assert "streamsrv.errors" in arrows(MODULES["streamsrv.config"])


def test_every_module_has_a_floor():
    assert not [name for name, module in MODULES.items() if module.room == "streamsrv" != name]


def test_arrows_go_down_or_stay_on_their_floor():
    assert not [
        f"{module.name} -> {name}"
        for module in MODULES.values()
        for name in arrows(module)
        if FLOORS[MODULES[name].room] > FLOORS[module.room]
    ]


def test_floor_zero_imports_only_itself():
    for module in MODULES.values():
        if FLOORS[module.room] == 0:
            others = {name for name in arrows(module) if not name.startswith("streamsrv.settings.")}
            assert others <= FLOOR_ZERO_IMPORTS, module.name


def test_strangers_do_not_import_each_other():
    assert not [
        f"{module.name} -> {name}"
        for room, stranger in STRANGERS
        for module in MODULES.values()
        for name in arrows(module)
        if inside(module.name, room) and inside(name, stranger)
    ]


def test_a_room_is_entered_by_its_entrance():
    assert not [
        f"{module.name} -> {name}"
        for room in ENTRANCES
        for module in SOURCES
        for name in all_imports(module)
        if not inside(module.name, room) and name.startswith(room + ".") and not inside(name, BY_MODULE)
    ]


def test_no_cycle():
    graph = {name: arrows(module) for name, module in MODULES.items()}
    settled: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in settled:
            for following in sorted(graph[name]):
                visit(following, (*trail, name))
            settled.add(name)

    for name in graph:
        visit(name, ())


def test_only_web_imports_tornado():
    for module in MODULES.values():
        if module.room != TORNADO_ROOM:
            assert "tornado" not in {name.split(".")[0] for name in all_imports(module)}, module.name


def test_only_rooms_with_sockets_are_asynchronous():
    for module in MODULES.values():
        if module.room not in ASYNCHRONOUS_ROOMS:
            for name, node in functions_of(module):
                assert not isinstance(node, ast.AsyncFunctionDef), name


def test_no_import_inside_a_function():
    """Codec backends are optional, so framecodecs imports them when they are needed."""
    for module in SOURCES:
        if not module.name.startswith("framecodecs."):
            statements = [node for node in module.tree.body if not isinstance(node, DEFINITIONS)]
            top = [each for node in statements for each in ast.walk(node)]
            assert len(list(imported_names(module, top))) == len(all_imports(module)), module.name


# --- sizes ---


def modules_in_folders() -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for module in SOURCES:
        if not module.is_package:
            found.setdefault(module.path.parent.relative_to(ROOT), []).append(module.path.stem)
    return found


def test_a_folder_has_few_modules():
    for folder, names in modules_in_folders().items():
        assert len(names) <= MODULES_IN_A_FOLDER, folder


def test_no_three_siblings_share_a_prefix():
    """Three files with one prefix are a folder, or one module."""
    found = set()
    for folder, names in modules_in_folders().items():
        prefixes = Counter(name.partition("_")[0] for name in names)
        found |= {f"{folder}/{prefix}" for prefix, count in prefixes.items() if count >= SIBLINGS}
    assert found <= CODECS


def test_modules_are_short():
    assert not [module.name for module in SOURCES if module.text.count("\n") > MODULE_LINES]


def test_functions_are_short():
    sizes = {name: lines_of(node) for module in SOURCES for name, node in functions_of(module)}
    assert not {name: size for name, size in sizes.items() if size > FUNCTION_LINES}


def test_most_functions_are_very_short():
    sizes = sorted(lines_of(node) for module in MODULES.values() for _, node in functions_of(module))
    assert statistics.median(sizes) <= MEDIAN
    assert sizes[len(sizes) * 9 // 10] < NINE_OF_TEN


def test_a_class_name_occurs_once():
    definitions = [node for module in SOURCES for node in ast.walk(module.tree)]
    names = Counter(node.name.lstrip("_") for node in definitions if isinstance(node, ast.ClassDef))
    found = {name for name, number in names.items() if number > 1}
    assert not found


# --- state ---


def test_no_module_has_state_that_changes():
    """State belongs to an object that the composition root makes, so that tests need not patch modules."""
    assert not {name for module in MODULES.values() for name in changing_state(module)}


# --- words ---


def test_names_are_those_of_the_glossary():
    for module in SOURCES:
        assert not set(re.split(r"[._]", module.name)) & BANNED_WORDS, module.name
        for name, _ in functions_of(module):
            last = name.rsplit(".", 1)[1].lstrip("_")
            assert not last.startswith("process_"), name
            assert not last.startswith("handle_") or module.room == TORNADO_ROOM, name


def test_nothing_is_left_for_later_or_silenced_without_a_reason():
    for module in SOURCES:
        for line in module.text.splitlines():
            assert not re.search(
                r"#.*(\b(TODO|FIXME|XXX|HACK)\b|type: ignore(?!\[)|noqa(?!: [A-Z]))", line
            ), line


def test_every_module_has_a_docstring():
    assert not [
        module.name for module in SOURCES if module.text.strip() and not ast.get_docstring(module.tree)
    ]


def test_a_name_of_a_test_module_occurs_once():
    """pytest imports them by their names."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, number in names.items() if number > 1]
