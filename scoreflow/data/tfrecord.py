"""The TFRecord format and `tf.train.Example`, read without TensorFlow.

A file is a sequence of records, each of them

    length  uint64, little-endian
    masked CRC-32C of the length  uint32
    data    [length] bytes
    masked CRC-32C of the data  uint32

where the mask of a checksum c is rot_right(c, 15) + 0xa282ead8 mod 2^32. CRC-32C has the polynomial of Castagnoli
(RFC 3720, appendix B.4). The data are a protocol buffer `Example { Features features = 1 }` with
`Features { map<string, Feature> feature = 1 }` and `Feature { oneof { BytesList = 1, FloatList = 2, Int64List = 3 } }`.
"""

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoreflow.data import DataError

Feature = list[bytes] | list[float] | list[int]

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_ROW = 128  # bytes that are added one after the other, while all rows are at the same column
_GZIP = b"\x1f\x8b"


@functools.cache
def _tables() -> tuple[list[int], np.ndarray]:
    """What one byte, [256], and two bytes, [65536] uint32, add to a checksum."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    low, high = np.arange(65536, dtype=np.uint32) & 255, np.arange(65536, dtype=np.uint32) >> 8
    return [int(value) for value in table], table[high ^ (table[low] & 255)] ^ (table[low] >> 8)


@functools.cache
def _shift(length: int) -> np.ndarray:
    """What each byte of a checksum becomes after `length` zeros, a power of two: [4, 256] uint32."""
    basis = np.arange(256, dtype=np.uint32)[None] << np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None]
    if length > 1:
        return _shifted(_shifted(basis, length // 2), length // 2)
    byte = np.asarray(_tables()[0], np.uint32)
    return byte[basis & 255] ^ (basis >> 8)


def _shifted(checksums: np.ndarray, length: int) -> np.ndarray:
    table = _shift(length)
    parts = [table[i][(checksums >> np.uint32(8 * i)) & 255] for i in range(4)]
    return parts[0] ^ parts[1] ^ parts[2] ^ parts[3]


def crc32c(data: bytes) -> int:
    """The CRC-32C of bytes: 0xe3069283 for b"123456789".

    A checksum is linear in the bits, and zeros before the data add nothing. So long data are cut into rows whose
    checksums are computed together, and joined in pairs.
    """
    byte, pair = _tables()
    if len(data) <= 2 * _ROW:
        checksum = 0xFFFFFFFF
        for value in data:
            checksum = byte[(checksum ^ value) & 255] ^ (checksum >> 8)
        return checksum ^ 0xFFFFFFFF
    rows = 1 << ((len(data) - 1) // _ROW).bit_length()
    padded = np.zeros(rows * _ROW, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 255  # the initial value
    words = np.ascontiguousarray(padded.view("<u2").reshape(rows, -1).T).astype(np.uint32)
    checksums = np.zeros(rows, np.uint32)
    for column in words:
        checksums = pair[(checksums ^ column) & 0xFFFF] ^ (checksums >> np.uint32(16))
    length = _ROW
    while len(checksums) > 1:
        checksums, length = _shifted(checksums[::2], length) ^ checksums[1::2], 2 * length
    return int(checksums[0]) ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as it is stored."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def offsets(path: Path) -> np.ndarray:
    """(start, length) of the data of every record, [N, 2] int64; only the lengths are read.

    Raises:
      DataError: if the file is damaged or cut short, naming the record.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return _offsets(file.fileno(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _offsets(file: int, path: Path) -> np.ndarray:
    size, position, out = os.fstat(file).st_size, 0, []
    while position < size:
        head = os.pread(file, 12, position)
        if not position and head.startswith(_GZIP):
            raise DataError(f"{path} is compressed; unpack it with gunzip")
        if len(head) == 12:
            length, checksum = struct.unpack("<QI", head)
            if checksum != masked(crc32c(head[:8])):
                raise DataError(f"{path}: record {len(out)} is damaged: its length does not fit its checksum")
            out.append((position + 12, length))
            position += 16 + length
        if len(head) < 12 or position > size:
            raise DataError(f"{path} is cut short in record {len(out) - (len(head) == 12)}")
    return np.asarray(out, np.int64).reshape(-1, 2)


def record(path: Path, start: int, length: int, name: str) -> bytes:
    """The data of one record.

    Raises:
      DataError: if it does not fit its checksum.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            stored = os.pread(file.fileno(), length + 4, start)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    data = stored[:length]
    if len(stored) != length + 4 or struct.unpack("<I", stored[length:])[0] != masked(crc32c(data)):
        raise DataError(f"{name} is damaged: it does not fit its checksum")
    return data


def example(data: bytes, name: str) -> dict[str, Feature]:
    """The features of a `tf.train.Example`, by name.

    Raises:
      DataError: if the data are none.
    """
    try:
        out: dict[str, Feature] = {}
        for features in _inside(memoryview(data), 1):
            for entry in _inside(features, 1):
                pair = dict(_fields(entry))
                out[str(pair.get(1, b""), "utf-8")] = _feature(pair.get(2, memoryview(b"")))
        return out
    except (IndexError, ValueError, struct.error) as error:
        raise DataError(f"{name} is no tf.train.Example: {error}") from error


def _feature(content: memoryview) -> Feature:
    """The values; numbers may be packed into one field, or have a field each."""
    for kind, values in _fields(content):
        contents = list(_inside(values, 1))
        if kind == 1:
            return [bytes(each) for each in contents]
        joined = b"".join(contents)
        if kind == 2:
            return list(struct.unpack(f"<{len(joined) // 4}f", joined))
        return [number - (number >> 63 << 64) for number in _numbers(memoryview(joined))]
    return []


def _inside(content: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of the fields of this number."""
    return (value for number, value in _fields(content) if number == wanted)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of every field; that of a number of varying length are its bytes."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        kind, end = key & 7, position
        if kind == 0:
            _, end = _varint(content, position)
        elif kind == 2:
            length, position = _varint(content, position)
            end = position + length
        else:
            end += {1: 8, 5: 4}[kind] if kind in (1, 5) else len(content)
        if end > len(content):
            raise ValueError("a field is cut short, or of an unknown kind")
        yield key >> 3, content[position:end]
        position = end


def _numbers(content: memoryview) -> list[int]:
    position, out = 0, []
    while position < len(content):
        value, position = _varint(content, position)
        out.append(value)
    return out


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """(a number of 7 bits in each byte, the position after it)."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number is too long")
