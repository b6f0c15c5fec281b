"""Chat templates print what models were trained on, and hostile ones are stopped."""

from __future__ import annotations

import time
from typing import Any

import pytest
from jinja2 import meta

from bigrun.errors import CallError, TokenizerError
from bigrun.text import sandbox
from bigrun.text.chat import render, variables_read
from bigrun.text.template_args import OURS, arguments_read, check_arguments
from bigrun.text.tokenizer import Tokenizer
from support.differential_templates import STYLES
from support.tokenizers import tokenizer_of, word_backend

HELLO = [{"role": "user", "content": "Count to 12, it's easy!"}]

HOSTILE = {
    "a loop of loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{{ range(10 ** 9) }}",
    "a filter in a loop": "{% for i in range(90000) %}{{ range(99999)|list|length }}{% endfor %}",
    "macros that call twice": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(30) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a repeated string": "{{ 'a' * 10 ** 10 }}",
    "a tower of powers": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "a doubled string": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a list of itself twice": "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x|tojson }}",
    "the same, printed": "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x }}",
    "much output": "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide format method": "{{ '{:>9999999999}'.format(1) }}",
    "a format of unknown width": "{{ '{:>{}}'.format(1, 10 ** 10) }}",
    "the class of a string": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the globals of a function": "{{ raise_exception.__globals__['json'] }}",
    "the globals of a class": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "format's way to attributes": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "an underscored name in a namespace": "{% set n = namespace() %}{% set n.__call__ = 1 %}",
    "changed messages": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "no Jinja": "{% for %}",
    "a huge source": "x" * (2 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "macros that call twice":  # which nothing but the clock stops
        assert sandbox.MAX_SECONDS <= 5
        monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    start = time.perf_counter()
    with pytest.raises(TokenizerError) as caught:
        render(HOSTILE[name], HELLO, True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.perf_counter() - start < 15
    assert HELLO == [{"role": "user", "content": "Count to 12, it's easy!"}]


def test_what_templates_use_works() -> None:
    source = """
    {%- for message in messages if message.role != 'system' %}
        {%- generation %}{{ '%s: ' % message.role|upper }}{{ message['content']|trim ~ loop.index }}{% endgeneration %}
        {%- if loop.last %}{{ eos_token }}{% break %}{% endif %}
    {%- endfor %}
    {{- {'a': '<é>', 'b': [1]}|tojson(indent=1) }}{{ tools is none }}{{ strftime_now('%Y')|length }}
    {%- if add_generation_prompt %}{{ dict(x='go').x }}{% endif %}"""
    talk = [{"role": "system", "content": ""}, {"role": "user", "content": " hi "}]
    expected = 'USER: hi1</s>{\n "a": "<é>",\n "b": [\n  1\n ]\n}True4go'
    assert render(source, talk, True, eos_token="</s>") == expected


def test_wrong_messages_are_the_callers_error() -> None:
    with pytest.raises(CallError, match="roles must alternate"):
        render("{{ raise_exception('roles\nmust alternate') }}", HELLO, True)
    with pytest.raises(CallError, match="message 0 has no role"):
        render("", [{"content": "x"}], True)


def test_a_block_takes_its_indent_and_its_newline_with_it() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc", HELLO, True) == "a\nb\nc"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ('b' * 10**6).join(('a ' * 10**6).split()) }}",
        "{{ ('b' * 10**6).join('a' * 10**6) }}",
        "{{ ('a ' * 10**6).split() | join('b' * 10**6) }}",
        "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
        "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
        "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    ],
)
def test_joining_and_replacing_make_no_terabytes(template: str) -> None:
    with pytest.raises(TokenizerError, match="more than"):
        render(template, [{"role": "user", "content": "x"}], True)


def test_joining_and_replacing_are_otherwise_python_s() -> None:
    template = (
        "{{ ','.join(['a', 'b']) }} {{ ['c', 'd'] | join('-') }} {{ 'aab'.replace('a', 'x', 1) }} "
        "{{ 'aab' | replace('a', 'x') }} {{ messages | join('+', attribute='role') }}"
    )
    assert render(template, [{"role": "u"}, {"role": "v"}], True) == "a,b c-d xab xxb u+v"


# What templates in the field do with their arguments, written anew.
ARGUING = """\
{%- if not date is defined %}{% set date = 'today' %}{% endif %}
{%- set effort = effort | default('medium') %}
{%- macro shouted(text, mark='!') %}{{ text | upper ~ mark * volume }}{% endmacro %}
{%- if builtins %}{% for tool in builtins %}{{ loop.index ~ tool }}{% endfor %}{% endif %}
{%- if style is mapping %}{{ style.items() | list }}{% endif %}
{%- for m in messages %}{{ m.role ~ date ~ effort ~ shouted(m.content) }}{% endfor %}
{%- if tools or documents %}{{ 'never' }}{% endif %}
{{- bos_token ~ add_generation_prompt ~ strftime_now('%%') }}"""
NAMES = ["builtins", "date", "effort", "style", "volume"]

ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "thoughts off": (STYLES["thinking"][0], {"enable_thinking": False}),
    "thoughts on": (STYLES["thinking"][0], {"enable_thinking": True}),
    "thoughts left to the template": (STYLES["thinking"][0], {}),
    "a null": (STYLES["thinking"][0], {"enable_thinking": None}),
    "values of all kinds": (
        ARGUING,
        {"date": "1 May", "volume": 2, "effort": None, "builtins": ["a", {"b": 1.5}], "style": {"é": [True, None]}},
    ),
    "some of them": (ARGUING, {"volume": 1, "effort": "high"}),
}


