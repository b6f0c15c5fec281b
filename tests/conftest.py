"""What holds for every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels run on the CPU (ahead.py compiles them)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on two cores, OpenMP threads that spin keep the others waiting


@pytest.fixture(scope="session", autouse=True)
def no_host_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test, nor a process that it starts, reads what the developer's bigrun measured of the developer's machine."""
    missing = tmp_path_factory.mktemp("no-host") / "host.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGRUN_HOST", str(missing))
        yield missing
