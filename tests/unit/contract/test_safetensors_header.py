"""The header of a safetensors file, read without torch: as the library reads it, and nothing that it would refuse."""

import json
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tandem.safetensors_header import MAX_HEADER_BYTES, NotSafetensors, TensorInfo, read_header

TENSORS = {
    "a": numpy.zeros((2, 3), numpy.float32),
    "b": numpy.zeros((4,), numpy.float16),
    "empty": numpy.zeros((0, 5), numpy.int64),
    "scalar": numpy.zeros((), numpy.float64),
}
GOOD = save(TENSORS, {"format": "pt"})


def file_of(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_names_types_and_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    assert read_header(path) == {
        "a": TensorInfo("F32", (2, 3)),
        "b": TensorInfo("F16", (4,)),
        "empty": TensorInfo("I64", (0, 5)),
        "scalar": TensorInfo("F64", ()),
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends within its header"),
        (b"\x10\0\0\0\0\0\0\0{}", "ends within its header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "the limit is 16777216"),
        (b"\xff" * 8, "the limit is 16777216"),
        (file_of(b"\x80\x04K\x01."), "is not JSON"),
        (file_of(b"[" * 100_000), "is not JSON"),
        (file_of([]), "is not a JSON object"),
        (file_of({"a": []}), "'a' is described by no JSON object"),
        (file_of({"a": entry(dtype="F33")}, bytes(8)), "the dtype of 'a'"),
        (file_of({"a": entry(dtype=["F32"])}, bytes(8)), "the dtype of 'a'"),
        (file_of({"a": entry(shape=[-2])}, bytes(8)), "the shape of 'a'"),
        (file_of({"a": entry(shape=[2.0])}, bytes(8)), "the shape of 'a'"),
        (file_of({"a": entry(shape=[True])}, bytes(4)), "the shape of 'a'"),
        (file_of({"a": entry(shape="2")}, bytes(8)), "the shape of 'a'"),
        (file_of({"a": entry(shape=[1] * 9)}, bytes(8)), "up to 8 whole numbers"),
        (file_of({"a": entry(offsets=[0])}, bytes(8)), "the data_offsets of 'a'"),
        (file_of({"a": entry(offsets=[0, 12])}, bytes(12)), "do not fit its dtype and shape"),
        (file_of({"a": entry(offsets=[8, 0])}, bytes(8)), "do not fit its dtype and shape"),
        (file_of({"a": entry(), "b": entry()}, bytes(8)), "overlap or leave a gap"),
        (file_of({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "overlap or leave a gap"),
        (file_of({"a": entry()}, bytes(7)), "have 8 bytes, and 7 follow"),
        (file_of({"a": entry()}, bytes(9)), "have 8 bytes, and 9 follow"),
        (file_of({"x" * 10_000: []}), f"'{'x' * 200}' is described"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(NotSafetensors, match=reason) as refused:
        read_header(path)
    assert len(str(refused.value)) < 500


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), wrong=st.binary(min_size=1, max_size=4))
def test_damage_that_is_let_through_is_let_through_by_the_library_too(
    place: int, wrong: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is published here is read by the library later: it must not find less."""
    content = bytearray(GOOD)
    content[place : place + len(wrong)] = wrong
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(content)
    try:
        ours: object = {name: info.shape for name, info in read_header(path).items()}
    except NotSafetensors:
        ours = None
    try:
        with safe_open(path, "numpy") as opened:
            theirs: object = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        theirs = None
    assert ours in (None, theirs)
