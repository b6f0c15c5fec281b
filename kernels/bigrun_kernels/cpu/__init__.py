"""The CPU kernels, compiled by Numba when first called and kept on disk from then on (kernel_cache.py)."""

import os
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"


def home() -> Path | None:
    """The folder of all states of compiled kernels: in NUMBA_CACHE_DIR, else bigrun's in the user's cache folder; None where a
    user has neither that variable, nor XDG_CACHE_HOME, nor a home."""
    if named := os.environ.get(VARIABLE):
        return Path(named) / "bigrun-kernels"
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "bigrun" / "kernels"
    user = os.path.expanduser("~")
    return Path(user) / ".cache" / "bigrun" / "kernels" if os.path.isabs(user) else None


def compiled(module: str = "linear") -> bool:
    """Whether kernels of this module were compiled before, by this version for this CPU. Numba is imported only where some
    version's were: a plan that asks need not wait for it."""
    above = home()
    try:
        if above is None or next(above.glob(f"*/{module}.*.nbi"), None) is None:
            return False
    except OSError:
        return False
    from bigrun_kernels.cpu import kernel_cache

    return any(name.startswith(f"{module}.") for name in kernel_cache.names())
