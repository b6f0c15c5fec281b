"""Conversations as files: what is read, what is refused, what is never overwritten."""

import json
import stat
from pathlib import Path

import pytest

from bigrun.cli import messages_file
from bigrun.cli.messages_file import read_messages, write_messages
from bigrun.errors import CallError

MESSAGES = [{"role": "user", "content": "é\n🙂"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
WRONG_FILES = {
    "no JSON": (b"[{", "not JSON"), "no UTF-8": (b"\xff", "UTF-8"), "a text": (b'"a"', "list"), "no list": (b"{}", "list"),
    "a list of texts": (b'["a"]', "message 1"), "no role": (b'[{"content": "a"}]', "message 1 has no role"),
    "a role that is none": (b'[{"role": 1, "content": "a"}]', "message 1 has no role"),
    "no content": (b'[{"role": "user", "content": "a"}, {"role": "user"}]', "message 2 has no content"),
    "parts": (b'[{"role": "user", "content": [{"type": "image"}]}]', "images and sound are not supported"),
    "depth": (b"[" * 100_000, "not JSON"), "digits": (b"[" + b"9" * 5000 + b"]", "JSON"), "nothing": (b"", "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_a_file_that_holds_no_conversation_is_refused_and_not_overwritten(
    tmp_path: Path, case: tuple[bytes, str]
) -> None:
    data, words = case
    file = tmp_path / "f"
    file.write_bytes(data)
    with pytest.raises(CallError, match=words) as caught:
        read_messages(str(file), "--messages f")
    assert str(caught.value).startswith("--messages f: ")
    if data:  # of an empty file nothing is lost
        with pytest.raises(CallError, match="stays"):
            write_messages(str(file), MESSAGES, "/save f")
        assert file.read_bytes() == data
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_with_more_than_a_conversation_is_read_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text(text := json.dumps({"model": "x", "messages": MESSAGES}))
    assert read_messages(str(file), "f") == MESSAGES
    with pytest.raises(CallError, match="more than messages"):
        write_messages(str(file), [], "/save f")
    assert file.read_text() == text


def test_another_conversation_is_overwritten_with_its_mode_and_through_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "f", tmp_path / "link"
    for before in ([], MESSAGES, {"messages": MESSAGES}):
        file.write_text(json.dumps(before))
        file.chmod(0o640)
        link.unlink(missing_ok=True)
        link.symlink_to(file)
        assert write_messages(str(link), MESSAGES[:1], "/save link") == file
        assert link.is_symlink()
        assert read_messages(str(file), "f") == MESSAGES[:1]
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_half_of_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "\ud83d"}]
    assert read_messages(str(write_messages(str(tmp_path / "f"), messages, "f")), "f") == messages


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"]
)
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    file = write_messages(str(tmp_path / "f"), MESSAGES, "f")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(messages_file.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else CallError):
        write_messages(str(file), [], "/save f")
    assert read_messages(str(file), "f") == MESSAGES
    assert list(tmp_path.iterdir()) == [file]
