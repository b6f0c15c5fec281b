"""Chat templates: the Jinja program that a checkpoint carries to turn messages into a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jinja2

from bigrun.errors import CallError, TokenizerError
from bigrun.text.sandbox import MAX_SOURCE_CHARACTERS, Environment, line, refuse_longer
from bigrun.text.template_variables import variables_from_outside

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's thoughts, the usual one first


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    arguments: Mapping[str, Any] | None = None,
    **tokens: str,
) -> str:
    """The prompt that `template` makes of `messages` (each with a "role", most with a "content").

    `arguments` are variables beyond the ones that every template has (`template_args.check_arguments` says which), `tokens`
    the template's `bos_token`, `eos_token` and the like. Raises CallError where the messages are not of the form that the
    template asks for, TokenizerError where the template is at fault.
    """
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise CallError(f"message {place} has no role: a message is like {{'role': 'user', 'content': 'Hello'}}")
    messages = [_message(message) for message in messages]
    variables = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
    pieces: list[str] = []
    length = 0
    with _at_fault(template):
        for piece in Environment().metered(template).generate({**(arguments or {}), **tokens, **variables}):
            length += len(piece)
            refuse_longer(length)
            pieces.append(piece)
    return "".join(pieces)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers' `apply_chat_template` hands it to a template: without keys that are null, and with its
    thoughts under both names that templates read."""
    said = {key: value for key, value in message.items() if value is not None}
    thoughts = next((said[name] for name in REASONING if name in said), None)
    return said if thoughts is None else {"thinking": thoughts, **said, "reasoning_content": thoughts}


@lru_cache(maxsize=8)
def variables_read(template: str) -> frozenset[str]:
    """Names of the variables that a template may read of those it is given. TokenizerError where it is no template."""
    with _at_fault(template):
        environment = Environment()
        return frozenset(variables_from_outside(environment.parse(template)) - environment.globals.keys())


@contextmanager
def _at_fault(template: str) -> Iterator[None]:
    """TokenizerError for whatever a template does wrong meanwhile; what it refuses stays the caller's error."""
    if len(template) > MAX_SOURCE_CHARACTERS:
        raise TokenizerError(f"the chat template has {len(template)} characters; the most is {MAX_SOURCE_CHARACTERS}")
    try:
        yield
    except CallError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is not valid Jinja: line {error.lineno}") from error  # no word of it
    except Exception as error:  # a template can provoke any error that Python has
        raise TokenizerError(f"the chat template failed: {type(error).__name__}: {line(error)}") from error
