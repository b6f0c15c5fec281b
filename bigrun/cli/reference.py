"""docs/reference.md, made from the code: `python -m bigrun.cli.reference > docs/reference.md` writes it.

Commands come from click; everything else is read from the source, so that types stand as they are written there.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

from bigrun import errors
from bigrun.cli.app import main
from bigrun.errors import BigrunError

ROOT = Path(__file__).parent.parent.parent
COMMAND = "python -m bigrun.cli.reference > docs/reference.md"
OTHERS = {1: "Any other error, which is a bug in bigrun.", 2: "A command line that cannot be parsed."}
ENDS = {0: "Done.", 130: "Interrupted, as by Ctrl-C.", 141: "The reader of standard output closed the pipe."}
JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null", "Any": "any"}
ALSO = ("Stream", "Stats")  # what Runner's methods give, beside the public names

# Where the JSON of each command is made: classes whose fields it has, and functions that build or print the object.
CLI, GENERATION, PLAN = "bigrun.cli.app", "bigrun.session.generation", "bigrun.planning.plan_data"
JSON: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "plan": (
        "`unplaced` and `hint` are there only where the model does not fit, `answer` only with a question, "
        "`accelerate` only with `--compare`.",
        (
            ("bigrun.planning.plan", "Plan"),
            (PLAN, "DevicePlan"),
            (PLAN, "Placement"),
            (PLAN, "Predicted"),
            ("bigrun.planning.compare", "accelerate_plan"),
        ),
    ),
    "generate": ("", ((CLI, "generate"), (GENERATION, "Stats"))),
    "bench": ("", (("bigrun.measure.bench", "measure"),)),
    "eval perplexity": ("", (("bigrun.measure.evaluate", "perplexity"),)),
    "info": ("", (("bigrun.measure.info", "gather"),)),
    "convert": ("", (("bigrun.cli.convert", "convert_model"),)),
    "cache list": ("A list of objects, one for each conversion.", (("bigrun.cli.upkeep", "Found"),)),
    "cache prune": ("A list of objects as `cache list` gives them: what went, or would go.", ()),
    "cache verify": ("", (("bigrun.cli.files", "verify"),)),
    "inspect": ("", (("bigrun.cli.inspection", "Inspection"),)),
    "autotune": ("", (("bigrun.measure.autotune", "autotune"),)),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def reference() -> str:
    """The whole page."""
    head = [
        "# Reference",
        f"Made from the code by `{COMMAND}`; a change here is lost.",
        "[Commands](#commands) · [Exit codes](#exit-codes) · [JSON](#json) · [Python](#python)",
    ]
    text = "\n\n".join([*head, *_commands(), *_exit_codes(), *_json(), *_python()])
    return text + "\n"


# Commands


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield "Every command answers `--help`. Sizes are `24GB` (10⁹ bytes), `24GiB` (2³⁰) or bytes."
    with click.Context(main, info_name="bigrun") as context:
        yield from _command(main, context)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    options = [param for param in command.params if isinstance(param, click.Option)]
    group = isinstance(command, click.Group)
    words = [context.command_path, *(str(a.metavar or (a.name or "").upper()) for a in arguments)]
    usage = " ".join([*words, *(["[OPTIONS]"] if options else []), *(["COMMAND"] if group else [])])
    yield f"### {context.command_path}"
    yield f"    {usage}"
    yield inspect.cleandoc(command.help or "")
    for argument in arguments:
        if isinstance(argument.envvar, str):
            yield f"`{argument.metavar or argument.name}` may also come from the environment variable `{argument.envvar}`."
    if options:
        rows = [(_flags(option), _default(option), option.help or "") for option in options]
        yield _table(("Option", "Default", "Help"), rows)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                with click.Context(inner, info_name=name, parent=context) as below:
                    yield from _command(inner, below)


def _flags(option: click.Option) -> str:
    names = ", ".join(sorted([*option.opts, *option.secondary_opts], key=len))
    if option.is_flag or option.name == "version":
        return f"`{names}`"
    kind = option.type
    value = option.metavar or (
        "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else kind.name.upper()
    )
    return f"`{names} {value}`"


def _default(option: click.Option) -> str:
    """What the source says: neither the environment nor click's own marks for nothing."""
    if option.required:
        return "required"
    value = option.default
    if option.is_flag or isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return ""
    return f"`{value}`"


# Exit codes


def _exit_codes() -> Iterator[str]:
    means: dict[int, list[str]] = {code: [text] for code, text in ENDS.items()}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, BigrunError):
            means.setdefault(value.exit_status, []).append(f"`{name}`: {_flat(value.__doc__)}")
    for code, text in OTHERS.items():
        means[code].append(text)
    yield "## Exit codes"
    yield "An error is one line on standard error; `--debug` adds the traceback."
    yield _table(("Code", "Meaning"), [(f"`{code}`", "<br>".join(means[code])) for code in sorted(means)])


