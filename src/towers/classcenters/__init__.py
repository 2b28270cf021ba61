"""Class centres that do not fit the GPUs: where they are kept, how they learn, and which of them a batch needs.

Nothing here imports TensorFlow, so that a parameter server starts in a second and needs no TensorFlow.
"""
