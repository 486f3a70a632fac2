"""Tests with a long and a short form: ./dev test --long runs the long one, CI the short one."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("VNETD_LONG"))
