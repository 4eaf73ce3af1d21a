"""What YAML means here, and that what is written is read back."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet import layers


def test_numbers_and_words_are_read_as_yaml_1_2_does(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(
        """
        {a: 3e-4, b: 010, c: 0x1F, d: 0o17, e: .5, f: -.inf, g: no, h: 2026-11-25, i: 1:30,
         j: true, k: ~, l: "3e-4", m: 800ep, n: 1_000, o: +7, p: 1., q: .nan, r: on, s: Null}
        """
    )
    values = layers.read_file(file).values
    assert math.isnan(values.pop("q"))
    assert values == {
        "a": 3e-4, "b": 10, "c": 31, "d": 15, "e": 0.5, "f": -math.inf, "g": "no",
        "h": "2026-11-25", "i": "1:30", "j": True, "k": None, "l": "3e-4", "m": "800ep",
        "n": "1_000", "o": 7, "p": 1.0, "r": "on", "s": None,
    }  # fmt: skip
    assert [type(values[key]) for key in "abj"] == [float, int, bool]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["3e-4", "010", "0o7", "no", "yes", "~", "null", "true", "1:30", "2026-11-25", "*a", "&a", "<<",
     "- a", "a: b", "#", "", " ", ".inf", "0x1F", "!t", "|", ">", "%", "@", "=", "\u2028", "\x85"]
)  # fmt: skip
VALUE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@given(
    st.dictionaries(
        TEXT,
        st.recursive(
            VALUE, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x), max_leaves=6
        ),
    )
)
def test_whatever_is_dumped_is_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.write_bytes(layers.dump(values).encode())
    assert layers.read_file(file).problems == ()
    assert layers.read_file(file).values == values
