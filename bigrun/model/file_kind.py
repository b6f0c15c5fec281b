"""What a file is, by its first bytes: names and endings say what somebody called it."""

HEAD = 64  # bytes that are enough to tell
GGUF = b"GGUF"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

_KINDS = (
    (LFS_POINTER, "is a Git LFS pointer in place of the file: fetch the file itself with `git lfs pull`"),
    (b"lmgg", "is of the format before GGUF (GGML), which is not read: take a GGUF file of the model"),
    (b"tjgg", "is of the format before GGUF (GGJT), which is not read: take a GGUF file of the model"),
    (b"fmgg", "is of the format before GGUF (GGMF), which is not read: take a GGUF file of the model"),
    (
        b"PK\x03\x04",
        "is a zip archive, as torch saves it, and no GGUF file: name the folder that has it and config.json",
    ),
    (b"<!DOCTYPE", "is a web page in place of the file: fetch it again"),
    (b"<html", "is a web page in place of the file: fetch it again"),
)


def what_it_is(head: bytes) -> str:
    """Why a file that begins with these bytes is no GGUF file, as the rest of a sentence; "" for one that is."""
    if head.startswith(GGUF):
        return ""
    if not head:
        return "is empty: fetch it again"
    for start, why in _KINDS:
        if head.startswith(start):
            return why
    if head[8:10] == b'{"' and head[6:8] == b"\0\0":  # a header's length, little-endian, then its JSON
        return "is a safetensors file and no GGUF file: name the folder that has it and config.json"
    return "is neither a folder with config.json nor a GGUF file"
