"""Sketches merged one register at a time."""

from collections.abc import Iterable


def merge_sketches(payloads: Iterable[bytes]) -> bytes:
    """Register by register, the highest rank."""
    registers: dict[int, int] = {}
    for payload in payloads:
        for at in range(0, len(payload), 3):
            index, rank = int.from_bytes(payload[at : at + 2], "little"), payload[at + 2]
            registers[index] = max(rank, registers.get(index, 0))
    return b"".join(index.to_bytes(2, "little") + bytes([rank]) for index, rank in sorted(registers.items()))
