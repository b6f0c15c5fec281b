"""A conversation: turns of a user and of the model, each answered from all that was said before it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigrun.errors import CallError
from bigrun.session.asked import Asked
from bigrun.session.generation import Stats, Stream
from bigrun.session.messages import checked_messages
from bigrun.session.prompts import rendered
from bigrun.text.chat import REASONING
from bigrun.text.thinking import Piece, Thinking, begins_inside, marks_of

if TYPE_CHECKING:
    from bigrun.session.runner import Runner


class Answer:
    """The model's turn as it comes: pieces, each said or thought. `close` ends it where it is; what has come is kept."""

    def __init__(self, conversation: Conversation, stream: Stream, thinking: Thinking, before: list[dict[str, Any]]):
        self._conversation, self._stream, self._thinking, self._before = conversation, stream, thinking, before
        self._said, self._thought, self._over = "", "", False
        self._pieces = self._run()

    @property
    def stats(self) -> Stats:
        """What it has taken so far."""
        return self._stream.stats

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def close(self) -> None:
        """End the answer where it is."""
        self._pieces.close()
        self._end()  # also of one that nobody has begun to read

    def _run(self) -> Generator[Piece, None, None]:
        try:
            for text in self._stream:
                yield from self._noted(self._thinking.push(text))
            yield from self._noted(self._thinking.finish())
        except Exception:  # not Ctrl-C, and not close()
            self._over = True
            self._conversation.messages = self._before
            raise
        finally:
            self._end()

    def _end(self) -> None:
        self._stream.close()
        if not self._over:
            self._over = True
            self._conversation._answered(self._said, self._thought, self.stats)

    def _noted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.thinking:
                self._thought += piece.text
            else:
                self._said += piece.text
            yield piece


class Conversation:
    """Messages, and the Runner that answers them. What a turn shares with the one before it is not computed again.

    `messages` is all that was said, each with its role and content, and an answer's thoughts as its reasoning_content, which a
    chat template that knows them reads or leaves out. `last` tells what the last answer took.
    """

    def __init__(
        self, runner: Runner, messages: Iterable[Mapping[str, Any]] = (), *, max_new_tokens: int | None = None,
        sampling: Mapping[str, Any] | None = None, stop: str | Sequence[str] = (),
        template_args: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        """CallError for messages that are none.

        sampling: temperature, top_k, top_p, min_p, repetition_penalty, seed; what is not named is greedy's.
        """
        self.runner = runner
        self.last: Stats | None = None
        self.max_new_tokens, self.stop, self.template_args = max_new_tokens, stop, template_args
        self.sampling = {
            "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": None,
            **(sampling or {}),
        }  # fmt: skip
        self.messages: list[dict[str, Any]] = checked_messages(messages)
        template = runner.tokenizer.chat_template
        self._marks = marks_of(template)
        self._keeps_thoughts = template is not None and any(name in template for name in REASONING)

    @property
    def system(self) -> str | None:
        """What the system message says; None without one."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = ([] if text is None else [{"role": "system", "content": text}]) + rest

    def say(self, text: str) -> Answer:
        """Add a user's turn and answer it. CallError, and the turn is taken back, where the context has no room for it or the
        template refuses it."""
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def again(self) -> Answer:
        """Answer the last turn anew, in place of the last answer. CallError where there is none."""
        before = list(self.messages)
        while before and before[-1]["role"] == "assistant":
            before.pop()
        if not before or before[-1]["role"] != "user":
            raise CallError("there is no turn to answer again")
        return self._answer(before)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def load(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Go on from other messages. CallError, and these stay, where they are none or the template refuses them."""
        checked = checked_messages(messages)
        if checked:
            rendered(self.runner.tokenizer, self._seen(checked), self.template_args)
        self.messages = checked

    def _answer(self, messages: list[dict[str, Any]]) -> Answer:
        marks = self._marks
        seen = self._seen(messages)
        shown = tuple(mark for mark in marks or () if mark)
        asked = Asked(self.max_new_tokens, False, self.stop, self.template_args, self.sampling, shown)
        request = asked.request(self.runner, seen)
        inside = False
        if marks is not None:
            inside = begins_inside(rendered(self.runner.tokenizer, seen, self.template_args), marks)
        before, self.messages = self.messages, messages
        return Answer(self, Stream(self.runner, request), Thinking(marks, inside), before)

    def _seen(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the template gets them: with earlier thoughts only where it knows what to do with them."""
        if self._keeps_thoughts:
            return messages
        return [{name: value for name, value in message.items() if name not in REASONING} for message in messages]

    def _answered(self, said: str, thought: str, stats: Stats) -> None:
        self.last = stats
        message = {"role": "assistant", "content": said}
        if thought:
            message["reasoning_content"] = thought
        self.messages = [*self.messages, message]
