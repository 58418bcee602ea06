"""Weights come out of other programs' files as those programs read them, and nothing of a file is run."""

import io
import json
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from diffuse_jax.convert import torch_files
from diffuse_jax.convert.checks import ConversionError
from diffuse_jax.convert.weights import Weights, read_options, read_weights, write_safetensors

# --- what is read -----------------------------------------------------------------------------------------------------

BASE = np.arange(24, dtype=np.float32)
FIVE = np.arange(5)
#: What tests/fixtures/make_torch_files.py makes.
TORCH_ARRAYS = {
    "weight": BASE[:6].reshape(2, 3),
    "whole": BASE.reshape(4, 6),
    "strided": BASE[3:21:2],
    "transposed": BASE.reshape(2, 3, 4).transpose(2, 0, 1),
    "expanded": np.broadcast_to(BASE[5:8], (2, 3)),
    "scalar": BASE[7],
    "empty": np.zeros((0, 3), np.float32),
    "float64": FIVE.astype(np.float64),
    "float16": (FIVE / 4).astype(np.float16),
    "bfloat16": (np.arange(12, dtype=np.float32) / 4 - 1).reshape(3, 4).T,
    **{kind: (FIVE - 2).astype(kind) for kind in ("int64", "int32", "int16", "int8")},
    "uint8": (FIVE + 250).astype(np.uint8),
    "bool": FIVE % 2 == 0,
    "frozen": BASE[:4],
}


def assert_same(found: Any, expected: Any) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_torchs_own_files_are_read_whatever_the_view_and_type(fixtures: pathlib.Path, form: str) -> None:
    weights = read_weights(fixtures / f"torch_{form}.pth")
    assert_same(weights.arrays, TORCH_ARRAYS)
    assert list(weights.arrays) == list(TORCH_ARRAYS)  # to which the averages are matched by their order
    assert weights.step == 70001 and isinstance(weights.ema, list)
    assert_same(dict(enumerate(weights.ema)), {0: BASE[:6].reshape(2, 3) / 8})