# JSON


def _json() -> Iterator[str]:
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
        yield f"**{node.name}.** {_flat(doc)}"
    else:
        yield f"**{node.name}**"
    yield _table(("Field", "Type", "Note"), list(_rows(module, node)))


def _rows(module: str, node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    for base in node.bases:
        if isinstance(base, ast.Name):
            home, above = resolved(module, base.id)
            if isinstance(above, ast.ClassDef):
                yield from _rows(home, above)
    lines = source(module).splitlines()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            rest = lines[(item.end_lineno or 1) - 1].encode()[item.end_col_offset :].decode().strip()
            yield f"`{item.target.id}`", _json_type(item.annotation), rest.removeprefix("#").strip()


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
    """The keys of the objects that a function returns, or prints with json.dumps."""
    shown = [keys(module, function, display) for display in _displays(function)]
    every = dict.fromkeys(key for some in shown for key in some)
    always = [key for key in every if all(key in some for some in shown)]
    other = [key for key in every if key not in always]
    if always:
        yield _listed(always)
    if other:
        yield "With some options also: " + _listed(other)


def _displays(function: Function) -> list[ast.Dict]:
    nodes = list(_within(function))
    found = [node.value for node in nodes if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)]
    if found:
        return found
    dumped = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.dumps"]
    found = [node.args[0] for node in dumped if node.args and isinstance(node.args[0], ast.Dict)]
    if not found:
        raise LookupError(f"{function.name} neither returns a dict display nor prints one: mend {Path(__file__).name}")
    return found


def keys(module: str, function: Function, display: ast.Dict) -> list[str]:
    """The keys of a dict display, with those of what lies in it: `a`, `a.b`, `a[].b`, `a.<key>`."""
    found: list[str] = []
    for key, value in zip(display.keys, display.values, strict=True):
        if key is None:
            found += _spread(module, function, value)
        elif isinstance(key, ast.Constant) and isinstance(key.value, str):
            inner = _inner(module, function, value)
            found += [f"{key.value}{each}" for each in inner] if inner else [key.value]
    return found


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
        found = _top(module).get(value.func.id)
        return found if isinstance(found, Function) else None
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
        for node in _within(function):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == value.id for target in targets):
                    return [] if isinstance(node.value, ast.Name) else _inner(module, function, node.value)
    if re.fullmatch(r"vars\(.*\.predicted\)", ast.unparse(value)):
        return [f".{row[0].strip('`')}" for row in _rows(PLAN, _class(PLAN, "Predicted"))]
    return []


def _appended(function: Function, name: str) -> list[ast.expr]:
    """What a function appends to a list of that name."""
    calls = [node for node in _within(function) if isinstance(node, ast.Call)]
    return [call.args[0] for call in calls if ast.unparse(call.func) == f"{name}.append"]


def _answers() -> str:
    """`answer=` of each question, by the function that answers it."""
    module, rows = "bigrun.planning.questions", []
    for name, function in _top(module).items():
        if isinstance(function, Function):
            for node in _within(function):
                if isinstance(node, ast.keyword) and node.arg == "answer":
                    display = _assigned(function, node.value)
                    if isinstance(display, ast.Dict):
                        option = name.strip("_").replace("_", "-")
                        option = f"--solve {option}" if name.startswith("_") else f"--{option}"
                        rows.append((f"`{option}`", _listed(keys(module, function, display))))
    if not rows:
        raise LookupError(f"{module} gives no answer=: mend {Path(__file__).name}")
    return _table(("Question", "Keys"), rows)


def _assigned(function: Function, value: ast.expr) -> ast.expr:
    if isinstance(value, ast.Name):
        for node in _within(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == value.id:
                return node.value
    return value


# Python


def _python() -> Iterator[str]:
    yield "## Python"
    door = "bigrun"
    names = [str(name) for name in ast.literal_eval(find(door, "__all__"))]
    yield f"`from bigrun import {', '.join(name for name in names if not name.startswith('_'))}`"
    order = sorted(names, key=lambda name: (_is_error(name), name.lower()))
    homes = [(door, name) for name in order] + [(GENERATION, name) for name in ALSO]
    for module, name in homes:
        home, node = resolved(module, name)
        if node is None:  # a promise that the package does not keep is not repeated
            continue
        yield f"### {name}"
        if isinstance(node, ast.ClassDef):
            yield from _class_text(home, node, constructed=name not in ALSO)
        elif isinstance(node, Function):
            yield _signature(home, node, name)
            yield ast.get_docstring(node) or ""
        else:
            yield "A string, the version of bigrun." if name == "__version__" else "A constant."


def _is_error(name: str) -> bool:
    return isinstance(getattr(errors, name, None), type)


def _class_text(module: str, node: ast.ClassDef, constructed: bool) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases]
    error = _is_error(node.name)
    own = {item.name: item for item in node.body if isinstance(item, Function)}
    rows = [] if error else list(_rows(module, node))
    if error:
        yield f"    class {node.name}({', '.join(bases)})"
    elif "__init__" in own and constructed:
        yield _signature(module, own["__init__"], node.name)
    if doc := ast.get_docstring(node):
        yield doc
    if rows:
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
        if doc := ast.get_docstring(function):
            yield doc


