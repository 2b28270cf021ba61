from dataclasses import dataclass

import h5py
import numpy as np
import pytest

from towers.datasets import filtering
from towers.errors import BadData, StorageError, UserError


@dataclass(frozen=True)
class ListedSource:
    """The part of a source that filtering relies on."""

    labels: np.ndarray
    class_names: list[str]
    paths: list[str]

    def where(self, record):
        return self.paths[record]

    def subset(self, records):
        present = np.unique(self.labels[records])
        return ListedSource(
            np.searchsorted(present, self.labels[records]),
            [self.class_names[label] for label in present],
            [self.paths[record] for record in records],
        )


def source_of(sizes, root="/data"):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"P{label}" for label in range(len(sizes))]
    paths = [f"{root}/P{label}/{index}.jpg" for label, size in enumerate(sizes) for index in range(size)]
    return ListedSource(labels, names, paths)


def metrics_of(source, distances):
    return filtering.FilteringMetrics(source.class_names, source.paths, source.labels, np.asarray(distances, float))


def test_small_classes_go():
    filtered = filtering.filter_by_class_size(source_of([3, 1, 2]), 2)
    assert filtered.class_names == ["P0", "P2"]
    assert filtered.labels.tolist() == [0, 0, 0, 1, 1]


def test_no_class_left_is_an_error_with_the_largest_size():
    with pytest.raises(BadData, match="largest has 3"):
        filtering.filter_by_class_size(source_of([3, 1]), 4)


def test_threshold_is_facenets():
    distances = np.random.default_rng(0).gamma(3.0, size=500)
    counts, edges = np.histogram(distances, 100)
    for percentile in (5, 50, 92.5):
        below = 0
        last_share, last_center = None, None
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            below += count
            share, center = below / 500, (low + high) / 2
            if share > percentile / 100:
                break
            last_share, last_center = share, center
        if last_share is None:
            expected = center
        else:
            expected = last_center + (center - last_center) * (percentile / 100 - last_share) / (share - last_share)
        assert filtering.find_threshold(distances, percentile) == pytest.approx(expected, rel=1e-9)


def test_far_pictures_go_then_small_classes():
    source = source_of([4, 3, 2])
    distances = [0.1, 0.2, 0.3, 9.0, 0.1, 8.0, 9.5, 0.1, 0.2]
    filtered = filtering.filter_dataset(source, metrics_of(source, distances), 70, 2)
    assert filtered.paths == [
        *(f"/data/P0/{index}.jpg" for index in range(3)),
        *(f"/data/P2/{index}.jpg" for index in range(2)),
    ]
    assert filtered.labels.tolist() == [0, 0, 0, 1, 1]


def test_percentile_100_keeps_every_picture():
    source = source_of([3, 2])
    assert filtering.filter_dataset(source, metrics_of(source, range(5)), 100, 1).paths == source.paths


def test_a_picture_at_the_threshold_goes():
    source = source_of([4])
    metrics = metrics_of(source, [0.0, 1.0, 2.0, 3.0])
    threshold = filtering.find_threshold(metrics.distance_to_center, 60)
    at_threshold = metrics_of(source, [0.0, threshold, 2.0, 3.0])
    assert filtering.find_threshold(at_threshold.distance_to_center, 60) == threshold
    assert filtering.filter_dataset(source, at_threshold, 60, 1).paths == source.paths[:1]


def test_metrics_survive_a_moved_folder_and_unknown_pictures_stay():
    metrics = metrics_of(source_of([3], root="/old/place"), [0.1, 0.2, 9.0])
    source = source_of([5], root="elsewhere")
    assert filtering.filter_dataset(source, metrics, 90, 1).paths == [
        path for path in source.paths if not path.endswith("/2.jpg")
    ]


def test_classes_in_folders_of_one_name_are_told_apart():
    paths = ["/data/a/P/1.jpg", "/data/b/P/1.jpg"]
    source = ListedSource(np.array([0, 1]), ["a/P", "b/P"], paths)
    assert filtering.filter_dataset(source, metrics_of(source, [0.0, 9.0]), 90, 1).paths == paths[:1]


def test_metrics_of_another_data_set_are_refused():
    source = source_of([3])
    other = filtering.FilteringMetrics(["Q"], ["/data/Q/0.jpg"], np.zeros(1, int), np.ones(1))
    with pytest.raises(BadData, match="none of the 3 images.*/data/Q/0.jpg"):
        filtering.filter_dataset(source, other, 50, 1)


def test_nothing_left_is_an_error():
    source = source_of([3])
    with pytest.raises(BadData, match="leaves no image"):
        filtering.filter_dataset(source, metrics_of(source, [1.0, 1.0, 1.0]), 50, 1)


@pytest.mark.parametrize("percentile", [0, -1, 101, float("nan")])
def test_percentile_out_of_range_is_refused(percentile):
    source = source_of([3])
    with pytest.raises(UserError, match="--filter_percentile"):
        filtering.filter_dataset(source, metrics_of(source, [1, 2, 3]), percentile, 1)


