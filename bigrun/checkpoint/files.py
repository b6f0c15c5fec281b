"""Opens files of untrusted folders: plain files of a bounded size, never a pipe or a device."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from bigrun.errors import CheckpointError
from bigrun.model.file_kind import HEAD, LFS_POINTER, what_it_is

CONFIG, GGUF_METADATA = "config.json", "metadata.gguf"
# What a folder may have beside its configuration and weights that a run needs.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
LARGEST_COMPANION = 64 * 2**20
KERNEL = ("/proc/", "/sys/")  # file systems of the kernel's, some of whose files look plain


def read_companions(folder: Path) -> dict[str, bytes]:
    """The COMPANIONS that a folder has, by name; what is no plain file, or too large, is left out."""
    found = {}
    for name in COMPANIONS:
        with suppress(CheckpointError):
            found[name] = read_file(folder / name, LARGEST_COMPANION)
    return found


def open_file(path: Path) -> BinaryIO:
    """Opens a plain file to read, through links as well: whoever made a link meant what it leads to.

    CheckpointError for anything else, such as a pipe or a device, which could block for ever, a file of the kernel's, and a
    Git LFS pointer. No message quotes what a file holds.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; fetch it again") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path}: is no plain file; fetch it again")
    stream = os.fdopen(handle, "rb")
    try:
        if os.path.realpath(f"/proc/self/fd/{handle}").startswith(KERNEL):
            raise CheckpointError(f"{path}: leads to a file of the kernel's; fetch it again")
        head = os.pread(handle, HEAD, 0)
        if head.startswith(LFS_POINTER):
            raise CheckpointError(f"{path}: {what_it_is(head)}")
    except BaseException:
        stream.close()
        raise
    return stream


def read_file(path: Path, most: int) -> bytes:
    """Reads a file of at most `most` bytes; CheckpointError for a longer one."""
    with open_file(path) as stream:
        data = stream.read(min(most, os.fstat(stream.fileno()).st_size) + 1)  # so much is allocated at once
    if len(data) > most:
        raise CheckpointError(f"{path}: larger than {most >> 10} KiB, which no such file is")
    return data
