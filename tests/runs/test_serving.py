"""Exports that are refused leave nothing behind, and what they are compared on."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from towers import networks
from towers.errors import BadData, UserError
from towers.export import Classifier, Model
from towers.runs.serving import export_model, sample_pictures, whitening_of
from towers.serving import formats

SIZE, CLASSES = 32, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = networks.build("resnet10", image_size=SIZE, embedding_size=16, seed=1)
    return Model(network, {"network": {"image_size": SIZE}, "load_size": SIZE}, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def classifier():
    random = np.random.default_rng(2)
    return Classifier(random.normal(size=(CLASSES, 16)), random.normal(size=CLASSES), ["a", "b", "c"])


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3)).astype(np.uint8)


def export(model, classifier, pictures, wanted, out_dir):
    return export_model(model, classifier, None, pictures, wanted, out_dir, load_size=SIZE)


def other_embeddings(inference, path):
    """A file of a network whose embeddings are others by 0.02."""

    def run(images):
        outputs = {name: value.numpy() for name, value in inference(tf.constant(images, tf.float32)).items()}
        shift = 0.02 * np.random.default_rng(1).normal(size=outputs["embedding"].shape)
        return outputs | {"embedding": outputs["embedding"] + shift}

    path.write_bytes(b"half a model")
    return run


def other_signatures(inference, path):
    """A SavedModel whose signatures are not alike, as its own runner finds out."""
    formats.write_saved_model(inference, path, SIZE)
    loaded = tf.saved_model.load(str(path))
    both = loaded.signatures["uint8"], loaded.signatures["float"]
    module = tf.Module()
    module.inference = loaded

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="images")])
    def darker(images):
        return both[1](images=images / 2)

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.uint8, name="images")])
    def of_bytes(images):
        return both[0](images=images)

    tf.saved_model.save(module, str(path), signatures={"float": darker, "uint8": of_bytes})
    return formats.saved_model_runner(path)


def interrupted(inference, path):
    path.write_bytes(b"half a model")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "broken", "error", "message"),
    [
        ("litert", other_embeddings, UserError, "0.9999 is needed"),
        ("saved_model", other_signatures, UserError, "uint8 and float disagree"),
        ("litert", interrupted, KeyboardInterrupt, None),
    ],
)
def test_a_file_that_is_not_the_network_is_removed(
    model, classifier, pictures, tmp_path, monkeypatch, name, broken, error, message
):
    right = formats.write

    def write(inference, wanted, path, **arguments):
        return broken(inference, path) if wanted == name else right(inference, wanted, path, **arguments)

    monkeypatch.setattr(formats, "write", write)
    first = "saved_model" if name == "litert" else "litert"
    with pytest.raises(error, match=message):
        export(model, classifier, pictures, [first, name], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [formats.FILES[first]]


def test_a_folder_that_is_not_empty_is_left_alone(model, classifier, pictures, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        export(model, classifier, pictures, ["saved_model"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def folder(tmp_path):
    for index in range(10):
        picture = np.full((40, 60, 3), 10 * index, np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
    (tmp_path / "5.png").write_bytes(b"no picture")
    return tmp_path


def test_pictures_to_compare_on_are_spread_over_the_folder(folder):
    chosen = sample_pictures(folder, 4, image_size=SIZE, load_size=36)
    assert chosen.shape == (4, SIZE, SIZE, 3)
    assert chosen[:, 0, 0, 0].tolist() == [0, 30, 60, 90]
    # One cannot be read, and there are no more.
    assert sample_pictures(folder, 256, image_size=SIZE, load_size=36).shape == (9, SIZE, SIZE, 3)


def test_pictures_that_are_none_are_named(folder):
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(BadData, match="none of 10 pictures can be read, such as .*0.png"):
        sample_pictures(folder, 256, image_size=SIZE, load_size=36)


def test_too_few_pictures_are_refused_before_they_are_embedded(model, folder):
    with pytest.raises(BadData, match="10 pictures cannot whiten 16 dimensions; give a folder of 17 or more"):
        whitening_of(None, model.network, folder, image_size=SIZE, load_size=36)