def chatting(template: str) -> Tokenizer:
    tokenizer = tokenizer_of(word_backend())
    tokenizer.chat_template = template
    tokenizer._named["bos_token"] = "<s>"
    return tokenizer


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_a_template_s_variables_as_in_transformers(name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    template, arguments = ARGUMENTS[name]
    theirs = PreTrainedTokenizerFast(tokenizer_object=word_backend(), bos_token="<s>", chat_template=template)
    expected = theirs.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True, **arguments)
    ours = chatting(template)
    assert ours.render_chat(HELLO, arguments=arguments) == expected
    if arguments not in ({}, {"enable_thinking": True}, {"enable_thinking": None}):
        without = {**arguments, "enable_thinking": True} if "enable_thinking" in arguments else {"volume": 0}
        assert ours.render_chat(HELLO, arguments=without) != expected


def test_the_arguments_that_a_template_reads() -> None:
    assert arguments_read(ARGUING) == NAMES
    assert arguments_read(STYLES["thinking"][0]) == ["enable_thinking"]
    for name in ("chatml", "llama-3", "tools", "parts", "command-r", "dated"):
        assert arguments_read(STYLES[name][0]) == []


# (a template, the variables that it reads from outside)
READ: dict[str, tuple[str, set[str]]] = {
    "a default of its own": ("{% set a = a | default(1) %}{{ a }}", {"a"}),
    "set where it is not given": ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", {"a"}),
    "set and read": ("{% set a = 1 %}{{ a }}", set()),
    "read and set": ("{{ a }}{% set a = 1 %}", {"a"}),
    "set in one branch": ("{% if x %}{% set a = 1 %}{% endif %}{{ a }}", {"a", "x"}),
    "set in all": (
        "{% if x %}{% set a = 1 %}{% elif y %}{% set a = 2 %}{% else %}{% set a = 3 %}{% endif %}{{ a }}",
        {"x", "y"},
    ),
    "set and read in a branch": (
        "{% if x %}{% set a = 1 %}{% if y %}{% set a = 2 %}{% endif %}{{ a }}{% endif %}",
        {"x", "y"},
    ),
    "read in another": ("{% if x %}{% set a = 1 %}{% else %}{{ a }}{% endif %}", {"a", "x"}),
    "a loop's own": (
        "{% for a, b in x.split() if a %}{{ a ~ b ~ loop.index }}{% else %}{{ y }}{% endfor %}",
        {"x", "y"},
    ),
    "a loop's own, after it": ("{% for a in x %}{% set b = 1 %}{% endfor %}{{ a ~ b }}", {"x", "a", "b"}),
    "namespaces": ("{% set n = namespace(a=x) %}{% set n.b = y %}{{ n.a }}{{ n.b }}", {"x", "y"}),
    "a namespace from outside": ("{% set n.b = 1 %}", {"n"}),
    "a block's text": ("{% set a | upper %}{{ x }}{% set b = 1 %}{% endset %}{{ a ~ b }}", {"x", "b"}),
    "with": ("{% with a = x, b = a %}{{ a ~ b }}{% endwith %}{{ b }}", {"x", "a", "b"}),
    "a macro": (
        "{% macro f(a, b=x) %}{{ a ~ b ~ y ~ varargs ~ (f is callable) }}{% endmacro %}{{ f(z) }}",
        {"x", "y", "z"},
    ),
    "what a macro sees": ("{% macro f() %}{{ a ~ b }}{% endmacro %}{% set a = 1 %}{{ f() }}", {"b"}),
    "a call's block": ("{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(a) f() %}{{ a ~ x }}{% endcall %}", {"x"}),
    "a filter's block": (
        "{% filter replace(x, y) %}{{ z }}{% set a = 1 %}{% endfilter %}{{ a }}",
        {"x", "y", "z", "a"},
    ),
    "a generation's block": ("{% generation %}{% set a = x %}{% endgeneration %}{{ a }}", {"x"}),
    "functions": ("{{ range(3) }}{{ raise_exception }}{{ strftime_now('%Y') }}{{ namespace() }}{{ dict(a=1) }}", set()),
    "names of attributes and arguments": (
        "{{ {'a': 1}.b }}{{ x['c'] }}{{ dict(d=2) }}{{ x | tojson(indent=2) }}",
        {"x"},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_the_variables_that_a_template_reads(name: str) -> None:
    """None that Jinja does not find either, and what is not among them changes nothing."""
    template, names = READ[name]
    assert variables_read(template) == names
    every = meta.find_undeclared_variables(sandbox.Environment().parse(template))
    assert names <= every
    given = dict.fromkeys(names, "12")
    if name == "a namespace from outside":
        return  # a text is none
    expected = render(template, HELLO, True, given)
    assert render(template, HELLO, True, given | dict.fromkeys(every - names, "other")) == expected


# (arguments, what the error says)
REFUSED: dict[str, tuple[Any, str]] = {
    "a name that is not read": (
        {"enable_thinking": True},
        f"does not read enable_thinking; it reads {', '.join(NAMES)}",
    ),
    "a name that the template sets": ({"tool": 1}, "does not read tool"),
    "tools": ({"tools": []}, "argument tools is not supported"),
    "documents": ({"documents": None}, "argument documents is not supported"),
    "no identifier": ({"enable-thinking": True}, "'enable-thinking' is no name"),
    "no name": ({"": True}, "'' is no name"),
    "a name that is no text": ({1: True}, "1 is no name"),
    **{f"ours: {name}": ({name: "x"}, f"{name} cannot be set") for name in sorted(OURS)},
    **{
        f"a function: {name}": ({name: "x"}, f"{name} cannot be set") for name in ("strftime_now", "range", "namespace")
    },
    "an object": ({"style": object()}, "style is <object object at .*, which is not JSON"),
    "a tuple": ({"style": (1, 2)}, "style is \\(1, 2\\), which is not JSON; it would be \\[1, 2\\]"),
    "a tuple within": ({"style": {"a": [(1,)]}}, "which is not JSON"),
    "a key that is no text": ({"style": {1: 2}}, "which is not JSON"),
    "a set": ({"style": {1}}, "which is not JSON"),
    "bytes": ({"date": b"x"}, "date is b'x', which is not JSON"),
    "not a number": ({"volume": float("nan")}, "volume is nan, which is not JSON"),
    "infinity": ({"volume": [float("inf")]}, "which is not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_cannot_be_is_the_caller_s_error(name: str) -> None:
    arguments, words = REFUSED[name]
    with pytest.raises(CallError, match=words):
        check_arguments(ARGUING, arguments)
    with pytest.raises(CallError, match=words):
        chatting(ARGUING).render_chat(HELLO, arguments=arguments)


def test_a_value_within_itself_is_the_caller_s_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CallError, match=r"style is .*, which is not JSON"):
        check_arguments(ARGUING, {"style": endless})


def test_an_argument_s_value_is_a_copy_of_plain_types() -> None:
    class Text(str):
        def evil(self) -> str:
            return "reached"

    checked = check_arguments(ARGUING, {"style": Text("x"), "builtins": [Text("y")]})
    assert checked == {"style": "x", "builtins": ["y"]}
    assert type(checked["style"]) is type(checked["builtins"][0]) is str


def test_a_template_without_arguments_says_so_and_one_with_many_lists_some() -> None:
    with pytest.raises(CallError, match="does not read x; it reads no arguments"):
        check_arguments("{{ messages }}", {"x": 1})
    with pytest.raises(CallError, match=r"a000, .*a019, and 980 more$") as caught:
        check_arguments("".join(f"{{{{ a{i:03} }}}}" for i in range(1000)), {"x": 1})
    assert "a020" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["no Jinja", "a huge source", "a repeated string", "padding", "a tower of powers"])
def test_a_hostile_template_is_stopped_while_its_arguments_are_looked_for(name: str) -> None:
    """Looking computes no constant of it."""
    start = time.perf_counter()
    with pytest.raises((TokenizerError, CallError), match=r"Jinja|characters|it reads no arguments"):
        check_arguments(HOSTILE[name], {"x": 1})
    assert time.perf_counter() - start < 15
