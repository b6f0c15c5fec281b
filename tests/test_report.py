"""A plan as a person reads it: a verdict, a bar for each device, where the parts are, and what is missing."""

from dataclasses import replace

import pytest

from bigrun import plan
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import DevicePlan
from bigrun.planning.report import BAR, describe_parts, duration, memory_bar, plan_text, rate

LETTERS = set("█▓▒sp░·")


@pytest.fixture(scope="module")
def fits() -> Plan:
    return plan("bloom-176b", gpus="8x24GB", cpu="16GB", disk="500GB", context=2048)


@pytest.fixture(scope="module")
def too_small() -> Plan:
    return plan("llama-3-70b", gpus="1x24GB", cpu="12GB", context=2048)


def device(budget: int, weights: int = 0, kv: int = 0, workspace: int = 0, reserve: int = 0) -> DevicePlan:
    used = weights + kv + workspace + reserve
    kinds = (weights, kv, workspace, 0, 0, reserve)
    return DevicePlan("cuda:0", "gpu", False, budget, used, budget - used, *kinds, parts=())


def rows(text: str) -> dict[str, str]:
    """Device name → its line."""
    names = ("cuda:", "cpu ", "disk ")
    return {line.split()[0]: line for line in text.splitlines() if line.startswith(names)}


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((), "nothing"),
        (("embed",), "embed"),
        (("blocks.4",), "blocks 4"),
        (("blocks.0", "blocks.1", "blocks.2"), "blocks 0-2"),
        (("embed", "blocks.9", "blocks.10", "norm", "head"), "embed, blocks 9-10, norm, head"),
        (("blocks.0", "blocks.2", "blocks.3", "blocks.7", "head"), "blocks 0, 2-3, 7, head"),
    ],
)
def test_parts_are_described_in_runs(parts: tuple[str, ...], text: str) -> None:
    assert describe_parts(parts) == text


@pytest.mark.parametrize(
    ("tokens_per_second", "said"),
    [(0.05321, "0.0532"), (2.137, "2.14"), (99.96, "100"), (154.4, "154"), (999.6, "1,000"), (12345.6, "12,346")],
)
def test_rates_are_said_in_three_figures_and_never_in_powers(tokens_per_second: float, said: str) -> None:
    assert rate(tokens_per_second) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "0.0123 s"), (38.24, "38.2 s"), (99.4, "99.4 s"), (100, "1.67 min"), (5999, "100 min"), (6000, "1.67 h"),
        (172_799, "48 h"), (172_800, "2 days"), (10**6, "11.6 days"),
    ],
)  # fmt: skip
def test_durations_are_said_in_the_unit_that_people_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_plan_that_fits_says_so_with_its_size_and_speed(fits: Plan) -> None:
    text = plan_text(fits)
    title = text.splitlines()[0]
    assert title.startswith("bloom-176b")
    for words in ("176.2 B parameters in int8", "177 GB", "2,048 tokens of context", " fits "):
        assert words in title
    assert "does not fit" not in text
    for words in ("tokens/s decoding", "tokens/s of prompt", " to load", "assumed: "):
        assert words in text
    assert "no place for" not in text


def test_a_plan_that_does_not_fit_says_what_has_no_place_and_the_hint(too_small: Plan) -> None:
    text = plan_text(too_small)
    assert "does not fit" in text.splitlines()[0]
    assert f"no place for {describe_parts(too_small.unplaced)}" in text
    assert too_small.hint in " ".join(text.split())
    assert "--cpu" in too_small.hint
    assert "tokens/s" not in text


def test_every_device_has_a_bar_and_what_it_holds(fits: Plan, too_small: Plan) -> None:
    for made in (fits, too_small):
        lines = rows(plan_text(made))
        assert list(lines) == [device.name for device in made.devices]
        for line in lines.values():
            bar = line.split()[1]
            assert len(bar) == BAR
            assert set(bar) <= LETTERS
    lines = rows(plan_text(fits))
    assert "23.8 GB  24.0 GB  22.2 GB  1.06 GB" in lines["cuda:0"]
    assert lines["cuda:3"].rstrip().endswith("blocks 27-35")
    assert lines["disk"].rstrip().endswith("nothing")


def test_virtual_gpus_are_shown_as_virtual() -> None:
    text = plan_text(plan("bloom-560m", gpus="2x800MB", cpu=0, virtual=True))
    assert "cuda:1 (virtual)" in text
    assert "cpu (virtual)" not in text


def test_several_sequences_are_mentioned() -> None:
    assert "4 sequences" in plan_text(plan("bloom-560m", gpus="24GB", cpu=0, batch=4))
    assert "sequences" not in plan_text(plan("bloom-560m", gpus="24GB", cpu=0))


