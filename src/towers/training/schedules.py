"""Learning-rate schedules: functions of the step (from 0) that return the rate, or None where training stops."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError

Schedule = Callable[[int], float | None]
DECAYS = ("exponential", "cosine", "polynomial", "linear", "step", "thor")


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: learning_rate


def exponential(learning_rate: float, decay_steps: int, decay_factor: float) -> Schedule:
    """``learning_rate * decay_factor ** (step // decay_steps)``: facenet's decay, in stairs."""
    return decayed(constant(learning_rate), decay_steps, decay_factor)


def decayed(schedule: Schedule, decay_steps: int, decay_factor: float) -> Schedule:
    """``schedule`` times ``decay_factor ** (step // decay_steps)``."""
    return _scaled(schedule, lambda step: decay_factor ** (step // decay_steps))


def cosine(learning_rate: float, total_steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from ``learning_rate`` at step 0 to ``final`` at ``total_steps`` and beyond.

    Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.
    """

    def rate(step):
        progress = min(step / total_steps, 1.0)
        return final + (learning_rate - final) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return rate


def stepwise(learning_rate: float, boundaries: Sequence[int], factor: float = 0.1) -> Schedule:
    """``learning_rate`` times ``factor`` for every boundary that the step has reached (InsightFace's ``lr_steps``)."""
    boundaries = sorted(boundaries)
    return lambda step: learning_rate * factor ** bisect_right(boundaries, step)


def polynomial(learning_rate: float, total_steps: int, power: float = 1.0, first_step: int = 0) -> Schedule:
    """``learning_rate * (1 - progress) ** power``; progress goes from 0 at ``first_step`` to 1 at ``total_steps``."""
    length = max(total_steps - first_step, 1)

    def rate(step):
        return learning_rate * (1.0 - min(max(step - first_step, 0) / length, 1.0)) ** power

    return rate


def thor(
    learning_rate: float, epoch_size: int, end_epoch: float, power: float, halving_epochs: Sequence[float] = ()
) -> Schedule:
    """``learning_rate * (1 - e / end_epoch) ** power`` with e = (step + 1) / epoch_size, 0 from ``end_epoch`` on.

    Half of it from each of ``halving_epochs`` on. The law of THOR's released configurations, which end before it does.

    Args:
      epoch_size: steps of an epoch.
    """

    def rate(step):
        epoch = (step + 1) / epoch_size
        halvings = sum(epoch >= halving for halving in halving_epochs)
        return learning_rate * max(1.0 - epoch / end_epoch, 0.0) ** power * 0.5**halvings

    return rate


def with_warmup(schedule: Schedule, warmup_steps: int) -> Schedule:
    """``schedule`` times (step + 1) / warmup_steps in the first ``warmup_steps`` steps.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2. The schedule's own clock runs on meanwhile.
    """
    return _scaled(schedule, lambda step: min((step + 1) / warmup_steps, 1.0))


def from_file(path: str | Path, epoch_size: int, first_epoch: int = 1) -> Schedule:
    """Read one of facenet's schedule files.

    A line is ``epoch: rate``, ascending by epoch; ``#`` begins a comment. The rate of an epoch is that of the last line
    at or before it, and that of the last line goes on for ever. A rate of ``-``, or one that is not positive, stops
    training at the beginning of its epoch.

    Args:
      epoch_size: steps of an epoch.
      first_epoch: number of the first epoch. Facenet's train_softmax.py counted from 1, so that ``91: -1`` trains 90
        epochs; its train_tripletloss.py counted from 0.

    Raises:
      UserError: the file cannot be read, has a bad line (named by its number), or gives the first epoch no rate.
    """
    lines = _read_lines(path)
    epochs, rates = [], []
    for number, line in enumerate(lines, start=1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        epoch, rate = _parse_entry(entry, f"{path}:{number}")
        if epochs and epoch <= epochs[-1]:
            raise UserError(
                f"{path}:{number}: epoch {epoch} comes after epoch {epochs[-1]}; put the lines in ascending order"
            )
        epochs.append(epoch)
        rates.append(rate)
    if not epochs:
        raise UserError(f'{path}: no learning rate in it; write lines such as "0: 0.05"')
    if epochs[0] > first_epoch:
        raise UserError(f"{path}: no learning rate before epoch {epochs[0]}; training begins at epoch {first_epoch}")
    return lambda step: rates[bisect_right(epochs, step // epoch_size + first_epoch) - 1]


def build(
    *,
    learning_rate: float | None,
    epoch_size: int,
    schedule_file: str | Path | None = None,
    first_epoch: int = 1,
    decay: str = "exponential",
    decay_epochs: int = 100,
    decay_factor: float = 1.0,
    total_steps: int | None = None,
    final_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    boundaries: Sequence[int] = (),
    power: float = 1.0,
    end_epoch: float | None = None,
    halving_epochs: Sequence[float] = (),
) -> Schedule:
    """Choose a schedule from the values of the options.

    Args:
      learning_rate: the first rate; None, 0 or negative: read ``schedule_file``, as in facenet.
      epoch_size: steps of an epoch.
      first_epoch: see ``from_file``.
      decay: ``exponential`` (by ``decay_factor`` every ``decay_epochs``; it also applies to a file's rates, as in
        facenet), ``cosine`` (to ``final_learning_rate`` at ``total_steps``), ``polynomial`` (to 0 at ``total_steps``,
        counted from the end of the warm-up), ``linear`` (the same with power 1), ``step`` (a tenth at each of
        ``boundaries``, in steps) or ``thor`` (see there).
      warmup_steps: see ``with_warmup``; 0: none.
      power: of ``polynomial`` and ``thor``.
      end_epoch, halving_epochs: of ``thor``.

    Raises:
      UserError: the options contradict each other, or the file is bad.
    """
    from_rates = learning_rate is not None and learning_rate > 0
    if from_rates and schedule_file:
        raise UserError(
            f"--learning_rate {learning_rate} and --learning_rate_schedule_file {schedule_file} are both given; "
            "with a file, give --learning_rate -1"
        )
    if not from_rates and not schedule_file:
        raise UserError(
            f"--learning_rate {learning_rate} needs --learning_rate_schedule_file; give a file, or a positive rate"
        )
    if decay == "exponential":
        rates = constant(learning_rate) if from_rates else from_file(schedule_file, epoch_size, first_epoch)
        schedule = decayed(rates, decay_epochs * epoch_size, decay_factor)
    elif not from_rates:
        raise UserError(f"{decay} decay needs a positive --learning_rate, not a file")
    elif decay == "step":
        if not boundaries:
            raise UserError("--learning_rate_schedule step needs --lr_steps, such as 100000,160000,220000")
        schedule = stepwise(learning_rate, boundaries)
    elif decay == "thor":
        if end_epoch is None or not end_epoch > 0:
            raise UserError(
                f"--learning_rate_schedule thor with --learning_rate_end_epoch {end_epoch}: give the epoch at which "
                "the rate would be 0; published are 50 to 70"
            )
        schedule = thor(learning_rate, epoch_size, end_epoch, power, halving_epochs)
    elif decay == "linear" and power != 1:
        raise UserError(
            f"--learning_rate_power {power}: linear decay has power 1; give --learning_rate_schedule polynomial"
        )
    elif decay in ("cosine", "polynomial", "linear"):
        if not total_steps:
            raise UserError(f"{decay} decay needs an end: --max_steps or --max_epochs")
        if decay == "cosine":
            schedule = cosine(learning_rate, total_steps, final_learning_rate)
        else:
            schedule = polynomial(learning_rate, total_steps, power, first_step=warmup_steps)
    else:
        raise UserError(f"learning-rate decay {decay}: there is no such decay; choose one of {', '.join(DECAYS)}")
    return with_warmup(schedule, warmup_steps) if warmup_steps else schedule


def _scaled(schedule: Schedule, factor: Callable[[int], float]) -> Schedule:
    def rate(step):
        base = schedule(step)
        return None if base is None else base * factor(step)

    return rate


def _read_lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such learning-rate file; check --learning_rate_schedule_file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a learning-rate file ({error}); give a text file") from error


def _parse_entry(entry: str, where: str) -> tuple[int, float | None]:
    epoch_text, colon, rate_text = (part.strip() for part in entry.partition(":"))
    try:
        epoch = int(epoch_text)
        rate = -1.0 if rate_text == "-" else float(rate_text)
    except ValueError:
        epoch = rate = math.nan
    if not colon or not epoch >= 0 or not math.isfinite(rate):
        raise UserError(f'{where}: "{entry}" is not "epoch: rate"; write for example "60: 0.005", or "91: -1" to stop')
    return epoch, rate if rate > 0 else None
