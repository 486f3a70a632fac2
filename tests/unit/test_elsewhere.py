"""The table of faults names no test that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.elsewhere import ELSEWHERE

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("file", ELSEWHERE)
def test_is_there(file: str) -> None:
    text = (TESTS / file).read_text()
    assert all(f"def {name}(" in text for name in ELSEWHERE[file].values())
