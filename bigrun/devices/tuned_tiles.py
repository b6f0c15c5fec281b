"""The table of tiles that `bigrun autotune` measured for a kind of card, as a file in bigrun's cache folder."""

import json
import re
from pathlib import Path

from bigrun.devices.host_file import default_path
from bigrun.errors import RunError
from bigrun_kernels.gpu.tables import Table, table_from

LARGEST = 2**20


def tiles_path(card: str) -> Path:
    """Where the table of a kind of card is kept."""
    return default_path().parent / "tiles" / (re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-").lower() + ".json")


def write_tiles(table: Table, card: str) -> Path:
    """Write it; RunError where that fails."""
    path = tiles_path(card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: the tiles cannot be kept: {error.strerror}") from error
    return path


def read_tiles(card: str) -> tuple[Table | None, str]:
    """The table of a kind of card, if one was kept; and what is wrong with it, "" if nothing is."""
    path = tiles_path(card)
    try:
        if path.stat().st_size > LARGEST:
            return None, f"{path} is larger than any table of tiles: remove it, or run `bigrun autotune` again"
        return table_from(json.loads(path.read_text(encoding="utf-8"))), ""
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except (OSError, ValueError, RecursionError) as error:
        return None, f"{path}: {str(error)[:120]}; left aside: run `bigrun autotune` again"
