"""Pickles are data: what asks for more is refused, and nothing is executed."""

import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from tests.reading import load_pickle
from utils import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_are_read(tmp_path, protocol):
    content = OrderedDict(
        weights=np.arange(6, dtype=np.float32).reshape(2, 3),
        fortran=np.asfortranarray(np.ones((3, 2), np.int64)),
        scalar=np.float32(0.5),
        plain=[1, 2.5, "text", None, True, (b"bytes", {"a": [1, 2]})],
    )
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(path)
    for key in ("weights", "fortran", "scalar"):
        np.testing.assert_array_equal(found[key], content[key])
    assert found["plain"][:5] == content["plain"][:5]


def test_files_written_by_numpy_2_are_read(tmp_path):
    path = tmp_path / "new.pkl"
    text = pickle.dumps(np.ones(3, np.float32), 2).replace(b"numpy.core.", b"numpy._core.")
    path.write_bytes(text)
    np.testing.assert_array_equal(load_pickle(path), np.ones(3, np.float32))


def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"asks for \w+\.\w+, .* refused and nothing .* executed"):
        load_pickle(GOLDEN / "malicious.pkl")
    assert not (tmp_path / "OWNED").exists()


class Runs:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (eval, ("open('OWNED', 'w')",)),
        (__import__, ("os",)),
        (getattr, ("text", "upper")),
        (np.load, ("x",)),
    ],
)
def test_no_other_global_is_admitted(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("bad.pkl").write_bytes(pickle.dumps({"state_dict": Runs(*call)}))
    with pytest.raises(UserError, match=call[0].__name__):
        load_pickle("bad.pkl")
    assert not Path("OWNED").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", b"PK\x03\x04rest"])
def test_broken_files_give_one_sentence(tmp_path, content):
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="empty, truncated or not a checkpoint"):
        load_pickle(path)


def test_a_file_truncated_anywhere_is_an_error(tmp_path):
    path = tmp_path / "cut.pkl"
    whole = pickle.dumps({"a": np.ones(100), "b": [1, 2]}, 4)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_pickle(path)


def test_missing_files_and_folders_give_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load_pickle(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot read .*directory"):
        load_pickle(tmp_path)


def test_a_size_that_the_file_makes_up_takes_no_memory(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x05" + pickle.BYTEARRAY8 + (1 << 33).to_bytes(8, "little") + b"few.")
    tracemalloc.start()
    with pytest.raises(UserError, match=f"an array of {1 << 33} bytes is larger than the file"):
        load_pickle(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
