"""A TFDS builder for local text files, written as ArrayRecord so that no TensorFlow is needed.

    builder = LocalText(data_dir=..., file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="folder/of/texts"))

Then train with `--config.data.source=tfds:local_text --config.data.tfds_dir=...`.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from matta_jax import storage


class LocalText(tfds.core.GeneratorBasedBuilder):
    """The .txt files of `manual_dir`, one example a file."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Pass the folder of .txt files as DownloadConfig(manual_dir=...)."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {"name": tfds.features.Text(), "text": tfds.features.Text()}
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(dl_manager.manual_dir)}

    def _generate_examples(self, folder: storage.Path) -> Iterator[tuple[str, dict[str, str]]]:
        for path in storage.match(folder, "*.txt"):
            yield path.name, {"name": path.name, "text": storage.read_text(path)}
