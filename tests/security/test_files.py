"""What is in files: checkpoints, exports, images and the trash are data, and none of them runs or moves anything else."""

import ast
import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError
from pyarrow import parquet

import pgimgsearch
from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates import trash
from pgimgsearch.duplicates.plan import Move, read_plan
from pgimgsearch.errors import ModelError, SourceError
from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.load import load
from pgimgsearch.models.onnx_external_data import external_data
from pgimgsearch.operations.export_import import export, import_files
from pgimgsearch.operations.exported_model import KEY
from pgimgsearch.reports.thumbnail import data_url
from pgimgsearch.sources import parquet as tables
from pgimgsearch.sources import webdataset
from pgimgsearch.sources.decode import (
    FORMATS,
    DecodingCost,
    decode,
    decode_pixels,
    decode_small,
    decoding_cost,
    eight_bits,
)
from pgimgsearch.sources.limits import TooManyPixels
from pgimgsearch.sources.parquet import rows
from pgimgsearch.sources.parse import parse_sources
from tests.models.test_exports import tiny_open_clip
from tests.support.images import photo

PACKAGE = Path(pgimgsearch.__file__).parent
HOSTILE = "import pathlib; pathlib.Path('{}').write_text('ran')\nclass T:\n  from_pretrained = lambda *a, **k: None\n"


@pytest.mark.parametrize("options", [
    {"trust_remote_code": True}, {"tokenizer_type": "x"}, {"clean": "lower", "code_revision": "main"}, {"bpe_path": "/etc/passwd"},
])  # fmt: skip
def test_a_checkpoint_folder_runs_no_code_of_its_own(tmp_path: Path, options: dict[str, Any]) -> None:
    """The options of a tokenizer that a folder gives, with Python beside them that would prove itself."""
    folder = Path(tiny_open_clip(tmp_path, "vit").partition(":")[2])
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(HOSTILE.format(ran))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "me/evil", "tokenizer_kwargs": options}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="tokenizer options that are not allowed"):
        load(lookup.resolve(f"open_clip:{folder}"), Placement("cpu", "fp32", "torch"))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(lookup.resolve(f"open_clip:{folder}"), Placement("cpu", "fp32", "torch"))
    assert not ran.exists()