def test_only_the_storages_asked_for_are_read(fixtures: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = zipfile.ZipFile.read

    def recorded(self: zipfile.ZipFile, name: str) -> bytes:
        read.append(name)
        return plain(self, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", recorded)
    read_weights(fixtures / "torch_zip.pth")
    held = [n for n in zipfile.ZipFile(fixtures / "torch_zip.pth").namelist() if "/data/" in n]
    taken = [name for name in read if "/data/" in name]
    # Each once, though five tensors share one; Adam's step and two moments are left.
    assert len(taken) == len(set(taken)) == len(held) - 3


class FakeStorage:
    """What torch pickles by a persistent id; `FloatStorage` of Python's own pickler."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class Call:
    """Pickled as the call of a global, by its name."""

    def __init__(self, name: str, *arguments: Any, state: Any = None) -> None:
        self.name, self.arguments, self.state = name, arguments, state


def pickled(value: Any, protocol: int = 2) -> bytes:
    """The pickle of plain containers with `Call` and `FakeStorage` among them, assembled by hand: the globals need not
    exist here."""

    def emit(value: Any) -> bytes:
        if isinstance(value, Call):
            code = emit_name(value.name) + emit(value.arguments) + pickle.REDUCE
            return code + (emit(value.state) + pickle.BUILD if value.state is not None else b"")
        if isinstance(value, Name):
            return emit_name(value)
        if isinstance(value, FakeStorage):
            return emit(value.identity) + pickle.BINPERSID
        if isinstance(value, tuple):
            return pickle.MARK + b"".join(map(emit, value)) + pickle.TUPLE
        if isinstance(value, dict):
            inside = b"".join(emit(key) + emit(item) + pickle.SETITEM for key, item in value.items())
            return pickle.EMPTY_DICT + inside
        return pickle.dumps(value, 2)[2:-1]  # without protocol and stop

    def emit_name(name: str) -> bytes:
        module, _, attribute = name.rpartition(".")
        if protocol >= 4:
            return emit(module) + emit(attribute) + pickle.STACK_GLOBAL
        return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()

    return pickle.PROTO + bytes([protocol]) + emit(value) + pickle.STOP


class Name(str):
    """A global itself, not called."""


def tensor(offset: Any = 0, shape: Any = (2,), stride: Any = (1,), storage: Any = None) -> Call:
    default = FakeStorage("storage", Name("torch.FloatStorage"), "0", "cpu", 4)
    return Call("torch._utils._rebuild_tensor_v2", storage or default, offset, shape, stride, False, {})


def zipped(data: bytes, storages: dict[str, bytes] | None = None, **others: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in (storages or {"0": BASE[:4].tobytes()}).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in others.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def legacy(data: bytes, storage: bytes = BASE[:4].tobytes()) -> bytes:
    start = pickle.dumps(torch_files.LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    return start + data + pickle.dumps(["0"], 2) + struct.pack("<q", len(storage) // 4) + storage


def bare(data: bytes) -> bytes:
    return data


FORMS = {"zip": zipped, "legacy": legacy}


def written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"state_dict": d, "epoch": 3}, lambda d: {"model": d}])
def test_a_state_dict_is_read_alone_and_within_a_checkpoint(
    tmp_path: pathlib.Path, form: str, protocol: int, wrap: Callable[[Any], Any]
) -> None:
    parameter = Call(
        "torch._utils._rebuild_parameter", tensor(1, Call("torch.Size", (3,))), True, Call("collections.OrderedDict")
    )
    state = {"a": tensor(0, (2, 2), (1, 2)), "b": parameter}
    weights = read_weights(written(tmp_path / "x", FORMS[form](pickled(wrap(state), protocol))))
    assert_same(weights.arrays, {"a": BASE[:4].reshape(2, 2).T, "b": BASE[1:4]})
    assert weights.ema is None and weights.step == 0


@pytest.mark.parametrize("ema", [{"a": tensor()}, {"shadow_params": {"a": tensor()}}, 0.999])
def test_averages_of_another_form_are_refused_and_not_left_out(tmp_path: pathlib.Path, ema: Any) -> None:
    path = written(tmp_path / "x", zipped(pickled({"model": {"a": tensor()}, "ema": ema})))
    with pytest.raises(ConversionError, match="ema lacks the list shadow_params"):
        read_weights(path)


def test_a_big_endian_archive_is_read(tmp_path: pathlib.Path) -> None:
    content = zipped(pickled({"a": tensor()}), {"0": BASE[:4].astype(">f4").tobytes()}, byteorder=b"big")
    assert_same(read_weights(written(tmp_path / "x", content)).arrays, {"a": BASE[:2]})


def flax_state(**changes: Any) -> dict[str, Any]:
    """score_sde's training state, as flax stores it."""
    params = {"Conv_0": {"kernel": BASE.reshape(2, 12), "bias": BASE[:2]}, "GroupNorm_0": {"scale": BASE[:3]}}
    ema = {"Conv_0": {"kernel": -BASE.reshape(2, 12), "bias": -BASE[:2]}, "GroupNorm_0": {"scale": -BASE[:3]}}
    optimizer = {"target": params, "state": {"step": 9, "param_states": {"Conv_0": {"grad_ema": BASE}}}}
    rest = {"lr": 2e-4, "model_state": {}, "ema_rate": 0.999, "rng": np.array([0, 7], np.uint32)}
    return {"step": 9, "optimizer": optimizer, "params_ema": ema, **rest} | changes


FLAX_ARRAYS = {"Conv_0/kernel": BASE.reshape(2, 12), "Conv_0/bias": BASE[:2], "GroupNorm_0/scale": BASE[:3]}


def packed(tree: Any) -> bytes:
    return flax.serialization.msgpack_serialize(tree)


def test_flax_checkpoints_are_read_with_their_average(tmp_path: pathlib.Path) -> None:
    weights = read_weights(written(tmp_path / "checkpoint_9", packed(flax_state())))
    assert_same(weights.arrays, FLAX_ARRAYS)
    assert_same(weights.ema, {name: -array for name, array in FLAX_ARRAYS.items()})
    assert weights.step == 9


def test_flax_arrays_too_large_for_one_piece_are_put_together(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 20)
    path = written(tmp_path / "x", packed(flax_state()["optimizer"]["target"]))
    assert b"chunked" in path.read_bytes()
    assert_same(read_weights(path).arrays, FLAX_ARRAYS)


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: {"params": tree}])
def test_a_bare_tree_of_params_is_read(tmp_path: pathlib.Path, wrap: Callable[[Any], Any]) -> None:
    tree = wrap({"a": {"b": np.arange(3), "c": np.asarray(1.5, ml_dtypes.bfloat16)}})
    weights = read_weights(written(tmp_path / "x", packed(tree)))
    assert_same(weights.arrays, {"a/b": np.arange(3), "a/c": np.float32(1.5)})


def test_safetensors_are_written_and_read_in_every_type(tmp_path: pathlib.Path) -> None:
    arrays = TORCH_ARRAYS | {"brain": np.arange(4).astype(ml_dtypes.bfloat16)}
    path = tmp_path / "new" / "w.safetensors"
    write_safetensors(path, arrays, {"from": "arange"})
    assert_same(read_weights(path).arrays, arrays | {"brain": BASE[:4]})
    with safetensors.safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["options"]) == {"from": "arange"}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_options_are_read(tmp_path: pathlib.Path) -> None:
    assert read_options(written(tmp_path / "o", b'{"nf": 128, "ch": [1, 2]}')) == {"nf": 128, "ch": [1, 2]}


