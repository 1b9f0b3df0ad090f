import gzip
import json


def test_the_texts_are_as_many_bytes_of_books_as_of_the_library(load, tmp_path, monkeypatch):
    texts = load("lab.texts")
    monkeypatch.setattr(texts, "_CHARACTERS", 10)
    library = {False: ["x" * 30], True: ["a" * 50, "b" * 50]}

    def documents(*, held_out):
        return [load("types").SimpleNamespace(text=text) for text in library[held_out]]

    monkeypatch.setattr(texts, "_library", documents)
    data, runs = tmp_path / "data", tmp_path / "runs"
    (data / "books").mkdir(parents=True)
    for name in ("train-00000-of-1", "validation", "test"):
        book = json.dumps({"text": name + " " * 40})
        (data / "books" / f"{name}.jsonl.gz").write_bytes(gzip.compress(book.encode() + b"\n"))
    texts.write_texts(data, runs)

    def read(path):
        return [json.loads(line)["text"] for line in path.read_text().splitlines()]

    assert [len(text) for text in read(texts.training_file(runs))] == [30, 30]
    assert read(texts.held_out_file(runs, "stdlib", "validation")) == ["a" * 40]
    assert read(texts.held_out_file(runs, "stdlib", "test")) == ["b" * 40]
    assert read(texts.held_out_file(runs, "books", "test")) == ["test      "]
    assert read(texts.tuning_file(runs)) == ["validation", "a" * 40]
