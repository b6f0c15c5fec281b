"""Arguments of a chat template beyond the conversation, like `enable_thinking`: which it reads, and with what values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bigrun.errors import CallError
from bigrun.text.chat import variables_read
from bigrun.text.sandbox import Environment

NOT_DONE = ("tools", "documents")
SHOWN = 20  # names that a message lists
# What a template is given anyway, from the conversation and from the tokenizer.
OURS = frozenset((
    "messages", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "unk_token", "sep_token",
    "pad_token", "cls_token", "mask_token", "additional_special_tokens",
))  # fmt: skip


def arguments_read(template: str) -> list[str]:
    """Names of the arguments that a template reads, sorted. TokenizerError where it is no template."""
    return sorted(variables_read(template) - OURS - {*NOT_DONE})


def check_arguments(template: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain JSON values, for a template that reads them all; it may come without any of them.

    Raises CallError for a name that the template does not read or that is not the caller's to set, and for a value that
    is not JSON's: null, true or false, a number, a text, or lists and objects of these.
    """
    checked = {}
    for name, value in arguments.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise CallError(f"{name!r:.80} is no name of a template argument: one is like enable_thinking")
        if name in OURS or name in Environment().globals:
            raise CallError(f"the template argument {name} cannot be set: every chat template has its own")
        if name in NOT_DONE:
            raise CallError(f"the template argument {name} is not supported: conversations are of messages alone")
        if name not in arguments_read(template):
            raise CallError(f"this model's chat template does not read {name:.80}; it reads {_listed(template)}")
        checked[name] = _plain(name, value)
    return checked


def _listed(template: str) -> str:
    names = [f"{name:.80}" for name in arguments_read(template)]
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more]) or "no arguments"


def _plain(name: str, value: Any) -> Any:
    """A copy of the value in which there are JSON's types alone, so that a template reaches no other object's methods."""
    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:  # an object, no number, a list within itself
        raise CallError(f"the template argument {name} is {value!r:.80}, which is not JSON: {error}") from error
    if plain != value:  # a tuple, keys that are no texts
        raise CallError(f"the template argument {name} is {value!r:.80}, which is not JSON; it would be {plain!r:.80}")
    return plain
