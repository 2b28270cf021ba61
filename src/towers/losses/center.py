"""Center loss: every embedding is drawn to the running center of its class.

Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", with facenet's update rule.
"""

import keras
import tensorflow as tf

from . import at_least_float32


def center_loss(embeddings: tf.Tensor, centers_of_labels: tf.Tensor) -> tf.Tensor:
    """Mean over the features of the squared difference to the class center.

    Args:
      embeddings: [b, D], un-normalised, any float type; computed in float32 at least.
      centers_of_labels: [b, D], the center of each embedding's class before this step's update.

    Returns:
      [b].
    """
    embeddings = at_least_float32(embeddings)
    return tf.reduce_mean(tf.math.squared_difference(embeddings, tf.cast(centers_of_labels, embeddings.dtype)), axis=1)


class CenterTable:
    """The class centers [C, D], zero at first; one copy on every tower. Make it inside the towers' scope.

    Args:
      alfa: share of a center that an update keeps, 0 <= alfa <= 1 (facenet's ``--center_loss_alfa``).
      dtype: float32 or float64.

    Raises:
      ValueError: alfa is out of its range.
    """

    def __init__(self, num_classes: int, embedding_size: int, alfa: float, dtype: str = "float32"):
        if not 0.0 <= alfa <= 1.0:
            raise ValueError(f"alfa is {alfa}; it must be between 0 and 1")
        self.alfa = alfa
        with keras.name_scope("center_loss"):
            self.centers = keras.Variable(
                "zeros", shape=(num_classes, embedding_size), dtype=dtype, trainable=False, name="centers"
            )

    def of(self, labels: tf.Tensor) -> tf.Tensor:
        """The centers [b, D] of the classes ``labels`` [b]."""
        return tf.gather(self.centers.value, labels)

    def update(self, embeddings: tf.Tensor, labels: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: center -= (1 - alfa) * (center - embedding), for each embedding (facenet's rule).

        All differences are taken before the first is applied, and a class that occurs n times moves n times. Every
        tower must pass the same rows, those of all towers, so that all copies of the table stay alike.

        Args:
          embeddings: [B, D], any float type.
          labels: [B] integers.
          keep: scalar bool; where it is false no center changes.
        """
        centers = self.of(labels)
        delta = (1.0 - self.alfa) * (centers - tf.cast(embeddings, centers.dtype))
        delta = tf.where(keep, delta, tf.zeros_like(delta))
        self.centers.value.scatter_sub(tf.IndexedSlices(delta, labels))

    def variables(self) -> dict[str, keras.Variable]:
        """Name -> variable, for checkpoints."""
        return {self.centers.path: self.centers}
