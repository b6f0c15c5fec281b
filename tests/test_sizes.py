"""A size is read one way everywhere: GB is 10⁹, GiB is 2³⁰, and nonsense says what was meant."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.errors import CallError
from bigrun.sizes import format_apart, format_size, parse_size

SIZES = {
    "24GB": 24_000_000_000,
    "24GiB": 25_769_803_776,
    "500 MB": 500_000_000,
    "1.5GiB": 1_610_612_736,
    "1TB": 1_000_000_000_000,
    "1TiB": 1_099_511_627_776,
    "3KiB": 3072,
    "7KB": 7000,
    "512B": 512,
    ".5MB": 500_000,
    " 2 mib ": 2_097_152,
    "0": 0,
}
NONSENSE = (
    "",
    "GB",
    "24G",
    "24 GB B",
    "-1GB",
    "+1GB",
    "1e3GB",
    "1,5GB",
    "0x10",
    "24GBs",
    "nan",
    "inf",
    "infGB",
    "1.2",
    "1_000",
    "٢٤GB",
    "²GB",
)


@pytest.mark.parametrize(("text", "count"), SIZES.items(), ids=repr)
def test_sizes_are_read_to_the_byte(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("count", [0, 1, 24 * 10**9, 10**18])
def test_a_whole_number_is_bytes(count: int) -> None:
    assert parse_size(count) == count


@pytest.mark.parametrize("text", NONSENSE, ids=repr)
def test_nonsense_is_a_wrong_call_that_shows_how_to_write_a_size(text: str) -> None:
    with pytest.raises(CallError, match="24GB") as caught:
        parse_size(text, "--cpu")
    assert str(caught.value).startswith("cpu: ")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("flag", [True, False])
def test_true_and_false_are_no_sizes(flag: bool) -> None:
    with pytest.raises(CallError, match="not a size"):
        parse_size(flag)


@pytest.mark.parametrize("size", [-1, 10**18 + 1000, "1000001TB", "9" * 22, "9" * 400 + "GB"], ids=lambda s: str(s)[:9])
def test_no_memory_is_negative_or_larger_than_a_million_terabytes(size: str | int) -> None:
    with pytest.raises(CallError, match="out of range"):
        parse_size(size)


@pytest.mark.parametrize("count", [2**53 + 1, 10**17 + 1])
def test_a_whole_number_of_bytes_keeps_its_last_digit(count: int) -> None:
    assert parse_size(count) == parse_size(f"{count}B") == count


@pytest.mark.parametrize(
    ("text", "write"), [("32", "32GB"), (" 5 ", "5GB"), ("1000000", "1000000B"), ("00024", "24GB")]
)
def test_a_text_without_a_unit_is_refused_with_what_was_meant(text: str, write: str) -> None:
    with pytest.raises(CallError, match=f"^cpu: {text.strip()} lacks a unit; write {write}$"):
        parse_size(text, "--cpu")
    assert parse_size("0") == parse_size("000") == 0


def test_an_integer_beyond_every_float_is_out_of_range() -> None:
    with pytest.raises(CallError, match="out of range"):
        parse_size(10**400)


@pytest.mark.parametrize("size", [1.5, None, ["24GB"]], ids=repr)
def test_what_is_neither_text_nor_a_whole_number_is_a_wrong_call(size: object) -> None:
    with pytest.raises(CallError):
        parse_size(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (999_499, "999 KB"),
        (999_500, "1.00 MB"),
        (12_345_678, "12.3 MB"),
        (10**9, "1.00 GB"),
        (24 * 10**9, "24.0 GB"),
        (1_234 * 10**12, "1234 TB"),
        (-1_500_000, "-1.50 MB"),
    ],
    ids=str,
)
def test_sizes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert format_size(count) == text


def test_two_sizes_that_read_alike_are_told_apart_in_bytes() -> None:
    assert format_apart(25 * 10**9, 24 * 10**9) == ("25.0 GB", "24.0 GB")
    assert format_apart(25 * 10**9 + 1, 25 * 10**9) == ("25,000,000,001 bytes", "25,000,000,000 bytes")
    assert format_apart(10**9, 10**9) == ("1.00 GB", "1.00 GB")


@pytest.mark.parametrize(("count", "text"), [(2_466_000_000, "2.47 GB"), (60_000_000, "60.0 MB")])
def test_the_examples_of_the_docstring_are_what_comes_out(count: int, text: str) -> None:
    assert text in str(format_size.__doc__)
    assert format_size(count) == text


@settings(derandomize=True, database=None, deadline=None)
@given(st.integers(0, 10**18))
def test_what_is_written_reads_back_within_half_a_percent(count: int) -> None:
    assert abs(parse_size(format_size(count)) - count) <= count / 200


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_wrong_call(text: str) -> None:
    with suppress(CallError):
        assert parse_size(text) >= 0
