"""What ``torch.save`` and ``torch.jit.save`` write, read without PyTorch's loader: which tensors a file holds.

Both write an archive (zip) with a pickle and one record for each storage; up to PyTorch 1.5 ``torch.save`` wrote
pickles one behind the other, and then the storages. A storage is read once, when a tensor needs it. Records are not
to declare more than the file can hold.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tlsc.adapters.pickles import Damaged, StorageRef, TensorRef, unpickle
from tlsc.errors import first_line

__all__ = ["Payload", "read_archive", "read_pickle"]

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # what the first of the old format's pickles holds
_LARGEST_PICKLE = 1 << 30
_COMPRESSED = 64  # how many times larger than the archive what was compressed in it may be
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
)


@dataclass
class Payload:
    """What was pickled, how its tensors get their values, and what it named that was not made or called."""

    value: Any
    tensor: Callable[[TensorRef], Tensor]
    refused: dict[str, None]


def read_archive(file: BinaryIO) -> Payload:
    """The payload of an archive of ``torch.save`` or ``torch.jit.save``; ``file`` stays in use.

    Raises:
        Damaged: it is no such archive, or cut off.
    """
    try:
        archive = _Archive(file)
        content = archive.read(f"{archive.top}data.pkl")
    except _ZIP_ERRORS as error:
        raise Damaged(first_line(error, typed=False, limit=200)) from error
    refused: dict[str, None] = {}
    value = unpickle(io.BytesIO(content), _storage, None, refused)
    return Payload(value, _Tensors(archive.storage).make, refused)


def read_pickle(file: BinaryIO, depth: int = 0) -> Payload:
    """The payload of the old format of ``torch.save``, or of a plain pickle.

    Raises:
        Damaged: it is neither, or cut off.
    """
    refused: dict[str, None] = {}
    inner: dict[int, Tensor] = {}

    def nested(content: Any) -> Any:
        """A storage that was pickled by itself, as ``torch.save`` writes it."""
        if depth or not isinstance(content, bytes):
            raise Damaged("its pickle holds pickles in pickles")
        found = read_pickle(io.BytesIO(content), depth + 1)
        if not isinstance(found.value, StorageRef):
            raise Damaged("its pickle holds a storage that is none")
        whole = found.tensor(TensorRef(found.value, 0, (found.value.size,), (1,)))
        inner[id(whole)] = whole
        return StorageRef(str(id(whole)), found.value.kind, found.value.size)

    first = unpickle(file, None, nested, refused)
    if not isinstance(first, int) or first != _MAGIC:
        return Payload(first, _Tensors(lambda ref: inner[int(ref.key)].view(torch.uint8)).make, refused)
    unpickle(file)  # version of the format
    system = unpickle(file)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Damaged("it was written on a big-endian machine")
    met: dict[str, StorageRef] = {}

    def noted(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) > 1 and identifier[0] == "module":
            return identifier[1]  # the class of a module, with its source text
        made = _storage(identifier)
        return met.setdefault(made.key, made)

    value = unpickle(file, noted, None, refused)
    keys = unpickle(file)
    if not isinstance(keys, list) or len(keys) != len(met) or any(key not in met for key in map(str, keys)):
        raise Damaged("its storages are not those that its tensors name")
    storages = {}
    for key in map(str, keys):
        count = struct.unpack("<q", _exactly(file, 8))[0]
        if count != met[key].size:
            raise Damaged(f"storage {key} has {count} elements instead of {met[key].size}")
        storages[key] = _filled(file, count * _dtype(met[key].kind).itemsize)
    return Payload(value, _Tensors(lambda ref: storages[ref.key]).make, refused)


class _Archive:
    """The records of a zip archive, none of which may be larger than it can be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, 2)
        zipped = zipfile.ZipFile(file)
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in zipped.infolist():
            if entry.filename in self.entries:
                raise Damaged(f"it holds {entry.filename[:80]!r} twice")
            self.entries[entry.filename] = entry
        self.zipped = zipped
        self.left = {zipfile.ZIP_STORED: self.size, zipfile.ZIP_DEFLATED: self.size * _COMPRESSED}
        tops = [name[: -len("data.pkl")] for name in self.entries if name.endswith("/data.pkl")]
        tops = [top for top in tops if top.count("/") == 1]
        if len(tops) != 1:
            raise Damaged("it is an archive without the record data.pkl, which torch.save writes")
        self.top = tops[0]
        if f"{self.top}byteorder" in self.entries and self.read(f"{self.top}byteorder") != b"little":
            raise Damaged("it was written on a big-endian machine")

    def read(self, name: str) -> bytes:
        if self.entries[name].file_size > _LARGEST_PICKLE:
            raise Damaged(f"record {name[:80]!r} is larger than any")
        return bytes(self.record(name).numpy())

    def record(self, name: str) -> Tensor:
        """The bytes of a record, checked against their checksum."""
        entry = self.entries.get(name)
        if entry is None:
            raise Damaged(f"record {name[:80]!r} is missing")
        left = self.left.get(entry.compress_type)
        if left is None or entry.flag_bits & 1:
            raise Damaged(f"record {name[:80]!r} is encrypted or compressed in a way that torch.save does not use")
        if entry.file_size > left:
            raise Damaged(f"its records declare more than its {self.size} bytes can hold")
        self.left[entry.compress_type] -= entry.file_size
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            with self.zipped.open(entry) as stream:  # checks the sum
                return _filled(stream, entry.file_size)
        self.file.seek(entry.header_offset)
        header = _exactly(self.file, 30)
        if header[:4] != b"PK\3\4":
            raise Damaged(f"record {name[:80]!r} is not where the archive says")
        self.file.seek(sum(struct.unpack("<2H", header[26:30])), 1)
        content = _filled(self.file, entry.file_size)
        # 0: torch.serialization.set_crc32_options(False) leaves them out.
        if entry.CRC and entry.file_size and zlib.crc32(content.numpy().data) != entry.CRC:
            raise Damaged(f"record {name[:80]!r} does not match its checksum")
        return content

    def storage(self, ref: StorageRef) -> Tensor:
        try:
            return self.record(f"{self.top}data/{ref.key}")
        except _ZIP_ERRORS as error:
            raise Damaged(first_line(error, typed=False, limit=200)) from error


