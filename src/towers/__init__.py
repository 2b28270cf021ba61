"""Towers: embedding and classification networks on many GPUs, one tower a device."""

import os

# TensorFlow's notes on the processor are not for users; its warnings and errors still are.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
