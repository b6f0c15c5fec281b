"""The rooms of bigrun/: which may import which, as an allow-list, and no circle among files (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {"errors", "sizes", "progress", "version"}  # free to all
DOORS = {"__init__", "__main__"}
# From the top floor down. A room may import those named beside it, and no other: a new arrow is a decision.
ROOMS: dict[str, set[str]] = {
    "cli": {"measure", "session", "execute", "loading", "planning", "devices", "checkpoint", "model", "text"},
    "measure": {"planning", "devices"},
    "session": {"execute", "loading", "planning", "devices", "checkpoint", "model", "text"},
    "execute": {"loading", "planning", "devices", "model"},
    "loading": {"planning", "devices", "checkpoint", "model"},
    "planning": {"devices", "model"},
    "devices": {"model"},
    "checkpoint": {"model"},
    "model": set(),
    "text": set(),
}


def files() -> list[Path]:
    return sorted((ROOT / "bigrun").rglob("*.py"))


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> frozenset[str]:
    return frozenset(module(file) for file in files())


def room(name: str) -> str:
    """The room of a module, a ground file's own name, or a door."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def imported(file: Path) -> frozenset[str]:
    """Modules of bigrun that a file imports anywhere in it: at the top, within functions, and for types alone."""
    return frozenset(_imported(ast.parse(file.read_text())))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name their module in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                name = inner if inner in modules() else str(node.module)
                if name.split(".")[0] == "bigrun":
                    yield name
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "bigrun")


def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, the room that it imports) → the files that do."""
    result: dict[tuple[str, str], list[str]] = {}
    for file in files():
        here = room(module(file))
        for name in imported(file):
            there = room(name)
            if there != here and here in ROOMS:
                result.setdefault((here, there), []).append(f"{module(file)} imports {name}")
    return result


def test_beside_the_rooms_lie_only_ground_files_and_doors() -> None:
    names = {file.stem for file in (ROOT / "bigrun").glob("*.py")}
    assert names == GROUND | DOORS
    assert {folder.name for folder in (ROOT / "bigrun").iterdir() if (folder / "__init__.py").exists()} == set(ROOMS)


def test_a_room_imports_only_what_the_list_allows() -> None:
    for (here, there), who in arrows().items():
        assert there in ROOMS[here] | GROUND, who


def test_the_list_allows_nothing_that_is_not_imported() -> None:
    unused = [(here, there) for here, allowed in ROOMS.items() for there in allowed if (here, there) not in arrows()]
    assert not unused


def test_no_room_imports_one_above_it() -> None:
    floors = list(ROOMS)
    for here, allowed in ROOMS.items():
        assert allowed <= set(floors[floors.index(here) + 1 :]), here


def test_ground_files_import_ground_files_alone() -> None:
    for name in GROUND:
        assert {room(other) for other in imported(ROOT / "bigrun" / f"{name}.py")} <= GROUND


def test_no_circle_of_files() -> None:
    below = {module(file): imported(file) & modules() for file in files()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' → '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(below[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(below):
        visit(name, ())


def test_every_room_says_its_purpose_in_a_line() -> None:
    for file in (ROOT / "bigrun").rglob("__init__.py"):
        text = file.read_text()
        if file.parent != ROOT / "bigrun":
            assert text.strip().count("\n") == 0, f"{file} says more than its purpose"
            assert text.startswith('"""'), file


@pytest.mark.parametrize("name", ["planning", "model", "devices"])
def test_planning_needs_no_torch(name: str) -> None:
    for file in (ROOT / "bigrun" / name).rglob("*.py"):
        if file.stem == "gpu_memory":  # of a run on a GPU: planning does not import it
            continue
        tops = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in tops if isinstance(node, ast.ImportFrom)}
        assert not {each for each in names if each.split(".")[0] in ("torch", "numba")}, file
