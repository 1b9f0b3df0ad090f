"""Labelled images: an .npz of arrays, or folders of PNG and JPEG files, one for each class.

Shape letters: n images, H rows, W columns, C channels.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence

import numpy as np

from matta_jax import storage
from matta_jax.config import DataConfig, VitConfig
from matta_jax.data._blends import blend
from matta_jax.data._corpora import Document, is_held_out
from matta_jax.data._examples import ExampleSet, no_example
from matta_jax.data._jsonl import read_data
from matta_jax.data._tfds import tfds_images
from matta_jax.errors import UserError, shorten

_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB"}
"""Pillow's names of images, by their channels."""


@dataclasses.dataclass(frozen=True)
class ImageSet(ExampleSet):
    """Labelled images in memory, for random access. It has no texts: `examples` and `ids` are
    empty.

    Attributes:
      images: uint8 [n, H, W, C].
      classes: of each image [n].
      crop: pixels by which an image that is trained on may move, to any side.
      flips: whether half of these are mirrored.
      mixup: alpha of the shares in which these are blended with others; 0: none.
      cutmix: alpha of the shares that cuts of others leave of these; 0: none.
      seed: of these draws.
    """

    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint8))
    classes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    crop: int = 0
    flips: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    @property
    def labels(self) -> np.ndarray:
        """The classes of all images [n]."""
        return self.classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `image` [H, W, C] uint8, `label`, and `weight` 1."""
        return {
            "image": self.images[int(index)],
            "label": np.array(self.classes[int(index)], np.int32),
            "weight": np.array(1, np.float32),
        }

    def variant(self, index: int, position: int) -> dict[str, np.ndarray]:
        """As `self[index]`, moved and mirrored at random; what is drawn depends on the seed and the
        position in a run's order alone, so that a run that goes on draws what it would have.

        Where images are mixed, also `label_2`, of a partner from all of them, and `label_share`,
        the part of `label`.
        """
        variant = self[index]
        rng = np.random.default_rng((self.seed, position))
        image = self._moved(variant["image"], rng)
        if not (self.mixup or self.cutmix):
            return variant | {"image": image}

        partner = self[int(rng.integers(len(self)))]
        partner_image = self._moved(partner["image"], rng)
        image, share = blend(image, partner_image, rng, mixup=self.mixup, cutmix=self.cutmix)
        return variant | {
            "image": image,
            "label_2": partner["label"],
            "label_share": np.array(share, np.float32),
        }

    def _moved(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.crop:
            height, width, _ = image.shape
            padded = np.pad(image, [(self.crop, self.crop), (self.crop, self.crop), (0, 0)])
            row, column = rng.integers(0, 2 * self.crop + 1, 2)
            image = padded[row : row + height, column : column + width]
        if self.flips and rng.random() < 0.5:
            image = image[:, ::-1]
        return image

    def part(self, start: int, stop: int | None = None) -> "ImageSet":
        """The images from `start` to `stop`."""
        part = super().part(start, stop)
        assert isinstance(part, ImageSet)
        return dataclasses.replace(
            part, images=self.images[start:stop], classes=self.classes[start:stop]
        )


def read_images(
    source: str,
    data: DataConfig,
    model: VitConfig,
    *,
    held_out: bool | None = None,
    seed: int = 0,
) -> ImageSet:
    """Reads the images of a source.

    Args:
      source: `images:FILE.npz` of `x` [n, H, W, C] or [n, H, W] uint8 and `y` [n] classes; or
        `images:FOLDER` of folders, the classes in the order of their names, of PNG and JPEG files,
        which are scaled to the model's size; or `tfds:NAME[:SPLIT]`.
      data: the split.
      model: the size and the classes that images must have.
      held_out: one side of the split by a hash of an image; None: all.
      seed: of what training draws.

    Raises:
      UserError: files that cannot be read, images of another size, or labels outside the classes.
    """
    what = f"data source {source!r}"
    images, classes = _read(source, data, model, what)
    _check_classes(classes, model, what)
    if held_out is not None:
        chosen = [i for i, image in enumerate(images) if _is_held_out(image, data) == held_out]
        images, classes = images[chosen], classes[chosen]
    if not len(images):
        raise no_example(what, held_out)

    digest = hashlib.blake2b(json.dumps(images.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(images))
    digest.update(classes.tobytes())
    return ImageSet(
        examples=(),
        ids=(),
        seq_len=model.num_positions,
        offsets=np.zeros(0, np.int32),
        num_values=0,
        truncated=0,
        fingerprint=digest.hexdigest(),
        images=images,
        classes=classes,
        crop=data.crop,
        flips=data.flips,
        mixup=data.mixup,
        cutmix=data.cutmix,
        seed=seed,
    )


def read_unlabelled(where: str, model: VitConfig, what: str) -> tuple[list[str], np.ndarray]:
    """Returns the names [n] and the pixels [n, H, W, C] of images without classes: those of an
    .npz, called by their numbers, or of the files of a folder. Raises UserError as `read_images`.
    """
    path = storage.path(where)
    if not path.is_dir():
        images, _ = _read_npz(path, model, what, has_classes=False)
        return list(map(str, range(len(images)))), images
    files = _files(path)
    if not files:
        raise UserError(f"{what}: {path} holds no {', '.join(_SUFFIXES)} files; name their folder")
    return [file.name for file in files], np.stack([decode_image(f, model, what) for f in files])


def _files(folder: storage.Path) -> list[storage.Path]:
    return [file for file in storage.match(folder, "*") if file.suffix.lower() in _SUFFIXES]


def _read(
    source: str, data: DataConfig, model: VitConfig, what: str
) -> tuple[np.ndarray, np.ndarray]:
    kind, _, where = source.partition(":")
    if kind == "tfds" and where:
        pixels, labels = [], []
        for i, (image, label) in enumerate(tfds_images(source, data.tfds_dir)):
            pixels.append(_checked(image, model, f"{what}: image {i}"))
            labels.append(label)
        return np.array(pixels, np.uint8), np.array(labels, np.int64)
    if kind != "images" or not where:
        raise UserError(
            f"{what}: an image classifier reads images; name images:FILE.npz, images:FOLDER or "
            "tfds:NAME"
        )
    path = storage.path(where)
    read = _read_folder if path.is_dir() else _read_npz
    return read(path, model, what)


def _checked(image: np.ndarray, model: VitConfig, where: str) -> np.ndarray:
    """An image of the model's size and type. Raises UserError for another."""
    shape = (model.image_size, model.image_size, model.num_channels)
    if image.dtype != np.uint8 or image.shape != shape:
        raise UserError(
            f"{where} is {image.dtype} {_times(image.shape)}, and the model reads uint8 "
            f"{_times(shape)} (model.image_size, model.num_channels); change these, or scale the "
            "images"
        )
    return image


