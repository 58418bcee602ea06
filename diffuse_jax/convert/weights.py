"""Weights and options out of the files of other programs, without running anything that a file asks for.

What a file is shows in its first bytes, whatever its name: the msgpack of Flax, torch's zip archives and the pickles
that came before them, or safetensors. Python pickles of anything else are programs, and are refused.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import flax.serialization
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from diffuse_jax._fields import GROUP, check_fields, integer, optional
from diffuse_jax._files import written_atomically
from diffuse_jax.convert.checks import ConversionError
from diffuse_jax.convert.torch_files import EXPORT, Tensor, arrays_of, first_global, open_legacy, open_zip

__all__ = ["Weights", "read_options", "read_weights", "write_safetensors"]


@dataclass(frozen=True)
class Weights:
    """The arrays of a file.

    Args:
        arrays: By the names they have in it, perhaps read-only; bfloat16 is widened to float32.
        ema: Their moving average where the file keeps one: by name in Flax checkpoints, and in score_sde's torch
            checkpoints a list of the trained parameters in the order of the network, without names.
        step: The number of training steps, 0 where the file does not say.
        options: Those that `write_safetensors` was given, else None.
    """

    arrays: dict[str, np.ndarray]
    ema: dict[str, np.ndarray] | list[np.ndarray] | None = None
    step: int = 0
    options: dict[str, Any] | None = None


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """The weights in a file: a checkpoint of score_sde or a tree of params in Flax's msgpack, names joined with "/"; a
    checkpoint of score_sde's torch twin, {"state_dict": …} or a state_dict alone, as torch.save writes them; or
    safetensors.

    ConversionError, naming the file and what it seems to be, where it is missing, another kind of file, cut short,
    damaged, or holds Python objects beside arrays; nothing of the file is run.
    """
    path = Path(path)
    if path.is_dir():
        raise ConversionError(_about_folder(path))
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(0)
            kind, read = _kind(head, path.stat().st_size)
            if read is None:
                raise ConversionError(f"{path} holds no weights that can be read: it is {kind}")
            try:
                weights = read(file)
                check_fields({"step": weights.step}, {"step": integer(0)}, "it", ConversionError)
                return weights
            except ConversionError as error:
                raise ConversionError(f"{path} seems to be {kind}: {error}") from error
            except OSError:
                raise
            except Exception as error:  # whatever parsers of four formats make of a damaged file
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise ConversionError(
                    f"{path} seems to be {kind}, but is cut short or damaged ({reason[0]})"
                ) from error
    except FileNotFoundError as error:
        raise ConversionError(f"there is no file {path}") from error


def read_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The options in a JSON file. ConversionError where it is missing, not JSON, or not an object of named options."""
    try:
        options = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise ConversionError(f"{path} is a folder: give the JSON file in it") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConversionError(f"{path} holds a JSON {type(options).__name__}, and must hold an object of named options")
    return options


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], options: Mapping[str, Any] | None = None, step: int = 0
) -> None:
    """Writes named arrays as safetensors, the step and options in the header. The file takes its name when it is whole,
    and its folder is made where missing.

    Args:
        path: The file.
        arrays: The arrays by name.
        options: Options that JSON can hold; None writes none.
        step: The number of training steps.
    """
    ordered = {name: np.array(array, order="C") for name, array in arrays.items()}
    header = {"format": "pt", _STEP: str(step)}
    if options is not None:
        header[_OPTIONS] = json.dumps(options)
    with written_atomically(path) as file:
        file.write(safetensors.numpy.save(ordered, header))


# --- what a file is ---------------------------------------------------------------------------------------------------

_LEGACY_HEAD = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"  # the pickle of torch's magic number
_FOREIGN = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
    b"\x89HDF": "HDF5",
    b"\x1f\x8b": "gzip: decompress it first",
    b"\x93NUMPY": "a NumPy array without a name",
    b"<": "a web page or XML: its download failed",
    b"{": "JSON or text",
}


def _kind(head: bytes, size: int) -> tuple[str, Callable[[IO[bytes]], Weights] | None]:
    """What a file that begins with `head` seems to be, and the reader of it."""
    if not size:
        return "empty", None
    if head.startswith(b"PK"):
        return "a zip archive, as torch.save writes", _torch_zip
    if head.startswith(_LEGACY_HEAD):
        return "a file of torch before 1.6", _torch_legacy
    if head[:1] == b"\x80":
        return "a pickle", _pickle
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size, 100_000_000):
        return "safetensors", _safetensors
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            return what, None
    if 0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF):
        return "a Flax checkpoint in msgpack", _flax
    return "neither msgpack, torch's nor safetensors", None


def _about_folder(path: Path) -> str:
    endings = (".safetensors", ".bin", ".pth", ".pt")
    found = sorted(
        str(file.relative_to(path))
        for pattern in ("*", "*/*")
        for file in path.glob(pattern)
        if file.suffix in endings and file.is_file()
    )
    there = f"here {', '.join(found[:8])}" if found else "and there is none here"
    return (
        f"{path} is a folder: give the file of weights in it, of a diffusers model its *.safetensors or "
        f"diffusion_pytorch_model.bin, {there}"
    )


# --- Flax's msgpack ---------------------------------------------------------------------------------------------------