def test_remote_code_is_never_trusted() -> None:
    """Whoever calls from_pretrained says so, in each module."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                said = {one.arg: getattr(one.value, "value", None) for one in node.keywords}
                assert said.get("trust_remote_code") is False, f"{path.name}, line {node.lineno}"


@pytest.mark.parametrize("change", [
    {"weights": "/etc/passwd"}, {"backend": "nonsense"}, {"checkpoint": "https://example.com/x.pt"}, {"checkpoint": "/etc/passwd"},
    {"checkpoint": "../x"}, {"checkpoint": "local-dir:/tmp/x"}, {"trust": True}, {"embeddings": "pg_class"}, {"model_id": 1},
])  # fmt: skip
def test_an_export_names_no_place_to_load_from(
    url: str, ingest: Callable[..., Any], photos: Path, tmp_path: Path, connection: Connection, change: dict[str, Any]
) -> None:
    ingest(photos, "palette")
    export(url, "palette", str(tmp_path / "x.parquet"), None)
    table = parquet.read_table(tmp_path / "x.parquet")
    described = json.loads(table.schema.metadata[KEY])
    described["model"] |= {"name": "another"} | change
    parquet.write_table(table.replace_schema_metadata({KEY: json.dumps(described)}), tmp_path / "y.parquet")
    if change.keys() & {"backend", "checkpoint"}:
        with pytest.raises(SourceError, match="names a checkpoint that is not loaded"):
            import_files(url, [str(tmp_path / "y.parquet")])
    else:
        import_files(url, [str(tmp_path / "y.parquet")])
        row = connection.execute(
            "select weights, embeddings::text from imgsearch.model where name = 'another'"
        ).fetchone()
        assert row == (None, "imgsearch.embedding_another_32")


@pytest.mark.parametrize("wanted", [
    None, [], {}, {"method": "hnsw"}, {"method": "drop", "m": 16, "ef_construction": 64},
    {"method": "hnsw", "m": 1000, "ef_construction": 64}, {"method": "hnsw", "m": "x", "ef_construction": [64]},
])  # fmt: skip
def test_an_export_asks_for_no_index_that_cannot_be_built(
    url: str, ingest: Callable[..., Any], photos: Path, tmp_path: Path, connection: Connection, wanted: Any
) -> None:
    ingest(photos, "palette")
    export(url, "palette", str(tmp_path / "x.parquet"), None)
    table = parquet.read_table(tmp_path / "x.parquet")
    described = json.loads(table.schema.metadata[KEY])
    described["model"] |= {"name": "another", "index_spec": wanted}
    parquet.write_table(table.replace_schema_metadata({KEY: json.dumps(described)}), tmp_path / "y.parquet")
    with pytest.raises(SourceError, match="does not describe its model"):
        import_files(url, [str(tmp_path / "y.parquet")])
    assert connection.execute("select name from imgsearch.model").fetchall() == [("palette",)]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from([*get_type_hints(Move), "other"]), st.none() | st.integers() | st.text() |
                       st.lists(st.integers(), max_size=2)))  # fmt: skip
def test_a_line_of_a_plan_has_every_field_of_its_type(tmp_path_factory: Any, fields: dict[str, Any]) -> None:
    sound = {"image_id": 1, "location": "/a.jpg", "sha256": "00", "bytes": 1, "kind": "identical", "keeper_id": 2,
             "keeper": "/b.jpg", "keeper_sha256": "00"}  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "plan.jsonl"
    path.write_text(json.dumps(sound | fields) + "\n")
    try:
        (move,) = read_plan(path)
    except SourceError:
        return
    assert all(type(getattr(move, name)) is type(value) for name, value in sound.items())


def test_images_are_opened_in_one_module() -> None:
    opening = re.compile(r"\bImage\.open\(|from PIL\.Image import .*\bopen\b|PIL\.Image\.open")
    assert {path.name for path in PACKAGE.rglob("*.py") if opening.search(path.read_text())} == {"decode.py"}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/ran) (w) file closefile\nshowpage\n%%EOF\n"
WMF = b"\xd7\xcd\xc6\x9a\0\0" + b"\0\0\0\0\x0a\0\x0a\0\x60\0" + b"\0" * 40
IPTC = b"\x1c\x03\x0a\x00\x02\x01\x00" + b"\x1c\x03\x14\x00\x01\x0a" + b"\x1c\x08\x0a\x00\x10" + EPS[:16]


@pytest.mark.parametrize("data", [EPS, WMF, IPTC], ids=["eps", "wmf", "iptc"])
def test_no_format_that_runs_a_program_is_opened(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name of a JPEG, in each of the ways in; a page shows grey."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    for reading in (decode, lambda one: decode_small(one, 32)):
        with pytest.raises(UnidentifiedImageError):
            reading(data)
    (tmp_path / "a.jpg").write_bytes(data)
    grey = io.BytesIO()
    Image.new("RGB", (32, 32), "lightgrey").save(grey, "JPEG", quality=80)
    assert len(data_url(tmp_path / "a.jpg", 32)) < 2 * len(grey.getvalue()) + 64


def test_formats_that_are_decoded_are_listed() -> None:
    """All that Pillow knows beside them is refused, whatever a plugin adds later."""
    assert not {"EPS", "WMF", "IPTC", "FPX", "MIC", "PCD", "HDF5", "GRIB", "BUFR", "MPEG", "PDF"} & set(FORMATS)


def model_with(folder: Path, name: str, *, nested: bool = False) -> Path:
    """A small model whose weights lie in a file of any name; ``nested`` in a graph of an If."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(3 * 4, dtype=np.float32).reshape(3, 4), "weights")
    product = helper.make_node("MatMul", ["flat", "weights"], ["embedding"])
    flat = (
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
    )
    image = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 4])
    if nested:
        yes = numpy_helper.from_array(np.array(True), "yes")
        branch = helper.make_graph([product], "branch", [], [out], [weights])
        same = helper.make_graph([helper.make_node("MatMul", ["flat", "weights2"], ["embedding"])], "other", [], [out],
                                 [numpy_helper.from_array(numpy_helper.to_array(weights), "weights2")])  # fmt: skip
        nodes = [*flat, helper.make_node("If", ["yes"], ["embedding"], then_branch=branch, else_branch=same)]
        graph = helper.make_graph(nodes, "g", [image], [out], [yes])
    else:
        graph = helper.make_graph([*flat, product], "g", [image], [out], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(made, str(folder / "model.onnx"), save_as_external_data=True, location=name, size_threshold=0)
    return folder / "model.onnx"


def describe(folder: Path) -> None:
    """How images are prepared for it."""
    how = {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2, "do_normalize": True, "do_rescale": True,
           "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(how))


@pytest.mark.parametrize("name", ["model.onnx_data", "weights.bin", "anything", "sub/weights.bin"])
def test_the_fingerprint_covers_every_file_of_an_export(tmp_path: Path, name: str) -> None:
    for place in ("m", "nested"):
        (tmp_path / place / "sub").mkdir(parents=True)
    nested = model_with(tmp_path / "nested", name, nested=True)  # which ONNX Runtime 1.31 does not load
    assert external_data(nested) == [nested.parent / name]
    path = model_with(tmp_path / "m", name)
    assert external_data(path) == [path.parent / name]
    describe(path.parent)
    before = load(lookup.resolve(f"onnx:{path.parent}"), Placement("cpu"))
    data = bytearray((path.parent / name).read_bytes())
    data[1] ^= 1
    (path.parent / name).write_bytes(data)
    after = load(lookup.resolve(f"onnx:{path.parent}"), Placement("cpu"))
    assert before.fingerprint("vector") != after.fingerprint("vector")


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_an_export_reads_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    import onnx

    (tmp_path / "m" / "sub").mkdir(parents=True)
    path = model_with(tmp_path / "m", "weights.bin")
    shutil.copy(path.parent / "weights.bin", tmp_path / "secret.bin")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = name
    path.write_bytes(model.SerializeToString())
    describe(path.parent)
    with pytest.raises(ModelError, match="outside of its folder"):
        load(lookup.resolve(f"onnx:{path}"), Placement("cpu"))


def test_what_is_no_onnx_is_said_to_be_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 10, 1000):
        for _ in range(50):
            (tmp_path / "x.onnx").write_bytes(rng.bytes(size))
            try:
                assert external_data(tmp_path / "x.onnx") == []
            except ModelError:
                continue


def test_fields_that_another_reader_would_see_are_refused(tmp_path: Path) -> None:
    """A number beyond 32 bits is cut by protobuf, which so finds a field where ours saw none."""
    path = model_with(tmp_path, "weights.bin")
    data = path.read_bytes()
    place = data.rindex(bytes([7 << 3 | 2]) + b"", 0, data.index(b"GlobalAveragePool"))
    assert external_data(path)
    wide = (7 << 3 | 2) | 1 << 35  # the graph, but for a bit that readers drop
    coded = bytes([wide >> 7 * part & 127 | 128 for part in range(5)]) + bytes([wide >> 35])
    path.write_bytes(data[:place] + coded + data[place + 1 :])
    with pytest.raises(ModelError, match="is no ONNX model"):
        external_data(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                                  tarfile.GNUTYPE_LONGLINK])  # fmt: skip
