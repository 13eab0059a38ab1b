"""Truths as they come: caption files, DISC21's CSV, known pairs, and requirements."""

import json
from pathlib import Path

import pytest

from pgimgsearch.errors import RequirementError, SourceError, UsageError
from pgimgsearch.evaluation import captions, disc21, pairs
from pgimgsearch.evaluation import requirements as require
from pgimgsearch.evaluation.path_matching import Names
from pgimgsearch.evaluation.warnings import Warnings

COCO = {
    "images": [{"id": 7, "file_name": "000007.jpg"}, {"id": 9, "file_name": "000009.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A cat. "},
        {"id": 2, "image_id": 7, "caption": "A dog"},
        {"id": 3, "image_id": 9, "caption": "A black cat"},
    ],
}
KARPATHY = {
    "images": [
        {"filename": "000007.jpg", "split": "train", "sentences": [{"raw": "A dog"}]},
        {
            "filename": "000009.jpg",
            "filepath": "val2014",
            "split": "test",
            "sentences": [{"raw": "A cat."}, {"raw": "A black cat"}],
        },
    ]
}
SAME = {("000009.jpg", "A cat."), ("000007.jpg", "A dog"), ("000009.jpg", "A black cat")}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(COCO),
        "000009.jpg#0\tA cat.\n000007.jpg#0\tA dog\n000009.jpg#1\tA black cat\n",
        "image,caption\n000009.jpg,A cat.\n000007.jpg,A dog\n000009.jpg,A black cat\n",
        "image_name| comment_number| comment\n000009.jpg| 0| A cat.\n000007.jpg| 0| A dog\n000009.jpg| 1| A black cat\n",
        "\ufeff\npath,caption,split\n000009.jpg,A cat.,a\n000007.jpg,A dog,b\n000009.jpg,A black cat,a\n",
        '{"path": "000009.jpg", "caption": "A cat."}\n{"path": "000007.jpg", "text": "A dog"}\n{"image": "000009.jpg", "caption": "A black cat"}\n',
        json.dumps([{"image": name, "caption": text} for name, text in sorted(SAME)]),
    ],
    ids=["COCO", "Flickr30k tokens", "Flickr8k CSV", "Flickr30k CSV", "CSV", "JSONL", "JSON array"],
)  # fmt: skip
def test_caption_files_are_read_as_they_come(tmp_path: Path, text: str) -> None:
    file = tmp_path / "captions"
    file.write_text(text)
    assert {(caption.name, caption.text) for caption in captions.read(file, Warnings())} == SAME


def test_splits_of_karpathy_and_of_csv(tmp_path: Path) -> None:
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps(KARPATHY))
    assert captions.find(tmp_path) == file
    assert [caption.name for caption in captions.read(file, Warnings(), "test")] == ["val2014/000009.jpg"] * 2
    with pytest.raises(SourceError, match="no captions of split val") as raised:
        captions.read(file, Warnings(), "val")
    assert "test, train" in str(raised.value.hint)
    (tmp_path / "captions.csv").write_text("path,caption\n")
    with pytest.raises(SourceError, match="several caption files"):
        captions.find(tmp_path)


@pytest.mark.parametrize(
    "text", ["path,colour\na.jpg,red\n", '{"images": [{"id": 1}], "annotations": []}', "caption\nA dog\n", ""]
)
def test_what_holds_no_captions_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "captions.csv"
    file.write_text(text)
    with pytest.raises(SourceError):
        captions.read(file, Warnings())


def test_a_row_without_a_caption_is_named_and_the_others_count(tmp_path: Path) -> None:
    """As in the results.csv of Flickr30k, where one row lacks a separator."""
    file, notes = tmp_path / "results.csv", Warnings()
    file.write_text(
        "image_name| comment_number| comment\n1.jpg| 0| A dog\n2199200615.jpg| 4   A dog runs\n1.jpg| 1| A cat\n"
    )
    assert [caption.text for caption in captions.read(file, notes)] == ["A dog", "A cat"]
    assert notes.told() == ["rows of the captions have no image or no text: 1 (2199200615.jpg)"]


