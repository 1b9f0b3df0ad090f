"""Labelled images: what is read, how it is split, and what is refused."""

import numpy as np
import pytest

from matta_jax import data
from matta_jax.errors import UserError


def test_both_sides_of_a_split_are_all_images(vit, images):
    config = vit()
    sides = [data.split_data(config, held_out=held_out) for held_out in (False, True)]
    assert sum(map(len, sides)) == 60 and all(map(len, sides))
    arrays = np.load(images)
    pixels = {image.tobytes(): label for image, label in zip(arrays["x"], arrays["y"], strict=True)}
    for side in sides:
        for i in range(len(side)):
            row = side[i]
            assert pixels[row["image"].tobytes()] == row["label"] and row["weight"] == 1
    assert len({side.fingerprint for side in sides}) == 2
    part = sides[0].part(2, 5)
    assert len(part) == 3 and part.labels.tolist() == sides[0].labels[2:5].tolist()


def test_a_folder_of_files_is_read_by_class_and_scaled(vit, tmp_path):
    image_lib = pytest.importorskip("PIL.Image")
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / name).mkdir()
        image_lib.new("RGB", (20, 12), colour).save(tmp_path / name / "a.png")
        image_lib.new("RGB", (8, 8), colour).save(tmp_path / name / "b.JPEG", quality=95)
    images = data.read_images(f"images:{tmp_path}", vit().data, vit().model)
    assert images.images.shape == (4, 8, 8, 3) and images.labels.tolist() == [0, 0, 1, 1]
    assert images[0]["image"][3, 3].tolist() == [255, 0, 0]
    (tmp_path / "dog" / "c.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match="dog/c.png is no image"):
        data.read_images(f"images:{tmp_path}", vit().data, vit().model)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 8, 8, 3), np.uint8)}, "must hold the arrays x, of images, and y"),
        (
            {"x": np.zeros((2, 9, 9, 3), np.uint8), "y": [0, 1]},
            "holds x of uint8 9x9x3, and the model reads uint8 8x8x3",
        ),
        ({"x": np.zeros((2, 8, 8, 3)), "y": [0, 1]}, "holds x of float64"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": [0]}, "a whole number for each of 2 images"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": [0.0, 1]}, "holds y of float64"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": [0, 3]}, "image 1 is of class 3"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": [-1, 0]}, "image 0 is of class -1"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8), "y": np.zeros(0, int)}, "has no example"),
        ({"x": np.array([None, 1]), "y": [0, 1]}, "cannot be read as .npz"),
    ],
)
def test_what_is_no_set_of_images_is_one_line(vit, tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=words) as error:
        data.read_images(f"images:{tmp_path}/a.npz", vit().data, vit().model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("text:a.txt", "an image classifier reads images; name images:FILE.npz"),
        ("images:nothere.npz", "does not exist"),
        ("images:{}", "holds no folder with .png"),
        ("images:{}/b.npz", "cannot be read as .npz"),
    ],
)
def test_sources_that_are_none_are_one_line(vit, tmp_path, source, words):
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=words) as error:
        data.read_images(source.format(tmp_path), vit().data, vit().model)
    assert "\n" not in str(error.value)


def test_variants_depend_on_the_seed_and_the_position_alone(vit, images):
    config = vit(data__crop=2, data__flips=True)
    training = data.split_data(config, held_out=False)
    first = training.variant(0, 7)
    np.testing.assert_array_equal(first["image"], training.variant(0, 7)["image"])
    drawn = {training.variant(0, at)["image"].tobytes() for at in range(50)}
    assert len(drawn) > 20 and first["label"] == training[0]["label"]
    # Each is the image itself, moved with black behind it, or its mirror.
    padded = np.pad(training[0]["image"], [(2, 2), (2, 2), (0, 0)])
    windows = [padded[i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    assert drawn <= {view.tobytes() for window in windows for view in (window, window[:, ::-1])}
    with_next_seed = data.split_data(vit(data__crop=2, train__seed=1), held_out=False)
    assert any(
        not np.array_equal(with_next_seed.variant(0, at)["image"], training.variant(0, at)["image"])
        for at in range(3)
    )


def test_training_reads_variants_and_evaluation_does_not(vit):
    training = data.split_data(vit(data__crop=2), held_out=False)
    with data.training_batches(training, batch_size=8, seed=0, start_step=3) as batches:
        batch = next(batches)
    with data.training_batches(training, batch_size=8, seed=0) as batches:
        again = [next(batches) for _ in range(4)][-1]
    np.testing.assert_array_equal(batch["image"], again["image"])
    # Batch 3 begins at position 24 of the order.
    for row, image in enumerate(batch["image"]):
        drawn = [training.variant(i, 24 + row)["image"] for i in range(len(training))]
        assert any(np.array_equal(image, candidate) for candidate in drawn)
    originals = {training[i]["image"].tobytes() for i in range(len(training))}
    assert sum(image.tobytes() in originals for image in batch["image"]) < 8
    plain = next(data.sequential_batches(training, batch_size=8))
    assert all(image.tobytes() in originals for image in plain["image"])


def test_variants_are_of_images_alone(tiny):
    with pytest.raises(UserError, match="data.crop=2 is without effect on model.name='gpt'"):
        tiny(data__crop=2)


_BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(8, 8, 3))
        label = tfds.features.ClassLabel(num_classes=3)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            yield i, {"image": self.pngs[i], "label": i % 3}
"""


@pytest.mark.slow
def test_prepared_sets_of_images_are_read_without_tensorflow(vit, images, tmp_path, monkeypatch):
    image_lib = pytest.importorskip("PIL.Image")
    (tmp_path / "tinyset").mkdir()
    (tmp_path / "tinyset" / "__init__.py").write_text("")
    (tmp_path / "tinyset" / "tiny.py").write_text(_BUILDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    from tinyset.tiny import Tiny

    pixels = np.load(images)["x"][:12]
    Tiny.pngs = []
    for i, image in enumerate(pixels):
        image_lib.fromarray(image).save(tmp_path / f"{i}.png")
        Tiny.pngs.append(str(tmp_path / f"{i}.png"))
    Tiny(data_dir=str(tmp_path / "d"), file_format="array_record").download_and_prepare()

    config = vit(data__source="tfds:tiny", data__tfds_dir=str(tmp_path / "d"))
    read = data.read_images("tfds:tiny", config.data, config.model)
    expected = {image.tobytes() for image in pixels}
    assert {image.tobytes() for image in read.images} == expected and len(read) == 12
    by_pixels = {image.tobytes(): i % 3 for i, image in enumerate(pixels)}
    assert all(by_pixels[read[i]["image"].tobytes()] == read[i]["label"] for i in range(12))
    for model, words in (
        (
            vit(model__image_size=12).model,
            "image 0 is uint8 8x8x3, and the model reads uint8 12",
        ),
        (vit(model__image_classes=2).model, "is of class 2, and classes are whole numbers"),
    ):
        with pytest.raises(UserError, match=words):
            data.read_images("tfds:tiny", config.data, model)
    with pytest.raises(UserError, match="no split 'test'; splits: train"):
        data.read_images("tfds:tiny:test", config.data, config.model)
