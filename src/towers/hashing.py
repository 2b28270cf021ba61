"""Random numbers that are a pure function of (seed, positions in the stream), the same on every device."""

import tensorflow as tf

_MASK = 0xFFFFFFFF


def keyed_hash(seed: int, n: int, *positions: tf.Tensor) -> tf.Tensor:
    """Draw n of each tuple of positions: int64 in [0, 2**32), of the shape the positions broadcast to.

    n: below 2**32, keeps apart what is drawn for the same positions. positions: int64, >= 0. Words of 32 bits are held
    in int64 and multiplied in halves, so nothing overflows. The mixer is the 32-bit finalizer of MurmurHash3.
    """
    words = [seed & _MASK, seed >> 32 & _MASK, n]
    for position in positions:
        words += [tf.bitwise.right_shift(position, tf.constant(32, tf.int64)), tf.bitwise.bitwise_and(position, _MASK)]
    state = tf.constant(0, tf.int64)
    for word in words:
        state = _mix(tf.bitwise.bitwise_and(_xor(state, tf.convert_to_tensor(word, tf.int64)) + 0x9E3779B9, _MASK))
    return state


def _xor(state: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
    # Bitwise operations do not broadcast on every device; sums of zeros do.
    return tf.bitwise.bitwise_xor(state + tf.zeros_like(word), word + tf.zeros_like(state))


def _mix(state: tf.Tensor) -> tf.Tensor:
    state = _multiply(_xor_shift(state, 16), 0x85EBCA6B)
    state = _multiply(_xor_shift(state, 13), 0xC2B2AE35)
    return _xor_shift(state, 16)


def _xor_shift(state: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(bits, tf.int64)))


def _multiply(state: tf.Tensor, factor: int) -> tf.Tensor:
    """state * factor modulo 2**32; no product passes 2**49."""
    upper = tf.bitwise.bitwise_and(tf.bitwise.right_shift(state, tf.constant(16, tf.int64)) * factor, 0xFFFF)
    return tf.bitwise.bitwise_and(tf.bitwise.bitwise_and(state, 0xFFFF) * factor + upper * 0x10000, _MASK)
