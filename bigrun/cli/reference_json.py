"""The section on JSON of docs/reference.md: keys and fields, read from the functions and dataclasses that make them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bigrun.cli.reference_source import (
    GENERATION,
    PLAN,
    Function,
    annotation,
    class_definition,
    find,
    flat,
    listed,
    resolved,
    source,
    table,
    top,
    within,
)

JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null", "Any": "any"}
DUMPS = ("json.dumps", "readable_json")
# Where the JSON of each command is made: classes whose fields it has, and functions that build or print the object.
JSON: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "plan": (
        "`unplaced` and `hint` are there only where the model does not fit, `answer` only with a question, "
        "`accelerate` only with `--compare`, `programs` (a list) only with `--programs`. With `--model all`, or a pattern, the "
        "object is a `Survey`.",
        (
            ("bigrun.planning.plan", "Plan"),
            (PLAN, "DevicePlan"),
            (PLAN, "Placement"),
            (PLAN, "Predicted"),
            (PLAN, "Streamed"),
            ("bigrun.session.survey", "Survey"),
            ("bigrun.session.survey", "Surveyed"),
            ("bigrun.planning.compare", "accelerate_plan"),
        ),
    ),
    "models": ("", (("bigrun.cli.lists", "list_models"),)),
    "cards": ("", (("bigrun.cli.lists", "list_cards"),)),
    "generate": (
        'Of several prompts it is `{"answers": [...]}`, a list of such objects in their order.',
        (("bigrun.cli.generate", "generate"), (GENERATION, "Stats")),
    ),
    "bench": ("", (("bigrun.measure.bench", "measure"),)),
    "eval perplexity": ("", (("bigrun.measure.evaluate", "perplexity"),)),
    "info": ("", (("bigrun.measure.info", "gather"),)),
    "convert": ("", (("bigrun.cli.convert", "convert_model"),)),
    "cache list": ("A list of objects, one for each conversion.", (("bigrun.cli.upkeep", "CacheEntry"),)),
    "cache prune": ("A list of objects as `cache list` gives them: what went, or would go.", ()),
    "cache verify": ("", (("bigrun.cli.files", "verify"),)),
    "inspect": ("", (("bigrun.cli.inspection", "Inspection"),)),
    "autotune": ("", (("bigrun.measure.autotune", "autotune"),)),
}


def json_section() -> Iterator[str]:
    yield "## JSON"
    yield (
        "`--json` prints this and nothing else on standard output. The end of a name is its unit: `_bytes`, `_seconds`, "
        "`_tokens`, `_per_s`. `name.inner` is a key of an object, `name[].inner` of each object in a list, and `name.<key>` "
        "stands for an object whose keys are names of devices or parts."
    )
    for command, (note, sources) in JSON.items():
        yield f"### bigrun {command} --json"
        if note:
            yield note
        for module, name in sources:
            node = find(module, name)
            if isinstance(node, ast.ClassDef):
                yield from _fields(module, node)
            else:
                if command == "plan":
                    yield "**accelerate**, with `--compare`:"
                yield from _keys(module, node)
        if command == "plan":
            yield "**answer**, by question:"
            yield _answers()


def _fields(module: str, node: ast.ClassDef) -> Iterator[str]:
    """A dataclass as a table, with what its bases have."""
    if (doc := ast.get_docstring(node)) and not node.bases:
        yield f"**{node.name}.** {flat(doc)}"
    else:
        yield f"**{node.name}**"
    yield table(("Field", "Type", "Note"), list(field_rows(module, node)))


def field_rows(module: str, node: ast.ClassDef, python: bool = False) -> Iterator[tuple[str, str, str]]:
    """(field, type, comment) of a dataclass and its bases, the types in JSON's words or in Python's."""
    for base in node.bases:
        if isinstance(base, ast.Name):
            home, above = resolved(module, base.id)
            if isinstance(above, ast.ClassDef):
                yield from field_rows(home, above, python)
    lines = source(module).splitlines()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if annotation(item.annotation) == "Storage" and not python:  # one object in Python, its fields in JSON
                yield from field_rows(*resolved(module, "Storage"))
                continue
            rest = lines[(item.end_lineno or 1) - 1].encode()[item.end_col_offset :].decode().strip()
            kind = f"`{annotation(item.annotation)}`" if python else _json_type(item.annotation)
            yield f"`{item.target.id}`", kind, rest.removeprefix("#").strip()


def _json_type(node: ast.expr) -> str:
    """An annotation in JSON's words."""
    if isinstance(node, ast.BinOp):
        return f"{_json_type(node.left)} or {_json_type(node.right)}"
    if not isinstance(node, ast.Subscript):
        name = annotation(node)
        return JSON_TYPES.get(name, name)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if annotation(node.value).lower() in ("dict", "mapping"):
        value = _json_type(inner[-1])
        return "object" if value == "any" else f"object of {value}"
    kinds = [_json_type(each) for each in inner if annotation(each) != "..."]
    if len(kinds) > 1:
        return f"list [{', '.join(kinds)}]"
    return f"list of {kinds[0]}"


