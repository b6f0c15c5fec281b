"""The sandbox of chat templates, and its limits.

A template comes from a stranger. It runs in Jinja's immutable sandbox, so it reaches no Python object behind its
values, and under limits on its source, its loop turns and calls, its time, the strings it builds and its output. The
limits stop templates that run away; they are no proof against one written with care to waste this process's time or
memory.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox
from jinja2.filters import do_indent, do_join, do_replace, make_attrgetter
from jinja2.parser import Parser
from jinja2.utils import Namespace

from bigrun.errors import CallError

MAX_SOURCE_CHARACTERS = 1 << 20
MAX_TEXT_CHARACTERS = 16 << 20
MAX_STEPS = 2_000_000  # loop turns and calls; a chat of a thousand messages takes some ten thousand
MAX_SECONDS = 5.0

# What makes much out of little: no chat template needs it.
_PADDING_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
_PADDING_FILTERS = ("center", "batch", "slice", "wordwrap", "pprint", "urlize", "xmlattr")
_WIDE_FORMAT = re.compile(r"\d{4}|%[^a-zA-Z%]*\*|:[^{}]*\{")  # a field of a thousand characters, or of an unknown width


class _GenerationTag(ext.Extension):
    """`{% generation %}`: marks the assistant's words for training; their text is printed as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's `namespace()` without underscored names, which Python and Jinja give a meaning on any object."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _refuse_underscore(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class Environment(sandbox.ImmutableSandboxedEnvironment):
    """The sandbox with meters. One environment renders once: its meters are its state."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # Not optimized: the optimizer would run operators and filters on constants while compiling, unmetered.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self._steps, self._deadline = 0, time.monotonic() + MAX_SECONDS
        for name in _PADDING_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters.update(tojson=_to_json, format=_format, indent=_indent, join=_join, replace=_replace)
        self.finalize = self.filtered
        self.globals.update(
            raise_exception=_raise,
            strftime_now=_strftime_now,
            namespace=_Namespace,
            dict=lambda *items, **pairs: dict(*items, **pairs),
        )

    def spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS or time.monotonic() > self._deadline:
            raise sandbox.SecurityError(f"it takes more than {MAX_STEPS} steps or {MAX_SECONDS:.0f} seconds")

    def looped(self, iterable: Any) -> Any:
        """What a `for` goes through, charged a step an item before its first turn."""
        if not hasattr(iterable, "__len__"):
            iterable = list(islice(iterable, MAX_STEPS + 1))
        self.spend(1 + len(iterable))
        return iterable

    def filtered(self, value: Any) -> Any:
        """What a filter is given or `{{ }}` prints, charged for every item in it, again each time an item is nested:
        a few nested lists that hold each other twice can spell out to terabytes."""
        unseen = [value]
        while unseen:
            item = unseen.pop()
            self.spend(1 + (len(item) if isinstance(item, list | tuple | dict | range) else 0))
            if isinstance(item, list | tuple | dict):
                unseen.extend(item.values() if isinstance(item, dict) else item)
        return value

    def joined(self, *values: Any) -> str:
        """`a ~ b ~ c`."""
        texts = [str(self.filtered(value)) for value in values]
        refuse_longer(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.spend(1)
        text, method = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str) and method == "join" and args:
            args = (list(__self.looped(args[0])), *args[1:])
            refuse_longer(_joined_length(text, args[0]))
        elif isinstance(text, str) and method == "replace" and len(args) > 1:
            refuse_longer(_replaced_length(text, *args[:2]))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)  # None unless it is str.format or format_map
        if wrapped is not None:
            _refuse_wide(value.__self__)
        return wrapped

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            refuse_longer(left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length())
        elif operator == "*":
            length, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(length, "__len__") and isinstance(times, int):
                refuse_longer(len(length) * times)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            refuse_longer(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)

    def metered(self, source: str) -> jinja2.Template:
        """Compile with every loop, filter and `~` sent through the meters above."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                raise sandbox.SecurityError("it has a recursive loop")
            loop.iter = _through("looped", loop.iter)
        for filtered in list(tree.find_all(nodes.Filter)):
            if filtered.node is not None:
                filtered.node = _through("filtered", filtered.node)
        return self.from_string(_Concatenations().visit(tree))


class _Concatenations(jinja2.visitor.NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        return _through("joined", *(self.visit(part) for part in node.nodes))


def _through(meter: str, *arguments: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(meter), [*arguments], [], None, None)


def _raise(message: object) -> None:
    """`raise_exception`: how a template refuses messages, so the caller's error."""
    raise CallError(f"the chat template refuses these messages: {line(message)}")


def _strftime_now(format: str) -> str:
    if len(format) > 100:
        raise sandbox.SecurityError("its date format is over 100 characters")
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `json.dumps` has it: Jinja's own filter escapes <, > and &, which a prompt must keep."""
    if indent is not None and not 0 <= indent <= 16:
        raise sandbox.SecurityError("its JSON is indented by more than 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _format(text: str, *values: Any) -> str:
    """`"%s of %d" % values`, as an operator and as a filter."""
    _refuse_wide(text)
    return text % (values[0] if len(values) == 1 and isinstance(values[0], Mapping) else values)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if (len(width) if isinstance(width, str) else width) > 100:
        raise sandbox.SecurityError("it indents by more than 100")
    return do_indent(text, width, first, blank)


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Any:
    items = list(value)
    if attribute is not None:
        items = list(map(make_attrgetter(context.environment, attribute), items))
    refuse_longer(_joined_length(str(d), items))
    return do_join(context, items, d)


@jinja2.pass_eval_context
def _replace(context: nodes.EvalContext, s: str, old: str, new: str, count: int | None = None) -> str:
    refuse_longer(_replaced_length(str(s), old, new))
    return do_replace(context, s, old, new, count)


def _joined_length(separator: str, items: Sequence[Any]) -> int:
    """Characters of a join; what is no text has few."""
    return len(separator) * len(items) + sum(len(item) for item in items if isinstance(item, str))


def _replaced_length(text: str, old: Any, new: Any) -> int:
    """Characters at most where `old` gives way to `new`; what is no text is refused by whoever replaces."""
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + text.count(old) * len(new)


def _refuse_wide(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise sandbox.SecurityError(f"it formats with {text!r:.40}")


def refuse_longer(length: int) -> None:
    if length > MAX_TEXT_CHARACTERS:
        raise sandbox.SecurityError(f"it makes more than {MAX_TEXT_CHARACTERS} characters")


def _refuse_underscore(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise sandbox.SecurityError(f"it stores {name!r:.40} in a namespace")


def line(message: object) -> str:
    """One line of at most 200 characters: the text may be the template's own."""
    words: Iterable[str] = str(message)[:400].split()
    return " ".join(words)[:200]
