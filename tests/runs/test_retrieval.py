import cv2
import numpy as np
import pytest
from datasets.pictures import decoded, face, jpeg, with_orientation

from towers import networks
from towers.datasets.decoding import Quarantine
from towers.datasets.pipeline import evaluation_dataset
from towers.errors import BadData, UserError
from towers.runs.retrieval import embed_whole, measure, read_set
from towers.runs.retrieval_sheets import source_of, write_sheet

TURNS = {"100000.jpg": 0, "100001.jpg": 90, "100100.jpg": 180, "100101.jpg": 270}


@pytest.fixture(scope="module")
def lying_and_upright(tmp_path_factory):
    """Holidays as photographed with the list that turns them, and the same pixels upright without one."""
    root = tmp_path_factory.mktemp("holidays")
    for name in ("lying", "upright"):
        (root / name).mkdir()
    for number, (name, degrees) in enumerate(TURNS.items()):
        stored = jpeg(face(number, 40, 56))
        # The orientation in the file is that of another program and does not count.
        (root / "lying" / name).write_bytes(with_orientation(stored, 8) if number == 1 else stored)
        picture = np.rot90(decoded(stored), -degrees // 90)
        cv2.imwrite(str(root / "upright" / name.replace("jpg", "png")), picture[..., ::-1])
    lines = [f'"{name}": {degrees},' for name, degrees in TURNS.items() if degrees]
    (root / "list.yaml").write_text("\n".join(["{", *lines, "}"]))
    lying = read_set("holidays", root / "lying", holidays_rotations=root / "list.yaml")
    return lying, read_set("holidays", root / "upright")


def test_turned_pictures_are_embedded_as_the_upright_ones(lying_and_upright, tmp_path):
    network = networks.build("resnet10", image_size=None, embedding_size=512, seed=1)
    lying, upright = (embed_whole(network, source_of(each), longest_side=48)[0] for each in lying_and_upright)
    np.testing.assert_array_equal(lying, upright)
    for pictures, name in zip(lying_and_upright, ("lying.jpg", "upright.jpg"), strict=True):
        write_sheet(tmp_path / name, pictures, lying)
    assert (tmp_path / "lying.jpg").read_bytes() == (tmp_path / "upright.jpg").read_bytes()


def test_batches_of_turned_pictures_are_those_of_the_upright_ones(lying_and_upright):
    batches = []
    for pictures in lying_and_upright:
        source = source_of(pictures)
        dataset = evaluation_dataset(source, batch=4, load_size=32, num_towers=1, quarantine=Quarantine(source))
        batches.append(next(iter(dataset))["image"].numpy())
    np.testing.assert_array_equal(*batches)


def test_the_figures_say_how_many_pictures_were_turned(lying_and_upright):
    rows = np.random.default_rng(0).normal(size=(4, 8))
    turned, plain = (measure("holidays", pictures, rows) for pictures in lying_and_upright)
    assert turned[0] == plain[0]
    assert turned[1][0] == "3 of 4 pictures are turned upright"
    assert "turned" not in " ".join(plain[1])


def test_ukbench_counts_its_own_among_the_first_four_of_every_picture(tmp_path):
    for number in range(8):
        (tmp_path / f"ukbench{number:05}.jpg").write_bytes(jpeg(face(number, 40, 56)))
    degrees = np.deg2rad([0, 1, 2, 90, 45, 91, 92, 93])
    figures, remarks = measure(
        "ukbench", read_set("ukbench", tmp_path), np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    )
    # The four nearest, itself among them: of 0, 1, 2: 0 1 2 4; of 4: 4 2 1 and 0 or 3, as far; of the others: 3 5 6 7.
    own = [3, 3, 3, 1, 1, 3, 3, 3]
    assert figures == {"ukbench_score": pytest.approx(sum(own) / 8)}
    assert "8 pictures in the gallery; the published set has 10200 pictures" in remarks


def test_a_png_is_not_turned_but_named(tmp_path):
    (tmp_path / "100000.jpg").write_bytes(jpeg(face(1)))
    (tmp_path / "100001.jpg").write_bytes(cv2.imencode(".png", face(2))[1].tobytes())
    (tmp_path / "list.yaml").write_text("100001.jpg: 90\n")
    source = source_of(read_set("holidays", tmp_path, holidays_rotations=tmp_path / "list.yaml"))
    quarantine = Quarantine(source)
    list(evaluation_dataset(source, batch=2, load_size=16, num_towers=1, quarantine=quarantine))
    with pytest.raises(BadData, match=r"100001\.jpg \(PNG: only a JPEG can be turned, by 90 degrees\)"):
        quarantine.check(0.0)


def test_only_holidays_have_rotations(tmp_path):
    with pytest.raises(UserError, match="--holidays_rotations with --protocol ukbench: only holidays"):
        read_set("ukbench", tmp_path, holidays_rotations=tmp_path / "list.yaml")