def _flax(file: IO[bytes]) -> Weights:
    """score_sde's `State` (step, optimizer, lr, model_state, ema_rate, params_ema, rng), or a tree of params."""
    # It makes numbers, strings, lists, dicts and arrays of types that NumPy knows by name, and calls nothing else.
    tree = flax.serialization.msgpack_restore(file.read())
    if not isinstance(tree, dict):
        raise ConversionError(f"it holds a {type(tree).__name__}, and must hold a tree of named arrays")
    if "optimizer" not in tree and "params_ema" not in tree:
        return Weights(_flat(_without_collections(tree)))
    missing = [name for name in ("step", "optimizer", "params_ema") if name not in tree]
    if missing or "target" not in tree["optimizer"]:
        raise ConversionError(
            f"it lacks {', '.join(missing) or 'optimizer/target'}, which score_sde's checkpoints have"
        )
    _refuse_state(tree.get("model_state") or {})
    return Weights(_flat(tree["optimizer"]["target"]), _flat(tree["params_ema"]), int(tree["step"]))


def _without_collections(tree: dict[str, Any]) -> Any:
    """The params of `{"params": …}`, what a Linen module is applied to, or the tree itself."""
    if not isinstance(tree.get("params"), dict):
        return tree
    _refuse_state({name: value for name, value in tree.items() if name != "params"})
    return tree["params"]


def _refuse_state(collections: dict[str, Any]) -> None:
    kept = [name for name, collection in collections.items() if not isinstance(collection, dict) or collection]
    if kept:
        raise ConversionError(f"beside parameters it holds {', '.join(kept)}: networks here have parameters alone")


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of a tree by the path of their names."""
    if isinstance(tree, dict):
        return {name: leaf for key, value in tree.items() for name, leaf in _flat(value, (*path, str(key))).items()}
    name = "/".join(path)
    if not isinstance(tree, (np.ndarray, np.generic)):
        raise ConversionError(f"{name} is a {type(tree).__name__}, and must be an array")
    return {name: _numbers(name, np.asarray(tree))}


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise ConversionError(f"{name} is of type {array.dtype}, and must be of real numbers")
    return array


# --- torch ------------------------------------------------------------------------------------------------------------


def _torch_zip(file: IO[bytes]) -> Weights:
    with zipfile.ZipFile(file) as archive:
        return _torch(*open_zip(archive))


def _torch_legacy(file: IO[bytes]) -> Weights:
    return _torch(*open_legacy(file))


def _torch(payload: Any, read: Callable[..., Any]) -> Weights:
    if not isinstance(payload, dict):
        raise ConversionError(f"it holds a {type(payload).__name__}, and must hold named tensors: take {EXPORT}")
    ema, step = None, 0
    if isinstance(payload.get("model"), dict):
        tensors = payload["model"]
        step = payload.get("step", 0)
        ema = _shadow_params(payload["ema"]) if payload.get("ema") is not None else None
    elif isinstance(payload.get("state_dict"), dict):
        tensors = payload["state_dict"]
    else:
        tensors = payload
    shadows = {} if ema is None else {f"shadow_params[{i}]": tensor for i, tensor in enumerate(ema)}
    for name, tensor in [*tensors.items(), *shadows.items()]:
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConversionError(
                f"{name} is a {type(tensor).__name__}, and must be a named tensor: it should be a state_dict, "
                '{"state_dict": …}, or a checkpoint of score_sde with model, ema and step'
            )
    if not isinstance(step, int):
        raise ConversionError(f"step is a {type(step).__name__}, and must be a whole number")
    arrays = arrays_of({f"model {name}": tensor for name, tensor in tensors.items()} | shadows, read)
    return Weights(
        {name: arrays[f"model {name}"] for name in tensors},
        None if ema is None else [arrays[name] for name in shadows],
        step,
    )


def _shadow_params(ema: Any) -> list[Any]:
    """The averages; to leave out those of another kind would be to take raw weights for averaged ones."""
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(averages, list):
        raise ConversionError("its ema lacks the list shadow_params, which score_sde's checkpoints have")
    return averages


def _pickle(file: IO[bytes]) -> Weights:
    named = first_global(file)
    raise ConversionError(
        f"{f'it names {named} first; ' if named else ''}pickles such as EDM's .pkl are programs, and are not run here. "
        f"Where its own program is installed and its source is trusted, take {EXPORT}"
    )


# --- safetensors ------------------------------------------------------------------------------------------------------

_SAFETENSORS = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}


#: Where the header of a file that was written here keeps the options and the step.
_OPTIONS, _STEP = "options", "step"


def _safetensors(file: IO[bytes]) -> Weights:
    arrays = {}
    content = file.read()
    for name, stored in sorted(safetensors.deserialize(content), key=lambda item: item[0]):
        if stored["dtype"] not in _SAFETENSORS:
            raise ConversionError(f"{name} is of type {stored['dtype']}, and must be of {', '.join(_SAFETENSORS)}")
        flat = np.frombuffer(stored["data"], np.dtype(_SAFETENSORS[stored["dtype"]]).newbyteorder("<"))
        arrays[name] = _numbers(name, flat.reshape(stored["shape"]))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    said = header.get("__metadata__", {})
    options = json.loads(said[_OPTIONS]) if _OPTIONS in said else None
    check_fields({"options": options}, {"options": optional(GROUP)}, "its header", ConversionError)
    return Weights(arrays, step=int(said.get(_STEP, 0)), options=options)
