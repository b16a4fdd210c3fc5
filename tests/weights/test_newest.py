"""Which best.pkl a command takes that is given none."""

import os

from weights import newest


def test_the_file_written_last_is_found_and_a_link_to_nothing_is_not(tmp_path):
    assert newest.file_called("best.pkl", tmp_path) is None
    for number, name in enumerate(["b", "a", "c"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pkl").write_bytes(b"")
        os.utime(tmp_path / name / "best.pkl", (number, number))
    (tmp_path / "c" / "best.pkl").unlink()
    (tmp_path / "c" / "best.pkl").symlink_to("moved.pkl")
    assert newest.file_called("best.pkl", tmp_path) == tmp_path / "a" / "best.pkl"
