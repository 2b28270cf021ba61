"""A head whose class weights every tower holds whole: for a few thousand classes."""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ..errors import UserError
from ..losses.margin import LogitForm, Margin, features_of, softmax_parts
from ..losses.softmax import softmax_cross_entropy


class ReplicatedHead:
    """A fully connected classifier trained by softmax (facenet's ``Logits`` layer). Make it inside the towers' scope.

    Its variables are trained by the same optimizer as the network's, from gradients summed over the towers.

    Args:
      num_classes: C.
      embedding_size: D.
      use_bias: whether a logit has a bias, zero at first.
      form: how ``classify`` makes logits; with K sub-centres the weights are [C * K, D].
      seed: of the weights, uniform within sqrt(6 / (C + D)) (Glorot and Bengio 2010), alike in every dtype up to
        rounding.
      dtype: type of the weights, the logits and the loss: float32 or float64.
      name: begins the paths of its variables; each head of a network needs its own.
    """

    accuracy_name = "accuracy"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        use_bias: bool = True,
        form: LogitForm | None = None,
        seed: int,
        dtype="float32",
        name: str = "head",
    ):
        self.name = name
        self.form = form
        # Called with the head, the embeddings and the logits wherever logits are made: THOR's way to see them.
        self.observe: Callable | None = None
        if form is not None:
            num_classes *= form.sub_centres
        limit = math.sqrt(6.0 / (num_classes + embedding_size))
        weights = np.random.default_rng(seed).uniform(-limit, limit, (num_classes, embedding_size))
        with keras.name_scope(name):
            self.weights = keras.Variable(weights, dtype=dtype, name="weights")
            self.bias = keras.Variable(np.zeros(num_classes), dtype=dtype, name="bias") if use_bias else None

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The weights [C, D] and, where there is one, the bias [C]."""
        return [self.weights] if self.bias is None else [self.weights, self.bias]

    @property
    def decayed_variables(self) -> list[keras.Variable]:
        """Those that weight decay concerns: the weights."""
        return [self.weights]

    def variables(self) -> dict[str, keras.Variable]:
        """Name -> variable, for checkpoints: ``<name>/weights`` and ``<name>/bias``."""
        return {variable.path: variable for variable in self.trainable_variables}

    def prepare(self, labels: tf.Tensor) -> tuple[tf.Variable, ...]:
        """The rows that a step on ``labels`` [b] needs: all of them, as variables that the step's tape watches."""
        return tuple(variable.value for variable in self.trainable_variables)

    def logits(self, embeddings: tf.Tensor, rows: tuple) -> tf.Tensor:
        """[b, C] in the type of the weights, from un-normalised embeddings [b, D] of any float type."""
        weights, *bias = rows
        embeddings = tf.cast(embeddings, weights.dtype)
        logits = tf.matmul(embeddings, weights, transpose_b=True)
        logits = tf.nn.bias_add(logits, bias[0]) if bias else logits
        if self.observe is not None:
            self.observe(self, embeddings, logits)
        return logits

    def loss(self, embeddings: tf.Tensor, labels: tf.Tensor, rows: tuple, label_smoothing: float = 0.0) -> tf.Tensor:
        """Softmax cross entropy [b] of embeddings [b, D] with labels [b]."""
        return softmax_cross_entropy(self.logits(embeddings, rows), labels, label_smoothing)

    def classify(
        self, embeddings: tf.Tensor, labels: tf.Tensor, rows: tuple, margin: Margin
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Softmax with a margin, without bias: what ``ShardedHead.classify`` returns."""
        features = features_of(tf.cast(embeddings, rows[0].dtype), self.form)
        parts = softmax_parts(features, tf.convert_to_tensor(rows[0]), labels, self.form, margin)
        losses = parts.log_sums - parts.targets
        return losses, tf.cast(parts.targets >= parts.largest, losses.dtype)

    @staticmethod
    def accuracy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """[b] float32: 1 where the largest logit is that of the label, else 0."""
        return tf.cast(tf.equal(tf.argmax(logits, axis=1), tf.cast(labels, tf.int64)), tf.float32)

    def export(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The weights [C, D] and the bias [C], or None where the head has none."""
        return self.weights.numpy(), None if self.bias is None else self.bias.numpy()

    def restore(self, weights: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Take over what ``export`` returned, outside of ``Towers.run``.

        Raises:
          UserError: the shapes are not this head's, or one has a bias and the other has not; nothing has changed then.
        """
        values = [weights] if bias is None else [weights, bias]
        found = [np.shape(value) for value in values]
        expected = [tuple(variable.shape) for variable in self.trainable_variables]
        if found != expected:
            raise UserError(
                f"head: the stored class weights have shapes {found}, this run's {expected}; "
                "train with the same classes and embedding size, or start from the network alone"
            )
        for variable, value in zip(self.trainable_variables, values, strict=True):
            variable.assign(value)
