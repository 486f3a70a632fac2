from __future__ import annotations

import pytest

from vnetd.api.names import escape


@pytest.mark.parametrize(
    ("label", "escaped"),
    [
        ("default", "default"),
        ("my-net", "my_2dnet"),
        ("1st", "_31st"),
        ("a_b", "a_5fb"),
        ("", "_"),
        ("..", "_2e_2e"),
        ("ä", "_c3_a4"),
        ("$(reboot)", "_24_28reboot_29"),
    ],
)
def test_names_become_path_elements_as_systemd_does_it(label: str, escaped: str) -> None:
    assert escape(label) == escaped
