"""Towers: embedding and classification networks on many GPUs, one tower a device."""

import os
import sys

from .quiet_start import QuietStart

# TensorFlow's notes on the processor are not for users; its warnings and errors still are.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A step on a CPU is a tenth to a third faster with it. TensorFlow itself turns it on for some processors only.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Threads of NumPy's products otherwise wait for the next one at full speed for a tenth of a second (2^28 cycles), on
# cores that decode pictures or train; after 2^18 they sleep. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")
sys.meta_path.insert(0, QuietStart())

__version__ = "0.1.0"
