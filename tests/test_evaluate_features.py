"""The scripts from pictures to features to figures, on a network that was not trained."""

import json

import cv2
import keras
import numpy as np
import pytest
from conftest import ROOT, make_faces, run_python

from towers import export, networks
from towers.datasets.alignment import CROP_LANDMARKS
from towers.evaluation.features import read_features, write_features


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Pictures, a model folder, and the features of the former on one and on two towers."""
    folder = make_faces(tmp_path_factory.mktemp("faces"))
    keras.mixed_precision.set_dtype_policy("float32")
    arguments = {"name": "small", "image_size": 32, "embedding_size": 8}
    network = networks.build("small", image_size=32, embedding_size=8)
    export.save_model(folder / "model", network, {"network": arguments, "load_size": 32, "step": 0})
    # A path that is no picture: left out.
    (folder / "list.txt").write_text("".join(f"lfw/Lfw_0/Lfw_0_{n:04}.jpg\n" for n in range(1, 4)) + "pairs.txt\n")
    script = ROOT / "scripts/extract_features.py"
    base = [script, "--model", folder / "model", "--batch_size", 7]
    run_python(*base, "--data_dir", folder / "lfw", "--towers", 2, "--flip", "add", "--out", folder / "two.npy")
    run_python(*base, "--list", folder / "list.txt", "--flip", "join", "--max_bad_fraction", 0.5, "--out",
               folder / "one.h5")  # fmt: skip
    return folder


def test_features_lie_beside_their_paths(faces):
    two, one = read_features(faces / "two.npy"), read_features(faces / "one.h5")
    assert two.features.shape == (40, 8)
    assert two.labels.tolist() == np.repeat(range(4), 10).tolist()
    assert two.paths[11] == str(faces / "lfw/Lfw_1/Lfw_1_0002.jpg")
    assert one.paths == [str(faces / f"lfw/Lfw_0/Lfw_0_{n:04}.jpg") for n in range(1, 4)]
    assert one.features.shape == (3, 16)
    np.testing.assert_allclose(one.features[:, :8] + one.features[:, 8:], two.features[:3], rtol=1e-4, atol=1e-5)


def test_features_of_a_pack_a_list_and_records(faces, tmp_path):
    """The same pictures in InsightFace's and HF-Softmax's forms have the features that they have in a folder."""
    run_python("scripts/make_bin.py", "--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt", "--out",
               tmp_path / "lfw.bin")  # fmt: skip
    run_python("scripts/make_rec.py", "--data_dir", faces / "lfw", "--out_dir", tmp_path / "rec")
    names = [f"Lfw_{person}/Lfw_{person}_{n:04}.jpg {person}" for person in range(4) for n in range(1, 11)]
    (faces / "lfw" / "labelled.txt").write_text("\n".join(names))
    extract = ("scripts/extract_features.py", "--model", faces / "model", "--flip", "add")
    folder = read_features(faces / "two.npy")
    run_python(*extract, "--data_dir", faces / "lfw" / "labelled.txt", "--out", tmp_path / "list.npy")
    run_python(*extract, "--data_dir", tmp_path / "rec", "--out", tmp_path / "rec.npy")
    for name in ("list.npy", "rec.npy"):
        found = read_features(tmp_path / name)
        assert found.labels.tolist() == folder.labels.tolist()
        np.testing.assert_allclose(found.features, folder.features, rtol=1e-4, atol=1e-5)
    assert read_features(tmp_path / "list.npy").paths == folder.paths
    run_python(*extract, "--data_dir", tmp_path / "lfw.bin", "--out", tmp_path / "pack.npy")
    pack = read_features(tmp_path / "pack.npy")
    assert pack.paths[3].endswith("lfw.bin, picture 3 (pair 1)")
    nearest = np.abs(pack.features[:, None] - folder.features[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-4


def test_hf_evaluation_writes_features_and_figures(faces, tmp_path):
    data, out = tmp_path / "packs", tmp_path / "out"
    pack = ["--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt", "--out", data / "agedb_30.bin"]
    data.mkdir()
    out.mkdir()
    run_python("scripts/make_bin.py", *pack)
    validate = ("validate_on_lfw.py", "--model", faces / "model", "--lfw_nrof_folds", "2")
    done = run_python(*validate, "--arch", "small", "--bin", data / "agedb_30.bin", "--features",
                      out / "agedb_30.npy", "--json", out / "agedb_30.json")  # fmt: skip
    written = read_features(out / "agedb_30.npy")
    pairs = written.features.reshape(-1, 2, 8)
    assert len(pairs) == json.loads((out / "agedb_30.json").read_text())["pairs_used"]
    assert f"Accuracy: {json.loads((out / 'agedb_30.json').read_text())['lfw_accuracy']:.5f}" in done.stdout
    done = run_python(*validate, "--bin", data / "agedb_30.bin", "--protocol", "insightface", "--json",
                      out / "flip.json", "--features", out / "flip.npy")  # fmt: skip
    figures, summed = json.loads((out / "flip.json").read_text()), read_features(out / "flip.npy").features
    assert f"[agedb_30][0]XNorm: {figures['lfw_xnorm']:f}\n" in done.stdout
    assert f"[agedb_30][0]Accuracy-Flip: {figures['lfw_accuracy']:.5f}+-" in done.stdout
    assert figures["lfw_xnorm"] == pytest.approx(np.linalg.norm(summed, axis=1).mean() / 2, rel=0.2)
    refused = run_python(*validate, "--bin", data / "agedb_30.bin", "--protocol", "insightface", "--subtract_mean",
                         check=False)  # fmt: skip
    assert (refused.returncode, "lfw_subtract_mean is facenet's" in refused.stderr) == (2, True)
    other = run_python(*validate, "--arch", "y1", "--bin", data / "agedb_30.bin", check=False)
    assert (other.returncode, "holds small" in other.stderr) == (2, True)


def test_identification_among_distractors(faces):
    random = np.random.default_rng(0)
    distractors = random.normal(size=(20, 8)).astype(np.float32)
    write_features(faces / "distractors.h5", distractors, [str(n) for n in range(20)], np.zeros(20, int))
    done = run_python(
        ROOT / "scripts/evaluate_identification.py", "--probes", faces / "two.npy", "--distractors",
        faces / "distractors.h5", "--ranks", 1, 21, "--json", faces / "identification.json",
    )  # fmt: skip
    figures = json.loads((faces / "identification.json").read_text())
    assert figures["searches"] == 4 * 10 * 9
    assert 0 <= figures["rank-1"] <= figures["rank-21"] == 1
    assert "40 probes, 360 searches, 20 distractors" in done.stdout


def write_meta(folder, media):
    folder.mkdir(exist_ok=True)
    (folder / "ijbc_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    (folder / "ijbc_name_5pts_score.txt").write_text("".join(f"{line.split()[0]} {'0 ' * 10}0.5\n" for line in media))
    (folder / "ijbc_template_pair_label.txt").write_text("0 4 1\n1 5 1\n0 5 0\n1 4 0\n0 6 0\n")
    for name, templates in (("gallery_G1", (0, 1)), ("gallery_G2", (2, 3)), ("probe_mixed", (4, 5, 6, 7))):
        rows = [f"{template},{template % 4},x.jpg" for template in templates]
        (folder / f"ijbc_1N_{name}.csv").write_text("\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows]) + "\n")
    return folder


def test_ijb(faces):
    """Templates 0 to 3 are the gallery, 4 to 7 the probes of the same four people; features are made for it."""
    names = [f"{n}.jpg" for n in range(16)]
    people = np.eye(8, dtype=np.float32)[np.arange(16) // 2 % 4]
    write_features(faces / "ijbc.npy", people, [f"/crops/{name}" for name in names], np.zeros(16, int))
    meta = write_meta(faces / "meta", [f"{n}.jpg {n // 2} {n}" for n in range(16)])
    command = [ROOT / "scripts/evaluate_ijb.py", "--features", faces / "ijbc.npy", "--meta_dir", meta]
    done = run_python(*command, "--json", faces / "ijbc.json")
    figures = json.loads((faces / "ijbc.json").read_text())
    assert (figures["genuine"], figures["impostors"]) == (2, 3)
    assert figures["tar@far=1e-06"] == figures["rank-1"] == figures["tpir@fpir=0.01"] == 1
    assert "4 mated searches in 2 galleries" in done.stdout

    broken = write_meta(faces / "broken", [f"{n}.jpg {n // 2} {n}" for n in range(12)])
    result = run_python(*command[:-1], broken, check=False)
    assert result.returncode == 65
    assert "template 6 and 0 more have no picture" in result.stderr
    missing = write_meta(faces / "missing", [f"{n}.jpg {n // 2} {n}" for n in range(18)])
    result = run_python(*command[:-1], missing, check=False)
    assert result.returncode == 65
    assert "has no 16.jpg, and 1 more" in result.stderr


def test_ijb_from_pictures(faces, tmp_path):
    """Loose crops are aligned by the landmarks: pictures moved and turned have the features of upright ones."""
    pictures = tmp_path / "loose_crop"
    pictures.mkdir()
    meta = write_meta(tmp_path / "meta", [f"{n}.png {n // 2} {n}" for n in range(16)])
    lines = []
    for n in range(16):
        face = cv2.imread(str(faces / f"lfw/Lfw_{n // 2 % 4}/Lfw_{n // 2 % 4}_{n // 8 + 1:04}.jpg"))
        face, points = cv2.resize(face, (112, 112)), CROP_LANDMARKS
        if n % 2:
            face, points = np.rot90(face), np.stack([points[:, 1], 111 - points[:, 0]], axis=1)
        cv2.imwrite(str(pictures / f"{n}.png"), cv2.copyMakeBorder(face, 9, 9, 5, 5, cv2.BORDER_CONSTANT))
        lines.append(f"{n}.png " + " ".join(f"{value:.4f}" for value in (points + [5, 9]).ravel()) + " 0.9\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("".join(lines))
    command = ["scripts/evaluate_ijb.py", "--model", faces / "model", "--meta_dir", meta]
    done = run_python(*command, "--pictures", pictures, "--towers", 2, "--write_features", tmp_path / "found.npy")
    found = read_features(tmp_path / "found.npy")
    assert found.paths[3] == str(pictures / "3.png")
    np.testing.assert_allclose(found.features[0::2], found.features[1::2], rtol=0.02, atol=0.02)
    assert "4 mated searches in 2 galleries" in done.stdout
    again = run_python("scripts/evaluate_ijb.py", "--features", tmp_path / "found.npy", "--meta_dir", meta)
    assert again.stdout == done.stdout
    refused = run_python(*command, check=False)
    assert (refused.returncode, "--model embeds --pictures" in refused.stderr) == (2, True)
