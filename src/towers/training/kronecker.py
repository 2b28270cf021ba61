"""Kronecker factors in diagonal blocks: statistics of rows, damped inverses, and their product with a gradient.

Block-diagonal factors are THOR's (Chen et al., AAAI 2021); Kronecker factors of convolutions are those of Grosse and
Martens, 2016, https://arxiv.org/abs/1602.01407.
"""

import tensorflow as tf

BLOCK = 128


def block_shape(size: int) -> tuple[int, int]:
    """(number of blocks, their side) of a factor of ``size`` rows: one block up to 128, else 128 wide ones, padded."""
    return (1, size) if size <= BLOCK else (-(-size // BLOCK), BLOCK)


def block_products(rows: tf.Tensor) -> tf.Tensor:
    """The diagonal blocks of rows^T rows: [m, d] -> [blocks, side, side]. The whole [d, d] is never formed.

    Rows and columns beyond d, where d is no multiple of the side, are zero.
    """
    blocks, side = block_shape(rows.shape[-1])
    rows = tf.pad(rows, [[0, 0], [0, blocks * side - rows.shape[-1]]])
    parts = tf.transpose(tf.reshape(rows, [-1, blocks, side]), [1, 0, 2])
    return tf.matmul(parts, parts, transpose_a=True)


def damped_inverse(factor: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
    """(F + damping I)^-1 of each block of F [blocks, side, side], by Cholesky; not finite where that fails."""
    identity = tf.eye(factor.shape[-1], batch_shape=factor.shape[:1], dtype=factor.dtype)
    return tf.linalg.cholesky_solve(tf.linalg.cholesky(factor + damping * identity), identity)


def preconditioned(gradient: tf.Tensor, of_inputs: tf.Tensor, of_outputs: tf.Tensor) -> tf.Tensor:
    """A^-1 g G^-1 with A^-1 and G^-1 block by block.

    Args:
      gradient: [d_in, d_out].
      of_inputs: blocks of A^-1, [blocks, side, side], of the ``block_shape`` of d_in; of_outputs: of G^-1, of d_out.
    """
    inputs, outputs = gradient.shape
    return tf.transpose(_left_product(of_outputs, tf.transpose(_left_product(of_inputs, gradient, inputs)), outputs))


def _left_product(blocks: tf.Tensor, matrix: tf.Tensor, size: int) -> tf.Tensor:
    """The block-diagonal matrix times ``matrix`` [size, n]."""
    count, side = blocks.shape[:2]
    padded = tf.pad(matrix, [[0, count * side - size], [0, 0]])
    product = tf.matmul(blocks, tf.reshape(padded, [count, side, matrix.shape[1]]))
    return tf.reshape(product, [count * side, matrix.shape[1]])[:size]
