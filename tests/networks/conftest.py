import keras
import pytest


@pytest.fixture
def policy():
    """A function that sets the global dtype policy; the test leaves float32 behind."""
    yield keras.mixed_precision.set_dtype_policy
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture
def float64(policy):
    policy("float64")
