import pytest

from towers.datasets.cropping import RandomResizedCrop
from towers.errors import UserError
from towers.runs import pictures

PLAIN = {"load_size": None, "image_size": 84, "random_crop": False, "random_resized_crop": False, "random_color": 0.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 84), ({"random_crop": True}, 96), ({"random_resized_crop": True}, 96), ({"load_size": 100}, 100)],
)
def test_the_size_before_the_crop(options, expected):
    assert pictures.load_size(**PLAIN | options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_size": 80}, "--load_size 80 is smaller than --image_size 84"),
        ({"random_crop": True, "random_resized_crop": True}, "give one of them"),
        ({"random_color": 1.5}, "--random_color 1.5: a strength from 0 to 1"),
    ],
)
def test_options_that_contradict(options, message):
    with pytest.raises(UserError, match=message):
        pictures.load_size(**PLAIN | options)


def test_the_crop_is_made_where_it_is_asked_for():
    options = {"seed": 3, "image_size": 84, "min_crop_area": 0.25}
    assert pictures.resized_crop(**options, random_resized_crop=True) == RandomResizedCrop(3, 84, 0.25)
    assert pictures.resized_crop(**options, random_resized_crop=False) is None
    with pytest.raises(UserError, match="--min_crop_area 0: a share"):
        pictures.resized_crop(**options | {"min_crop_area": 0}, random_resized_crop=True)
