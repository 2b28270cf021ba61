"""The formats of an exported model, each with the runtime that reads it back.

A written model takes ``images`` and gives ``embedding`` and ``logits``; see `inference.Inference`.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ..errors import UserError
from .inference import Inference

FORMATS = ("saved_model", "litert", "litert_int8", "onnx")
FILES = {
    "saved_model": "saved_model",
    "litert": "model.tflite",
    "litert_int8": "model_int8.tflite",
    "onnx": "model.onnx",
}
# GeM, the normalisation and what follows stay float32 in an int8 file: powers and quotients of 256 levels mean nothing.
FLOAT_OPERATIONS = (
    *("DIV", "POW", "MEAN", "REDUCE_MAX", "MAXIMUM", "SUM", "SQRT", "RSQRT", "SUB", "SQUARE"),
    "FULLY_CONNECTED",
)
ONNX_OPSET = 17
ONNX_EXTRA = "pip install 'onnxruntime>=1.20' 'tf2onnx>=1.17'"
Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


def check_formats(formats: list[str]) -> None:
    """Raise UserError, with the install command, where a format is unknown or its packages are not installed."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--formats {name}: unknown; choose from {', '.join(FORMATS)}")
    missing = [name for name in ("tf2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise UserError(f"--formats onnx: {' and '.join(missing)} not installed; {ONNX_EXTRA}")


def write(inference: Inference, name: str, path: Path, *, image_size: int, calibration: np.ndarray) -> Runner:
    """Write a model as ``path`` and return what runs the file that was written.

    Args:
      name: one of ``FORMATS``.
      image_size: side of the pictures, pixels.
      calibration: uint8 [n, S, S, 3], typical pictures, from which int8 takes its ranges.

    Returns:
      A function from uint8 pictures [n, S, S, 3] to the outputs by name.
    """
    if name == "saved_model":
        write_saved_model(inference, path, image_size)
        return saved_model_runner(path)
    if name == "onnx":
        write_onnx(inference, path, image_size)
        return onnx_runner(path)
    write_litert(inference, path, image_size, calibration if name == "litert_int8" else None)
    return litert_runner(path)


def write_saved_model(inference: Inference, folder: Path, image_size: int) -> None:
    """A SavedModel with the signatures ``uint8`` and ``float`` (also the default), each for any number of pictures."""
    shape = [None, image_size, image_size, 3]

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="images")], autograph=False)
    def of_floats(images):
        return inference(images)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")], autograph=False)
    def of_bytes(images):
        return inference(tf.cast(images, tf.float32))

    signatures = {"serving_default": of_floats, "float": of_floats, "uint8": of_bytes}
    tf.saved_model.save(inference, str(folder), signatures=signatures)


def saved_model_runner(folder: Path) -> Runner:
    """Both signatures are run: what comes back is that of ``uint8``, and the other must be equal."""
    loaded = tf.saved_model.load(str(folder))

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = loaded.signatures["uint8"](images=tf.constant(images))
        others = loaded.signatures["float"](images=tf.constant(images, tf.float32))
        for name, value in outputs.items():
            if not np.allclose(value, others[name], rtol=1e-5, atol=1e-6, equal_nan=True):
                raise UserError(f"{folder}: its signatures uint8 and float disagree in {name}; export it again")
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def write_litert(inference: Inference, path: Path, image_size: int, calibration: np.ndarray | None) -> None:
    """A LiteRT (TensorFlow Lite) file for one float32 picture; with ``calibration`` its weights and maps are int8."""
    spec = tf.TensorSpec([1, image_size, image_size, 3], tf.float32, name="images")
    traced = tf.function(inference.__call__, autograph=False).get_concrete_function(spec)
    # Without this the converter makes a file that computes NaN from Keras 3 variables.
    frozen = convert_variables_to_constants_v2(traced)
    names = sorted(traced.structured_outputs)

    @tf.function(input_signature=[spec], autograph=False)
    def constant(images):
        return dict(zip(names, frozen(images), strict=True))

    module = tf.Module()
    module.constant = constant
    converter = tf.lite.TFLiteConverter.from_concrete_functions([constant.get_concrete_function()], module)
    path.write_bytes(converter.convert() if calibration is None else _quantised(converter, calibration))


def _quantised(converter: tf.lite.TFLiteConverter, calibration: np.ndarray) -> bytes:
    """An int8 file, but for the operations of ``FLOAT_OPERATIONS``."""

    def dataset():
        return ([picture[None].astype(np.float32)] for picture in calibration)

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = dataset
    choice = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(FLOAT_OPERATIONS))
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=dataset, debug_options=choice
    )
    return debugger.get_nondebug_quantized_model()


def litert_runner(path: Path) -> Runner:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
        interpreter = tf.lite.Interpreter(model_path=str(path))
    signature = interpreter.get_signature_runner()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = [signature(images=picture[None].astype(np.float32)) for picture in images]
        # A row lies in the interpreter's own memory until the next call.
        return {name: np.concatenate([row[name].copy() for row in rows]) for name in rows[0]}

    return run


def write_onnx(inference: Inference, path: Path, image_size: int) -> None:
    """An ONNX file for any number of float32 pictures."""
    import tf2onnx

    spec = tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")
    function = tf.function(inference.__call__, input_signature=[spec], autograph=False)
    tf2onnx.convert.from_function(function, input_signature=[spec], opset=ONNX_OPSET, output_path=str(path))


def onnx_runner(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"images": images.astype(np.float32)}), strict=True))

    return run
