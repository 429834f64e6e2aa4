"""The floors of the house: each room imports only from rooms below it, and only a few know what a user may
set.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import loratune

PACKAGE = Path(loratune.__file__).parent
# From the ground up. Rooms on one floor do not know each other.
FLOORS = (
    ("errors", "system"),
    ("config", "data", "models"),
    ("generation", "training", "doctor"),
    ("model",),
    ("tasks",),
    ("evaluation",),
    ("report",),
    ("api",),
    ("commands",),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms and modules that may import loratune.config: what a user may set is decided there and handed on as
# plain values.
KNOW_CONFIG = ("config", "commands", "api", "cli", "training.setup")
# Imports that are still to be undone. Nothing may be added here.
LEFT: set[tuple[str, str]] = set()


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of this package that a file imports, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "loratune":
            inner = node.module.partition(".")[2]
            yield from (
                [inner] if inner else (alias.name for alias in node.names if not alias.name.startswith("__"))
            )
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("loratune.")
            )


def room_of(module: str) -> str:
    return module.split(".")[0]


def crossings() -> dict[tuple[str, str], list[str]]:
    """Map each import that a floor forbids, (module, room), to the modules that it names."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if module in ("__init__", "__main__"):  # the door: it shows what is inside
            continue
        for imported in imports_of(path):
            own, other = room_of(module), room_of(imported)
            is_config = other == "config" and not module.startswith(KNOW_CONFIG)
            if (
                own != other and FLOOR[other] >= FLOOR[own] and {own, other} != {"errors", "system"}
            ) or is_config:
                found[module, other].append(imported)
    return dict(found)


def test_every_room_has_a_floor():
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__main__"} <= FLOOR.keys()


def test_nobody_imports_from_a_floor_above():
    found = crossings()
    new = {
        f"{module} imports {', '.join(names)}"
        for (module, room), names in found.items()
        if (module, room) not in LEFT
    }
    assert not new
    assert found.keys() >= LEFT, "these are undone; take them out of LEFT"


def test_only_what_is_shown_prints():
    """Everywhere else messages go through `system.messages`."""
    shows = ("commands", "cli", "report.terminal", "system.console")
    prints = {
        module
        for path in PACKAGE.rglob("*.py")
        if not (module := ".".join(path.relative_to(PACKAGE).with_suffix("").parts)).startswith(shows)
        and ("system.console" in imports_of(path) or calls_print(path))
    }
    assert not prints


def calls_print(path: Path) -> bool:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)


def test_there_are_no_circles():
    graph = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): {name for name in imports_of(path)}
        for path in PACKAGE.rglob("*.py")
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())