def _is_held_out(image: np.ndarray, data: DataConfig) -> bool:
    # By its pixels: a copy of an image falls on its own side.
    key = hashlib.blake2b(np.ascontiguousarray(image)).hexdigest()
    return is_held_out(Document(key, ""), data.eval_fraction)


def _read_npz(
    path: storage.Path, model: VitConfig, what: str, *, has_classes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    data = read_data(path, what)
    try:
        with np.load(storage.in_memory(data), allow_pickle=False) as arrays:
            if "x" not in arrays or (has_classes and "y" not in arrays):
                form = "the arrays x, of images, and y, of classes" if has_classes else "an array x"
                names = ", ".join(arrays) or "none"
                raise UserError(f"{what}: {path} must hold {form} (it has: {names})")
            images = arrays["x"]
            classes = arrays["y"] if has_classes else np.zeros(len(images), np.int64)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"{what}: {path} cannot be read as .npz ({detail}); mend or remove it"
        ) from None

    # A grey image may leave out its one channel.
    if images.ndim == 3:
        images = images[..., None]
    shape = (model.image_size, model.image_size, model.num_channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise UserError(
            f"{what}: {path} holds x of {images.dtype} {_times(images.shape[1:])}, and the model "
            f"reads uint8 {_times(shape)} (model.image_size, model.num_channels); change these, or "
            "scale the images"
        )
    if classes.shape != (len(images),) or not np.issubdtype(classes.dtype, np.integer):
        raise UserError(
            f"{what}: {path} holds y of {classes.dtype} {_times(classes.shape)}, and must have a "
            f"whole number for each of {len(images)} images"
        )
    return images, classes.astype(np.int64)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _read_folder(path: storage.Path, model: VitConfig, what: str) -> tuple[np.ndarray, np.ndarray]:
    folders = [folder for folder in storage.match(path, "*") if folder.is_dir()]
    images: list[np.ndarray] = []
    classes: list[int] = []
    for label, folder in enumerate(folders):
        files = _files(folder)
        images += [decode_image(file, model, what) for file in files]
        classes += [label] * len(files)
    if not images:
        raise UserError(
            f"{what}: {path} holds no folder with {', '.join(_SUFFIXES)} files; name a folder that "
            "has one for each class"
        )
    return np.stack(images), np.array(classes, np.int64)


def decode_image(file: storage.Path, model: VitConfig, what: str) -> np.ndarray:
    """The pixels [H, W, C] of a PNG or JPEG file, scaled to a model's size.

    Raises:
      UserError: it cannot be read, which names it; or Pillow is not installed.
    """
    try:
        import PIL.Image
    except ImportError:
        raise UserError(
            f"{what}: PNG and JPEG files need the package pillow: pip install 'matta_jax[vision]'"
        ) from None
    mode = _MODES.get(model.num_channels)
    if mode is None:
        raise UserError(
            f"{what}: images of files have 1 or 3 channels, and model.num_channels="
            f"{model.num_channels}; change it, or name an .npz"
        )
    try:
        with PIL.Image.open(storage.in_memory(read_data(file, what))) as image:
            size = (model.image_size, model.image_size)
            scaled = image.convert(mode).resize(size, PIL.Image.Resampling.BILINEAR)
    # Damaged files raise many kinds.
    except UserError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{what}: {file} is no image ({detail}); mend or remove it") from None
    pixels = np.asarray(scaled, np.uint8)
    return pixels[..., None] if mode == "L" else pixels


def _check_classes(classes: np.ndarray, model: VitConfig, what: str) -> None:
    outside = np.flatnonzero((classes < 0) | (classes >= model.image_classes))
    if len(outside):
        first = int(outside[0])
        raise UserError(
            f"{what}: image {first} is of class {shorten(int(classes[first]))}, and classes are "
            f"whole numbers from 0 to {model.image_classes - 1} (model.image_classes)"
        )
