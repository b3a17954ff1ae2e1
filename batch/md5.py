"""MD5 of many short texts at once, in numpy: the event hashes of a history, which one at a time cost most of its fold.

References
----------
Rivest, "The MD5 Message-Digest Algorithm", RFC 1321.
"""

import math
from hashlib import md5

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BLOCK, ROOM = 64, 55
"""Bytes of a block, and of the longest text that fits one beside its padding; longer ones go one at a time."""
AT_A_TIME = 8_192
"""Texts whose sixteen words lie in the cache."""
_SHIFTS = [
    turn for round_ in ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21)) for turn in round_ * 4
]
_SINES = [np.uint32(int(abs(math.sin(at + 1)) * 2**32)) for at in range(64)]
_WORDS = [
    at if at < 16 else (5 * at + 1) % 16 if at < 32 else (3 * at + 5) % 16 if at < 48 else 7 * at % 16
    for at in range(64)
]
_START = [np.uint32(word) for word in (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)]
Words = NDArray[np.uint32]


def first_48_bits(texts: pa.Array) -> NDArray[np.uint64]:
    """The first six bytes of each text's MD5 as a big-endian number, uint64 (n,); no text may be null."""
    out = np.empty(len(texts), np.uint64)
    for first in range(0, len(texts), AT_A_TIME):
        out[first : first + AT_A_TIME] = _hashed(texts.slice(first, AT_A_TIME))
    return out


def _hashed(texts: pa.Array) -> NDArray[np.uint64]:
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    held = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    length = np.diff(ends)
    low, high = _digest(_blocks(held, length))
    out = (low.byteswap().astype(np.uint64) << np.uint64(16)) | (high.byteswap() >> np.uint32(16)).astype(np.uint64)
    for row in np.flatnonzero(length > ROOM).tolist():
        out[row] = int.from_bytes(md5(texts[row].as_py().encode(), usedforsecurity=False).digest()[:6], "big")
    return out


def _blocks(held: NDArray[np.uint8], length: NDArray[np.int64]) -> Words:
    """One padded block a text, as words (16, n); of a text that is too long, its beginning."""
    blocks = np.zeros(len(length) * BLOCK, np.uint8)
    begin = np.arange(len(length)) * BLOCK
    place = np.arange(len(held)) - np.repeat(np.cumsum(length) - length, length)
    if int(length.max(initial=0)) > ROOM:
        fits = place < ROOM
        blocks[(np.repeat(begin, length) + place)[fits]] = held[fits]
    else:
        blocks[np.repeat(begin, length) + place] = held
    short = np.minimum(length, ROOM)
    blocks[begin + short] = 0x80
    words = blocks.view("<u4").reshape(-1, BLOCK // 4)
    words[:, 14] = short * 8
    return np.ascontiguousarray(words.T)


def _digest(words: Words) -> tuple[Words, Words]:
    """First two words of the digests of blocks (16, n)."""
    a, b, c, d = (np.full(words.shape[1], word, np.uint32) for word in _START)
    for at in range(64):
        if at < 16:
            mixed = d ^ (b & (c ^ d))
        elif at < 32:
            mixed = c ^ (d & (b ^ c))
        elif at < 48:
            mixed = b ^ c ^ d
        else:
            mixed = c ^ (b | ~d)
        mixed += a
        mixed += words[_WORDS[at]]
        mixed += _SINES[at]
        turned = mixed << np.uint32(_SHIFTS[at])
        mixed >>= np.uint32(32 - _SHIFTS[at])
        turned |= mixed
        turned += b
        a, b, c, d = d, turned, b, c
    return a + _START[0], b + _START[1]
