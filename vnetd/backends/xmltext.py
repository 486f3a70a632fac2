"""Read XML that comes from outside. ElementTree, kept to documents that cannot hurt."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vnetd.errors import BackendError

_MOST_BYTES = 8 * 1024 * 1024


def read(text: str, what: str) -> ET.Element:
    """Raises BackendError for anything that libvirt does not write: a DTD, 8 MiB, broken XML."""
    if len(text) > _MOST_BYTES:
        raise BackendError(f"{what}: its XML is larger than {_MOST_BYTES >> 20} MiB")
    if "<!DOCTYPE" in text:
        raise BackendError(f"{what}: its XML has a DTD")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise BackendError(f"{what}: its XML cannot be read: {error}") from error
