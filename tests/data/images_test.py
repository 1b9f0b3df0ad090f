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


MIXED = {"data__crop": 2, "data__flips": True, "data__mixup": 0.8, "data__cutmix": 1.0}


def test_a_mixed_image_has_the_labels_of_both_and_the_first_ones_share(vit):
    training = data.split_data(vit(data__mixup=1.0), held_out=False)
    partners = set()
    for at in range(60):
        row = training.variant(3, at)
        assert row["label"] == training[3]["label"] and row["label_share"].dtype == np.float32
        assert row["label_2"].dtype == np.int32
        share = float(row["label_share"])
        matches = [
            i
            for i in range(len(training))
            if np.array_equal(
                np.rint(share * training.images[3] + (1 - share) * training.images[i]), row["image"]
            )
        ]
        assert matches and row["label_2"] in training.labels[matches]
        partners.update(matches)
    assert len(partners) > 20


def test_both_of_a_mixed_image_are_moved_and_mirrored(vit):
    training = data.split_data(vit(data__crop=2, data__mixup=1e-9), held_out=False)
    # At so small an alpha one of both is all that is seen.
    views = {}
    for number, image in enumerate(training.images):
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
        for i in range(5):
            for j in range(5):
                views[padded[i : i + 8, j : j + 8].tobytes()] = number
    originals = {image.tobytes() for image in training.images}
    moved = 0
    for at in range(60):
        row = training.variant(3, at)
        seen = views[row["image"].tobytes()]
        assert row["label"] == training.labels[3]
        assert seen == 3 if row["label_share"] else training.labels[seen] == row["label_2"]
        moved += not row["label_share"] and row["image"].tobytes() not in originals
    assert moved > 10


def test_what_is_mixed_depends_on_the_seed_and_the_position_alone(vit):
    training = data.split_data(vit(**MIXED), held_out=False)

    def batches(rows=None, start_step=0, count=4):
        order = {"batch_size": 8, "seed": 0, "start_step": start_step, "rows": rows}
        with data.training_batches(training, **order) as stream:
            return [next(stream) for _ in range(count)]

    expected = batches()
    assert set(expected[0]) == {"image", "label", "label_2", "label_share", "weight"}
    # A run that goes on, and each of two processes.
    again = batches(start_step=3, count=1)[0]
    halves = [batches(np.arange(8)[half])[3] for half in (slice(0, 4), slice(4, 8))]
    for name, array in expected[3].items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))
    reseeded = data.split_data(vit(**MIXED, train__seed=1), held_out=False)
    shares = [
        [float(part.variant(0, at)["label_share"]) for at in range(9)]
        for part in (training, reseeded)
    ]
    assert len({*shares[0], *shares[1]}) > 12
    # Evaluation reads images as they are.
    assert set(next(data.sequential_batches(training, batch_size=8))) == {
        "image",
        "label",
        "weight",
    }


def test_what_is_moved_and_mirrored_stays_so_where_nothing_is_mixed(vit):
    fields = {"data__crop": 2, "data__flips": True}
    plain = data.split_data(vit(**fields), held_out=False)
    mixed = data.split_data(vit(**fields, data__mixup=1e-9), held_out=False)
    for at in range(40):
        row, twin = plain.variant(1, at), mixed.variant(1, at)
        assert set(row) == {"image", "label", "weight"}
        if twin["label_share"] == 1:
            np.testing.assert_array_equal(row["image"], twin["image"])


@pytest.mark.parametrize("field", ["crop=2", "mixup=0.5", "cutmix=1.0"])
def test_variants_are_of_images_alone(tiny, field):
    name, _, value = field.partition("=")
    words = f"data.{field} is without effect on model.name='gpt', which reads no images; leave it"
    with pytest.raises(UserError, match=words) as error:
        tiny(**{f"data__{name}": float(value) if "." in value else int(value)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__mixup": -0.1}, "data.mixup=-0.1 must be at least 0"),
        ({"data__cutmix": 1e4}, "data.cutmix=10000.0 must be at most 1000"),
        ({"data__mixup": 0.2, "data__stream": True}, "data.mixup=0.2 mixes images with any of the"),
        ({"data__cutmix": 1, "data__stream": True}, "data.cutmix=1.0 mixes images with any of the"),
    ],
)
def test_alphas_that_are_none_are_one_line(vit, fields, words):
    with pytest.raises(UserError, match=words) as error:
        vit(**fields)
    assert "\n" not in str(error.value)


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