class _Tensors:
    """Makes tensors: views of storages, each read when it is first needed."""

    def __init__(self, read: Callable[[StorageRef], Tensor]) -> None:
        self.read = read
        self.storages: dict[str, Tensor] = {}

    def make(self, ref: TensorRef) -> Tensor:
        """Raises :class:`Damaged` where the shape is none, or the view does not lie in its storage."""
        shape, strides, offset = ref.shape, ref.strides, ref.offset
        if not (_are_sizes(shape) and _are_sizes(strides) and _are_sizes([offset]) and len(shape) == len(strides)):
            raise Damaged(f"a tensor in it has an impossible shape ({str(shape)[:60]})")
        elements = 1
        for n in shape:
            elements *= n
        if elements >= 1 << 62 or len(shape) > 32:
            raise Damaged(f"a tensor in it has an impossible shape ({str(tuple(shape))[:60]})")
        if ref.storage is None:
            return torch.empty(tuple(shape), dtype=_named_dtype(ref.dtype) or torch.float32, device="meta")
        dtype = _named_dtype(ref.dtype) or _dtype(ref.storage.kind)
        memory = self.memory(ref.storage)
        end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
        if elements and end * dtype.itemsize > memory.numel():
            raise Damaged(f"a tensor in it, of shape {tuple(shape)}, is larger than its storage"[:200])
        made = torch.empty(0, dtype=dtype)
        return made.set_(memory.untyped_storage(), offset if elements else 0, tuple(shape), tuple(strides))

    def memory(self, ref: StorageRef) -> Tensor:
        found = self.storages.get(ref.key)
        if found is None:
            found = self.storages[ref.key] = self.read(ref)
            if ref.size * _dtype(ref.kind).itemsize > found.numel():
                raise Damaged(f"storage {ref.key[:40]!r} has {found.numel()} bytes, less than it declares")
        return found


def _storage(identifier: Any) -> StorageRef:
    """From the persistent identifier ("storage", type, key, place, number of elements, …)."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise Damaged("it names a storage in a way that torch.save does not use")
    kind, key, size = getattr(identifier[1], "name", ""), str(identifier[2]), identifier[4]
    if len(identifier) > 5 and identifier[5] is not None:
        raise Damaged("it was written by PyTorch 0.1 to 0.3: load and save it with a later one")
    if not _are_sizes([size]):
        raise Damaged(f"storage {key[:40]!r} has an impossible size")
    return StorageRef(key, kind.rpartition(".")[2].removesuffix("Storage"), size)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(type(n) is int and 0 <= n < 1 << 62 for n in values)


def _dtype(kind: str) -> torch.dtype:
    if kind not in _DTYPES:
        raise Damaged(f"it holds a storage of an unknown type ({kind[:40]})")
    return _DTYPES[kind]


def _named_dtype(name: str | None) -> torch.dtype | None:
    found = getattr(torch, name.removeprefix("torch."), None) if name else None
    return found if isinstance(found, torch.dtype) else None


def _exactly(file: Any, count: int) -> bytes:
    content: bytes = file.read(count)
    if len(content) != count:
        raise Damaged("it is cut off")
    return content


def _filled(file: Any, count: int) -> Tensor:
    """The next bytes; memory is taken as they come, and not because a number says so."""
    if count < 0:
        raise Damaged("it declares a negative size")
    here = file.tell()
    if file.seekable() and not isinstance(file, zipfile.ZipExtFile):
        left = file.seek(0, 2) - here
        file.seek(here)
        if count > left:
            raise Damaged("it is cut off")
    memory = torch.empty(count, dtype=torch.uint8)
    into = memory.numpy().data
    done = 0
    while done < count:
        part = file.readinto(into[done:])
        if not part:
            raise Damaged("it is cut off")
        done += part
    return memory