# --- what a file would have run ---------------------------------------------------------------------------------------


class Instance:
    """A class of this program, whose instance a pickle asks for."""

    created: pathlib.Path

    def __init__(self) -> None:
        self.state = 1

    def __setstate__(self, state: Any) -> None:
        self.created.touch()


def instruction(*code: bytes) -> bytes:
    return b"\x80\x02" + b"".join(code) + b"."


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def hostile(created: pathlib.Path) -> dict[str, bytes]:
    """Pickles that create a file where one is run by Python's own unpickler, or overreach otherwise."""
    touch = f"touch {created}"
    system = Call("os.system", touch)
    run = b"cos\nsystem\n" + text(touch) + b"\x85R"
    numpy_array = Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (0,), b"b")
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    ordered = b"ccollections\nOrderedDict\n"
    return {
        "reduce": pickled(system),
        "reduce among tensors": pickled({"a": tensor(), "b": system}),
        "stack global": pickled(system, 4),
        "nested in a persistent id": pickled({"a": FakeStorage("storage", system, "0", "cpu", 4)}),
        "persistent id of a module": pickled({"a": FakeStorage("module", Name("os.system"), None, None)}),
        "state of an ordered dict": pickled({"a": Call("collections.OrderedDict", state={"_metadata": system})}),
        "getattr": pickled({"a": Call("builtins.getattr", Name("os.path"), "os")}),
        "protocol 0": f"cos\nsystem\n(S{touch!r}\ntR.".encode(),
        "old builtins": pickled({"a": Call("__builtin__.eval", f"open({str(created)!r}, 'w')")}),
        "numpy reconstruct": pickled({"a": numpy_array}),
        "numpy scalar": pickled({"a": Call("numpy.core.multiarray.scalar", Name("numpy.dtype"), b"")}),
        "an instance": pickle.dumps({"a": Instance()}, 2),
        "an instance built": instruction(f"c{__name__}\nInstance\n".encode(), b")\x81}b"),
        "inst": instruction(b"(", text(touch), b"ios\nsystem\n"),
        "obj": instruction(b"(cos\nsystem\n", text(touch), b"o"),
        "newobj": instruction(ordered, b")\x81"),
        "extension": instruction(b"\x82\x01"),
        "state of a function": instruction(rebuild, b"N}", text("__defaults__"), b")s\x86b"),
        "state of a class": instruction(ordered, b"}", text("__init__"), b"cos\nsystem\nsb"),
        "call of what a call returns": instruction(ordered, b")R", b"(", text(touch), b"tR"),
        "call of a tensor": pickled({"a": tensor()})[:-2] + b"(tR.",
        "after a list": instruction(b"]", run, b"a"),
        "python's own storage of text": pickled({"a": tensor(storage="text")}),
        "a storage of another module": pickled({"a": Call("os.FloatStorage", touch)}),
    }


HOSTILE = list(hostile(pathlib.Path("x")))


@pytest.mark.parametrize("form", [zipped, legacy, bare])
@pytest.mark.parametrize("attack", HOSTILE)
def test_nothing_in_a_file_is_run(tmp_path: pathlib.Path, attack: str, form: Callable[[bytes], bytes]) -> None:
    created = tmp_path / "created"
    Instance.created = created
    path = written(tmp_path / "weights.pth", form(hostile(created)[attack]))
    with pytest.raises(ConversionError, match=r"weights\.pth"):
        read_weights(path)
    assert not created.exists()


@pytest.mark.parametrize("attack", ["reduce", "stack global", "an instance", "inst", "obj", "protocol 0"])
def test_the_hostile_files_are_real(tmp_path: pathlib.Path, attack: str) -> None:
    Instance.created = tmp_path / "created"
    pickle.loads(hostile(tmp_path / "created")[attack])
    assert (tmp_path / "created").exists()