def _keys(module: str, function: Function) -> Iterator[str]:
    """The keys of the objects that a function returns, or prints with one of DUMPS."""
    shown = [keys(module, function, display) for display in _displays(function)]
    every = dict.fromkeys(key for some in shown for key in some)
    always = [key for key in every if all(key in some for some in shown)]
    other = [key for key in every if key not in always]
    if always:
        yield listed(always)
    if other:
        yield "With some options also: " + listed(other)


def _displays(function: Function) -> list[ast.Dict]:
    nodes = list(within(function))
    displays = [node.value for node in nodes if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)]
    if displays:
        return displays
    dumped = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) in DUMPS]
    displays = [node.args[0] for node in dumped if node.args and isinstance(node.args[0], ast.Dict)]
    if not displays:
        raise LookupError(f"{function.name} neither returns a dict display nor prints one: mend {Path(__file__).name}")
    return displays


def keys(module: str, function: Function, display: ast.Dict) -> list[str]:
    """The keys of a dict display, with those of what lies in it: `a`, `a.b`, `a[].b`, `a.<key>`."""
    paths: list[str] = []
    for key, value in zip(display.keys, display.values, strict=True):
        if key is None:
            paths += _spread(module, function, value)
        elif isinstance(key, ast.Constant) and isinstance(key.value, str):
            inner = _inner(module, function, value)
            paths += [f"{key.value}{each}" for each in inner] if inner else [key.value]
    return paths


def _spread(module: str, function: Function, value: ast.expr) -> list[str]:
    if isinstance(value, ast.Dict):
        return keys(module, function, value)
    if isinstance(value, ast.IfExp):
        return [*_spread(module, function, value.body), *_spread(module, function, value.orelse)]
    called = _called(module, value)
    return [key for display in _displays(called) for key in keys(module, called, display)] if called else []


def _called(module: str, value: ast.expr) -> Function | None:
    """The function of the same module that a call is of."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        node = top(module).get(value.func.id)
        return node if isinstance(node, Function) else None
    return None


def _inner(module: str, function: Function, value: ast.expr) -> list[str]:
    """What follows the name of a key whose value is an object, or a list of objects."""
    if isinstance(value, ast.Dict):
        return [f".{key}" for key in keys(module, function, value)]
    if isinstance(value, ast.DictComp) or (isinstance(value, ast.Call) and ast.unparse(value.func) == "dict"):
        return [".<key>"]
    if isinstance(value, ast.ListComp):
        return [f"[]{each}" for each in _inner(module, function, value.elt)]
    if isinstance(value, ast.Name) and (rows := _appended(function, value.id)):
        return [f"[]{each}" for each in _inner(module, function, rows[0])]
    if isinstance(value, ast.Name):
        for node in within(function):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == value.id for target in targets):
                    return [] if isinstance(node.value, ast.Name) else _inner(module, function, node.value)
    if re.fullmatch(r"vars\(.*\.predicted\)", ast.unparse(value)):
        return [f".{row[0].strip('`')}" for row in field_rows(PLAN, class_definition(PLAN, "Predicted"))]
    return []


def _appended(function: Function, name: str) -> list[ast.expr]:
    """What a function appends to a list of that name."""
    calls = [node for node in within(function) if isinstance(node, ast.Call)]
    return [call.args[0] for call in calls if ast.unparse(call.func) == f"{name}.append"]


def _answers() -> str:
    """`answer=` of each question, by the function that answers it."""
    module, rows = "bigrun.planning.questions", []
    for name, function in top(module).items():
        if isinstance(function, Function):
            for node in within(function):
                if isinstance(node, ast.keyword) and node.arg == "answer":
                    display = _assigned(function, node.value)
                    if isinstance(display, ast.Dict):
                        option = name.strip("_").replace("_", "-")
                        option = f"--solve {option}" if name.startswith("_") else f"--{option}"
                        rows.append((f"`{option}`", listed(keys(module, function, display))))
    if not rows:
        raise LookupError(f"{module} gives no answer=: mend {Path(__file__).name}")
    return table(("Question", "Keys"), rows)


def _assigned(function: Function, value: ast.expr) -> ast.expr:
    if isinstance(value, ast.Name):
        for node in within(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == value.id:
                return node.value
    return value
