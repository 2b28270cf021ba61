"""What an exported model computes from pictures: the embedding for retrieval and the logits of the classes."""

import keras
import numpy as np
import tensorflow as tf

from ..evaluation.whitening import Whitening
from ..export import Classifier


class Inference(tf.Module):
    """From pictures [b, H, W, 3] of 0..255 to ``embedding`` [b, D], L2-normalised, and ``logits`` [b, C].

    With a whitening the embedding is that of Phi, and the classifier is rewritten so that its logits stay what they
    were: W e + b = |e| (W' Phi(e) + W m) + b. Without a classifier there are no logits.
    """

    def __init__(self, network: keras.Model, classifier: Classifier | None = None, whitening: Whitening | None = None):
        super().__init__(name="inference")
        self.network = network
        weights = bias = shift = None
        if classifier is not None:
            weights = np.asarray(classifier.weights, np.float64)
            bias = np.zeros(len(weights)) if classifier.bias is None else classifier.bias
            if whitening is not None:
                weights, shift = whitening.classifier(weights)
        self.weights, self.bias, self.shift, self.mean, self.projection = (
            None if value is None else tf.Variable(value, trainable=False, dtype=tf.float32, name=name)
            for name, value in (
                ("weights", weights),
                ("bias", bias),
                ("shift", shift),
                ("mean", None if whitening is None else whitening.mean),
                ("projection", None if whitening is None else whitening.projection),
            )
        )

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """images: float32 of 0..255."""
        raw = tf.cast(self.network(images, training=False), tf.float32)
        norm = tf.sqrt(tf.maximum(tf.reduce_sum(raw**2, axis=1, keepdims=True), 1e-20))
        embedding = raw / norm
        if self.projection is None:
            features, scale = raw, 1.0
        else:
            features, scale = tf.matmul(embedding - self.mean, self.projection, transpose_b=True), norm
            embedding = features / tf.sqrt(tf.maximum(tf.reduce_sum(features**2, axis=1, keepdims=True), 1e-20))
        outputs = {"embedding": embedding}
        if self.weights is not None:
            logits = tf.matmul(features, self.weights, transpose_b=True)
            if self.shift is not None:
                logits = logits + self.shift
            outputs["logits"] = scale * logits + self.bias
        return outputs
