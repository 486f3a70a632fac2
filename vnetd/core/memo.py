"""The last answer again, for the same question."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def of_the_same(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """As long as the arguments are equal, which costs nothing for the very same objects: most
    passes look at one source only, and what networks need of the others stays as it is.
    """
    last: list[tuple[tuple[object, ...], _T]] = []

    @wraps(function)
    def answer(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        asked = (*args, *kwargs.values())
        if last and last[0][0] == asked:
            return last[0][1]
        found = function(*args, **kwargs)
        last[:] = [(asked, found)]
        return found

    return answer
