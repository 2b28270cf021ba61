"""Which pictures of a source are worth training on: facenet's ``--filter_*`` options and its HDF5 file of distances.

A source has ``labels`` int64 [N], ``class_names``, ``where(record) -> path`` and ``subset(records) -> source``.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ..errors import BadData, StorageError, UserError

_NUM_BINS = 100


@dataclass(frozen=True)
class FilteringMetrics:
    """Distances of pictures to the centers of their classes.

    Attributes:
      class_names: C names.
      image_list: N paths. A picture is known by its class and file name, so that the data set's folder may move.
      label_list: int64 [N], indices into class_names.
      distance_to_center: float64 [N], Euclidean.
    """

    class_names: list[str]
    image_list: list[str]
    label_list: np.ndarray
    distance_to_center: np.ndarray


def filter_by_class_size(source, min_images: int):
    """The source without the classes of fewer than ``min_images`` pictures.

    Raises:
      BadData: nothing is left.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    records = np.flatnonzero(counts[source.labels] >= min_images)
    if not len(records):
        raise BadData(
            f"no class has {min_images} images (the largest has {counts.max(initial=0)}); ask for fewer per class"
        )
    return source.subset(records)


def filter_dataset(source, metrics: FilteringMetrics, percentile: float, min_images_per_class: int):
    """Keep the pictures nearest to their class centers, then the classes with enough pictures left.

    Facenet's rule: pictures at or beyond the threshold of the percentile go. At 100 no picture goes (facenet removed
    those in the farthest half bin), and small classes go whether or not they lost a picture. Pictures without a known
    distance stay.

    Args:
      percentile: 0 < percentile <= 100.

    Raises:
      UserError: percentile is out of its range.
      BadData: the metrics know none of the source's pictures, or nothing is left.
    """
    if not 0 < percentile <= 100:
        raise UserError(f"--filter_percentile {percentile}: give a number above 0, and 100 at most")
    names = _pictures(metrics.class_names, metrics.label_list, metrics.image_list)
    distances = dict(zip(names, metrics.distance_to_center, strict=True))
    paths = [source.where(record) for record in range(len(source.labels))]
    found = np.array([distances.get(name, np.nan) for name in _pictures(source.class_names, source.labels, paths)])
    if np.isnan(found).all():
        raise BadData(
            f"the filtering metrics know none of the {len(found)} images of the data set (they begin with "
            f"{metrics.image_list[0]}); compute them on this data set"
        )
    threshold = np.inf if percentile == 100 else find_threshold(metrics.distance_to_center, percentile)
    records = np.flatnonzero(~(found >= threshold))
    if not len(records):
        raise BadData(f"--filter_percentile {percentile} leaves no image; give a larger one")
    return filter_by_class_size(source.subset(records), min_images_per_class)


def find_threshold(distances: np.ndarray, percentile: float) -> float:
    """The distance that ``percentile`` percent of ``distances`` [N] lie below, from 100 bins (facenet's function)."""
    counts, edges = np.histogram(distances, _NUM_BINS)
    cumulative = np.cumsum(counts) / np.sum(counts)
    return float(np.interp(percentile / 100, cumulative, (edges[:-1] + edges[1:]) / 2))


def distance_to_class_center(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Euclidean distance [N] float64 of each embedding [N, D] to the mean of its class; labels [N] integers from 0."""
    embeddings = np.asarray(embeddings, np.float64)
    sums = np.zeros((labels.max(initial=-1) + 1, embeddings.shape[1]))
    np.add.at(sums, labels, embeddings)
    centers = sums[labels] / np.bincount(labels)[labels][:, None]
    return np.linalg.norm(embeddings - centers, axis=1)


def write_filtering_metrics(
    path: str | Path,
    class_names: list[str],
    image_list: list[str],
    label_list: np.ndarray,
    distance_to_center: np.ndarray,
) -> None:
    """Write the four data sets of facenet's ``calculate_filtering_metrics.py`` into an HDF5 file, whole or not at all.

    Raises:
      StorageError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            file.create_dataset("class_names", data=_encoded(class_names), dtype=h5py.string_dtype())
            file.create_dataset("image_list", data=_encoded(image_list), dtype=h5py.string_dtype())
            file.create_dataset("label_list", data=np.asarray(label_list, np.int64))
            file.create_dataset("distance_to_center", data=np.asarray(distance_to_center, np.float64))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: the filtering metrics cannot be written ({error}); choose another place"
        ) from error


