# SPDX-License-Identifier: Apache-2.0
"""Bodies on the wire: received into files in large blocks, sent from them by sendfile.

Here the line is slow, breaks, stalls or tells a lie, if a fault or a limit says so.
"""

import os
import socket
import struct
import threading
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from typing import Protocol

import google_crc32c

from tests.gcs.faults import Fault, Limits, Pace
from tests.gcs.objects import Blob, Piece

BLOCK_BYTES = 1 << 20
SEND_BYTES = 8 << 20


class BrokenOffError(Exception):
    """The connection ends here, on purpose or not."""


class Counted(Protocol):
    """Where payload bytes are counted."""

    sent_bytes: int
    received_bytes: int


@dataclass(slots=True)
class Line:
    """One connection."""

    socket: socket.socket
    reader: BufferedIOBase
    limits: Limits
    ended: threading.Event
    pace: Pace

    def befall(self, fault: Fault) -> None:
        """Let a fault happen that leaves no way on."""
        if fault.how == "stall":
            self.ended.wait(600)
        if fault.how == "reset":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise BrokenOffError

    def receive(
        self, size_bytes: int, blob: Blob, crc: int, fault: Fault | None, count: Counted
    ) -> int:
        """Append a request's body to a blob; return the checksum of all that is in it."""
        done = 0
        while done < size_bytes:
            block = min(self.limits.block_bytes(BLOCK_BYTES), size_bytes - done)
            # A beginning may have come with the head.
            receive = partial(self.socket.recv, block, socket.MSG_WAITALL)
            data = receive() if done else self.reader.read1(block)
            if not data:
                raise BrokenOffError
            if fault is not None and fault.at_byte is not None and fault.at_byte < done + len(data):
                at = fault.at_byte - done
                if fault.how != "flip":
                    blob.file.write(data[:at])
                    self.befall(fault)
                data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
                fault = None
            blob.file.write(data)
            crc = google_crc32c.extend(crc, data)
            done += len(data)
            count.received_bytes += len(data)
            self.limits.carry(len(data), self.pace)
        return crc

    def send(
        self,
        pieces: tuple[Piece, ...],
        start: int,
        end: int,
        fault: Fault | None,
        count: Counted,
    ) -> None:
        """Send a range of an object."""
        cut = end if fault is None or fault.at_byte is None else min(end, start + fault.at_byte)
        self._send(pieces, start, cut, count)
        if cut < end and fault is not None:
            if fault.how != "flip":
                self.befall(fault)
            (byte,) = _one(pieces, cut)
            self.socket.sendall(bytes([byte ^ 0xFF]))
            count.sent_bytes += 1
            self._send(pieces, cut + 1, end, count)

    def _send(self, pieces: tuple[Piece, ...], start: int, end: int, count: Counted) -> None:
        before = 0
        for piece in pieces:
            first, last = max(start - before, 0), min(end - before, piece.length)
            before += piece.length
            if first >= last:
                continue
            with piece.blob.path.open("rb") as file:
                offset, stop = piece.offset + first, piece.offset + last
                while offset < stop:
                    block = min(self.limits.block_bytes(SEND_BYTES), stop - offset)
                    sent = os.sendfile(self.socket.fileno(), file.fileno(), offset, block)
                    if not sent:
                        raise BrokenOffError  # the file is shorter than it was
                    offset += sent
                    count.sent_bytes += sent
                    self.limits.carry(sent, self.pace)


def _one(pieces: tuple[Piece, ...], at: int) -> bytes:
    for piece in pieces:
        if at < piece.length:
            with piece.blob.path.open("rb") as file:
                file.seek(piece.offset + at)
                return file.read(1)
        at -= piece.length
    raise IndexError(at)