def test_the_global_that_is_refused_is_named_with_the_way_out(tmp_path: pathlib.Path) -> None:
    inside = {"ema": Call("torch_utils.persistence._reconstruct_persistent_obj", {})}
    for form in (zipped, legacy, bare):
        path = written(tmp_path / "network-snapshot.pkl", form(pickled(inside)))
        with pytest.raises(ConversionError, match=r"torch_utils\.persistence\._reconstruct_persistent_obj.*state_dict"):
            read_weights(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "bad",
    [
        tensor(3),
        tensor(-1),
        tensor(0, (2,), (-1,)),
        tensor(0, (3, 3), (1, 1)),
        tensor(0, (2**62, 2**62), (1, 1)),
        tensor(0, (-1,)),
        tensor(0, (2, 2)),
        tensor(0, ("2",)),
        tensor(0.0),
        tensor(storage=FakeStorage("storage", Name("torch.FloatStorage"), "0", "cpu", 10**12)),
        tensor(storage=FakeStorage("storage", Name("torch.FloatStorage"), "1", "cpu", 4)),
        tensor(storage=FakeStorage("storage", Name("torch.FloatStorage"), "../../data.pkl", "cpu", 4)),
        tensor(storage=FakeStorage("storage", Name("torch.DoubleStorage"), "0", "cpu", 4)),
        tensor(storage=FakeStorage("storage", Name("torch.FloatStorage"), "0", "cpu", 4, ("1", 0, 4))),
        tensor(storage=FakeStorage("storage", "FloatStorage", "0", "cpu", 4)),
        tensor(storage=FakeStorage("storage")),
        "text",
        {"deeper": tensor()},
    ],
)
def test_no_tensor_reaches_beyond_its_storage(tmp_path: pathlib.Path, form: str, bad: Any) -> None:
    path = written(tmp_path / "weights.pth", FORMS[form](pickled({"good": tensor(), "bad": bad})))
    with pytest.raises(ConversionError, match=r"weights\.pth"):
        read_weights(path)


def test_flax_files_name_no_code(tmp_path: pathlib.Path) -> None:
    """Types that NumPy would make objects of, or compute with, are refused."""
    for dtype in ("O", "object", "V8", "i4,O", "U4", "c8", "M8[s]", "__import__('os')", "(2,)f4", "f4,f4"):
        array = msgpack.ExtType(1, msgpack.packb(((2,), dtype, bytes(16)), use_bin_type=True))
        path = written(tmp_path / "weights", msgpack.packb({"a": array}))
        with pytest.raises(ConversionError, match="weights"):
            read_weights(path)


# --- what is not a whole file of weights ------------------------------------------------------------------------------


def whole_files(fixtures: pathlib.Path) -> dict[str, bytes]:
    return {
        "zip": (fixtures / "torch_zip.pth").read_bytes(),
        "torch before 1.6": (fixtures / "torch_legacy.pth").read_bytes(),
        "msgpack": packed(flax_state()),
        "safetensors": safetensors.numpy.save(FLAX_ARRAYS),
    }


@pytest.mark.parametrize("kind", ["zip", "torch before 1.6", "msgpack", "safetensors"])
def test_a_truncated_file_is_named_as_what_it_is(fixtures: pathlib.Path, tmp_path: pathlib.Path, kind: str) -> None:
    content = whole_files(fixtures)[kind]
    for length in [*range(40), *range(40, len(content), 61), len(content) - 1]:
        path = written(tmp_path / "cut", content[:length])
        with pytest.raises(ConversionError, match=kind if length >= 20 else "cut"):
            read_weights(path)


def test_a_damaged_file_gives_weights_or_a_conversion_error(fixtures: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One byte changed, here and there: no other exception comes out."""
    rng = np.random.default_rng(0)
    for content in whole_files(fixtures).values():
        for _ in range(60):
            damaged = bytearray(content)
            damaged[rng.integers(min(len(content), 3000))] = rng.integers(256)
            try:
                weights = read_weights(written(tmp_path / "damaged", bytes(damaged)))
            except ConversionError as error:
                assert "damaged" in str(error)
            else:
                assert isinstance(weights, Weights)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=BASE)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"nf": 128}', "JSON"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"hello, this is a text", "neither msgpack, torch's nor safetensors"),
        (npz(), "NumPy .npz"),
        (zipped(pickled({}), **{"constants.pkl": b""}), "TorchScript"),
        (zipped(pickled(3)), "holds a int"),
        (zipped(pickled({"epoch": 3, "net": {}})), "epoch is a int"),
        (legacy(pickled({"a": tensor()})).replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)), "1002"),
        (packed({"a": {"b": "text"}}), "a/b is a str"),
        (packed({"params": {"a": BASE}, "batch_stats": {"mean": BASE}}), "batch_stats"),
        (packed(flax_state(model_state={"batch_stats": {"mean": BASE}})), "batch_stats"),
        (packed({"optimizer": {"target": {}}, "params_ema": {}}), "lacks step"),
    ],
)
def test_another_file_is_named_as_what_it_is(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    path = written(tmp_path / "weights.pth", content)
    with pytest.raises(ConversionError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_say_what_to_give(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConversionError, match=f"no file {tmp_path / 'absent'}"):
        read_weights(tmp_path / "absent")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ConversionError, match=r"is a folder.*here unet/diffusion_pytorch_model\.bin"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"[1]", "a JSON list"), (b"\xff", "not JSON"), (None, "there is no file")],
)
def test_options_that_are_not_an_object_of_json_are_refused(
    tmp_path: pathlib.Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "options.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_options(path)
    with pytest.raises(ConversionError, match="folder"):
        read_options(tmp_path)
