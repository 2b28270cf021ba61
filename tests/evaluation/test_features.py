import numpy as np
import pytest

from towers.errors import BadData, UserError
from towers.evaluation.features import read_features, write_features

FEATURES = np.arange(6, dtype=np.float32).reshape(3, 2)
PATHS = ["a/b c.jpg", "ü.png", b"\xff.jpg".decode("utf-8", "surrogateescape")]
LABELS = np.array([4, -1, 2**40])


@pytest.mark.parametrize("name", ["f.npy", "f.h5", "f.hdf5"])
def test_features_are_read_back(tmp_path, name):
    write_features(tmp_path / name, FEATURES, PATHS, LABELS)
    got = read_features(tmp_path / name)
    np.testing.assert_array_equal(got.features, FEATURES)
    assert got.features.dtype == np.float32
    assert got.paths == PATHS
    assert got.labels.tolist() == LABELS.tolist()


def test_wrong_names_and_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="ends with"):
        write_features(tmp_path / "f.txt", FEATURES, PATHS, LABELS)
    with pytest.raises(UserError, match="cannot hold this path"):
        write_features(tmp_path / "f.npy", FEATURES, ["a\nb", "c", "d"], LABELS)
    for name in ("none.npy", "none.h5"):
        with pytest.raises(UserError, match="no such file"):
            read_features(tmp_path / name)
    for name in ("f.npy", "f.h5"):
        (tmp_path / name).write_bytes(b"nothing")
        (tmp_path / "f.tsv").write_text("path\tlabel\n")
        with pytest.raises(BadData, match="no file of features"):
            read_features(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(BadData, match="no file of features"):
        read_features(tmp_path / "objects.npy")
    write_features(tmp_path / "f.npy", FEATURES, PATHS, LABELS)
    (tmp_path / "f.tsv").write_text("path\tlabel\na\t1\n")
    with pytest.raises(BadData, match="1 paths and 1 labels do not fit"):
        read_features(tmp_path / "f.npy")
