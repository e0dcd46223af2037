"""The atlas table keeps the promises of its data card."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

ATLAS = Path(__file__).parents[1] / "data" / "atlas.csv"
COLUMNS = ["nick", "city", "region", "region_code", "country", "known_for"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with ATLAS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def has_word(text: str, word: str) -> bool:
    return word in text and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def test_file_is_plain_ascii_with_unix_line_ends():
    raw = ATLAS.read_bytes()
    assert raw.isascii()
    assert b"\r" not in raw and b'"' not in raw
    assert raw.endswith(b"\n") and not raw.endswith(b"\n\n")


def test_shape(rows):
    assert len(rows) == 200
    assert all(list(row) == COLUMNS for row in rows)
    assert all(value and value == value.strip() for row in rows for value in row.values())


def test_first_row_is_san_francisco(rows):
    assert list(rows[0].values()) == ["SF", "San Francisco", "California", "CA", "USA", "the Golden Gate Bridge"]


@pytest.mark.parametrize("column", ["nick", "city", "known_for"])
def test_column_is_distinct(rows, column):
    assert [value for value, count in Counter(row[column] for row in rows).items() if count > 1] == []


@pytest.mark.parametrize(
    "column, pattern",
    [
        ("nick", r"[A-Z]{2,4}"),
        ("city", r"[A-Z][A-Za-z-]*( [A-Za-z]+){0,2}"),
        ("region", r"[A-Z][A-Za-z' -]+"),
        ("region_code", r"[A-Z]{2,3}"),
        ("country", r"[A-Z][A-Za-z ]+"),
        ("known_for", r"[A-Za-z'-]+( [A-Za-z'-]+){1,4}"),
    ],
)
def test_column_format(rows, column, pattern):
    assert [row[column] for row in rows if not re.fullmatch(pattern, row[column])] == []


def test_region_and_code_determine_each_other(rows):
    places = {(row["region"], row["region_code"], row["country"]) for row in rows}
    assert [code for code, count in Counter(code for _, code, _ in places).items() if count > 1] == []
    assert [region for region, count in Counter(region for region, _, _ in places).items() if count > 1] == []


def test_no_nick_is_a_region_code(rows):
    assert {row["nick"] for row in rows} & {row["region_code"] for row in rows} == set()


def test_places_of_different_kinds_have_different_names(rows):
    cities, regions, countries = ({row[column] for row in rows} for column in ("city", "region", "country"))
    assert cities & regions == set()
    assert cities & countries == set()
    assert regions & countries == set()


def test_no_city_hides_in_another(rows):
    clashes = [
        (inner["city"], outer["city"])
        for inner in rows
        for outer in rows
        if inner is not outer and any(has_word(outer["city"], inner[column]) for column in ("city", "nick"))
    ]
    assert clashes == []


def test_known_for_gives_no_other_field_away(rows):
    names = {row[column] for row in rows for column in COLUMNS[:-1]}
    assert [(row["known_for"], name) for row in rows for name in names if has_word(row["known_for"], name)] == []


def test_the_world_is_spread(rows):
    countries = Counter(row["country"] for row in rows)
    assert 35 <= len(countries) <= 50
    assert max(countries.values()) <= 30


def test_latitudes_belong_to_the_cities_in_their_order(rows):
    raw = ATLAS.with_name("latitudes.csv").read_bytes()
    assert raw.isascii() and b"\r" not in raw and raw.endswith(b"\n")
    found = list(csv.DictReader(raw.decode().splitlines()))
    assert [row["city"] for row in found] == [row["city"] for row in rows]
    assert all(str(int(row["latitude"])) == row["latitude"] and -90 < int(row["latitude"]) < 90 for row in found)
