"""Tensors out of the files of `torch.save`, without torch and without running what the file asks for.

Such a file is a pickle whose tensors refer to storages by key: entries of a zip archive since torch 1.6, and before
that raw bytes after the pickle. A pickle is a program for a stack machine that may call any function of any module.
Here it is run by an interpreter of our own, which knows the instructions that plain containers and tensors are made of
and imports and calls nothing: a function that the file names is only ever a name, looked up among the four there are.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from diffuse_jax.convert.checks import ConversionError

__all__ = ["EXPORT", "LEGACY_MAGIC", "Storage", "Tensor", "arrays_of", "first_global", "open_legacy", "open_zip"]

#: How weights leave a file of Python objects.
EXPORT = "torch.save({k: v for k, v in net.state_dict().items()}, 'weights.pth'), or save them as .safetensors"
#: The first object of a file that torch wrote before 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # widened to float32 where it is read: the upper half of its bits
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_STORAGES = {f"torch.{kind}": kind for kind in _DTYPES}


@dataclass(frozen=True)
class Storage:
    """A run of numbers of one type that tensors look into.

    Args:
        key: Its name in the file.
        kind: torch's name of the type.
        count: How many numbers it has.
    """

    key: str
    kind: str
    count: int

    @property
    def itemsize(self) -> int:
        return np.dtype(_DTYPES[self.kind]).itemsize


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, whose entry (i, j, …) is number offset + i·stride[0] + j·stride[1] + …

    Args:
        storage: The storage.
        offset: The number of the first entry.
        shape: The shape.
        stride: The distance between neighbours along each axis, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A global of some module, by name alone."""

    name: str


#: The bytes of a storage, and whether they are big-endian.
ReadStorage = Callable[[Storage], tuple[bytes, bool]]


def open_zip(archive: zipfile.ZipFile) -> tuple[Any, ReadStorage]:
    """What the archive of `torch.save` holds, its tensors as `Tensor`, and a reader of their storages.

    ConversionError for an archive that is not of that kind, and for objects other than tensors and plain containers.
    """
    names = set(archive.namelist())
    roots = sorted(name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl") and name.count("/") < 2)
    if not roots:
        arrays = bool(names) and all(name.endswith(".npy") for name in names)
        raise ConversionError(f"it is {'a NumPy .npz archive' if arrays else 'a zip archive'}, not one of torch.save")
    root = roots[0]
    if root + "constants.pkl" in names:
        raise ConversionError(f"it is a TorchScript program, whose code would have to run: take {EXPORT}")
    big_endian = root + "byteorder" in names and archive.read(root + "byteorder").strip() == b"big"
    payload, _ = _interpret(io.BytesIO(archive.read(root + "data.pkl")))

    def read(storage: Storage) -> tuple[bytes, bool]:
        entry = f"{root}data/{storage.key}"
        if entry not in names:
            raise ConversionError(f"the archive lacks {entry}")
        if archive.getinfo(entry).file_size != storage.count * storage.itemsize:
            raise ConversionError(f"{entry} does not hold the {storage.count} numbers that its tensors expect")
        return archive.read(entry), big_endian

    return payload, read


def open_legacy(file: IO[bytes]) -> tuple[Any, ReadStorage]:
    """What a file of torch before 1.6 holds, as `open_zip` gives it; the file must stay open while storages are read.
    ConversionError as there."""
    for expected in (LEGACY_MAGIC, _LEGACY_PROTOCOL):
        found, _ = _interpret(file)
        if found != expected:
            raise ConversionError(f"it opens with {found!r} where torch.save writes {expected}")
    _interpret(file)  # the sizes of numbers on the machine that wrote it: the storages are little-endian on all
    payload, storages = _interpret(file)
    keys, _ = _interpret(file)
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell(), count
        if key not in storages or count != storages[key].count:
            raise ConversionError(f"storage {key} does not hold the numbers that its tensors expect")
        file.seek(count * storages[key].itemsize, 1)

    def read(storage: Storage) -> tuple[bytes, bool]:
        if storage.key not in places:
            raise ConversionError(f"the file lacks storage {storage.key}")
        place, count = places[storage.key]
        file.seek(place)
        content = file.read(count * storage.itemsize)
        if len(content) != count * storage.itemsize:
            raise ConversionError(f"it ends within storage {storage.key}")
        return content, False

    return payload, read


def arrays_of(tensors: Mapping[str, Tensor], read: ReadStorage) -> dict[str, np.ndarray]:
    """The arrays of named tensors, C-ordered and perhaps read-only, bfloat16 as float32. Each storage is read once.
    ConversionError, naming the tensor, where it reaches beyond its storage."""
    numbers: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in numbers:
            content, big_endian = read(storage)
            flat = np.frombuffer(content, np.dtype(_DTYPES[storage.kind]).newbyteorder(">" if big_endian else "<"))
            flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
            if storage.kind == "BFloat16Storage":
                flat = (flat.astype(np.uint32) << 16).view(np.float32)
            numbers[storage.key] = flat
        arrays[name] = _view(name, tensor, numbers[storage.key])
    return arrays


def _view(name: str, tensor: Tensor, flat: np.ndarray) -> np.ndarray:
    shape, stride, offset = tensor.shape, tensor.stride, tensor.offset
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or (size and last >= flat.size):
        raise ConversionError(f"{name} of shape {shape} reaches beyond the {flat.size} numbers of its storage")
    if not size:
        return np.zeros(shape, flat.dtype)
    steps = tuple(step * flat.itemsize for step in stride)
    return np.asarray(np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False), order="C")


