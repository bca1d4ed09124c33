"""Where rows come from: JSONL and Parquet files, and Hugging Face data sets."""

from __future__ import annotations

import sys
from decimal import Decimal

import pytest

from limbeck.errors import DataError

from .helpers import everything, load, load_dataset_task, sums


def test_files_that_cannot_be_read(tmp_path, write, chat):
    with pytest.raises(DataError, match=r"there is no file .*missing\.jsonl"):
        load(str(tmp_path / "missing.jsonl"), chat)
    with pytest.raises(DataError, match=r"there is no file .*missing\.parquet"):
        load(write(*sums(2)), chat, held_out_path=str(tmp_path / "missing.parquet"))
    with pytest.raises(DataError, match=r"cannot read .*sums\.csv: expected a file named \*\.jsonl"):
        load(write("a,b", name="sums.csv"), chat)
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        load(write(name="empty.jsonl"), chat)
    with pytest.raises(DataError, match=r"false\.parquet is not a Parquet file"):
        load(write("no", name="false.parquet"), chat)
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match=r"there is no file"):
        load(str(folder), chat)


def test_parquet_has_the_same_rows_with_nulls_for_what_is_absent(tmp_path, chat):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "sums.parquet"
    rows = [
        {"prompt": "a", "messages": None, "answer": Decimal("1.50"), "level": 1},
        {"prompt": None, "messages": [{"role": "user", "content": "b"}], "answer": None, "level": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    first, second = everything(load(str(path), chat))
    assert [chat.decode(p.token_ids) for p in (first, second)] == ["<user>a<assistant>", "<user>b<assistant>"]
    assert (first.id, first.answer, first.metadata) == ("sums-000000", "1.50", {"level": 1})
    assert (second.id, second.answer, second.metadata) == ("sums-000001", None, {"level": None})
    parquet.write_table(pyarrow.table({"question": ["a"]}), path)
    with pytest.raises(DataError, match=r"sums\.parquet row 0: there is neither"):
        load(str(path), chat)


# Hugging Face data sets


def test_a_saved_data_set_with_and_without_splits(tmp_path, chat):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(sums(4)).save_to_disk(tmp_path / "one")
    task = load_dataset_task(chat, tmp_path / "one")
    assert [p.answer for p in everything(task)] == ["1", "2", "3", "4"]
    assert (task.train[0].task, everything(task)[0].id) == ("one", "one-000000")
    parts = {"train": Dataset.from_list(sums(4)), "test": Dataset.from_list(sums(3, start=50))}
    DatasetDict(parts).save_to_disk(tmp_path / "two")
    task = load_dataset_task(chat, tmp_path / "two", held_out_split="test", held_out=3)
    assert [p.text for p in task.train] == ["0+1=", "1+1=", "2+1=", "3+1="]
    assert [p.text for p in task.held_out] == ["50+1=", "51+1=", "52+1="]
    with pytest.raises(DataError, match=r"no split 'validation'; it has 'train', 'test'"):
        load_dataset_task(chat, tmp_path / "two", split="validation")
    with pytest.raises(DataError, match=r"no split 'test'; it has no splits"):
        load_dataset_task(chat, tmp_path / "one", split="test")
    with pytest.raises(DataError, match=r"it has no splits"):
        load_dataset_task(chat, tmp_path / "one", held_out_split="test")
    with pytest.raises(DataError, match=r"task\.config = 'main' is for data sets of the hub"):
        load_dataset_task(chat, tmp_path / "one", config="main")
    with pytest.raises(DataError, match=r"are both 'train'"):
        load_dataset_task(chat, tmp_path / "two", held_out_split="train")


def test_a_folder_that_is_not_a_saved_data_set(tmp_path, chat):
    with pytest.raises(DataError, match=r"not one written by save_to_disk.*task\.kind = \"file\""):
        load_dataset_task(chat, tmp_path)


def test_a_hub_name_is_loaded_by_name_config_and_split(monkeypatch, chat):
    import datasets

    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(sums(3, start=0 if split == "train" else 50))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_dataset_task(chat, "someone/sums", config="main", held_out_split="test", held_out=2)
    assert asked == [("someone/sums", "main", "train"), ("someone/sums", "main", "test")]
    assert (len(task.train), len(task.held_out), task.train[0].task) == (3, 2, "sums")


def test_a_data_set_that_cannot_be_loaded(monkeypatch, chat):
    import datasets

    def load_dataset(name, config, *, split):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot load the data set 'no/such'.*doesn't exist"):
        load_dataset_task(chat, "no/such")


def test_missing_packages_name_the_extra(monkeypatch, tmp_path, write, chat):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"'datasets', which is not installed.*pip install 'limbeck\[data\]'"):
        load_dataset_task(chat, "someone/sums")
    with pytest.raises(DataError, match=r"'pyarrow', which is not installed.*limbeck\[data\]"):
        load(write("no", name="a.parquet"), chat)
