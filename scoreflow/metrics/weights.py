"""Reads arrays from files of weights that PyTorch wrote, and nothing else: no code in a file is ever run.

Such a file is a pickle that names storages, followed by the storages: in a zip archive (since PyTorch 1.6) or one after
the other (before). The unpickler here knows the two functions and the storage types that a dictionary of tensors needs,
and refuses every other name.
"""

import collections
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

_TYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MAGIC = 0x1950A86A20F9469CFC6C  # of files that are not archives


class _Storage:
    """Numbers that are read after the names of what they are for."""

    def __init__(self, dtype: np.dtype, key: str):
        self.dtype, self.key, self.data = dtype, key, b""

    def array(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
        flat = np.frombuffer(self.data, self.dtype)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(flat)):
            raise ValueError("a tensor reaches beyond its storage")
        strides = tuple(s * flat.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False).copy()


class _Tensor:
    """A view of a storage, made when the storage has been read."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_):
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        self.view = storage, int(offset), tuple(map(int, size)), tuple(map(int, stride))

    def array(self) -> np.ndarray:
        storage, offset, size, stride = self.view
        return storage.array(offset, size, stride)


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries, tensors and storages."""

    def __init__(self, file: IO[bytes], storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise ValueError(f"it asks for {module}.{name}, which a file of weights does not need")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise ValueError("it names something that is not a storage")
        return self.storages.setdefault(str(pid[2]), _Storage(pid[1], str(pid[2])))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The named tensors of a file.

    Raises:
      ValueError: if it is not such a file, is cut short, or asks for anything but tensors; nothing of it has run.
    """
    storages: dict[str, _Storage] = {}
    try:
        with open(path, "rb") as file:
            content = _from_archive(file, storages) if zipfile.is_zipfile(file) else _from_stream(file, storages)
    except ValueError:
        raise
    except Exception as error:  # pickle and zipfile raise many types of errors for other files
        raise ValueError(f"it is not a readable file of weights ({type(error).__name__})") from error
    if not isinstance(content, dict) or not all(isinstance(value, _Tensor) for value in content.values()):
        raise ValueError("it is not a dictionary of tensors")
    return {str(name): value.array() for name, value in content.items()}


def _from_archive(file: IO[bytes], storages: dict[str, _Storage]) -> Any:
    with zipfile.ZipFile(file) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(index) as pickled:
            content = _Unpickler(pickled, storages).load()
        for key, storage in storages.items():
            storage.data = archive.read(f"{index.removesuffix('data.pkl')}data/{key}")
    return content


def _from_stream(file: IO[bytes], storages: dict[str, _Storage]) -> Any:
    file.seek(0)
    if _Unpickler(file, {}).load() != _MAGIC:
        raise ValueError("it does not begin as a file of weights does")
    _Unpickler(file, {}).load()  # protocol
    _Unpickler(file, {}).load()  # of the machine that wrote it
    content = _Unpickler(file, storages).load()
    for key in _Unpickler(file, {}).load():
        storage = storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        storage.data = file.read(count * storage.dtype.itemsize)
        if len(storage.data) < count * storage.dtype.itemsize:
            raise ValueError("it is cut short")
    return content