def test_a_truth_has_a_header_or_none(tmp_path: Path) -> None:
    file = tmp_path / "truth.csv"
    expected = [("Q1", "R5"), ("Q2", None), ("Q3", None)]
    for text in (
        "query_id,reference_id\nQ1,R5\nQ2,\nQ3,\n",
        "Q1,R5\nQ2,\n\nQ3\n",
        "\ufeffquery_id, reference_id\nQ1, R5\nQ2,\nQ3,",
    ):
        file.write_text(text)
        assert disc21.read_truth(file) == expected
    file.write_text("score,reference_id,query_id\n0.5,R5,Q1\n0.25,R6,Q1\n")
    assert disc21.read_predictions(file) == [("Q1", "R5", 0.5), ("Q1", "R6", 0.25)]
    for score in ("nan", "inf", ""):
        file.write_text(f"Q1,R5,{score}\n")
        with pytest.raises(SourceError, match="is no prediction"):
            disc21.read_predictions(file)
    file.write_text("query_id,reference_id,score\nQ1,R5,0.5\nQ1,R6,high\n")
    with pytest.raises(SourceError, match="Q1,R6,high is no prediction"):
        disc21.read_predictions(file)


def test_known_pairs_come_as_pairs_or_as_groups(tmp_path: Path) -> None:
    file, notes = tmp_path / "pairs.csv", Warnings()
    file.write_text("path_a,path_b\na.jpg,b.jpg\nc.jpg,c.jpg\n")
    assert pairs.read_pairs(file, notes) == [("a.jpg", "b.jpg")]
    file.write_text("path,group\na.jpg,1\nb.jpg,1\nc.jpg,1\nd.jpg,2\n")
    assert pairs.read_pairs(file, notes) == [("a.jpg", "b.jpg"), ("a.jpg", "c.jpg"), ("b.jpg", "c.jpg")]
    assert notes.told() == ["pairs name an image twice: 1 (c.jpg)", "groups have one image, so no pair: 1 (2)"]
    file.write_text("a.jpg\n")
    with pytest.raises(SourceError, match="without two columns"):
        pairs.read_pairs(file, notes)


def test_names_are_paths_or_file_names_and_never_guessed() -> None:
    names = Names(["/data/q/1.jpg", "/data/r/1.jpg", "/data/r/2.png"])
    assert [names.find(name) for name in ("r/1.jpg", "data/q/1", "/data/q/1.jpg")] == [
        "/data/r/1.jpg",
        *["/data/q/1.jpg"] * 2,
    ]
    twins = Names(["/d/a.jpg", "/d/a.jpg.webp", "/d/b.jpg.webp"])
    assert [twins.find(name) for name in ("a.jpg", "d/a.jpg", "a", "b.jpg")] == [*["/d/a.jpg"] * 3, "/d/b.jpg.webp"]
    assert [names.find("2"), names.find("r/2.png")] == ["/data/r/2.png"] * 2
    assert [names.find(name) for name in ("q/2.png", "/elsewhere/2.png", "3", "ata/q/1.jpg")] == [None] * 4
    with pytest.raises(SourceError, match=r"1.jpg may be /data/q/1.jpg or /data/r/1.jpg"):
        names.find("1.jpg")


def test_requirements_name_figures_and_models() -> None:
    models, figures = ["open_clip:tiny", "pdq"], ["r@1", "micro-ap"]
    all_of_them, one = require.parse(["r@1>=0.6", "open_clip:tiny:micro-ap < 1e-1"], models, figures)
    assert (one.model, one.figure, one.operator, one.value) == ("open_clip:tiny", "micro-ap", "<", 0.1)
    told = {"open_clip:tiny": {"r@1": 0.7, "micro-ap": float("nan")}, "pdq": {"r@1": 0.6, "micro-ap": 0.0}}
    require.check([all_of_them], told)
    with pytest.raises(RequirementError, match=r"open_clip:tiny: micro-ap is nan, not < 0.1"):
        require.check([all_of_them, one], told)
    for text, match in (("r@1", "no requirement"), ("r@1>=much", "no requirement"), ("map>=1", "no figure map"),
                        ("x:r@1>=1", "x is not evaluated")):  # fmt: skip
        with pytest.raises(UsageError, match=match):
            require.parse([text], models, figures)