def read_filtering_metrics(path: str | Path) -> FilteringMetrics:
    """Read what ``write_filtering_metrics`` or facenet's own script has written.

    Links, and data that lie in other files or unpack to more than the file holds, are refused.

    Raises:
      UserError: there is no such file.
      BadData: the file is not one of filtering metrics.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of filtering metrics; check --filter_filename")
    try:
        with h5py.File(path, "r") as file:
            class_names = _read_strings(file, "class_names", path)
            image_list = _read_strings(file, "image_list", path)
            label_list = _read_plain(file, "label_list", path)
            distances = _read_plain(file, "distance_to_center", path)
    except (OSError, RuntimeError) as error:
        raise BadData(f"{path}: cannot be read as HDF5 ({error}); compute the filtering metrics again") from error
    problem = _problem(class_names, image_list, label_list, distances)
    if problem:
        raise BadData(f"{path}: {problem}; compute the filtering metrics again")
    return FilteringMetrics(class_names, image_list, label_list.astype(np.int64), distances.astype(np.float64))


def _pictures(class_names: list[str], labels: np.ndarray, paths: list[str]) -> list[str]:
    return [f"{class_names[label]}/{os.path.basename(path)}" for label, path in zip(labels, paths, strict=True)]


def _encoded(texts) -> list[bytes]:
    # File names need not be UTF-8: their other bytes are kept as they are.
    return [str(text).encode("utf-8", "surrogateescape") for text in texts]


def _dataset(file: h5py.File, name: str, path) -> h5py.Dataset:
    link = file.get(name, getlink=True)
    if link is None:
        raise BadData(f"{path}: has no {name}; give a file of filtering metrics")
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.external
        or dataset.chunks is not None
        or dataset.is_virtual
        or dataset.ndim != 1
        or dataset.id.get_storage_size() < dataset.nbytes
    ):
        raise BadData(f"{path}: {name} is not a plain list stored in this file; compute the filtering metrics again")
    return dataset


def _read_plain(file: h5py.File, name: str, path) -> np.ndarray:
    dataset = _dataset(file, name, path)
    if dataset.dtype.kind not in "iuf":
        raise BadData(f"{path}: {name} does not hold numbers; compute the filtering metrics again")
    return dataset[:]


def _read_strings(file: h5py.File, name: str, path) -> list[str]:
    dataset = _dataset(file, name, path)
    if h5py.check_string_dtype(dataset.dtype) is None:
        raise BadData(f"{path}: {name} does not hold strings; compute the filtering metrics again")
    return [text.decode("utf-8", "surrogateescape") for text in dataset[:]]


def _problem(class_names: list[str], image_list: list[str], labels: np.ndarray, distances: np.ndarray) -> str | None:
    if not len(image_list) == len(labels) == len(distances):
        return f"{len(image_list)} images, {len(labels)} labels and {len(distances)} distances do not match"
    if not image_list:
        return "it lists no image"
    if labels.dtype.kind == "f" or labels.min() < 0 or labels.max() >= len(class_names):
        return f"its labels are not indices into its {len(class_names)} class names"
    if not np.isfinite(distances).all() or distances.min() < 0:
        return f"the distance of {image_list[np.argmin(np.isfinite(distances) & (distances >= 0))]} is not a distance"
    picture, count = Counter(_pictures(class_names, labels, image_list)).most_common(1)[0]
    if count > 1:
        return f"it lists {picture} {count} times"
    return None