def _methods(module: str, node: ast.ClassDef) -> Iterator[tuple[str, Function]]:
    for item in node.body:
        if isinstance(item, Function) and not item.name.startswith("_"):
            yield module, item
    for base in node.bases:
        if isinstance(base, ast.Name):
            home, above = resolved(module, base.id)
            if isinstance(above, ast.ClassDef):
                yield from _methods(home, above)


def _signature(module: str, function: Function, name: str, static: bool = False) -> str:
    """As an indented block; one parameter a line where a single one would be long."""
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    parts = [_parameter(module, a, d) for a, d in zip(plain, [*defaults, *given.defaults], strict=True)]
    if given.posonlyargs:
        parts.insert(len(given.posonlyargs), "/")
    if given.vararg:
        parts.append("*" + _parameter(module, given.vararg, None))
    elif given.kwonlyargs:
        parts.append("*")
    parts += [_parameter(module, a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        parts.append("**" + _parameter(module, given.kwarg, None))
    if parts and parts[0] in ("self", "cls") and not static:
        parts = parts[1:]
    returns = f" -> {annotation(function.returns)}" if function.returns else ""
    line = f"    {name}({', '.join(parts)}){returns}"
    if len(line) <= 110:
        return line
    return "\n".join([f"    {name}(", *(f"        {part}," for part in parts), f"    ){returns}"])


def _parameter(module: str, given: ast.arg, default: ast.expr | None) -> str:
    kind = f": {annotation(given.annotation)}" if given.annotation else ""
    if default is None:
        return given.arg + kind
    if isinstance(default, ast.Name):
        _, value = resolved(module, default.id)
        default = value if isinstance(value, ast.Constant) else default
    text = ast.unparse(default)
    if isinstance(default, ast.Constant) and isinstance(default.value, str):
        text = f'"{default.value}"'
    return f"{given.arg}{kind} = {text}" if kind else f"{given.arg}={text}"


def annotation(node: ast.expr) -> str:
    """An annotation as the source has it; a quoted one without its quotes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return re.sub(r"'([\w.]+)'", r"\1", ast.unparse(node))


# The source


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def source(module: str) -> str:
    return path_of(module).read_text(encoding="utf-8")


@cache
def _top(module: str) -> dict[str, Any]:
    """What a module defines or imports at its top, TYPE_CHECKING's imports among it: a name → its node, or its value's."""
    found: dict[str, Any] = {}
    tree = ast.parse(source(module))
    guarded = [item for node in tree.body if isinstance(node, ast.If) for item in node.body]
    for node in (*tree.body, *guarded):
        if isinstance(node, Function | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
    return found


def resolved(module: str, name: str) -> tuple[str, Any]:
    """Where a name is defined, and its node: imports within bigrun are followed."""
    found = _top(module).get(name)
    homes = _top(module).get("HOMES")  # of what a module imports when first asked for
    if found is None and isinstance(homes, ast.Dict) and (home := ast.literal_eval(homes).get(name)):
        return resolved(home, name)
    if isinstance(found, tuple):
        if str(found[0]).split(".")[0] == "bigrun":
            return resolved(*found)
        return found[0], None
    return module, found


def find(module: str, name: str) -> Any:
    """The definition of a name; LookupError says that the table JSON above needs a change."""
    _, node = resolved(module, name)
    if node is None:
        raise LookupError(f"{module} has no {name} any more: mend {Path(__file__).name}")
    return node


def _class(module: str, name: str) -> ast.ClassDef:
    node = find(module, name)
    assert isinstance(node, ast.ClassDef), f"{module}.{name} is no class"
    return node


def _within(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function, without those of functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, Function | ast.Lambda):
            waiting = [*ast.iter_child_nodes(node), *waiting]


# Markdown


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(_flat(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    print(reference(), end="")
