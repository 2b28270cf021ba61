import importlib.util

import numpy as np
import pytest

from towers import networks
from towers.errors import UserError
from towers.evaluation.whitening import fit_whitening
from towers.export import Classifier
from towers.serving.formats import FILES, FORMATS, check_formats, write
from towers.serving.inference import Inference
from towers.serving.parity import check, compare

SIZE, CLASSES = 32, 5


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (256, 4, 4, 3))
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def network(pictures):
    """Its batch normalisation has seen the pictures; 96-d, so that few of them whiten it."""
    network = networks.build("resnet10", image_size=SIZE, embedding_size=96, seed=1)
    for _ in range(30):
        network(pictures[::6].astype(np.float32), training=True)
    return network


@pytest.fixture(scope="module")
def classifier():
    random = np.random.default_rng(2)
    return Classifier(random.normal(size=(CLASSES, 96)), random.normal(size=CLASSES), [f"c{i}" for i in range(CLASSES)])


def numbers(outputs):
    return {name: value.numpy() for name, value in outputs.items()}


def test_embedding_is_normalised_and_logits_are_the_classifiers(network, classifier, pictures):
    raw = network(pictures[:9].astype(np.float32)).numpy()
    found = numbers(Inference(network, classifier)(pictures[:9].astype(np.float32)))
    np.testing.assert_allclose(found["embedding"], raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(found["logits"], raw @ classifier.weights.T + classifier.bias, rtol=1e-4, atol=1e-4)
    assert set(numbers(Inference(network)(pictures[:2].astype(np.float32)))) == {"embedding"}


def test_whitening_changes_the_embedding_and_leaves_the_classes(network, classifier, pictures):
    images = pictures.astype(np.float32)
    raw = network(images).numpy()
    whitening = fit_whitening(raw)
    plain, white = (numbers(Inference(network, classifier, other)(images)) for other in (None, whitening))
    want = whitening(raw)
    np.testing.assert_allclose(np.sum(white["embedding"] * want, axis=1) / np.linalg.norm(want, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(white["logits"], plain["logits"], rtol=1e-3, atol=2e-3 * np.abs(plain["logits"]).max())
    np.testing.assert_array_equal(white["logits"].argmax(axis=1), plain["logits"].argmax(axis=1))
    assert np.abs(white["embedding"] - plain["embedding"]).max() > 0.05


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_run_by_its_own_runtime(network, classifier, pictures, tmp_path, name):
    if name == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    inference = Inference(network, classifier, fit_whitening(network(pictures.astype(np.float32)).numpy()))
    path = tmp_path / FILES[name]
    run = write(inference, name, path, image_size=SIZE, calibration=pictures[:40])
    assert path.exists()
    found = run(pictures)
    assert found["embedding"].shape == (256, 96)
    assert found["logits"].shape == (256, CLASSES)
    parity = compare(numbers(inference(pictures.astype(np.float32))), found)
    assert parity.pictures == 256
    if name == "litert_int8":
        assert 0.8 < parity.mean_cosine < 0.99999
        assert path.stat().st_size < 0.4 * sum(4 * v.numpy().size for v in network.variables)
    else:
        check(parity, name)
        assert parity.least_cosine > 0.99999
        assert parity.top1_agreement == 1


def outputs(rows, logits=None):
    found = {"embedding": np.array(rows, float)}
    return found | ({} if logits is None else {"logits": np.array(logits, float)})


def test_parity_by_hand():
    one = outputs([[3, 4], [1, 0]], [[1, 2], [3, 1]])
    other = outputs([[4, 3], [2, 0]], [[1, 2], [1, 3]])
    parity = compare(one, other)
    assert parity.least_cosine == pytest.approx(24 / 25)
    assert parity.mean_cosine == pytest.approx(49 / 50)
    assert parity.top1_agreement == 0.5
    with pytest.raises(UserError, match="0.960000"):
        check(parity, "onnx")


def test_nan_is_no_parity():
    parity = compare(outputs([[1, 0], [1, 0]]), outputs([[1, 0], [np.nan, 0]]))
    assert parity.least_cosine == -1
    with pytest.raises(UserError):
        check(parity, "litert")


def test_formats_that_cannot_be_written_are_refused(monkeypatch):
    with pytest.raises(UserError, match="saved_model, litert"):
        check_formats(["mindir"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install .*tf2onnx"):
        check_formats(["onnx"])
    check_formats(["saved_model", "litert"])
