"""Writing a trained model in the formats of `serving`, and what a whitening of it is fitted on."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import export
from ..datasets.augmentation import centre_crop
from ..datasets.decoding import BadPicture, fit
from ..datasets.folder import PathSource
from ..distribution import Towers
from ..errors import BadData, StorageError, UserError
from ..evaluation.retrieval_sets import pictures_below
from ..evaluation.whitening import Whitening, fit_whitening
from ..serving import formats, parity
from ..serving.inference import Inference
from .retrieval_sheets import read_picture
from .validation import embed_source

BATCH = 32


def whitening_of(
    towers: Towers, network: keras.Model, folder: Path, *, image_size: int, load_size: int, batch_size: int = 100
) -> Whitening:
    """The whitening of a network's embeddings of all pictures below a folder.

    Raises:
      BadData: no more pictures than dimensions, or more than one in a hundred unreadable.
    """
    source = PathSource(pictures_below(folder))
    # Before an hour of embedding instead of after it.
    if len(source) <= network.output_shape[-1]:
        raise BadData(
            f"{folder}: {len(source)} pictures cannot whiten {network.output_shape[-1]} dimensions; "
            f"give a folder of {network.output_shape[-1] + 1} or more, ten times as many to be good"
        )
    embeddings, _ = embed_source(
        towers, network, source, image_size=image_size, load_size=load_size, batch_size=batch_size
    )
    return fit_whitening(embeddings)


def sample_pictures(folder: Path, count: int, *, image_size: int, load_size: int) -> np.ndarray:
    """Up to ``count`` pictures spread over those below a folder, as the network sees them: uint8 [n, S, S, 3].

    Pictures that cannot be read are left out. Raises BadData where none of them can.
    """
    source = PathSource(pictures_below(folder))
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
    squares, reasons = [], []
    for place in chosen:
        try:
            squares.append(fit(read_picture(source, place), load_size))
        except BadPicture as error:
            reasons.append(f"{source.where(place)} ({error})")
    if not squares:
        raise BadData(
            f"{folder}: none of {len(chosen)} pictures can be read, such as {reasons[0]}; give other pictures"
        )
    return centre_crop(np.stack(squares), image_size)


def numbers(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of an `Inference` on uint8 pictures [n, S, S, 3], a few at a time."""
    parts = [model(tf.cast(images[start : start + BATCH], tf.float32)) for start in range(0, len(images), BATCH)]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def export_model(
    model: export.Model,
    classifier: export.Classifier | None,
    whitening: Whitening | None,
    pictures: np.ndarray,
    wanted: list[str],
    out_dir: Path,
    *,
    load_size: int,
) -> dict[str, parity.Parity]:
    """Write a model in each of the formats ``wanted`` and compare each, run by its own runtime, with the network.

    Args:
      pictures: uint8 [n, S, S, 3] to compare on, and for int8 to take the ranges from.
      load_size: side that pictures are brought to before the crop, for ``exported.json``.

    Returns:
      Format -> how it compares.

    Raises:
      UserError: a format that is not installed, a folder that is not empty, or a float32 model that is not the network:
        its file is removed again, those of other formats stay.
    """
    formats.check_formats(wanted)
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"--out_dir {out_dir}: is not empty; give a new folder, or remove what is in it")
    inference = Inference(model.network, classifier, whitening)
    expected = numbers(inference, pictures)
    if classifier is not None and whitening is not None:
        # Whitening must leave the classes what they were.
        expected["logits"] = numbers(Inference(model.network, classifier), pictures)["logits"]
    found = {}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            path = out_dir / formats.FILES[name]
            try:
                run = formats.write(inference, name, path, image_size=model.image_size, calibration=pictures)
                found[name] = parity.compare(expected, run(pictures))
                if name != "litert_int8":
                    parity.check(found[name], str(path))
            except BaseException:
                # A file that is there must be the network.
                _remove(path)
                raise
        (out_dir / "exported.json").write_text(
            json.dumps(
                {
                    "format": 1,
                    "input": "images: RGB, 0 to 255; the centre square of image_size of a shorter side of load_size",
                    "image_size": model.image_size,
                    "load_size": load_size,
                    "whitened": whitening is not None,
                    "class_names": None if classifier is None else classifier.class_names,
                    "files": {
                        name: {"path": formats.FILES[name], **result._asdict()} for name, result in found.items()
                    },
                },
                indent=1,
            )
        )
    except OSError as error:
        raise StorageError(f"{out_dir}: cannot write the model: {error}; make room and try again") from error
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
