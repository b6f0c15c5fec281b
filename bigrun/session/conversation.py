"""A conversation: turns of a user and of the model, each answered from all that was said before it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bigrun.errors import CallError
from bigrun.session.generation import Stats, Stream
from bigrun.session.messages import checked_messages
from bigrun.session.prompts import rendered
from bigrun.session.request_options import RequestOptions
from bigrun.text.chat import REASONING
from bigrun.text.stop import StopTexts, stop_texts
from bigrun.text.thinking import Piece, Thinking, begins_inside, marks_of

if TYPE_CHECKING:
    from bigrun.session.runner import Runner

GREEDY: Mapping[str, Any] = {
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": None,
}  # fmt: skip


class Answer:
    """The model's turn as it comes: pieces, each said or thought. `close` ends it where it is; what has come is kept, and of
    an answer of which nothing has come the user's turn is taken back."""

    def __init__(
        self, conversation: Conversation, stream: Stream, thinking: Thinking, stops: StopTexts, before: list[dict[str, Any]]
    ):  # fmt: skip
        self._conversation, self._stream, self._before = conversation, stream, before
        self._thinking, self._stops = thinking, stops
        self._said, self._thought = "", ""
        self._pieces = self._run()

    @property
    def stats(self) -> Stats:
        """What it has taken so far."""
        stats = self._stream.stats
        return stats if self._stops.found is None else replace(stats, ended="stop_text")

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
                if self._stops.found is not None:
                    break
            else:
                yield from self._noted(self._thinking.finish())
                yield from self._rest()
        except Exception:  # not Ctrl-C, and not close()
            self._said = self._thought = ""
            self._end()
            raise
        finally:
            self._end()

    def _noted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Pieces as they are shown: thoughts whole, the answer up to a stop text."""
        for piece in pieces:
            if piece.thinking:
                self._thought += piece.text
                yield piece
            elif text := self._stops.push(piece.text):
                self._said += text
                yield Piece(text, False)

    def _rest(self) -> Iterator[Piece]:
        if rest := self._stops.finish():
            self._said += rest
            yield Piece(rest, False)

    def _end(self) -> None:
        """Once: the stream is closed, and the conversation has the answer, unless it went on without."""
        self._stream.close()
        self._conversation.ended(self, self._said, self._thought, self._before)


class Conversation:
    """Messages, and the Runner that answers them. What a turn shares with the one before it is not computed again.

    `messages` is all that was said, each with its role and content, and an answer's thoughts as its reasoning_content, which a
    chat template that knows them reads or leaves out. `last` tells what the last answer took. An answer that is not at its
    end is ended by whatever is done next.
    """

    def __init__(
        self, runner: Runner, messages: Iterable[Mapping[str, Any]] = (), *, max_new_tokens: int | None = None,
        sampling: Mapping[str, Any] | None = None, stop: str | Sequence[str] = (),
        template_args: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        """CallError for messages that are none.

        sampling: temperature, top_k, top_p, min_p, repetition_penalty, seed; what is not named is greedy's.
        stop: texts before which an answer ends; thoughts are not looked at.
        """
        for name in (sampling or {}).keys() - GREEDY.keys():
            raise CallError(f"sampling has no {name}; it has {', '.join(GREEDY)}")
        self.runner, self.last = runner, None
        self.messages: list[dict[str, Any]] = checked_messages(messages)
        template = runner.tokenizer.chat_template
        self._marks, self._live = marks_of(template), None
        self.max_new_tokens, self.stop, self.template_args = max_new_tokens, stop_texts(stop), template_args
        self.sampling = {**GREEDY, **(sampling or {})}
        _ = self._options  # which checks them
        self._keeps_thoughts = template is not None and any(name in template for name in REASONING)

    last: Stats | None
    _live: Answer | None

    @property
    def system(self) -> str | None:
        """What the system message says; None without one."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        self.close()
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = ([] if text is None else checked_messages([{"role": "system", "content": text}])) + rest

    def say(self, text: str) -> Answer:
        """Add a user's turn and answer it. CallError, and the turn is taken back, where the context has no room for it or the
        template refuses it."""
        self.close()
        return self._answer([*self.messages, *checked_messages([{"role": "user", "content": text}])])

    def again(self) -> Answer:
        """Answer the last turn anew, in place of the last answer. CallError where there is none."""
        self.close()
        before = list(self.messages)
        while before and before[-1]["role"] == "assistant":
            before.pop()
        if not before or before[-1]["role"] != "user":
            raise CallError("there is no turn to answer again")
        return self._answer(before)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.close()
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def load(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Go on from other messages. CallError, and these stay, where they are none or the template refuses them."""
        self.close()
        checked = checked_messages(messages)
        if checked:
            rendered(self.runner.tokenizer, self._seen(checked), self.template_args)
        self.messages = checked

    def close(self) -> None:
        """End the answer that is not at its end, if there is one."""
        if self._live is not None:
            self._live.close()

    def ended(self, answer: Answer, said: str, thought: str, before: list[dict[str, Any]]) -> None:
        """Take in what an answer gave; one of which nothing came, before its end, leaves the messages of `before`."""
        if answer is not self._live:
            return
        self._live, self.last = None, answer.stats
        if not said and not thought and answer.stats.ended is None:
            self.messages = before
            return
        message = {"role": "assistant", "content": said}
        if thought:
            message["reasoning_content"] = thought
        self.messages = [*self.messages, message]

    @property
    def _options(self) -> RequestOptions:
        shown = tuple(mark for mark in self._marks or () if mark)
        return RequestOptions(self.max_new_tokens, False, (), self.template_args, self.sampling, shown)

    def _answer(self, messages: list[dict[str, Any]]) -> Answer:
        seen = self._seen(messages)
        request = self._options.request(self.runner, seen)
        prompt = "" if self._marks is None else rendered(self.runner.tokenizer, seen, self.template_args)
        thinking = Thinking(self._marks, begins_inside(prompt, self._marks))
        before, self.messages = self.messages, messages
        self._live = Answer(self, Stream(self.runner, request), thinking, StopTexts(self.stop), before)
        return self._live

    def _seen(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the template gets them: with earlier thoughts only where it knows what to do with them."""
        if self._keeps_thoughts:
            return messages
        return [{name: value for name, value in message.items() if name not in REASONING} for message in messages]
