"""The section on Python of docs/reference.md: signatures and docstrings of the public names, from the source."""

import ast
import re
from collections.abc import Iterator

from bigrun import errors
from bigrun.cli.reference_json import field_rows
from bigrun.cli.reference_source import Function, annotation, find, resolved, table

ALSO = ("Stream", "Stats")  # what Runner's methods give, and nobody else makes


def python_section() -> Iterator[str]:
    yield "## Python"
    door = "bigrun"
    names = [str(name) for name in ast.literal_eval(find(door, "__all__"))]
    yield f"`from bigrun import {', '.join(name for name in names if not name.startswith('_'))}`"
    order = sorted(names, key=lambda name: (_is_error(name), name.lower()))
    homes = [(door, name) for name in order]
    for module, name in homes:
        home, node = resolved(module, name)
        if node is None:  # a promise that the package does not keep is not repeated
            continue
        yield f"### {name}"
        if isinstance(node, ast.ClassDef):
            yield from _class_text(home, node, constructed=name not in ALSO)
        elif isinstance(node, Function):
            yield _signature(home, node, name)
            yield from _doc(node)
        else:
            yield "A string, the version of bigrun." if name == "__version__" else "A constant."


def _is_error(name: str) -> bool:
    return isinstance(getattr(errors, name, None), type)


def _class_text(module: str, node: ast.ClassDef, constructed: bool) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases]
    error = _is_error(node.name)
    own = {item.name: item for item in node.body if isinstance(item, Function)}
    rows = [] if error else list(field_rows(module, node, python=True))
    if error:
        yield f"    class {node.name}({', '.join(bases)})"
    elif "__init__" in own and constructed:
        yield _signature(module, own["__init__"], node.name)
    if doc := ast.get_docstring(node):
        yield doc
    if "__init__" in own and constructed:
        yield from _doc(own["__init__"])
    if any(note for _, _, note in rows):
        yield table(("Field", "Type", "Meaning"), rows)
    elif rows:
        fields = ", ".join(row[0] for row in rows)
        yield f"Fields, read-only: {fields}."
    for home, function in () if error else _methods(module, node):
        yield f"#### {node.name}.{function.name}"
        decorators = {ast.unparse(each) for each in function.decorator_list}
        if decorators & {"property", "cached_property"}:
            yield f"    {function.name}" + (f": {annotation(function.returns)}" if function.returns else "")
        else:
            yield _signature(home, function, function.name, static="staticmethod" in decorators)
            if "contextmanager" in decorators:
                yield "A context manager."
        yield from _doc(function)


def _doc(function: Function) -> Iterator[str]:
    """A docstring, its lines of parameters ("name: what it is") as a table."""
    doc = ast.get_docstring(function) or ""
    names = "|".join(arg.arg for arg in (*function.args.args, *function.args.kwonlyargs))
    rows = re.findall(rf"^({names}): (.+)$", doc, re.MULTILINE)
    if text := re.sub(rf"^({names}): .+\n?", "", doc, flags=re.MULTILINE).strip():
        yield text
    if rows:
        yield table(("Parameter", "Meaning"), [(f"`{name}`", meaning) for name, meaning in rows])


def _methods(module: str, node: ast.ClassDef) -> Iterator[tuple[str, Function]]:
    for item in node.body:
        if isinstance(item, Function) and not item.name.startswith("_") and not _is_overload(item):
            yield module, item
    for base in node.bases:
        if isinstance(base, ast.Name):
            home, above = resolved(module, base.id)
            if isinstance(above, ast.ClassDef):
                yield from _methods(home, above)


def _is_overload(function: Function) -> bool:
    """Whether this is one of several forms of a call; what it does stands with the last one."""
    return any(ast.unparse(each) == "overload" for each in function.decorator_list)


def _signature(module: str, function: Function, name: str, static: bool = False) -> str:
    """As an indented block; one parameter a line where a single one would be long."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    parts = [_parameter(module, a, d) for a, d in zip(plain, [*defaults, *arguments.defaults], strict=True)]
    if arguments.posonlyargs:
        parts.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        parts.append("*" + _parameter(module, arguments.vararg, None))
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [_parameter(module, a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        parts.append("**" + _parameter(module, arguments.kwarg, None))
    if parts and parts[0] in ("self", "cls") and not static:
        parts = parts[1:]
    returns = f" -> {annotation(function.returns)}" if function.returns else ""
    line = f"    {name}({', '.join(parts)}){returns}"
    if len(line) <= 110:
        return line
    return "\n".join([f"    {name}(", *(f"        {part}," for part in parts), f"    ){returns}"])


def _parameter(module: str, argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {annotation(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return argument.arg + kind
    if isinstance(default, ast.Name):
        _, value = resolved(module, default.id)
        default = value if isinstance(value, ast.Constant) else default
    text = ast.unparse(default)
    if isinstance(default, ast.Constant) and isinstance(default.value, str):
        text = f'"{default.value}"'
    return f"{argument.arg}{kind} = {text}" if kind else f"{argument.arg}={text}"
