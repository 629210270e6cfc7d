import errno
import os
import stat
from pathlib import Path

import pytest

from ml_phaser.atomic import atomic
from ml_phaser.errors import UserError


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_writes_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "out.map"
    with atomic(target) as tmp:
        assert tmp.parent == tmp_path and tmp.suffix == ".map" and tmp != target
        tmp.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.map"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_interruption_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "out.map"
    target.write_text("old")
    with pytest.raises(error), atomic(target) as tmp:
        tmp.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.map"]


def test_disk_full_is_one_line_for_the_user(tmp_path):
    target = tmp_path / "out.map"
    with pytest.raises(UserError, match="no space left") as caught, atomic(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(target) in str(caught.value) and "disk space" in caught.value.hint
    assert not names(tmp_path)


def test_missing_folder_and_folder_as_file(tmp_path):
    with pytest.raises(UserError, match="no such file or directory"), atomic(tmp_path / "no" / "out.map"):
        pytest.fail("the block must not run")
    with pytest.raises(UserError, match="is a directory"), atomic(tmp_path):
        pytest.fail("the block must not run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"(?i)not a directory"), atomic(tmp_path / "file" / "out.map"):
        pytest.fail("the block must not run")


def test_a_name_too_long(tmp_path):
    with pytest.raises(UserError, match="too long"), atomic(tmp_path / ("a" * 300 + ".map")) as tmp:
        tmp.write_text("x")
    assert not names(tmp_path)


def test_full_device():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(UserError, match="no space left"), atomic("/dev/full") as tmp:
        tmp.write_text("x")
    assert Path("/dev/full").exists()


def test_permissions_follow_the_umask_or_the_old_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic(tmp_path / "new") as tmp:
            tmp.write_text("x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    with atomic(tmp_path / "new") as tmp:
        tmp.write_text("y")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic(tmp_path / "link") as tmp:
        tmp.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
