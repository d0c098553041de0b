from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from recipes import gcide, manuals, stdlib_texts, wiki
from recipes.corpora import Corpus, all_corpora
from recipes.document import Document
from recipes.packages import NpmPackage
from tests.unit.recipes.packages import deb, npm_package, wheel

GCIDE = r"""

00-database-info
   This file was converted.

Dichotomize \Di*chot"o*mize\, v. t. [imp. & p. p.
   {Dichotomized}; [Gr. dicha] in two.]
   1. To cut into two parts; to bisect. [R.]
      [1913 Webster]

            The apostolical benediction
            dichotomizes all.          --Bp. Hall.

Leaf (l[=e]f), n.; pl. {Leaves} (l[=e]vz). [OE. leef]
   (Bot.) A colored, usually green, expansion. In caf['e]s.
   [1913 Webster]

Linked, a.
   See <a href="http://example.com">this</a> for more of it.
"""


def test_articles_without_text_are_left_out(tmp_path: Path) -> None:
    article = {"title": "Leeds", "extract": "Leeds is a city.", "description": None, "topic": "Geography"}
    empty = {"title": "Nothing", "extract": " ", "description": "d", "topic": ""}
    assert wiki.read_articles(wheel(tmp_path, {"Leeds": article, "Nothing": empty})) == [
        wiki.Article("Leeds", "Leeds is a city.", "", "Geography")
    ]


@pytest.mark.parametrize(
    ("extract", "text"),
    [
        ("Sulla ( ; ), was a general.", "Sulla, was a general."),
        ("It has mounts.These are heavy.", "It has mounts. These are heavy."),
        ("Kyoto\u2060 or  Kyōto , a city.", "Kyoto or Kyōto, a city."),
        ("The U.S. and 3.5 km stay.", "The U.S. and 3.5 km stay."),
    ],
)
def test_remains_of_markup_are_cleaned_from_articles(extract: str, text: str) -> None:
    assert wiki.clean(extract) == text


def test_dictionary_entries_lose_sounds_origins_and_sources() -> None:
    assert list(gcide.entries(GCIDE)) == [
        "Dichotomize, v. t. 1. To cut into two parts; to bisect.\n"
        "The apostolical benediction dichotomizes all. --Bp. Hall.",
        "Leaf, n.; pl. Leaves. (Bot.) A colored, usually green, expansion. In cafes.",
    ]


def test_the_dictionary_is_read_from_its_package(tmp_path: Path) -> None:
    package = deb(tmp_path, {"usr/share/dictd/gcide.dict.dz": gzip.compress(GCIDE.encode() + b"\x92")})
    assert len(list(gcide.read_entries(package))) == 2


def test_pods_lose_their_formatting_and_their_code() -> None:
    pod = (
        "=head1 The C<print> function\nX<print>\n\n"
        "See L<the manual|perlop/Precedence> or L<perlre>, B<and I<more>>: C<< $a < $b >> E<gt> 1.\n\n"
        "    code();\n\n=over 4\n\n=item *\n\nLast\nline.\n\n=cut\n"
    )
    assert manuals.pod_prose(pod) == (
        "The print function\n\nSee the manual or perlre, and more: $a < $b > 1.\n\nLast line."
    )


def test_only_english_prose_is_read_of_perls_manual(tmp_path: Path) -> None:
    pods = {name: f"{name}.\n".encode() for name in ("perlop", "perltoc", "perljp")}
    package = deb(tmp_path, {f"usr/share/perl/5.36.0/pod/{name}.pod": text for name, text in pods.items()})
    assert list(manuals.read_pods(package)) == ["perlop."]


def test_the_references_tables_and_lists_are_left_out(tmp_path: Path) -> None:
    prose = "This is a sentence that is\nlong enough to be taken for prose of the reference."
    text = f"9.1. List of tools\n9.2. List of files\n\n{prose}\n\n    |gzip foo   |compress|\n\n$ ls\n"
    file = "usr/share/debian-reference/debian-reference.en.txt.gz"
    assert manuals.read_reference(deb(tmp_path, {file: gzip.compress(text.encode())})) == prose.replace(
        "\n", " "
    )


def test_works_are_read_from_the_files_that_have_a_text(tmp_path: Path) -> None:
    files = {
        "data/1790.json": '{"year": 1790, "text": "Fellow  citizens:\\n\\n\\nI am\\nglad."}',
        "data/contents.json": '["a"]',
        "data/data.js": "'use strict';",
        "lib/other.json": '{"text": "no data"}',
    }
    assert list(stdlib_texts.read_texts(npm_package(tmp_path, files))) == ["Fellow citizens:\n\nI am glad."]


def test_a_corpus_cuts_its_texts_into_documents(tmp_path: Path) -> None:
    (tmp_path / "some-1.0.0.tgz").touch()
    long = "\n\n".join(["x" * 3000, "y" * 3000])
    corpus = Corpus("some", NpmPackage("some", "1.0.0"), lambda file: ["short", long])
    assert list(corpus.documents(tmp_path)) == [
        Document(text, "some") for text in ("short", "x" * 3000, "y" * 3000)
    ]


def test_every_corpus_is_in_the_list_of_licences() -> None:
    readme = (Path(__file__).parents[3] / "recipes" / "README.md").read_text(encoding="utf-8")
    assert [corpus.name for corpus in all_corpora() if f"| {corpus.name} |" not in readme] == []