def test_a_tar_is_not_held_in_memory(tmp_path: Path, kind: bytes) -> None:
    """What precedes a member may say to have any size, and zeros pack well."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 64 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(tarfile.ReadError, match="is the limit"):
            list(webdataset.samples(str(tmp_path / "a.tar.gz")))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["old", "0.0", "0.1", "1.0"])
def test_sparse_files_of_a_tar_are_refused(tmp_path: Path, form: str) -> None:
    """Their maps say what holes there are, in any number."""
    member = tarfile.TarInfo("x.png")
    if form == "old":
        member.type = tarfile.GNUTYPE_SPARSE
    else:
        major, _, minor = form.partition(".")
        member.pax_headers = {"GNU.sparse.major": major, "GNU.sparse.minor": minor, "GNU.sparse.realsize": "1",
                              "GNU.sparse.size": "1", "GNU.sparse.map": "0,1", "GNU.sparse.name": "y.png"}  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    with pytest.raises(tarfile.ReadError, match="sparse"):
        list(webdataset.samples(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("packer", [gzip.open, bz2.open, lzma.open, open])
def test_a_packed_tar_is_what_a_plain_one_is(tmp_path: Path, packer: Any) -> None:
    photo(tmp_path / "a.png", 5)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    with packer(tmp_path / "a.tar", "wb") as file:
        file.write(plain.getvalue())
    ((found, _),) = webdataset.samples(str(tmp_path / "a.tar"))
    assert found.data == (tmp_path / "a.png").read_bytes()


def exif(kind: int, count: int) -> bytes:
    """An orientation of so many values."""
    entry = struct.pack(">HHII", 0x0112, kind, count, 26) if count > 2 else struct.pack(">HHIHH", 0x0112, kind, 1, 6, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4) + bytes(8 * count if count > 2 else 0)


def test_an_orientation_of_many_values_is_none() -> None:
    """Sixty million rationals took a decoder 1.6 GB and 18 s; and one value turns the image."""
    image, out = Image.new("RGB", (3, 2)), io.BytesIO()
    image.save(out, "PNG", exif=exif(3, 1)[6:])
    assert decode_pixels(out.getvalue()).size == (2, 3)
    for kind in (3, 5, 6):
        out = io.BytesIO()
        image.save(out, "PNG", exif=exif(kind, 200_000)[6:])
        tracemalloc.start()
        try:
            assert decode_pixels(out.getvalue()).size == (3, 2)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_a_tiff_of_many_strips_is_not_decoded() -> None:
    rows = 200_000
    offsets = struct.pack(f"<{rows}I", *range(rows))
    tags = [(256, 4, 1, 1), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, rows, 200),
            (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, rows, 200)]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    data = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + offsets
    for read in (decode_pixels, decode):
        with pytest.raises(TooManyPixels, match="200000 values"):
            read(data)
    assert decoding_cost(data) == DecodingCost()


@pytest.mark.parametrize("low_high", [(0.0, 1.0), (0.0, 200.0), (0.0, 60000.0), (-5.0, 90000.0)])
def test_strips_of_values_are_scaled_as_the_whole(low_high: tuple[float, float]) -> None:
    """Of floating point by the range that all but a thousandth at each end use, or from 0 to 1."""
    low, high = low_high
    values = np.linspace(low, high, 1500 * 1100, dtype=np.float32).reshape(1500, 1100)
    spread = (high - low) / 1000
    bottom, top = (0.0, 1.0) if high == 1 else (low + spread, high - spread)
    expected = np.clip((values.astype(np.float64) - bottom) / (top - bottom) * 255, 0, 255)
    assert np.abs(np.asarray(eight_bits(Image.fromarray(values)), np.float64) - expected).max() < 0.51


def repeated(count: int, value: bytes) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], pa.binary()))


@pytest.mark.parametrize("layout", ["flat", "struct", "text"])
def test_a_value_in_many_rows_is_held_once(tmp_path: Path, layout: str) -> None:
    """A file of 2 KB says 64 times the same 50 MB."""
    many = repeated(64, bytes(50 << 20))
    columns: dict[str, Any] = {"image": many}
    if layout == "struct":
        columns = {"image": pa.StructArray.from_arrays([many, pa.array(["a.png"] * 64)], ["bytes", "path"])}
    if layout == "text":
        columns = {"image": repeated(64, b"x"), "caption": many.cast(pa.dictionary(pa.int32(), pa.string()))}
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(columns), path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 5000
    before = pa.default_memory_pool().max_memory()
    assert sum(1 for _ in rows(str(path))) == 64
    assert pa.default_memory_pool().max_memory() - before < 800 << 20


def test_a_column_that_unpacks_too_far_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGE", 1 << 20)
    path = tmp_path / "a.parquet"
    column = pa.array([bytes(4 << 20)])
    for kept in (["image"], []):
        parquet.write_table(pa.table({"image": column}), path, compression="gzip", use_dictionary=kept)
        with pytest.raises(ValueError, match="unpacks from"):
            list(rows(str(path)))
        with pytest.raises(SourceError, match="unpacks from"):
            import_files("", [str(path)])


def test_lists_of_millions_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one value in one row: the file has some hundred bytes."""
    monkeypatch.setattr(tables, "MOST_LIST_VALUES", 1000)
    table = pa.table({"image": pa.array([b"x"]), "many": pa.array([[0] * 2000])})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="lists of 2000 values"):
        list(rows(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("kind", ["list", "map", "struct of lists"])
def test_repeated_values_of_any_kind_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(tables, "MOST_LIST_VALUES", 1000)
    numbers = pa.array(np.zeros(2000, np.int8))
    lists = pa.ListArray.from_arrays(pa.array([0, 2000], pa.int32()), numbers)
    column = {
        "list": lists,
        "map": pa.MapArray.from_arrays(pa.array([0, 2000], pa.int32()), numbers, numbers),
        "struct of lists": pa.StructArray.from_arrays([lists], ["inner"]),
    }[kind]
    parquet.write_table(pa.table({"image": [b"x"], "m": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="lists of 2000 values"):
        list(rows(str(tmp_path / "a.parquet")))


def test_rows_and_members_without_a_byte_end_their_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred bytes may name millions of them, each of which would be a failure that is stored."""
    monkeypatch.setattr(tables, "MOST_EMPTY", 50)
    monkeypatch.setattr(webdataset, "MOST_EMPTY", 50)
    parquet.write_table(pa.table({"image": pa.array([b"x"] + [None] * 200, pa.binary())}), tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(200):
            tar.addfile(tarfile.TarInfo(f"{number}.png"))
    for name, read in (("a.parquet", rows), ("a.tar", webdataset.samples)):
        found = []
        with pytest.raises((ValueError, tarfile.ReadError), match="more than 50"):
            for file, _ in read(str(tmp_path / name)):
                found.append(file.path)
        assert len(found) >= (50 if name == "a.parquet" else 0)


@pytest.mark.parametrize("size", ["-1536", "9223372036854775807", "1" + "0" * 30])
def test_a_member_has_a_size_that_can_be(tmp_path: Path, size: str) -> None:
    """Attributes before a member say any, and skipping it went on for ever, or backwards."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(photo(tmp_path / "a.png"), "a.png")
        member = tarfile.TarInfo("b.bin")
        member.pax_headers = {"size": size}
        tar.addfile(member)
    found = []
    with pytest.raises(tarfile.ReadError, match="a member says to have"):
        for file, _ in webdataset.samples(str(tmp_path / "a.tar")):
            found.append(file.path)
    assert found == ["a.png"]
    with pytest.raises(tarfile.ReadError, match="a member says to have"):
        webdataset.read_member(str(tmp_path / "a.tar" / "a.png"), 9999)


def test_names_of_members_are_short(tmp_path: Path) -> None:
    """Empty texts of long names were held until the end, gigabytes of a few packed ones."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(3):
            tar.addfile(tarfile.TarInfo(f"{number}{'n' * 100_000}.txt"))
        tar.add(photo(tmp_path / "a.png"), "a.png")
    found = [file for file, _ in webdataset.samples(str(tmp_path / "a.tar"))]
    assert ["a name of 100005 characters" in str(file.problem) for file in found] == [True] * 3 + [False]


@pytest.mark.parametrize("number", [500, 1500])
def test_attributes_of_all_members_are_few(tmp_path: Path, number: int) -> None:
    """Those of a whole tar belong to each member, of which none is held after it was read."""
    about = {f"k{n}": "v" for n in range(number)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=about) as tar:
        for name in ("a.png", "b.png"):
            tar.add(photo(tmp_path / name), name)
    if number == 1500:
        with pytest.raises(tarfile.ReadError, match="1500 attributes"):
            list(webdataset.samples(str(tmp_path / "a.tar")))
    else:
        assert [file.path for file, _ in webdataset.samples(str(tmp_path / "a.tar"))] == ["a.png", "b.png"]


@pytest.mark.parametrize("change", [
    lambda table: table.set_column(table.schema.get_field_index("embedding"), "embedding", pa.array([1] * table.num_rows)),
    lambda table: table.set_column(0, "collection", pa.array([["x"]] * table.num_rows)),
    lambda table: table.set_column(table.schema.get_field_index("modified_at"), "modified_at",
                                   pa.array([2**62] * table.num_rows).cast(pa.timestamp("us", "UTC"))),
    lambda table: table.replace_schema_metadata({KEY: json.dumps({
        **json.loads(table.schema.metadata[KEY]),
        "model": {**json.loads(table.schema.metadata[KEY])["model"], "backend": ["x"], "name": "new"}})}),
])  # fmt: skip
def test_an_export_with_other_columns_is_refused(
    url: str, connection: Connection, pair: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    export(url, "palette", str(tmp_path / "e.parquet"), None)
    parquet.write_table(change(parquet.read_table(tmp_path / "e.parquet")), tmp_path / "odd.parquet")
    with pytest.raises(SourceError, match="export"):
        import_files(url, [str(tmp_path / "odd.parquet")])


def test_nested_json_fails_its_own_sample(tmp_path: Path, ingest: Callable[..., Any], connection: Connection) -> None:
    """And no other of its shard."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, text in (("one", '{"a": 1}'), ("two", "[" * 100_000), ("three", '{"a": ' * 5000 + "1" + "}" * 5000)):
            tar.add(photo(tmp_path / f"{name}.png", len(name) + ord(name[1])), f"{name}.png")
            (tmp_path / f"{name}.json").write_text(text)
            tar.add(tmp_path / f"{name}.json", f"{name}.json")
    (source,) = parse_sources([str(tmp_path / "a.tar")], None)
    report = ingest(source, "palette")
    assert report.status == "complete"
    assert report.counts["palette"]["embedded"] == 1
    assert report.counts["palette"]["failed"] == 2


def put_away(connection: Connection, folder: Path, bin_: Path, location: str) -> list[trash.Outcome]:
    """Apply a plan that moves the one copy there is, by a name of its file."""
    row = connection.execute(
        "select i.image_id, encode(c.sha256, 'hex') from imgsearch.image i join imgsearch.content c using (content_id) "
        "where i.key = 'copy.png'"
    ).fetchone()
    keeper = connection.execute("select image_id from imgsearch.image where key = 'a.png'").fetchone()
    assert row is not None
    assert keeper is not None
    move = Move(row[0], location, row[1], 1, "identical", keeper[0], str(folder / "a.png"), row[1])
    return list(trash.apply(connection, [move], bin_))


@pytest.fixture
def pair(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """A file and its copy, ingested."""
    folder = photo(tmp_path / "shop" / "deep" / "a.png").parent
    shutil.copy(folder / "a.png", folder / "copy.png")
    ingest(folder, "palette")
    return folder


def test_what_is_put_away_stays_inside_the_trash(connection: Connection, pair: Path, tmp_path: Path) -> None:
    location = f"{pair}/../../../../../../../../../..{pair}/copy.png"
    (outcome,) = put_away(connection, pair, tmp_path / "bin" / "below", location)
    assert "leads out" in outcome.outcome
    (outcome,) = put_away(connection, pair, tmp_path / "bin" / "below", str(pair / "copy.png"))
    assert Path(outcome.to).resolve().is_relative_to(tmp_path / "bin" / "below")
    assert [one.outcome for one in trash.undo(connection, tmp_path / "bin" / "below")] == ["restored"]
    assert (pair / "copy.png").exists()


def test_only_images_as_the_database_describes_them_are_put_away(
    connection: Connection, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that name another file, a file that is no image, other pixels, a keeper on the web, a folder that is not allowed."""
    other, text = photo(tmp_path / "shop" / "deep" / "other.png", 9), tmp_path / "app.conf"
    text.write_text("no image")
    (image, sha256), (keeper, kept) = connection.execute(
        "select i.image_id, encode(c.sha256, 'hex') from imgsearch.image i join imgsearch.content c using (content_id) "
        "order by i.key desc"
    ).fetchall()

    def outcome(**change: Any) -> str:
        fields = {"image_id": image, "location": str(pair / "copy.png"), "sha256": sha256, "bytes": 1, "kind": "identical",
                  "keeper_id": keeper, "keeper": str(pair / "a.png"), "keeper_sha256": kept}  # fmt: skip
        (found,) = trash.apply(connection, [Move(**fields | change)], tmp_path / "bin")
        return found.outcome

    digest = hashlib.sha256(text.read_bytes()).digest()
    connection.execute("update imgsearch.content set sha256 = %s", [digest])
    assert "not the image that the database describes" in outcome(
        location=str(text),
        sha256=digest.hex(),
        keeper=str(shutil.copy(text, tmp_path / "keep")),
        keeper_sha256=digest.hex(),
    )
    connection.execute("update imgsearch.content set sha256 = decode(%s, 'hex')", [sha256])
    assert "a URL" in outcome(keeper="https://example.com/a.png")
    assert "other pixels" in outcome(keeper=str(other), keeper_sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    monkeypatch.setenv("PGIMGSEARCH_ROOTS", "/nowhere")
    assert "outside of PGIMGSEARCH_ROOTS" in outcome()
    monkeypatch.delenv("PGIMGSEARCH_ROOTS")
    assert text.exists()
    assert (pair / "copy.png").exists()
    assert outcome() == "moved"


@pytest.mark.parametrize("at", ["copy", "keeper", "trash"])
def test_a_pipe_is_not_waited_for(connection: Connection, pair: Path, tmp_path: Path, at: str) -> None:
    (tmp_path / "bin").mkdir()
    if at == "trash":
        (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
        Path(outcome.to).unlink()
        os.mkfifo(pair / "copy.png")
        (outcome,) = trash.undo(connection, tmp_path / "bin")
        assert outcome.outcome == "it is not in the trash any more"
        return
    pipe = pair / ("copy.png" if at == "copy" else "a.png")
    pipe.unlink()
    os.mkfifo(pipe)
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert ("the file is gone" if at == "copy" else "its keeper is gone") in outcome.outcome


@pytest.mark.parametrize("to", ["/{}/victim.txt", "../victim.txt", "a/../../victim.txt", "link/victim.txt", ""])
def test_undo_moves_no_file_from_outside_of_the_trash(
    connection: Connection, pair: Path, tmp_path: Path, to: str
) -> None:
    """By absolute paths, by .., by a link that leads out."""
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert outcome.outcome == "moved"
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / "bin" / "link").symlink_to(tmp_path)
    undo = tmp_path / "bin" / trash.UNDO
    entry = json.loads(undo.read_text().strip())
    undo.write_text(json.dumps(entry | {"to": to.format(tmp_path), "from": str(tmp_path / "elsewhere.txt")}) + "\n")
    (undone,) = trash.undo(connection, tmp_path / "bin")
    assert "outside of the trash" in undone.outcome
    assert victim.read_text() == "mine"
    assert not (tmp_path / "elsewhere.txt").exists()


@pytest.mark.parametrize("path", ["{}/autostart/x.desktop", "{}/autostart/x.png", "../../autostart/x.desktop"])
@pytest.mark.parametrize("collection", ["deep", "no such"])
def test_undo_writes_nothing_elsewhere(
    connection: Connection, pair: Path, tmp_path: Path, path: str, collection: str
) -> None:
    """Whoever gives the trash has written its undo file: its own digests are right."""
    payload = tmp_path / "bin" / "payload"
    payload.parent.mkdir()
    payload.write_bytes(b"#!/bin/sh")
    connection.execute("update imgsearch.collection set name = 'deep'")
    path = path.format(tmp_path)
    image = dict.fromkeys(trash.IMAGE_FIELDS, 1) | {
        "collection_id": 1 if collection == "deep" else 9, "collection": collection, "path": path, "key": path, "sha256": hashlib.sha256(b"#!/bin/sh").hexdigest(),
        "pixel_hash": "00" * 16, "format": "PNG", "metadata": "{}", "added_at": "2020-01-01", "modified_at": None,
        "group_key": None, "caption": None,
    }  # fmt: skip
    entry = {"from": str(pair.joinpath(path).resolve()), "to": "payload", "image": image}
    (tmp_path / "bin" / trash.UNDO).write_text(json.dumps(entry) + "\n")
    (undone,) = trash.undo(connection, tmp_path / "bin")
    assert undone.outcome != "restored"
    assert payload.exists()
    assert not any(one.name.startswith("x.") for one in tmp_path.rglob("*"))


def test_links_in_a_trash_lead_nowhere(connection: Connection, pair: Path, tmp_path: Path) -> None:
    """Neither that of a folder nor that of the undo file itself."""
    bin_, outside = tmp_path / "bin", tmp_path / "outside"
    outside.mkdir()
    bin_.mkdir()
    (bin_ / pair.parts[1]).symlink_to(outside)
    (outcome,) = put_away(connection, pair, bin_, str(pair / "copy.png"))
    assert "a link in the trash leads to" in outcome.outcome
    (bin_ / pair.parts[1]).unlink()
    (bin_ / trash.UNDO).unlink()
    (bin_ / trash.UNDO).symlink_to(outside / "bashrc")
    with pytest.raises(SourceError, match="cannot open"):
        put_away(connection, pair, bin_, str(pair / "copy.png"))
    assert list(outside.iterdir()) == []
    assert (pair / "copy.png").exists()


def test_a_line_of_an_undo_file_that_the_database_refuses_fails_alone(
    connection: Connection, pair: Path, tmp_path: Path
) -> None:
    """And metadata that Python cannot read comes back as it was."""
    huge = "9" * 5000
    connection.execute("alter table imgsearch.image drop constraint image_metadata_check")
    connection.execute("update imgsearch.image set metadata = %s::jsonb", [f'{{"n": {huge}}}'])
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert outcome.outcome == "moved"
    undo = tmp_path / "bin" / trash.UNDO
    entry = json.loads(undo.read_text().strip())
    bad = entry | {"image": entry["image"] | {"bytes": "many", "width": -1}}
    undo.write_bytes(undo.read_bytes() + json.dumps(bad).encode() + b"\n\xff\xfe not UTF-8\n[]\n")
    outcomes = [one.outcome for one in trash.undo(connection, tmp_path / "bin")]
    assert outcomes[-1] == "restored"
    assert len(outcomes) == 4
    assert (pair / "copy.png").exists()
    assert connection.execute(
        "select count(*) from imgsearch.image where metadata ->> 'n' = %s", [huge]
    ).fetchone() == (2,)


def test_a_keeper_is_what_its_row_says_and_of_the_same_owner(
    connection: Connection, pair: Path, tmp_path: Path
) -> None:
    """A row that says more pixels than there are would be kept in place of the original, as would another tenant's."""
    width = connection.execute("select width from imgsearch.content").fetchone()
    connection.execute("update imgsearch.content set width = 2147483647")
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert "its keeper is not the image that the database describes" in outcome.outcome
    connection.execute("update imgsearch.content set width = %s", width)
    connection.execute("alter table imgsearch.image enable row level security")
    connection.execute(
        "insert into imgsearch.collection (name, root, owner) values ('theirs', %s, 'tenant')", [str(pair)]
    )
    connection.execute(
        "update imgsearch.image set collection_id = (select max(collection_id) from imgsearch.collection) where key = 'a.png'"
    )
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert "its keeper belongs to the role tenant" in outcome.outcome
    connection.execute("alter table imgsearch.image disable row level security")
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert outcome.outcome == "moved"


@pytest.mark.parametrize("known", ["as it is", "as it was", "not yet"])
def test_a_file_that_another_tenant_has_too_stays(
    connection: Connection, pair: Path, tmp_path: Path, known: str
) -> None:
    """A row may name any file by its path: with a keeper of its own, another's original would go."""
    connection.execute("alter table imgsearch.image enable row level security")
    root = str(pair) if known == "not yet" else None
    connection.execute("insert into imgsearch.collection (name, root, owner) values ('theirs', %s, 'tenant')", [root])
    if known == "as it was":
        connection.execute(
            "insert into imgsearch.content (sha256, bytes, width, height, format) values (sha256('before'), 1, 1, 1, 'PNG')"
        )
    if known != "not yet":
        connection.execute(
            "insert into imgsearch.image (content_id, collection_id, key, path) select c.content_id, "
            "(select max(collection_id) from imgsearch.collection), 'x', %s from imgsearch.content c "
            "order by (c.sha256 = sha256('before')) = %s desc limit 1",
            [str(pair / "copy.png"), known == "as it was"],
        )
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    told = f"it lies in the folder {pair} of the role tenant" if root else "it is an image of the role tenant, too"
    assert outcome.outcome == told
    assert (pair / "copy.png").exists()


def test_a_row_that_names_another_file_since_the_plan_moves_none(
    connection: Connection, pair: Path, tmp_path: Path
) -> None:
    connection.execute("update imgsearch.image set path = 'elsewhere.png' where key = 'copy.png'")
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert outcome.outcome == "the database has it elsewhere now"
    assert (pair / "copy.png").exists()


@pytest.mark.parametrize("change", ["set name = 'renamed'", "set root = '/elsewhere'", None])
def test_undo_gives_an_image_to_its_own_collection_alone(
    connection: Connection, pair: Path, tmp_path: Path, change: str | None
) -> None:
    """Another role may have taken the name of a collection that was renamed or deleted since."""
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    assert outcome.outcome == "moved"
    (name,) = connection.execute("select name from imgsearch.collection").fetchone() or ()
    connection.execute(f"update imgsearch.collection {change}" if change else "delete from imgsearch.collection")
    if change is None or "name" in change:
        connection.execute(
            "insert into imgsearch.collection (name, root, owner) values (%s, %s, 'tenant')", [name, str(pair)]
        )
    (undone,) = trash.undo(connection, tmp_path / "bin")
    restored = connection.execute(
        "select l.name from imgsearch.image i join imgsearch.collection l using (collection_id) where i.key = 'copy.png'"
    ).fetchall()
    if change is not None and "name" in change:
        assert (undone.outcome, restored) == ("restored", [("renamed",)])
    else:
        assert (undone.outcome == "restored", restored) == (False, [])
    assert (pair / "copy.png").exists() == bool(restored)


def test_a_file_without_end_is_not_hashed(connection: Connection, pair: Path, tmp_path: Path) -> None:
    connection.execute("update imgsearch.image set path = '/proc/self/pagemap' where key = 'copy.png'")
    connection.execute("update imgsearch.content set bytes = 9223372036854775807")
    (outcome,) = put_away(connection, pair, tmp_path / "bin", "/proc/self/pagemap")
    assert "of another size" in outcome.outcome


def test_undo_brings_back_only_what_was_put_away(connection: Connection, pair: Path, tmp_path: Path) -> None:
    (outcome,) = put_away(connection, pair, tmp_path / "bin", str(pair / "copy.png"))
    Path(outcome.to).write_text("something else")
    (undone,) = trash.undo(connection, tmp_path / "bin")
    assert undone.outcome == "the file in the trash has changed"
    assert not (pair / "copy.png").exists()


def test_a_relative_link_comes_back(connection: Connection, ingest: Callable[..., Any], tmp_path: Path) -> None:
    """In the trash it leads nowhere; two of one name do not write over each other."""
    folder = photo(tmp_path / "shop" / "a.png").parent
    (tmp_path / "store").mkdir()
    shutil.copy(folder / "a.png", tmp_path / "store" / "x.png")
    (folder / "copy.png").symlink_to(Path("..") / "store" / "x.png")
    ingest(folder, "palette")
    (outcome,) = put_away(connection, folder, tmp_path / "bin", str(folder / "copy.png"))
    assert outcome.outcome == "moved"
    assert os.path.lexists(outcome.to)
    assert not os.path.lexists(folder / "copy.png")
    assert trash._free(Path(outcome.to)) != Path(outcome.to)
    assert [one.outcome for one in trash.undo(connection, tmp_path / "bin")] == ["restored"]
    assert (folder / "copy.png").is_symlink()
    assert (folder / "copy.png").read_bytes() == (folder / "a.png").read_bytes()
