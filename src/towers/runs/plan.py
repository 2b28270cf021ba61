"""How many steps of how many images a run has, and at which learning rates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.people import check_people_per_batch
from ..errors import BadData, UserError
from ..training import schedules

DEFAULT_EPOCHS = 20
STEP_OPTIONS = "batch_size batch_mode epoch_size max_epochs max_steps learning_rate_schedule_file"
PEOPLE_OPTIONS = (
    "people_per_batch images_per_person batch_mode epoch_size max_epochs max_steps learning_rate_schedule_file"
)
RATE_OPTIONS = (
    "learning_rate default_learning_rate learning_rate_schedule learning_rate_schedule_file "
    "learning_rate_decay_epochs learning_rate_decay_factor learning_rate_power learning_rate_end_epoch "
    "learning_rate_halving_epochs lr_steps warmup_steps warmup_epochs"
)


@dataclass(frozen=True)
class Plan:
    """How many steps of how many images.

    Attributes:
      batch_size: B, images a step over all towers.
      epoch_size: steps an epoch.
      last_step: steps of the run, None where only the schedule ends it.
      horizon: steps over which the learning rate is laid out.
    """

    batch_size: int
    epoch_size: int
    last_step: int | None
    horizon: int | None


def plan_steps(
    num_records: int,
    num_towers: int,
    *,
    batch_size: int,
    batch_mode: str,
    epoch_size: int | None,
    max_epochs: int | None,
    max_steps: int | None,
    learning_rate_schedule_file: Path | None,
    where: str,
) -> Plan:
    """Work out batches and steps; without any end given, the run has ``DEFAULT_EPOCHS`` epochs.

    Args:
      learning_rate_schedule_file: where there is one, it may end the run.
      where: the data, for messages.

    Raises:
      UserError: a batch that does not split over the towers.
      BadData: fewer images than a batch.
    """
    total = batch_size * num_towers if batch_mode == "per_tower" else batch_size
    if total % num_towers:
        lower = total // num_towers * num_towers
        nearest = [size for size in (lower, lower + num_towers) if size]
        raise UserError(
            f"--batch_size {total} over --towers {num_towers} is {total / num_towers:.2f} images each; "
            f"give --batch_size {' or '.join(map(str, nearest))}, or --batch_mode per_tower"
        )
    if num_records < total:
        raise BadData(f"{where}: {num_records} images are fewer than a batch of {total}; give a smaller --batch_size")
    if max_epochs is None and max_steps is None and learning_rate_schedule_file is None:
        max_epochs = DEFAULT_EPOCHS
    epoch_size = epoch_size or math.ceil(num_records / total)
    by_epochs = None if max_epochs is None else max_epochs * epoch_size
    ends = [end for end in (by_epochs, max_steps) if end is not None]
    return Plan(total, epoch_size, min(ends, default=None), by_epochs or max_steps)


def check_parts(images: int, accumulate: int) -> None:
    """Raise UserError where a tower's images do not split into ``accumulate`` equal parts."""
    if accumulate < 1 or images % accumulate:
        raise UserError(f"--accumulate {accumulate}: a tower's {images} images do not split into so many equal parts")


def plan_people(
    num_records: int, num_towers: int, *, people_per_batch: int, images_per_person: int, batch_mode: str, **length
) -> tuple[int, Plan]:
    """The people of all towers' batch, and the plan; other arguments as for ``plan_steps``.

    Raises:
      UserError: people that do not split over the towers.
    """
    people = people_per_batch * num_towers if batch_mode == "per_tower" else people_per_batch
    check_people_per_batch(people, num_towers)
    plan = plan_steps(num_records, num_towers, batch_size=people * images_per_person, batch_mode="split", **length)
    return people, plan


def learning_rates(
    plan: Plan,
    *,
    learning_rate: float | None,
    default_learning_rate: float,
    learning_rate_schedule: str,
    learning_rate_schedule_file: Path | None,
    learning_rate_decay_epochs: int,
    learning_rate_decay_factor: float,
    learning_rate_power: float = 1.0,
    learning_rate_end_epoch: float | None = None,
    learning_rate_halving_epochs: Sequence[float] = (),
    lr_steps: Sequence[int] = (),
    warmup_steps: int,
    warmup_epochs: float = 0.0,
) -> Callable[[int], float | None]:
    """The learning rate of each step, from the options; epochs are those of the data that are there.

    Raises:
      UserError: options that contradict each other, or a bad file.
    """
    if warmup_steps and warmup_epochs:
        raise UserError(f"--warmup_steps {warmup_steps} and --warmup_epochs {warmup_epochs}: give one of them")
    if learning_rate is None:
        learning_rate = -1 if learning_rate_schedule_file else default_learning_rate
    return schedules.build(
        learning_rate=learning_rate,
        epoch_size=plan.epoch_size,
        schedule_file=learning_rate_schedule_file,
        decay="exponential" if learning_rate_schedule_file else learning_rate_schedule,
        decay_epochs=learning_rate_decay_epochs,
        decay_factor=learning_rate_decay_factor,
        total_steps=plan.horizon,
        warmup_steps=warmup_steps or round(warmup_epochs * plan.epoch_size),
        boundaries=lr_steps,
        power=learning_rate_power,
        end_epoch=learning_rate_end_epoch,
        halving_epochs=learning_rate_halving_epochs,
    )
