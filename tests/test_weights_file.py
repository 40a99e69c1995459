"""Weight files: nothing unsafe is run, all formats are read, broken files say so."""

import io
import json
import logging
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from weights_made import arrays, save_pkl, save_pth

from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.file import read_weights, write_weights
from rankseg_m2f.weights.safe_pickle import UnsafeCheckpointError


class Call:
    """Pickles to the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


# -- safety ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".bin"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, suffix, protocol):
    marker = tmp_path / "ran"
    bad = {"model": {"w": np.zeros(2)}, "x": Call(os.mkdir, str(marker))}
    path = save_pkl(tmp_path / f"bad{suffix}", bad, protocol)
    if protocol == 0 and suffix != ".pkl":
        with pytest.raises(ValueError, match="no known format"):
            read_weights(path)
    else:
        with pytest.raises(UnsafeCheckpointError, match=r"mkdir.*--trust-checkpoint") as caught:
            read_weights(path)
        assert path in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pth_is_refused_and_run_only_when_trusted(tmp_path, legacy):
    marker = tmp_path / "ran"
    bad = {"model": {"w": torch.zeros(2)}, "x": Call(os.mkdir, str(marker))}
    path = tmp_path / "bad.pth"
    torch.save(bad, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpointError, match=r"bad\.pth holds .*mkdir.*--trust-checkpoint"):
        read_weights(path)
    assert not marker.exists()
    assert torch.equal(read_weights(path, trust=True)["model"]["w"], torch.zeros(2))
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (("builtins", "eval"), ("1",)),
        (("builtins", "getattr"), ("a", "b")),
        (("numpy", "load"), ("x",)),
        (("numpy.core.multiarray", "fromfile"), ("x",)),
        (("collections", "OrderedDict.fromkeys"), ("x",)),
        (("torch._utils", "_rebuild_tensor_v2"), ()),
    ],
)
def test_only_arrays_and_containers_are_admitted(tmp_path, name, args):
    module, attribute = (x.encode() for x in name)
    body = b"\x80\x04" + b"\x8c" + bytes([len(module)]) + module
    body += b"\x8c" + bytes([len(attribute)]) + attribute + b"\x93"
    body += pickle.dumps(args, 2)[2:-1] + b"R."
    path = tmp_path / "bad.pkl"
    path.write_bytes(body)
    with pytest.raises(UnsafeCheckpointError, match=re.escape(".".join(name))):
        read_weights(path)


def test_trusted_pickles_are_read(tmp_path):
    content = {"model": {"w": np.arange(3)}, "where": Call(complex, 1, 2), "x": Call(len, "abc")}
    path = save_pkl(tmp_path / "own.pkl", content)
    with pytest.raises(UnsafeCheckpointError, match=r"len"):
        read_weights(path)
    assert read_weights(path, trust=True)["x"] == 3


def test_object_arrays_are_refused(tmp_path):
    bad = np.array([1, "x", None], dtype=object)
    path = save_pkl(tmp_path / "bad.pkl", {"model": {"w": bad}})
    with pytest.raises(ValueError, match=r"bad\.pkl .*array of type 'O8'"):
        read_weights(path)
    np.savez(tmp_path / "bad.npz", w=bad)
    with pytest.raises(ValueError, match=r"bad\.npz .*Object arrays"):
        read_weights(tmp_path / "bad.npz")


def test_a_few_lists_do_not_become_millions(tmp_path):
    lists = [[]]
    for _ in range(60):
        lists.append([lists[-1], lists[-1]])
    path = save_pkl(tmp_path / "laughs.pkl", {"model": {"w": np.ones(2)}, "x": lists[-1]})
    assert read_weights(path)["model"]["w"].tolist() == [1, 1]


# -- formats -----------------------------------------------------------------------------------

VALUES = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big": np.arange(4, dtype=">i4"),
    "half": np.ones((1, 2), np.float16),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "zero-d": np.array(7, np.int64),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_of_all_pickle_protocols(tmp_path, protocol):
    content = {"model": OrderedDict(VALUES), "step": np.int64(5), "__author__": "me", "t": (1, [2])}
    read = read_weights(save_pkl(tmp_path / "a.pkl", content, protocol))
    assert read["step"] == 5 and read["__author__"] == "me" and read["t"] == (1, [2])
    assert set(read["model"]) == set(VALUES)
    for name, value in VALUES.items():
        tensor = read["model"][name]
        assert tensor.shape == value.shape and tensor.is_contiguous()
        native = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        assert tensor.dtype == native.dtype and torch.equal(tensor, native), name


def test_pickles_of_python_2(tmp_path):
    # What cPickle of Python 2 wrote for {"w": float32 [1, 2]}: raw bytes as a text.
    data = np.array([1, 2], "<f4").tobytes()
    body = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + data + b"tbs."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(body)
    assert read_weights(path)["model"]["w"].tolist() == [1, 2]
    assert pickle.loads(body, encoding="latin1")["w"].tolist() == [1, 2]


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".bin", ".pt", ".safetensors"])
def test_bare_tables_of_weights(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    state = {"a.weight": torch.randn(2, 3), "a.count": torch.tensor(3)}
    if suffix == ".npz":
        np.savez(path, **arrays(state))
    else:
        write_weights(path, {"model": state})
    read = read_weights(path)
    assert set(read) == {"model"}
    assert all(torch.equal(read["model"][k], state[k]) for k in state)


WRAPPERS = ["model", "state_dict", "model_state_dict", "module", "blobs", "model_ema", "ema"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inner", [None, "model", "state_dict", "module"])
def test_wrapped_tables(tmp_path, wrapper, inner):
    state = {"w": torch.ones(1)}
    content = {wrapper: {inner: state, "decay": 0.9} if inner else state, "epoch": 3}
    read = read_weights(save_pth(tmp_path / "w.pth", content))
    assert read == {"model": {"w": torch.ones(1)}, "epoch": 3}


def test_averages_are_named_when_weights_are_beside_them(tmp_path, caplog):
    content = {"model_ema": {"w": torch.zeros(1)}, "model": {"w": torch.ones(1)}}
    path = save_pth(tmp_path / "w.pth", content)
    with caplog.at_level(logging.INFO):
        assert read_weights(path)["model"] == {"w": torch.ones(1)}
    assert "weights are those of 'model', not of ['model_ema']" in caplog.text


def test_averages_beside_a_bare_table_are_left(tmp_path):
    content = {"ema": {"w": torch.zeros(1)}, "w": torch.ones(1)}
    read = read_weights(save_pth(tmp_path / "w.pth", content))
    assert read == {"model": {"w": torch.ones(1)}, "ema": {"w": torch.zeros(1)}}


def test_a_table_that_wraps_itself_is_refused(tmp_path):
    endless = {"epoch": 1}
    endless["model"] = endless
    with pytest.raises(
        ValueError, match=r"w\.pth .*'epoch'|w\.pth .*'model', which is not a tensor"
    ):
        read_weights(save_pth(tmp_path / "w.pth", endless))


INDEX = "model.safetensors.index.json"


def write_parts(folder, files):
    write_weights(folder / "a.safetensors", {"model": {"x": torch.ones(1)}})
    write_weights(folder / "b.bin", {"model": {"y": torch.zeros(1)}})
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


def test_weights_in_parts(tmp_path):
    write_parts(tmp_path, {"x": "a.safetensors", "y": "b.bin"})
    for path in (tmp_path, tmp_path / INDEX):
        read = read_weights(path)
        assert read == {"model": {"x": torch.ones(1), "y": torch.zeros(1)}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x": "a.safetensors", "z": "b.bin"}, "index.json lack z, which it lists: download"),
        ({"x": "../a.safetensors"}, "names files of other folders"),
        ({"x": ".."}, "names files of other folders"),
        ({"x": INDEX}, "no known format"),
        ({"x": 3}, "is not an index of weight files"),
        (None, "is not an index of weight files"),
    ],
)
def test_odd_indices_say_so(tmp_path, files, message):
    write_parts(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path)
    write_parts(tmp_path, {"x": "gone.bin"})
    with pytest.raises(FileNotFoundError, match=r"no weights file .*gone\.bin"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*other\.json"):
        read_weights(tmp_path / "other.json")


def test_a_part_is_not_trusted_either(tmp_path):
    write_parts(tmp_path, {"x": "a.pth"})
    marker = tmp_path / "ran"
    torch.save({"model": {}, "x": Call(os.mkdir, str(marker))}, tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match="mkdir"):
        read_weights(tmp_path)
    assert not marker.exists()


def test_all_files_may_be_read_by_the_same_people(tmp_path):
    for name in ("w.pth", "w.safetensors"):
        write_weights(tmp_path / name, {"model": {"w": torch.ones(1)}})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_metadata_comes_back(tmp_path, suffix):
    metadata = {"labels": ["κ", "b"], "metrics": {"PQ": 1.5}, "iteration": None}
    write_weights(tmp_path / f"w{suffix}", {"model": {"w": torch.ones(1)}, "metadata": metadata})
    assert read_weights(tmp_path / f"w{suffix}")["metadata"] == metadata


def test_formats_are_told_by_content(tmp_path):
    np.savez(tmp_path / "arrays.npz", w=np.ones(2))
    (tmp_path / "arrays.npz").rename(tmp_path / "misnamed.pth")
    save_pth(tmp_path / "torch.pkl", {"w": torch.ones(2)})
    save_pkl(tmp_path / "pickle.pth", {"w": np.ones(2)})
    for name in ("misnamed.pth", "torch.pkl", "pickle.pth"):
        assert read_weights(tmp_path / name)["model"]["w"].tolist() == [1, 1]


def broken_files(folder):
    """Name -> (bytes, words of the error)."""
    good = io.BytesIO()
    torch.save({"w": torch.arange(1000)}, good)
    legacy = io.BytesIO()
    torch.save({"w": torch.arange(1000)}, legacy, _use_new_zipfile_serialization=False)
    pkl = pickle.dumps({"model": {"w": np.arange(1000)}}, 2)
    script = io.BytesIO()
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("net/data.pkl", b"x")
        archive.writestr("net/constants.pkl", b"x")
    again = "download or copy it again"
    return {
        "empty.pth": (b"", f"is empty: {again}"),
        "page.pth": (b"\n<!DOCTYPE html><html>404</html>", f"web page, not weights: {again}"),
        "page.pkl": (b"<html>", f"web page, not weights: {again}"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "text.txt": (b"hello", "no known format"),
        "cut.pth": (good.getvalue()[:3000], f"as torch weights .*{again}"),
        "cut_late.pth": (good.getvalue()[:4500], f"as torch weights .*{again}"),
        "cut_early.pth": (good.getvalue()[:40], f"as torch weights .*{again}"),
        "cut_old.pth": (legacy.getvalue()[:3000], f"as torch weights .*{again}"),
        "cut.pkl": (pkl[:3000], f"as pickle weights .*{again}"),
        "noise.pkl": (b"\x80\x02" + bytes(range(200)), f"as pickle weights .*{again}"),
        "cut.safetensors": (b"\x10\x00\x00", f"as safetensors weights .*{again}"),
        "cut.npz": (b"PK\x03\x04" + bytes(22) + b"\x05\x00\x00\x00w.npy", f"npz weights .*{again}"),
        "script.pt": (script.getvalue(), "TorchScript"),
        "list.pkl": (pickle.dumps([1, 2]), "holds a list"),
        "nothing.pkl": (pickle.dumps({"a": 1}), "holds no weights"),
        "text.pkl": (pickle.dumps({"model": {"a": "b"}}), "'a', which is not a tensor"),
        "codec.pkl": (
            b"\x80\x02}U\x01wc_codecs\nencode\nU\x01xU\x03bz2\x86Rs.",
            f"encoding 'bz2'.*{again}",
        ),
        "type.pkl": (b"\x80\x02}U\x01wcnumpy\nndarray\ns.", "a type where weights belong"),
    }


@pytest.mark.parametrize("name", sorted(broken_files(None)))
def test_broken_files_say_so_in_one_line(tmp_path, name):
    content, words = broken_files(None)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_absent_files_and_folders(tmp_path):
    for reader in (read_weights, Checkpointer(nn.Linear(1, 1)).load):
        with pytest.raises(FileNotFoundError, match=r"no weights file .*absent\.pth: check"):
            reader(str(tmp_path / "absent.pth"))
        with pytest.raises(ValueError, match=r"is a folder without model\.safetensors .*name a "):
            reader(str(tmp_path))


def test_safetensors_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "w.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ImportError, match=r"w\.safetensors needs .*pip install safetensors"):
        read_weights(tmp_path / "w.safetensors")


def test_safetensors_hold_weights_alone(tmp_path):
    with pytest.raises(ValueError, match="not iteration"):
        write_weights(tmp_path / "w.safetensors", {"model": {}, "iteration": 3})
