"""The CPU kernels, compiled by Numba when first called and kept on disk from then on."""

from pathlib import Path


def _drop_stale_kernels() -> None:
    """Forget compiled kernels older than any source beside them.

    Numba's disk cache notices an edit of the file a kernel is in, but not of the files its helpers are in.
    """
    folder = Path(__file__).parent
    newest = max(file.stat().st_mtime_ns for file in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        try:
            if index.stat().st_mtime_ns < newest:
                index.unlink()
        except OSError:  # another process was first, or the folder is read-only: nothing can be stale then
            continue


_drop_stale_kernels()


def compiled(kernel: str = "linear") -> bool:
    """Whether the kernels of this module were compiled before: into the folder beside this file, or Numba's own for a user."""
    import os

    folders = [Path(__file__).parent / "__pycache__"]
    folders.append(Path(os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "numba"))
    return any(next(folder.rglob(f"{kernel}.*.nbi"), None) for folder in folders if folder.is_dir())
