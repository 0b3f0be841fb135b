"""Encoded rows on disk: Arrow files, mapped into memory, of which the system keeps what is in use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from worker.training.data import Example

Item = TypeVar("Item")

ROWS_AT_ONCE = 1000
"""Items in one Arrow batch: a few MB of token ids, and few enough calls."""


@dataclass(frozen=True, slots=True)
class Form(Generic[Item]):
    """How items of one kind lie in columns."""

    columns: dict[str, str]
    """Name → Arrow's type, as `datasets` spells it; a list is the type in brackets."""
    to_columns: Callable[[Item], dict[str, Any]]
    from_columns: Callable[[dict[str, Any]], Item]


def _example_columns(example: Example) -> dict[str, Any]:
    return {
        "input_ids": example.input_ids,
        "labels": example.labels,
        "token_type_ids": example.token_type_ids,
        "lengths": example.lengths,
    }


def _example(columns: dict[str, Any]) -> Example:
    def numbers(name: str) -> tuple[int, ...] | None:
        return None if columns[name] is None else tuple(columns[name])

    return Example(
        tuple(columns["input_ids"]), tuple(columns["labels"]), numbers("token_type_ids"), numbers("lengths")
    )


EXAMPLES: Form[Example] = Form(
    {"input_ids": "[int32]", "labels": "[int32]", "token_type_ids": "[int32]", "lengths": "[int32]"},
    _example_columns,
    _example,
)


class ItemWriter(Generic[Item]):
    """Collects items, one after the other: in a file of `folder`, or without one in memory, for a few of them."""

    def __init__(self, form: Form[Item], folder: Path | None, name: str) -> None:
        self._form = form
        self._few: list[Item] = []
        self._path = None if folder is None else folder / f"{name}.arrow"
        self._writer: Any = None

    def add(self, item: Item) -> None:
        if self._path is None:
            self._few.append(item)
            return
        if self._writer is None:
            self._writer = _arrow_writer(self._path, self._form.columns)
        self._writer.write(self._form.to_columns(item))

    def close(self) -> Sequence[Item]:
        """All items, in order. The file must last as long as they are used."""
        if self._path is None or self._writer is None:
            return tuple(self._few)
        self._writer.finalize()
        return FiledItems(self._path, self._form)


class FiledItems(Sequence[Item]):
    """The items of one file, each made anew when it is asked for."""

    def __init__(self, path: Path, form: Form[Item]) -> None:
        from datasets import Dataset

        self._data = Dataset.from_file(str(path))
        self._form = form

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._form.from_columns(self._data[index])


def _arrow_writer(path: Path, columns: dict[str, str]) -> Any:
    # Loaded here: it takes two seconds, and a worker may never train.
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    def feature(kind: str) -> Any:
        return List(Value(kind.strip("[]"))) if kind.startswith("[") else Value(kind)

    features = Features({name: feature(kind) for name, kind in columns.items()})
    return ArrowWriter(features=features, path=str(path), writer_batch_size=ROWS_AT_ONCE)
