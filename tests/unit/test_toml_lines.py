from __future__ import annotations

from vnetd.core.policy.toml_lines import locate

TEXT = '''\
# a comment = [ with { signs "
top = 1
[a."b.c"]  # another [x]
one.two = "x = y # no comment"
long = """
[not.a.table]
key = 1
"""
list = [
  "first",   # , not an item
  { x = 1, y = [2, 3] },
  'third',
]
[d]
"quoted key" = 5
'''


def test_every_key_and_item_has_its_line() -> None:
    assert locate(TEXT) == {
        ("top",): 2,
        ("a", "b.c"): 3,
        ("a", "b.c", "one"): 4,
        ("a", "b.c", "one", "two"): 4,
        ("a", "b.c", "long"): 5,
        ("a", "b.c", "list"): 9,
        ("a", "b.c", "list", 0): 10,
        ("a", "b.c", "list", 1): 11,
        ("a", "b.c", "list", 2): 12,
        ("d",): 14,
        ("d", "quoted key"): 15,
    }
