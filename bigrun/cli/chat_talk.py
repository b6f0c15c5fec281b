"""A conversation at the command line: its turns, each answer shown as it comes, Ctrl-C ends an answer and nothing else."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from bigrun.cli.answer import count, notes
from bigrun.cli.chat_display import Display, Screen
from bigrun.errors import escaped
from bigrun.text.thinking import marks_of

if TYPE_CHECKING:
    from bigrun.session.conversation import Answer, Conversation
    from bigrun.session.generation import Stats
    from bigrun.session.runner import Runner


def not_waiting() -> AbstractContextManager[Callable[[], None]]:
    """For a front end that does nothing while an answer comes."""
    return nullcontext(lambda: None)


class Talk:
    """The conversation that a front end holds, and how its answers are shown.

    thinking   "show", "dim" or "hide"
    keys       what the front end's /help says of its keys
    waiting    what holds while an answer comes: a terminal whose keys are not echoed, say; it yields what drops such keys
    """

    def __init__(
        self, conversation: "Conversation", runner: "Runner", screen: Screen, thinking: str,
        *, verbose: bool = False, quiet: bool = False, keys: str = "",
        waiting: Callable[[], AbstractContextManager[Callable[[], None]]] = not_waiting,
    ):  # fmt: skip
        self.conversation, self.runner, self.screen = conversation, runner, screen
        self.thinking, self.verbose, self.quiet = thinking, verbose, quiet
        self.keys, self._waiting, self._marks = keys, waiting, marks_of(runner.tokenizer.chat_template)

    def say(self, text: str) -> None:
        """A turn of the user's, and the answer to it. BigrunError where there can be none, or where it fails midway."""
        self._show(lambda: self.conversation.say(text))

    def again(self) -> None:
        """Another answer in place of the last one."""
        self._show(self.conversation.again)

    def note_unanswered(self) -> None:
        """Says it where a conversation that was loaded ends with a turn of the user's."""
        if self.conversation.messages and self.conversation.messages[-1]["role"] == "user":
            self.note("the last turn has no answer: /retry answers it")

    def note(self, text: str) -> None:
        """A line beside the conversation, on standard error."""
        if not self.quiet:
            print(f"[{escaped(text)}]", file=sys.stderr, flush=True)

    def _show(self, begin: Callable[[], "Answer"]) -> None:
        display = Display(self.screen, self.thinking, self._marks)
        with self._waiting() as drop_keys, _interrupts() as interrupts:
            answer = begin()
            try:
                interrupts.raise_from_now()
                for piece in answer:
                    display.piece(*piece)
                    if interrupts.came:  # and was lost in code that lets nothing through
                        break
            except KeyboardInterrupt:
                interrupts.came = True
            finally:
                interrupts.keep_from_now()
                answer.close()
                display.end(empty_line=not self.screen.terminal)
            if interrupts.came:
                drop_keys()
        if interrupts.came:
            self.note("stopped")
            return
        if display.thought and not display.said and self.thinking == "hide":
            self.note("the answer is thoughts alone: --thinking show")
        for note in notes(answer.stats, display.said or display.thought, brief=False, verbose=False):
            self.note(note.replace("; --context", "; /clear begins anew, --context makes room"))
        if self.verbose:
            self.note("; ".join(self.took(answer.stats)))

    def took(self, stats: "Stats") -> list[str]:
        """What an answer took, in full: a line each of its prompt, itself, the context and the seed."""
        reused = f", {stats.reused_tokens} of them not computed again" if stats.reused_tokens else ""
        held = min(stats.prompt_tokens + stats.new_tokens, self.runner.plan.context_tokens)  # the last one is not fed
        lines = [
            f"prompt: {count(stats.prompt_tokens)}{reused}, {_took(stats.prefill_seconds, stats.prefill_tokens_per_s)}",
            f"answer: {count(stats.new_tokens)}, {_took(stats.decode_seconds, stats.decode_tokens_per_s)}, "
            + ("stopped" if stats.ended is None else f"ended by {stats.ended}"),
            f"context: {held:,} of {self.runner.plan.context_tokens:,} tokens",
        ]
        return [*lines, *([] if stats.seed is None else [f"seed: {stats.seed}"])]


def _took(seconds: float, rate: float | None) -> str:
    return f"{seconds:.2f} s" + ("" if rate is None else f", {rate:.1f} tokens/s")


class _Interrupts:
    """Ctrl-C while an answer comes: `came` tells whether. It is raised where it may be, and once."""

    def __init__(self) -> None:
        self.came = self._raised = False

    def handle(self, *_: object) -> None:
        """The signal's handler."""
        self.came = True
        self._raise()

    def raise_from_now(self) -> None:
        """KeyboardInterrupt when it comes, or if it came."""
        self._raised = True
        if self.came:
            self._raise()

    def keep_from_now(self) -> None:
        """It is only noted when it comes."""
        self._raised = False

    def _raise(self) -> None:
        if self._raised:
            self._raised = False
            raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Takes Ctrl-C over, unless whoever started this process has it ignored."""
    interrupts = _Interrupts()
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main or before in (signal.SIG_IGN, None):
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
