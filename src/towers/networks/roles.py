"""Which variables of a network the training step treats differently."""

import keras

from .gem import GeM
from .layers import BatchNormalization, PReLU

UNDECAYED_LAYERS = (
    BatchNormalization,
    PReLU,
    GeM,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
)


def decayed_variables(network: keras.Model) -> list[keras.Variable]:
    """Trainable variables that get weight decay: kernels, but no biases, gammas, betas, slopes or powers of GeM.

    The rule goes by the type of the layer, and is facenet's (no decay of biases and of batch normalisation) with PReLU
    and GeM added.
    """
    return [
        variable
        for layer in network.layers
        if not isinstance(layer, UNDECAYED_LAYERS)
        for variable in layer.trainable_variables
        if variable is not getattr(layer, "bias", None)
    ]


def moving_statistics(network: keras.Model) -> list[keras.Variable]:
    """Moving means and variances of every batch normalisation, in the order of the layers."""
    return [
        variable
        for layer in network.layers
        if isinstance(layer, (BatchNormalization, keras.layers.BatchNormalization))
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
