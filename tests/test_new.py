"""mfkit new: what it refuses. That its script runs is shown by recipes/smoke.sh."""

from pathlib import Path

from conftest import failed


def test_what_no_project_is_begun_for(mfkit, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.sh").write_text("mine")
    failed(mfkit("new there digits"), 4, "there/run.sh exists")
    failed(mfkit("new project nowhere"), 3, "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    failed(mfkit("new project empty"), 3, "empty holds no images")
    assert (tmp_path / "there" / "run.sh").read_text() == "mine" and not (tmp_path / "project").exists()
