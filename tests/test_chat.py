"""Chat templates print what models were trained on, and hostile ones are stopped."""

from __future__ import annotations

import time

import pytest

from bigrun.errors import CallError, TokenizerError
from bigrun.text import chat
from bigrun.text.chat import render

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
        assert chat.MAX_SECONDS <= 5
        monkeypatch.setattr(chat, "MAX_SECONDS", 0.5)
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
