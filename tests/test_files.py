"""Guards paths that users name: they are checked before work, and shown as a terminal can."""

import os
import stat

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.files import atomic_write, home_expanded, printable, require_writable_file
from m3ae_tpu.run.workdir import result_file, saved_steps


@pytest.fixture
def read_only(tmp_path):
    """A folder in which even root may write nothing without force."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    yield folder
    folder.chmod(stat.S_IRWXU)


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    path = tmp_path / "x"
    require_writable_file("--x", path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    require_writable_file("--x", path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"--x = .* is a folder\. Name a file in it\."),
        ("no/x", r"--x = .* is in a folder that does not exist\. Make .*/no, or name another"),
        ("file/x", r"--x = .* is in a folder that does not exist\."),
        ("x" * 250, r"--x = .* cannot be written \(File name too long\)\. Name a file in a"),
        ("x" * 300, r"--x = .* cannot be written \(File name too long\)\. Name a file in a"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        require_writable_file("--x", tmp_path / name)


def test_a_read_only_folder_is_refused(read_only):
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        require_writable_file("--x", read_only / "x")
    with pytest.raises(UserError, match=r"WORKDIR = .* \(Permission denied\).* --output=FOLDER"):
        result_file(read_only, None, "report.html")


def test_findings_lie_in_the_workdir_or_in_the_folder_that_is_named(tmp_path):
    assert result_file(tmp_path, None, "x") == tmp_path / "x"
    assert result_file(tmp_path, tmp_path / "a/b", "x") == tmp_path / "a/b/x"
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output = .*/file cannot be made \(File exists"):
        result_file(tmp_path, tmp_path / "file", "x")
    with pytest.raises(UserError, match=r"WORKDIR = .*/none is not a folder"):
        result_file(tmp_path / "none", None, "x")


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_an_empty_one(tmp_path):
    assert saved_steps(tmp_path) == []
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3").mkdir()
    (tmp_path / "checkpoints" / "4.tmp").mkdir()
    assert saved_steps(tmp_path) == [3, 12]
    (tmp_path / "file" / "checkpoints").parent.mkdir()
    (tmp_path / "file" / "checkpoints").touch()
    with pytest.raises(NotADirectoryError):
        saved_steps(tmp_path / "file")


def test_a_tilde_is_the_home_folder_if_there_is_one(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert home_expanded("~/x") == "/somewhere/x"
    assert home_expanded("a/~") == "a/~"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # As for a user without one.
    assert home_expanded("./~/x") == "./~/x"
    for path in ("~", "~/x"):
        with pytest.raises(UserError, match=rf"^{path} is in the home folder, but this user has"):
            home_expanded(path)


def test_names_are_shown_with_escapes_for_what_no_terminal_shows():
    assert printable("é 猫 a b") == "é 猫 a b"
    assert printable(os.fsdecode(b"caf\xe9\n\x1b[2J")) == "caf\\udce9\\n\\x1b[2J"


def test_text_with_a_name_that_is_not_utf_8_is_written_with_escapes(tmp_path):
    atomic_write(tmp_path / "page.html", f"a {os.fsdecode(b'\xff.png')} é")
    assert (tmp_path / "page.html").read_text() == "a \\udcff.png é"
