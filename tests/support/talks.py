"""A conversation whose model is a script, for tests of what is around it, and a terminal for those of a terminal.

talk = make_talk(Scripted(["Hello ", "you"]), verbose=True)
with Terminal(*PROGRAM, "chat", "--model", folder) as terminal:
    terminal.until("> ")
    terminal.type("Hello\\r")
"""

import codecs
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from fcntl import ioctl
from pathlib import Path
from typing import Any

from bigrun.cli.chat_display import Screen
from bigrun.cli.chat_talk import Talk
from bigrun.errors import CallError
from bigrun.session.generation import Stats
from bigrun.text.thinking import Piece

PIPE, TERMINAL, COLOURS = Screen(False, False), Screen(True, False), Screen(True, True)
PROMPT = re.compile(r"(?m)^(\x1b\S*?)?>(\x08| )")  # which the line editor writes in its own way
Script = list[str | Piece | Callable[[], None] | BaseException]


class ScriptedAnswer:
    """Pieces as the script has them: a text, a Piece, a call to make, an exception to raise."""

    def __init__(self, conversation: "Scripted", script: Script, ended: str | None):
        self._conversation, self._script, self._ended = conversation, script, ended
        self.text, self.closed = "", False

    def __iter__(self) -> Iterator[Piece]:
        for each in self._script:
            if isinstance(each, BaseException):
                raise each
            if callable(each):
                each()
                continue
            piece = each if isinstance(each, Piece) else Piece(each, False)
            self.text += "" if piece.thinking else piece.text
            yield piece
        self._conversation.last = self.stats

    @property
    def stats(self) -> Stats:
        return Stats(7, len(self._script), 1.0, 0.5, 2.0, self._conversation.seed, self._ended, 3)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._conversation.messages.append({"role": "assistant", "content": self.text})


class Scripted:
    """Answers turn after turn by its scripts, and by the turn itself, in capitals, after the last of them."""

    def __init__(self, *scripts: Script, ended: str = "stop_token", seed: int | None = None):
        self.messages: list[dict[str, Any]] = []
        self.last: Stats | None = None
        self.seed, self._scripts, self._ended = seed, list(scripts), ended
        self.sampling = {"temperature": 0.5, "seed": None}

    @property
    def system(self) -> str | None:
        return next((each["content"] for each in self.messages if each["role"] == "system"), None)

    @system.setter
    def system(self, text: str | None) -> None:
        rest = [each for each in self.messages if each["role"] != "system"]
        self.messages = [*([] if text is None else [{"role": "system", "content": text}]), *rest]

    def say(self, text: str) -> ScriptedAnswer:
        if text == "too long":
            raise CallError("the prompt has 9 tokens and the context 8")
        self.messages.append({"role": "user", "content": text})
        return ScriptedAnswer(self, self._scripts.pop(0) if self._scripts else [text.upper()], self._ended)

    def again(self) -> ScriptedAnswer:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise CallError("there is no answer")
        self.messages.pop()
        return self.say(self.messages.pop()["content"])

    def clear(self) -> None:
        self.messages = [each for each in self.messages if each["role"] == "system"]

    def load(self, messages: list[dict[str, Any]]) -> None:
        self.messages = list(messages)

    @property
    def turns(self) -> list[str]:
        return [each["content"] for each in self.messages if each["role"] == "user"]


class _Runner:
    """What a talk asks a Runner for."""

    class tokenizer:
        chat_template = "{{ messages }}<think></think>"

    class plan:
        context_tokens = 2048
        model = "scripted"


def make_talk(conversation: Any, screen: Screen = PIPE, thinking: str = "hide", **more: Any) -> Talk:
    return Talk(conversation, _Runner(), screen, thinking, **more)  # type: ignore[arg-type]


def interrupt() -> None:
    """Ctrl-C, pressed on this process."""
    os.kill(os.getpid(), signal.SIGINT)


class Terminal:
    """A process on a terminal of its own, which it is seen to write to."""

    SECONDS = 60  # of any wait: what takes a second does not take this long

    def __init__(
        self, *command: str | Path, env: Mapping[str, str] | None = None, columns: int = 100, rows: int = 30,
        stderr: Path | None = None,
    ):  # fmt: skip
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.text, self._unread, self._decoder = "", "", codecs.getincrementaldecoder("utf-8")("replace")
        errors = slave if stderr is None else os.open(stderr, os.O_WRONLY | os.O_CREAT)
        self.process = subprocess.Popen(
            [str(each) for each in command], stdin=slave, stdout=slave, stderr=errors,
            env={**(os.environ if env is None else env), "TERM": (env or {}).get("TERM", "xterm")}, start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.slave = slave

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(self.SECONDS)
        os.close(self.master)
        os.close(self.slave)

    def resize(self, columns: int, rows: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        while data:
            data = data[os.write(self.master, data[:512]) :]

    def until(self, expected: str | re.Pattern[str]) -> str:
        """Reads until it comes, and returns all up to its end since the last call, without escape sequences."""
        pattern = re.compile(re.escape(expected)) if isinstance(expected, str) else expected
        began = time.monotonic()
        while (match := pattern.search(self._unread)) is None:
            left = began + self.SECONDS - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(left, 0))
            try:
                data = os.read(self.master, 65536) if ready else b""
            except OSError:  # the process ended
                data = b""
            assert data, f"{expected!r} did not come, but {self._unread!r}"
            new = self._decoder.decode(data)
            self.text, self._unread = self.text + new, self._unread + new
        seen, self._unread = self._unread[: match.end()], self._unread[match.end() :]
        return plain(seen)

    def ended(self) -> int:
        return self.process.wait(self.SECONDS)


def plain(text: str) -> str:
    """A terminal's text without what moves its cursor or colours it."""
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])|\x08", "", text)