def test_distances_equal_the_loop_of_the_definition():
    rng = np.random.default_rng(1)
    embeddings, labels = rng.normal(size=(9, 4)), np.array([0, 2, 0, 3, 2, 2, 0, 3, 2])
    expected = []
    for embedding, label in zip(embeddings, labels, strict=True):
        members = [other for other, its in zip(embeddings, labels, strict=True) if its == label]
        center = sum(members) / len(members)
        expected.append(sum((embedding - center) ** 2) ** 0.5)
    np.testing.assert_allclose(filtering.distance_to_class_center(embeddings, labels), expected, rtol=1e-12)


def test_metrics_are_read_back_as_written(tmp_path):
    path = tmp_path / "metrics.h5"
    images = ["/data/Zoë/1.jpg", "/data/P/2.jpg", "/data/P/\udcff.jpg"]
    filtering.write_filtering_metrics(path, ["Zoë", "P"], images, [0, 1, 1], [0.5, 0.25, 0.0])
    metrics = filtering.read_filtering_metrics(path)
    assert (metrics.class_names, metrics.image_list) == (["Zoë", "P"], images)
    assert metrics.label_list.tolist() == [0, 1, 1]
    assert metrics.label_list.dtype == np.int64
    assert metrics.distance_to_center.tolist() == [0.5, 0.25, 0.0]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.h5"]


def test_files_of_facenet_hold_fixed_length_strings_and_are_read(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["class_names"] = np.array([b"P"])
        file["image_list"] = np.array([b"/data/P/1.png", b"/data/P/22.png"])
        file["label_list"] = np.array([0, 0], np.int32)
        file["distance_to_center"] = np.array([0.5, 0.75], np.float32)
    metrics = filtering.read_filtering_metrics(tmp_path / "old.h5")
    assert metrics.image_list == ["/data/P/1.png", "/data/P/22.png"]
    assert metrics.distance_to_center.tolist() == [0.5, 0.75]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.h5"
    filtering.write_filtering_metrics(path, ["P"], ["P/1.jpg"], [0], [0.5])
    before = path.read_bytes()

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(filtering.os, "replace", full_disk)
    with pytest.raises(StorageError, match=r"metrics\.h5.*No space left"):
        filtering.write_filtering_metrics(path, ["P"], ["P/1.jpg"], [0], [0.75])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def good_file(path):
    filtering.write_filtering_metrics(path, ["P"], ["P/1.jpg", "P/2.jpg"], [0, 0], [0.5, 0.75])
    return path


def replace(file, name, **creation):
    del file[name]
    return file.create_dataset(name, **creation)


def external_data(file):
    replace(file, "distance_to_center", shape=(2,), dtype="f8", external=[("/etc/hostname", 0, 16)])


def virtual_data(file):
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    del file["distance_to_center"]
    file.create_virtual_dataset("distance_to_center", layout)


def external_link(file):
    del file["label_list"]
    file["label_list"] = h5py.ExternalLink("other.h5", "x")


def soft_link(file):
    del file["label_list"]
    file["label_list"] = h5py.SoftLink("/distance_to_center")


def group(file):
    del file["label_list"]
    file.create_group("label_list")


def compressed(file):
    replace(file, "distance_to_center", data=np.ones(2), compression="gzip")


def huge_and_not_stored(file):
    replace(file, "distance_to_center", shape=(10**12,), dtype="f8")


@pytest.mark.parametrize(
    "change",
    [
        external_data,
        virtual_data,
        external_link,
        soft_link,
        group,
        compressed,
        huge_and_not_stored,
        lambda file: replace(file, "label_list", data=np.zeros((2, 1), int)),
        lambda file: replace(file, "label_list", data=np.zeros(3, int)),
        lambda file: replace(file, "label_list", data=np.array([0, 1])),
        lambda file: replace(file, "label_list", data=np.array([0, -1])),
        lambda file: replace(file, "label_list", data=np.zeros(2)),
        lambda file: replace(file, "label_list", data=np.array([b"0", b"0"])),
        lambda file: replace(file, "image_list", data=np.zeros(2)),
        lambda file: replace(file, "distance_to_center", data=np.array([0.5, np.nan])),
        lambda file: replace(file, "distance_to_center", data=np.array([0.5, -1.0])),
        lambda file: replace(file, "image_list", data=np.array([b"a/P/1.jpg", b"b/P/1.jpg"])),
        lambda file: file.__delitem__("image_list"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, change):
    path = good_file(tmp_path / "metrics.h5")
    filtering.read_filtering_metrics(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(BadData, match=r"metrics\.h5: ") as error:
        filtering.read_filtering_metrics(path)
    assert "\n" not in str(error.value)


def test_files_that_are_not_hdf5_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        filtering.read_filtering_metrics(tmp_path / "none.h5")
    whole = good_file(tmp_path / "metrics.h5").read_bytes()
    for number, content in enumerate((b"", b"text", whole[: len(whole) // 2])):
        path = tmp_path / f"bad{number}.h5"
        path.write_bytes(content)
        with pytest.raises(BadData, match="cannot be read as HDF5"):
            filtering.read_filtering_metrics(path)
