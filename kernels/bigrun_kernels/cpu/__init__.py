"""The CPU kernels, compiled by Numba when first called and kept on disk from then on (kernel_cache.py)."""

import os
from pathlib import Path


def compiled(module: str = "linear") -> bool:
    """Whether kernels of this module were compiled before, by this version for this CPU. Numba is imported only where some
    version's were: a plan that asks need not wait for it."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        home = Path(named, "bigrun-kernels")
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "bigrun", "kernels")
    try:
        if next(home.glob(f"*/{module}.*.nbi"), None) is None:
            return False
    except OSError:
        return False
    from bigrun_kernels.cpu import kernel_cache

    return any(name.startswith(f"{module}.") for name in kernel_cache.names())
