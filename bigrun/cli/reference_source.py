"""The source of bigrun as docs/reference.md takes it: definitions by name, annotations as written, pieces of Markdown."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
GENERATION, PLAN = "bigrun.session.generation", "bigrun.planning.plan_data"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def source(module: str) -> str:
    return path_of(module).read_text(encoding="utf-8")


@cache
def top(module: str) -> dict[str, Any]:
    """What a module defines or imports at its top, TYPE_CHECKING's imports among it: a name → its node, or its value's."""
    definitions: dict[str, Any] = {}
    tree = ast.parse(source(module))
    guarded = [item for node in tree.body if isinstance(node, ast.If) for item in node.body]
    for node in (*tree.body, *guarded):
        if isinstance(node, Function | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            definitions.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            definitions[node.targets[0].id] = node.value
    return definitions


def resolved(module: str, name: str) -> tuple[str, Any]:
    """Where a name is defined, and its node: imports within bigrun are followed."""
    definition = top(module).get(name)
    homes = top(module).get("HOMES")  # of what a module imports when first asked for
    if definition is None and isinstance(homes, ast.Dict) and (home := ast.literal_eval(homes).get(name)):
        return resolved(home, name)
    if isinstance(definition, tuple):
        if str(definition[0]).split(".")[0] == "bigrun":
            return resolved(*definition)
        return definition[0], None
    return module, definition


def find(module: str, name: str) -> Any:
    """The definition of a name; LookupError where there is none any more: the table of reference_json.py needs a change."""
    _, node = resolved(module, name)
    if node is None:
        raise LookupError(f"{module} has no {name} any more: mend reference_json.py")
    return node


def class_definition(module: str, name: str) -> ast.ClassDef:
    node = find(module, name)
    assert isinstance(node, ast.ClassDef), f"{module}.{name} is no class"
    return node


def within(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function, without those of functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, Function | ast.Lambda):
            waiting = [*ast.iter_child_nodes(node), *waiting]


def annotation(node: ast.expr) -> str:
    """An annotation as the source has it; a quoted one without its quotes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return re.sub(r"'([\w.]+)'", r"\1", ast.unparse(node))


def table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(flat(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def flat(text: str | None) -> str:
    return " ".join((text or "").split())