@pytest.mark.parametrize("width", [30, 40, 60, 80, 110])
def test_no_line_is_wider_than_asked_for(fits: Plan, too_small: Plan, width: int) -> None:
    long_name = replace(fits, model="owner/" + "a-model-of-a-very-long-name-" * 8)
    many = plan("llama-3-8b", gpus="30x24GB", cpu="900TB", disk="900TB", virtual=True, context=64)
    for made in (fits, too_small, long_name, many):
        assert max(map(len, plan_text(made, width).splitlines())) <= width


def test_str_of_a_plan_is_its_view_within_110_columns(fits: Plan) -> None:
    assert str(fits) == plan_text(fits, 110)
    assert "\x1b" not in str(fits)


def test_a_terminal_of_80_columns_still_shows_where_the_blocks_are(fits: Plan) -> None:
    text = plan_text(fits, 80)
    assert "…" not in text
    assert "27-35" in text
    shown = rows(text)["cuda:3"]
    assert [size in shown for size in ("23.8 GB", "24.0 GB", "22.2 GB")] == [True, True, False], "what is used, of what"
    assert "22.2 GB" in rows(plan_text(fits, 120))["cuda:3"]


@pytest.mark.parametrize(("width", "bar"), [(110, 28), (90, 28), (80, 28), (72, 20), (60, 8), (58, 6)])
def test_bars_give_way_before_what_a_device_holds_is_wrapped(fits: Plan, width: int, bar: int) -> None:
    text = plan_text(fits, width)
    for name, line in rows(text).items():
        assert len(line.split()[1]) == bar, name
        assert set(line.split()[1]) <= LETTERS
    assert rows(text)["cuda:3"].rstrip().endswith("blocks 27-35")
    assert "bars: " in text


@pytest.mark.parametrize("width", [57, 46, 39])
def test_without_room_for_bars_there_are_none(fits: Plan, width: int) -> None:
    text = plan_text(fits, width)
    assert not set(text) & (LETTERS - {"s", "p"})
    assert "bars" not in text
    line = rows(text)["cuda:3"].split()
    assert line == ["cuda:3", "23.8", "GB", "24.0", "GB", "blocks", "27-35"]


@pytest.mark.parametrize("width", [38, 30])
def test_the_narrowest_view_has_two_lines_a_device(fits: Plan, width: int) -> None:
    lines = plan_text(fits, width).splitlines()
    place = lines.index("cuda:3 23.8 GB of 24.0 GB")
    assert lines[place + 1] == "  blocks 27-35"


def test_a_plan_without_its_hint_says_the_rest(too_small: Plan) -> None:
    text = plan_text(replace(too_small, hint=""))
    assert plan_text(too_small).startswith(text)
    assert text.splitlines()[-1].startswith("no place for blocks")


def test_a_name_with_brackets_is_not_taken_for_markup(fits: Plan) -> None:
    assert "[red]odd[/red]" in plan_text(replace(fits, model="[red]odd[/red]"))


@pytest.mark.parametrize(
    ("account", "bar"),
    [
        (device(2800), "·" * 28),
        (device(0), "·" * 28),
        (device(2800, weights=1400), "█" * 14 + "·" * 14),
        (device(2800, weights=1000, kv=500, workspace=300, reserve=100), "█" * 10 + "▓" * 5 + "▒" * 3 + "░" + "·" * 9),
        (device(10**6, weights=1, kv=1, workspace=1, reserve=1), "█▓▒░" + "·" * 24),
        (device(2800, weights=2800), "█" * 28),
    ],
    ids=["empty", "no memory", "half", "four kinds", "slivers", "full"],
)
def test_a_bar_shows_each_kind_of_bytes_in_proportion(account: DevicePlan, bar: str) -> None:
    assert memory_bar(account).plain == bar


@pytest.mark.parametrize(
    "account", [device(2800, 2730, 20, 25, 25), device(2800, 2600, 124, 48, 28)], ids=["full", "cuda:0"]
)
def test_every_kind_of_bytes_that_is_there_shows_at_least_once(account: DevicePlan) -> None:
    assert set(memory_bar(account).plain) >= set("█▓▒░")


def test_the_legend_names_the_kinds_that_occur(fits: Plan) -> None:
    (legend,) = (line for line in plan_text(fits).splitlines() if line.startswith("bars: "))
    for words in ("█ weights", "▓ KV cache", "▒ workspace", "░ reserve", "· free"):
        assert words in legend
    assert "staging" not in legend