# --- the pickle -------------------------------------------------------------------------------------------------------

_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
# How many entries of the stack an instruction takes; some others take all above the last mark.
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TAKES |= {"STACK_GLOBAL": 2, "REDUCE": 2, "BINPERSID": 1, "STOP": 1}


def first_global(file: IO[bytes]) -> str | None:
    """The first function or class that a pickle names, as module.name, found without running it; None where it names
    none, or is cut short before."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        pass
    return None


def _interpret(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The object of the pickle that begins here, and the storages that it refers to, by key; the file is left behind
    it. ConversionError for an instruction that containers and tensors have no need of."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        items: list[Any] = []
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
        elif name in _TAKES:
            items = _popped(stack, _TAKES[name])
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("APPEND", "APPENDS"):
            _container(stack, list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            _container(stack, dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "BUILD":
            _container(stack, dict)  # what was taken are the attributes of a state_dict, its versions: not weights
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name == "STOP":
            return items[0], storages
        elif name not in ("PROTO", "FRAME"):
            stack.append(_made(name, argument, items, memo, storages))
    raise ConversionError("its pickle has no end")


def _made(name: str, argument: Any, items: list[Any], memo: Mapping[int, Any], storages: dict[str, Storage]) -> Any:
    """What an instruction puts on the stack for the `items` that it took off; `storages` gains one that it names."""
    if name in _LITERALS:
        return argument
    if name in _NEW:
        return _NEW[name]()
    if name in ("BINGET", "LONG_BINGET"):
        return memo[argument]
    if name.startswith("TUPLE"):
        return tuple(items)
    if name == "GLOBAL":
        return _named(argument.replace(" ", "."))
    if name == "STACK_GLOBAL":
        return _named(".".join(items))
    if name == "REDUCE":
        return _called(*items)
    if name == "BINPERSID":
        storage = _storage(*items[0])
        if storages.setdefault(storage.key, storage) != storage:
            raise ConversionError(f"storage {storage.key} is of two types or lengths")
        return storage
    raise ConversionError(f"it holds a Python object (instruction {name}) beside arrays: take {EXPORT}")


def _popped(stack: list[Any], n: int) -> list[Any]:
    if len(stack) < n:
        raise ConversionError("its pickle takes more than it has put down")
    items = stack[-n:]
    del stack[-n:]
    return items


def _container(stack: list[Any], kind: type) -> Any:
    """The list or dict on top, which stays there."""
    if not stack or type(stack[-1]) is not kind:
        raise ConversionError(f"it holds a Python object other than a {kind.__name__} beside arrays: take {EXPORT}")
    return stack[-1]


def _named(name: str) -> _Name:
    if name not in _CALLS and name not in _STORAGES:
        raise ConversionError(
            f"it names {name}: a Python object beside arrays, and to read it is to run its code. Where it can be "
            f"loaded, take {EXPORT}"
        )
    return _Name(name)


def _called(function: Any, arguments: Any) -> Any:
    if type(function) is not _Name or function.name not in _CALLS or type(arguments) is not tuple:
        raise ConversionError("its pickle calls what is no function")
    return _CALLS[function.name](*arguments)


def _storage(tag: Any, kind: Any, key: Any, location: Any, count: Any, view: Any = None) -> Storage:
    known = type(kind) is _Name and kind.name in _STORAGES
    if tag != "storage" or not known or type(key) is not str or type(count) is not int or count < 0 or view is not None:
        raise ConversionError(f"it refers to a {tag!r} that is no storage of numbers: take {EXPORT}")
    return Storage(key, _STORAGES[kind.name], count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *stride)
    if type(storage) is not Storage or any(type(n) is not int for n in numbers) or len(shape) != len(stride):
        raise ConversionError("it holds a tensor that is no view of a storage")
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: Any, *_: Any) -> Tensor:
    if type(data) is not Tensor:
        raise ConversionError("it holds a parameter that is no tensor")
    return data


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "torch.Size": lambda sizes: tuple(sizes),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
