import cv2
import numpy as np
import pytest

from towers import export, networks
from towers.datasets.folder import PathSource, read_folder
from towers.errors import BadData, UserError
from towers.runs.gem_choice import (
    check_options,
    choose_pictures,
    compare_powers,
    learnt_power,
    pictures_to_fine_tune_on,
    pooled_by,
)
from towers.runs.retrieval import embed_whole

POWERS = (1.0, 3.0, 8.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        for number in range(3):
            coarse = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            cv2.imwrite(str(root / name / f"{number}.png"), cv2.resize(coarse, (90, 70)))
    return read_folder(root)


@pytest.fixture(scope="module")
def network():
    return networks.build("resnet10", image_size=48, embedding_size=512, gem_p=2.0, seed=1)


@pytest.mark.parametrize("size", [512, 24])
def test_one_pass_gives_the_embeddings_of_every_power(size):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    first = networks.build("resnet10", image_size=64, embedding_size=size, gem_p=2.0, seed=1)
    found = pooled_by(first)(images, POWERS)
    for power, rows in zip(POWERS, found, strict=True):
        other = networks.build("resnet10", image_size=64, embedding_size=size, gem_p=power, seed=1)
        np.testing.assert_allclose(rows, other(images), rtol=1e-4, atol=1e-5)


def test_powers_are_compared_by_copies_and_classes(network, source):
    records = np.arange(9)
    found = compare_powers(
        *(network, source, records, POWERS),
        image_size=48,
        seed=1,
        classify=lambda rows: np.arange(len(rows)) % 3,
        labels=np.array([0, 1, 2, 0, 1, 2, 0, 0, 0]),
    )
    assert len(found) == 3
    assert all(0.2 < figures["copies_map"] <= 1 for figures in found)
    assert all(figures["accuracy"] == pytest.approx(7 / 9) for figures in found)
    assert len({figures["copies_map"] for figures in found}) > 1
    again = compare_powers(network, source, records, POWERS[:1], image_size=48, seed=1)
    assert again == [{"copies_map": pytest.approx(found[0]["copies_map"])}]


def test_pictures_are_spread_over_the_classes(source):
    assert choose_pictures(source, 2, 100).tolist() == [0, 1, 3, 4, 6, 7]
    assert choose_pictures(source, 1, 2).tolist() == [0, 6]


def test_no_power_to_choose(source):
    with pytest.raises(UserError, match="no GeM"):
        pooled_by(networks.build("small", image_size=28, embedding_size=8))
    with pytest.raises(UserError, match="--gem_p 0"):
        compare_powers(None, source, np.arange(2), [0.0], image_size=48, seed=1)


def test_whole_pictures_keep_their_shape(source, tmp_path):
    network = networks.build("resnet10", image_size=None, embedding_size=512, seed=1)
    paths = [source.where(record) for record in range(2)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    three = PathSource([*paths, tmp_path / "broken.png"])
    rows, bad = embed_whole(network, three, longest_side=45)
    assert list(bad) == [2]
    with pytest.raises(BadData, match="broken"):
        embed_whole(network, three, longest_side=45, max_bad_fraction=0.3)
    with pytest.raises(UserError, match="--longest_side 0"):
        embed_whole(network, three, longest_side=0)
    for path, row in zip(paths, rows, strict=False):
        picture = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        resized = cv2.resize(picture, (45, 35), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(network(resized[None].astype(np.float32))[0], row, rtol=1e-4, atol=1e-5)


def test_a_model_is_read_with_another_power_and_size_also_where_it_was_learnt(tmp_path):
    arguments = {"image_size": 48, "embedding_size": 512, "seed": 1}
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    other = networks.build("resnet10", **arguments | {"image_size": 64}, gem_p=5.0)
    for learnt in (False, True):
        network = networks.build("resnet10", **arguments, gem_p=2.0, learn_gem_p=learnt)
        facts = {"network": {"name": "resnet10", **arguments, "gem_p": 2.0, "learn_gem_p": learnt}, "load_size": 48}
        export.save_model(tmp_path / "model", network, facts)
        model = export.read_model(tmp_path / "model", image_size=64, gem_p=5.0)
        assert model.image_size == 64
        np.testing.assert_allclose(model.network(images), other(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize(("asked", "first"), [({}, 2.5), ({"gem_p": 5.0}, 5.0)])
def test_a_model_is_read_to_learn_its_power_from_its_own_or_another_one(tmp_path, learnt, asked, first):
    arguments = {"image_size": 48, "embedding_size": 512, "seed": 1, "gem_p": 2.5, "learn_gem_p": learnt}
    facts = {"network": {"name": "resnet10", **arguments}, "load_size": 48}
    export.save_model(tmp_path / "model", networks.build("resnet10", **arguments), facts)
    model = export.read_model(tmp_path / "model", image_size=64, learn_gem_p=True, **asked)
    power = learnt_power(model.network)
    assert power.numpy() == first
    assert any(variable is power for variable in model.network.trainable_variables)
    assert model.facts["network"]["learn_gem_p"] is True


def test_pictures_to_fine_tune_on_have_the_classifiers_labels(source):
    found = pictures_to_fine_tune_on(source.root, 2, ["c", "more", "a", "b"])
    assert [found.where(record)[-7:] for record in range(len(found))] == [
        *("a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/0.png", "c/1.png")
    ]
    assert found.labels.tolist() == [2, 2, 3, 3, 0, 0]
    assert found.num_classes == 4
    with pytest.raises(BadData, match="1 of 3 classes are not among the 2 trained ones: c;"):
        pictures_to_fine_tune_on(source.root, 2, ["a", "b"])
    with pytest.raises(UserError, match="--images_per_class 0"):
        pictures_to_fine_tune_on(source.root, 0, ["a", "b", "c"])


def test_options_that_mean_nothing_for_a_power_alone():
    check_options(optimizer="MOM", sync_bn=False)
    with pytest.raises(UserError, match="--optimizer THOR: .*give SGD"):
        check_options(optimizer="THOR", sync_bn=False)
    with pytest.raises(UserError, match="--sync_bn: .*leave it out"):
        check_options(optimizer="SGD", sync_bn=True)
