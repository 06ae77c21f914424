"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

import tlsc
from tlsc._files import replacing, replacing_open


@pytest.mark.skipif(os.name == "nt", reason="no such permissions on this system")
def test_a_new_file_has_the_usual_permissions_and_the_umask_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for a moment: another thread's files would get wrong permissions."""
    (tmp_path / "usual").touch()
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the whole process's"))
    with replacing(tmp_path / "new") as new:
        new.write_text("whole")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_file_that_fails_is_not_there_and_one_before_it_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")

    def stopped() -> None:
        with replacing(tmp_path / "a.txt") as new:
            new.write_text("half")
            raise SystemExit

    with pytest.raises(SystemExit):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"
    with pytest.raises(FileNotFoundError, match=r"none.b\.txt"), replacing(tmp_path / "none" / "b.txt"):
        pass


def test_an_error_names_the_file_and_where_there_is_no_room_the_way_out(tmp_path: Path) -> None:
    def failing(number: int, name: str | None) -> None:
        with replacing(tmp_path / "a.txt") as new:
            new.write_text("half")
            raise OSError(number, os.strerror(number), str(new) if name == "new" else name)

    for name in (None, "new"):
        with pytest.raises(OSError, match=r"make room, or write elsewhere.*a\.txt") as found:
            failing(errno.ENOSPC, name)
        assert found.value.filename == str(tmp_path / "a.txt")
    with pytest.raises(PermissionError, match=r"other\.txt"):
        failing(errno.EACCES, "other.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [False, True])
def test_an_open_file_is_whole_or_not_there(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has files without names nothing is there before the end; else a name with a dot."""
    path = tmp_path / "a.txt"
    path.write_text("before")
    (tmp_path / "usual").touch()
    nameless = hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")
    if named:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)

    def written(text: str, stop: bool) -> None:
        with replacing_open(path) as file:
            file.write(text.encode())
            file.flush()
            there = [one.name for one in tmp_path.iterdir() if one.name not in ("a.txt", "usual")]
            assert len(there) == (1 if named or not nameless else 0)
            assert all(name.startswith(".a-") for name in there)
            if stop:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"make room, or write elsewhere.*a\.txt"):
        written("half", True)
    assert path.read_text() == "before"
    written("whole", False)
    assert path.read_text() == "whole"
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {one.name for one in tmp_path.iterdir()} == {"a.txt", "usual"}
    with pytest.raises(FileNotFoundError, match=r"none.b\.txt"), replacing_open(tmp_path / "none" / "b.txt"):
        pass


@pytest.mark.parametrize("name", ["stride", "eps", "window", "num_groups"])
def test_an_error_does_not_print_a_tensor(name: str) -> None:
    """It says the shape; a long value of another type is cut."""
    x = torch.rand(1, 4, 8, 8)
    call = {"stride": tlsc.functional.local_mean, "num_groups": tlsc.functional.local_group_norm}.get(
        name, tlsc.functional.local_instance_norm
    )
    given = {"num_groups": 2} if name == "num_groups" else {}
    with pytest.raises(TypeError, match=r"got a tensor of shape \(500,\), torch.float32$"):
        call(x, **{"window": 3, **given, name: torch.rand(500)})
    with pytest.raises(TypeError) as said:
        call(x, **{"window": 3, **given, name: "long " * 500})
    assert len(str(said.value)) < 200
