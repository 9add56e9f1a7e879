"""Messages between the server and its workers, over pipes: the length of a head, the head as JSON, and bytes.

write(stream, {"verb": "loop"}, mask)
head, body = read(stream)
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

Head = dict[str, Any]
LENGTHS = struct.Struct(">II")  # of head and body, in bytes


def packed(head: Head, body: bytes = b"") -> bytes:
    """A message."""
    text = json.dumps(head).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def read(stream: BinaryIO) -> tuple[Head, bytes] | None:
    """The next message; None at the end of the stream."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    head, body = LENGTHS.unpack(lengths)
    return json.loads(stream.read(head)), stream.read(body)
