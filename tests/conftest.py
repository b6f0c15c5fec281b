"""What holds for every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels run on the CPU (ahead.py compiles them)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on two cores, OpenMP threads that spin keep the others waiting


def pytest_collection_finish(session: pytest.Session) -> None:
    """What takes long in processes of its own begins with the first test: a module says so by a function `begin`."""
    if session.config.option.collectonly:
        return
    for module in dict.fromkeys(item.module for item in session.items if isinstance(item, pytest.Function)):
        if hasattr(module, "begin"):
            module.begin()


@pytest.fixture(scope="session", autouse=True)
def no_host_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test, nor a process that it starts, reads what the developer's bigrun measured of the developer's machine."""
    missing = tmp_path_factory.mktemp("no-host") / "host.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGRUN_HOST", str(missing))
        yield missing
