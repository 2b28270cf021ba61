"""The model folder: an inference network as ``model.json`` (how to build it) and ``weights.h5`` (what it learnt).

A classifier has ``classifier.h5`` beside it: the class weights, whose rows ``class_names`` of model.json names.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from . import checkpoints, networks
from .errors import StorageError, UserError
from .training import state

LEARNT_GEM_P = "network/gem/p"


@dataclass(frozen=True)
class Model:
    """A network read from a model folder, and the facts beside it."""

    network: keras.Model
    facts: dict
    path: Path

    @property
    def image_size(self) -> int:
        return self.facts["network"]["image_size"]

    @property
    def load_size(self) -> int:
        return self.facts["load_size"]


@dataclass(frozen=True)
class Classifier:
    """Class weights [C, D], bias [C] or None, and the names of the C classes."""

    weights: np.ndarray
    bias: np.ndarray | None
    class_names: list[str]


def save_model(
    folder: Path,
    network: keras.Model,
    facts: dict,
    classifier: tuple[np.ndarray, np.ndarray | None] | None = None,
) -> None:
    """Write ``network`` as the model folder ``folder``, in place of the one that is there.

    Args:
      facts: JSON values; ``network`` holds the arguments of ``networks.build``, ``load_size`` the side in pixels that
        pictures are brought to before the centre crop; with a ``classifier`` it holds ``class_names`` [C].
      classifier: class weights [C, D] and bias [C] or None.
    """
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        checkpoints.write_arrays(temporary / "weights.h5", state.read(state.named("network", network.variables)))
        digests = {"weights_sha256": checkpoints.sha256(temporary / "weights.h5")}
        if classifier is not None:
            arrays = {
                name: array for name, array in zip(("weights", "bias"), classifier, strict=True) if array is not None
            }
            checkpoints.write_arrays(temporary / "classifier.h5", arrays)
            digests["classifier_sha256"] = checkpoints.sha256(temporary / "classifier.h5")
        (temporary / "model.json").write_text(json.dumps({"format": 1, **facts, **digests}, indent=1))
        if folder.exists():
            old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"{folder}: cannot write the model: {error}; make room and try again") from error


def read_facts(folder: Path) -> tuple[Path, dict]:
    """The model folder itself (``folder``, or ``model`` in the run folder ``folder``) and its model.json.

    Raises:
      UserError: there is no model.
    """
    for candidate in (Path(folder), Path(folder) / "model"):
        if (candidate / "model.json").is_file():
            facts = json.loads((candidate / "model.json").read_text())
            if facts.get("format") != 1:
                raise UserError(f"{candidate}/model.json: format {facts.get('format')} is not known; update Towers")
            return candidate, facts
    raise UserError(f"--model {folder}: no model.json in it or in its model folder; give a run folder or model folder")


def read_weights(folder: Path, facts: dict) -> dict:
    """The arrays of a model folder, verified against its sha256.

    Raises:
      StorageError: the weights are not those that were written.
    """
    return _verified(folder / "weights.h5", facts["weights_sha256"])


def read_classifier(folder: Path, facts: dict) -> Classifier:
    """The classifier of a model folder, verified against its sha256.

    Raises:
      UserError: the model has none.
      StorageError: it is not the one that was written.
    """
    if "classifier_sha256" not in facts:
        raise UserError(
            f"{folder}: this model has no classifier, only embeddings; give one that train_softmax.py has made"
        )
    arrays = _verified(folder / "classifier.h5", facts["classifier_sha256"])
    classifier = Classifier(arrays["weights"], arrays.get("bias"), facts["class_names"])
    if len(classifier.weights) != len(classifier.class_names):
        raise StorageError(
            f"{folder}: weights of {len(classifier.weights)} classes and names of {len(classifier.class_names)}; "
            "copy the model folder again"
        )
    return classifier


def _verified(path: Path, digest: str) -> dict:
    if not path.is_file() or checkpoints.sha256(path) != digest:
        raise StorageError(f"{path}: does not have the sha256 of model.json; copy the model folder again")
    return checkpoints.read_arrays(path)


def read_model(folder: Path, **changes) -> Model:
    """Build the network named in a model folder and read its weights; call it in the towers' scope.

    Args:
      changes: arguments of ``networks.build`` that differ from those it was trained with: a network with GeM pooling
        takes another ``image_size`` and ``gem_p``, also where p was learnt; with ``learn_gem_p`` p is a weight, which
        begins with ``gem_p`` where that is given, else with the model's power.

    Raises:
      UserError: no model there, or weights that do not fit its description.
      StorageError: weights that are damaged.
    """
    path, facts = read_facts(folder)
    facts = {**facts, "network": {**facts["network"], **changes}}
    arguments = dict(facts["network"])
    weights = read_weights(path, facts)
    if "gem_p" in changes:
        weights.pop(LEARNT_GEM_P, None)
        arguments["learn_gem_p"] = changes.get("learn_gem_p", False)
    network = networks.build(arguments.pop("name"), **arguments)
    variables = state.named("network", network.variables)
    if changes.get("learn_gem_p"):
        weights.setdefault(LEARNT_GEM_P, variables[LEARNT_GEM_P].numpy())
    state.write(variables, weights, str(path))
    return Model(network, facts, path)
