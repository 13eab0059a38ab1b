"""Sources: what is found, left out, or told as a problem."""

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from pgimgsearch.errors import SourceError
from pgimgsearch.sources import folder, sidecar
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.listing import list_source
from pgimgsearch.sources.source import ScannedFile, Source
from pgimgsearch.sources.storable import storable
from tests.support.images import photo


def paths(source: Source) -> list[str]:
    return [file.path for file in source.files(source.root or "")]


def test_a_folder_is_read_in_depth_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b/two.PNG", "one.png", ".hidden/three.png", "b/.four.png", "b/c/five.png"):
        photo(tmp_path / name.replace("PNG", "png")).rename(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = folder_source(tmp_path)
    assert source.count() == 3
    assert paths(source) == ["b/c/five.png", "b/two.PNG", "one.png"]
    assert source.left_out.told() == ["1 files are not images that can be read: 1 others (1 .txt)"]


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        folder_source(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no images"):
        folder_source(tmp_path).count()


def test_links_pipes_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    photo(folder / "real.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    os.rename(folder / "real.png", os.fsencode(folder) + b"/caf\xe9.png")  # noqa: PTH104
    found = {file.path: file.problem for file in folder_source(folder).files(str(folder))}
    assert set(found) == {"caf\\xe9.png", "dangling.png", "pipe.png"}
    assert found["caf\\xe9.png"] is None
    assert isinstance(found["dangling.png"], FileNotFoundError)
    assert "regular" in str(found["pipe.png"])


@pytest.mark.parametrize(
    "text",
    [
        "one.png\nhttps://example.org/two.jpg\n",
        "path,caption\none.png,a cat\nhttps://example.org/two.jpg,\n",
        '{"path": "one.png"}\n\n{"url": "https://example.org/two.jpg"}\n',
        "\ufeffone.png\r\nhttps://example.org/two.jpg\r\n",
        '{"path": "one.png", "caption": "a\u2028b"}\n{"url": "https://example.org/two.jpg"}',
    ],
    ids=["lines", "csv", "jsonl", "lines of another system", "jsonl with a line separator"],
)
def test_lists_in_all_forms(tmp_path: Path, text: str) -> None:
    photo(tmp_path / "one.png")
    (tmp_path / "list.txt").write_text(text)
    source = list_source(str(tmp_path / "list.txt"))
    assert source.count() == 2
    assert paths(source) == [str(tmp_path / "one.png"), "https://example.org/two.jpg"]


def test_columns_of_a_list_become_attributes_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        'url,key,group,caption,metadata,colour\nhttp://x/a.jpg,7,SKU1,red,"{""size"": 4}",blue\n'
    )
    (file,) = list_source(str(tmp_path / "list.csv")).files("")
    assert (file.key, file.group_key, file.caption) == ("7", "SKU1", "red")
    assert file.metadata == {"size": 4, "colour": "blue"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.png"}\n{oops', "line 2"),
        ("path,metadata\na.png,{oops\n", "no JSON"),
        ("caption,path\nx,\n", "neither a path nor a url"),
        ('{"path": "a.png", "metadata": [1]}', "no JSON object"),
        ('{"path": "a.png", "x": Infinity}', "Infinity"),
        ('{"path": "a.png", "x": 1e999}', "x is infinite"),
        ('{"path": "a.png", "caption": "a\\u0000b"}', "NUL"),
        ('{"path": "a.png", "caption": "\\ud800"}', "half a character"),
        ('{"path": "a.png", "group": "' + "g" * 3000 + '"}', "group has 3000 bytes"),
        ('{"path": "' + "a" * 3000 + '"}', "File name too long"),
        ('{"path": "a.png", "key": "' + "k" * 3000 + '"}', "key has 3000 bytes"),
        ('{"path": "a.png", "caption": "' + "c" * 1_100_000 + '"}', "caption has 1100000 bytes"),
        ('{"path": "a.png", "x": ' + "[" * 90 + "]" * 90 + "}", None),
        ('{"path": "a.png", "x": ' + "[" * 110 + "]" * 110 + "}", "x is nested"),
        *[
            (f'{{"path": "a.png", "{column}": {value}}}', "is a list or an object")
            for column in ("path", "key", "caption", "group", "url")
            for value in ('{"a": 1}', '["x", 5]')
        ],
        ('path,caption\n"a.png",b,c', "row 1 has 3 cells, and the header 2"),
    ],
)
def test_rows_that_cannot_be_stored_fail_alone(tmp_path: Path, text: str, message: str | None) -> None:
    """By a key that can be, which is the same the next time; and the others are read."""
    photo(tmp_path / "a.png")
    good = '\n{"path": "b.png"}' if text.startswith("{") else "\n,b.png" if text.startswith("caption") else "\nb.png,"
    (tmp_path / "list.csv").write_text(text.removesuffix("\n") + good)
    source = list_source(str(tmp_path / "list.csv"))
    found = [storable(file) for file in source.files("")]
    problems = [str(file.problem) for file in found if not isinstance(file.problem, FileNotFoundError | type(None))]
    assert len(problems) == (message is not None)
    assert not problems or (message or "") in problems[0]
    assert source.count() == len(found) >= 2
    for file in found:
        assert len(file.key.encode()) <= 2600
        assert file == storable(file) or file.problem is not None
    assert [file.key for file in found] == [storable(file).key for file in source.files("")]


def test_the_text_beside_an_image_is_its_caption_or_told(tmp_path: Path) -> None:
    for name, text in (("a", b" a red door\n"), ("b", b"caf\xe9"), ("c", b"x" * 1_000_001), ("d", b""), ("e", None)):
        photo(tmp_path / f"{name}.png")
        if text is not None:
            (tmp_path / f"{name}.txt").write_bytes(text)
    source = folder_source(tmp_path)
    found = {file.path[0]: storable(file) for file in source.files(str(tmp_path))}
    assert {name: file.caption for name, file in found.items() if file.problem is None} == {
        "a": "a red door", "d": None, "e": None,
    }  # fmt: skip
    assert "cannot be read" in str(found["b"].problem)
    assert "caption has" in str(found["c"].problem)
    assert source.left_out.told() == []


def test_a_text_that_is_a_link_shows_no_file_from_outside(tmp_path: Path) -> None:
    """Links inside of the folder are followed, as some tools store all files behind them."""
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    photos = photo(tmp_path / "p" / "a.png").parent
    photo(photos / "b.png")
    (photos / ".store").mkdir()
    (photos / ".store" / "1").write_text("a blue door")
    (photos / "a.txt").symlink_to(secret)
    (photos / "b.txt").symlink_to(Path(".store") / "1")
    a, b = folder_source(photos).files(str(photos))
    assert a.caption is None
    assert "a link that leads out of the folder" in str(a.problem)
    assert (b.caption, b.problem) == ("a blue door", None)


def test_a_file_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be an image, and what is left out would be pruned."""
    photo(tmp_path / "a.png").rename(tmp_path / "IMG_1")
    for number in range(12):
        (tmp_path / str(number)).write_bytes(b"\0" * number)  # of any length
    assert [file.path for file in folder_source(tmp_path).files(str(tmp_path))] == ["IMG_1"]
    for number in range(12):
        (tmp_path / str(number)).unlink()
    os.mkfifo(tmp_path / "IMG_2")
    monkeypatch.setattr(folder, "open_file", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    assert [file.path for file in folder_source(tmp_path).files(str(tmp_path))] == ["IMG_1"]


def test_two_names_are_never_one_key(tmp_path: Path) -> None:
    """One that is not UTF-8, and one that is called as that is written."""
    photo(tmp_path / "a.png")
    for name in (b"caf\xe9.png", rb"caf\xe9.png"):
        shutil.copy(tmp_path / "a.png", os.fsencode(tmp_path) + b"/" + name)
    files = list(folder_source(tmp_path).files(str(tmp_path)))
    assert len({file.key for file in files}) == 3


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("")
    with pytest.raises(SourceError, match="is empty"):
        list_source(str(tmp_path / "list.csv")).count()


def test_sidecars_join_captions_and_fill_metadata(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("path,caption\na.png,one\na.png,two\na.png,one\n")
    (tmp_path / "about.jsonl").write_text('{"path": "a.png", "group": "G", "price": 3, "caption": "left out"}\n')
    files = iter([ScannedFile("a.png", "a.png"), ScannedFile("b.png", "b.png")])
    captioned = sidecar.with_captions(files, sidecar.Sidecar(tmp_path / "captions.csv"))
    first, second = sidecar.with_metadata(captioned, sidecar.Sidecar(tmp_path / "about.jsonl"))
    assert (first.caption, first.metadata, first.group_key) == ("one\ntwo", {"price": 3}, "G")
    assert (second.caption, second.metadata) == (None, None)


@pytest.mark.parametrize(
    ("files", "ingested", "row", "taken", "told"),
    [
        (["img/1.png", "img/img/1.png"], ["img"], "img/1.png", "img/img/1.png", "1 images have no row"),
        (["img/1.png"], ["img"], "img/1.png", "img/1.png", None),  # with the folder's own name
        (["p/A.png", "p/a.png"], ["p"], "A.png", "p/A.png", None),
        (["p/A.png", "p/a.png"], ["p"], "A.PNG", None, "2 images share a row"),
        (["p/a.png"], ["p"], "A.PNG", "p/a.png", None),
        (["p/straße.png", "p/strasse.png"], ["p"], "straße.png", "p/straße.png", None),
        (["p/strasse.png"], ["p"], "straße.png", "p/strasse.png", None),
        (["a/1.png", "b/1.png"], ["a", "b"], "1.png", None, "2 images share a row"),
        (["a/1.png", "b/1.png"], ["a", "b"], "b/1.png", "b/1.png", "1 images have no row"),
        (["a/1.png", "b/1.png"], ["a", "b"], "{}/a/1.png", "a/1.png", "1 images have no row"),
        (["1.png", "p/1.png"], ["p"], "1.png", "p/1.png", None),  # not what lies outside of what is ingested
        (["p/1.png", "p/q/1.png"], ["p", "p/q"], "q/1.png", "p/q/1.png", "1 images have no row"),
        (["p/a/c.png", "p/a\\c.png"], ["p"], "a\\c.png", "p/a\\c.png", None),
        (["p/a/c.png", "p/a\\c.png"], ["p"], "a/c.png", "p/a/c.png", None),
        (["p/a/c.png"], ["p"], "a\\c.png", "p/a/c.png", None),
        (["p/\u00e9.png", "p/e\u0301.png"], ["p"], "e\u0301.png", "p/e\u0301.png", None),
        (["p/e\u0301.png"], ["p"], "\u00e9.png", "p/e\u0301.png", None),
        (["p/dir/a.png", "p/DIR/a.png"], ["p"], "Dir/a.png", None, "2 images share a row"),
    ],
)
def test_a_row_is_of_one_image(
    tmp_path: Path, files: list[str], ingested: list[str], row: str, taken: str | None, told: str | None
) -> None:
    """That whose name it is; where two have it as much, of none, and that is told."""
    for name in files:
        photo(tmp_path / name)
    (tmp_path / "c.csv").write_text(f"path,caption\n{row.format(tmp_path)},said\nno such.png,x\n")
    captions = sidecar.Sidecar(tmp_path / "c.csv", [str(tmp_path / one) for one in ingested])
    found = {
        file.location: file.caption
        for one in ingested
        for file in sidecar.with_captions(folder_source(tmp_path / one).files(str(tmp_path / one)), captions)
    }
    assert [place for place, caption in found.items() if caption] == ([str(tmp_path / taken)] if taken else [])
    assert told is None or any(said.startswith(told) for said in captions.told()), captions.told()


def test_rows_of_one_name_are_of_one_image_however_it_is_written(tmp_path: Path) -> None:
    photos = photo(tmp_path / "p" / "a.png").parent
    (tmp_path / "c.csv").write_text("path,caption\na.png,one\n./a.png,two\n")
    captions = sidecar.Sidecar(tmp_path / "c.csv", [str(photos)])
    (file,) = sidecar.with_captions(folder_source(photos).files(str(photos)), captions)
    assert file.caption == "one\ntwo"
    assert captions.told() == []


@pytest.mark.parametrize("open_quote", ['b.png,"5 inch', '"b.png,5', 'b.png,"x ""y""'])
def test_a_quote_that_is_not_closed_takes_no_rows_with_it_unsaid(tmp_path: Path, open_quote: str) -> None:
    """The images of the rows that it took are not known to be gone."""
    (tmp_path / "l.csv").write_text(f"path,caption\na.png,one\n{open_quote}\nc.png,three\nd.png,four\n")
    first, second = list_source(str(tmp_path / "l.csv")).files("")
    assert (first.path, first.caption) == (str(tmp_path / "a.png"), "one")
    assert second.unlisted
    assert "a quote is not closed" in str(second.problem)
    (said,) = sidecar.Sidecar(tmp_path / "l.csv").refused()
    assert said.startswith(f"1 rows of {tmp_path / 'l.csv'} are left out: row 2: ")
    assert "a quote is not closed" in said


@pytest.mark.parametrize(
    ("name", "text", "left_out"),
    [
        ("c.csv", "path,caption\na.png,one\n,of nothing\n", "row 2: it has no path"),
        ("c.jsonl", '{"path": "a.png", "caption": "one"}\n{"path": "b.png", "n": -Infinity}\n', "row 2: "),
        ("c.jsonl", '{"path": "a.png", "caption": "one"}\n[1]\n', "line 2 is no JSON object"),
        ("c.jsonl", '{"path": "a.png", "caption": "one"}\n{"path": "b.png", "n": 1e999}\n', "n is infinite"),
        ("c.jsonl", '{"path": "a.png", "caption": "one"}\n{"path": "b.png", "metadata": "{"}\n', "holds no JSON"),
    ],
)
def test_a_bad_row_of_a_sidecar_is_left_out_and_told(tmp_path: Path, name: str, text: str, left_out: str) -> None:
    (tmp_path / name).write_text(text)
    about = sidecar.Sidecar(tmp_path / name)
    (said,) = about.refused()
    assert left_out in said
    (file,) = sidecar.with_captions([ScannedFile("a.png", "a.png")], about)
    assert file.caption == "one"


def test_rows_that_say_the_same_in_another_order_are_no_trouble(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "l.jsonl").write_text('{"path": "a.png", "a": 1, "b": 2}\n{"path": "a.png", "b": 2, "a": 1}\n')
    assert [file.problem for file in list_source(str(tmp_path / "l.jsonl")).files("")] == [None, None]


def test_captions_of_several_rows_are_those_of_one_image(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    (tmp_path / "l.csv").write_text(
        "path,caption,n\na.png,one,1\nb.png,two,1\na.png,three,1\na.png,one,1\na.png,four,2\n"
    )
    source = list_source(str(tmp_path / "l.csv"))
    files = list(source.files(""))
    assert [file.caption for file in files] == ["one\nthree", "two", None]
    assert "something else" in str(files[2].problem)
    assert source.count() == 3


def test_of_rows_of_one_image_the_first_counts_and_others_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / name)
    (tmp_path / "l.csv").write_text(
        "key,path,price\nA,a.png,1\nB,b.png,2\nA,a.png,1\nA,c.png,1\nB,b.png,3\nC,b.png,2\n"
    )
    files = list(list_source(str(tmp_path / "l.csv")).files(""))
    assert [file.key for file in files] == ["A", "B", "A", "row 4", "row 5", "C"]
    assert [str(file.problem) for file in files if file.problem] == [
        f"it says something else of {key} than an earlier row" for key in "AB"
    ]


@pytest.mark.parametrize("text", ["path,caption\n", "name,caption\na.png,one\n", "", '{"caption": "one"}\n'])
def test_a_sidecar_without_a_row_that_can_be_used_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(SourceError, match="can be used"):
        sidecar.Sidecar(tmp_path / "c.csv")


def test_of_several_rows_the_last_counts_and_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,price\na.png,1\nb.png,2\na.png,3\n")
    about = sidecar.Sidecar(tmp_path / "m.csv")
    found = list(sidecar.with_metadata([ScannedFile(name, name) for name in ("a.png", "b.png")], about))
    assert [file.metadata for file in found] == [{"price": "3"}, {"price": "2"}]
    assert about.told() == [f"1 images have several rows in {tmp_path / 'm.csv'}, of which the last counts: a.png"]


def test_rows_and_texts_as_other_systems_write_them(tmp_path: Path) -> None:
    """Lines that end in CR alone, a mark in front of a text, endings in any case, and names without one."""
    (tmp_path / "mac.csv").write_bytes(b"path,caption\rx.png,one\ry.png,two\r")
    assert [file.caption for file in list_source(str(tmp_path / "mac.csv")).files("")] == ["one", "two"]
    photos = tmp_path / "p"
    for name, text in (("A.jPg", "A.txt"), ("solo", "solo.txt"), ("photo.1", "photo.1.txt"), ("photo.2019", None)):
        photo(photos / "made.png").rename(photos / name)
        if text is not None:
            (photos / text).write_bytes(b"\xef\xbb\xbfof " + name.encode())
    (photos / "photo.txt").write_text("of no image")
    found = {file.path: file.caption for file in folder_source(photos).files(str(photos))}
    assert found == {"A.jPg": "of A.jPg", "photo.1": "of photo.1", "photo.2019": None, "solo": "of solo"}


@pytest.mark.parametrize("first", ["sep=", "sep=;", 'sep="', "sep=,", "sep=\t"])
@pytest.mark.parametrize("header", [True, False])
def test_the_first_line_of_excel_names_the_separator(tmp_path: Path, first: str, header: bool) -> None:
    separator = first[4:] if first[4:] not in ("", '"') else ","
    (tmp_path / "l.csv").write_text(f"{first}\n" + (f"path{separator}caption\nx.png{separator}one\n" if header else ""))
    files = list(list_source(str(tmp_path / "l.csv")).files(""))
    assert [file.caption for file in files] == (["one"] if header else [])


def test_groups_by_folder_key_and_pattern() -> None:
    file = ScannedFile("shoes/123_4.jpg", "x", metadata={"brand": "acme"})
    assert [next(sidecar.with_groups([file], by)).group_key for by in ("folder", "brand", r"(\d+)_\d", "colour")] == [
        "shoes", "acme", "123", None,
    ]  # fmt: skip
    with pytest.raises(SourceError, match="no pattern"):
        list(sidecar.with_groups([file], "(["))
