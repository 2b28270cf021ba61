"""The loop over steps: logs, validates, saves, and stops when told to."""

import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from ..errors import Diverged
from ..processes import ALONE, Processes
from ..summaries import RunLog

LARGEST_OVERFLOW_RUN = 20
# What every step gives beside the values of its towers; the others are counts, which are added up.
_SHARED = ("loss", "gradient_norm", "finite")


class Interrupted(Exception):
    """The run was asked to stop and has saved; ``exit_code`` is 128 + the signal."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopSignals:
    """SIGINT and SIGTERM ask the loop to stop after the step; a second one ends the process at once."""

    def __init__(self):
        self.received: int | None = None

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.received = number
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)


def fit(
    train_step: Callable,
    batches: Iterator,
    *,
    learning_rate: Callable[[int], float | None],
    first_step: int,
    last_step: int | None,
    epoch_size: int,
    batch_size: int,
    log: RunLog,
    log_every: int,
    save: Callable[[int], None],
    checkpoint_every_n_steps: int,
    validate: Callable[[int, float], None],
    validate_every_n_epochs: int,
    check_data: Callable[[], None],
    seen: Callable[[int, dict], None] | None,
    records_of_step: Callable[[int], str],
    warn: Callable[[dict], str | None] | None = None,
    overflow_allowed: bool = False,
    validate_every_n_steps: int = 0,
    processes: Processes = ALONE,
) -> int:
    """Train from ``first_step`` on and return the number of steps done.

    Args:
      learning_rate: step -> rate, None to stop there.
      last_step: number of steps after which the run ends, None where only the schedule ends it.
      epoch_size: steps an epoch.
      batch_size: images of all towers in a step.
      save: writes the checkpoint after so many steps.
      validate: called with (steps done, epochs done).
      validate_every_n_epochs, validate_every_n_steps: both 0: only at the end.
      check_data: raises BadData when too many pictures were unreadable.
      seen: called with every step and its batch, None where nobody asks.
      records_of_step: names the records of a step's batch, for the message of a run that diverged.
      warn: the metrics of a logged step -> a line for the user, or None.
      processes: those that train together: a signal to one of them stops all after the same step.
      overflow_allowed: steps that are not finite are skipped and counted (float16); otherwise one ends the run.

    Raises:
      Diverged: a loss or gradient is not finite; nothing was saved since.
      Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    window = _Window(epoch_size, batch_size, last_step, overflow_allowed, records_of_step, warn)
    step = saved = first_step
    with StopSignals() as signals:
        while last_step is None or step < last_step:
            rate = learning_rate(step)
            if rate is None:
                break
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            check_data()
            if seen is not None:
                seen(step, batch)
            results = train_step(batch, tf.constant(step, tf.int64), tf.constant(rate, tf.float64))
            window.add(step, rate, results, waited)
            step += 1
            stop = processes.stop_after(step, signals.received)
            intervals = epoch_size * validate_every_n_epochs, validate_every_n_steps
            validates = any(interval and step % interval == 0 for interval in intervals)
            # A validation that fails must not cost the epochs before it.
            saves = validates or step % checkpoint_every_n_steps == 0
            if step % log_every == 0 or step == last_step or saves or stop:
                window.write(log)
            if saves or stop:
                save(step)
                saved = step
            if stop:
                raise Interrupted(stop)
            if validates and step != last_step:
                validate(step, step / epoch_size)
                window.restart_clock()
        window.write(log)
        if saved != step:
            save(step)
        validate(step, step / epoch_size)
    return step


class _Window:
    """The steps since the last line of the log: their results stay on the device until they are written."""

    def __init__(self, epoch_size, batch_size, last_step, overflow_allowed, records_of_step, warn):
        self.epoch_size = epoch_size
        self.batch_size = batch_size
        self.last_step = last_step
        self.overflow_allowed = overflow_allowed
        self.records_of_step = records_of_step
        self.warn = warn
        self.overflows_in_a_row = 0
        self.steps, self.results = [], []
        self.restart_clock()

    def restart_clock(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0

    def add(self, step, rate, results, waited) -> None:
        self.steps.append((step, rate))
        self.results.append(results)
        self.waited += waited

    def write(self, log: RunLog) -> None:
        if not self.steps:
            return
        per_tower, shared = tf.nest.map_structure(lambda *parts: np.stack(parts), *self.results)
        finite = shared["finite"]
        seconds = time.perf_counter() - self.started
        first, (last, rate) = self.steps[0][0], self.steps[-1]
        for step, good in zip(range(first, last + 1), finite, strict=True):
            self.overflows_in_a_row = 0 if good else self.overflows_in_a_row + 1
            if not good and (not self.overflow_allowed or self.overflows_in_a_row > LARGEST_OVERFLOW_RUN):
                raise Diverged(self._why(step, shared["loss"][step - first], shared["gradient_norm"][step - first]))
        means = {name: values[finite].mean(axis=0) for name, values in per_tower.items()} if finite.any() else {}
        done = last + 1
        waits = [float(values.mean()) for name, values in means.items() if name.endswith("_wait_seconds")]
        metrics = {
            "step": done,
            "epoch": round(done / self.epoch_size, 4),
            "time": time.time(),
            "loss": float(shared["loss"][finite].mean()) if finite.any() else None,
            "tower_losses": [float(value) for value in means.get("loss", [])],
            "learning_rate": rate,
            "images_per_second": len(self.steps) * self.batch_size / seconds,
            "data_wait": self.waited / seconds,
            **({"rows_wait": sum(waits) * len(self.steps) / seconds} if waits else {}),
            "gradient_norm": float(shared["gradient_norm"][-1]),
            **{name: float(values.mean()) for name, values in means.items() if name != "loss"},
            **{name: int(values.sum()) for name, values in shared.items() if name not in _SHARED},
            **{f"tower_{name}": values.tolist() for name, values in means.items() if name.endswith("_seconds")},
        }
        if not finite.all():
            metrics["skipped_steps"] = int((~finite).sum())
        left = None if self.last_step is None else (self.last_step - done) * seconds / len(self.steps)
        log.train(metrics, means, line=_line(metrics, self.epoch_size, left))
        warning = self.warn(metrics) if self.warn is not None else None
        if warning:
            log.text(warning)
        self.steps, self.results = [], []
        self.restart_clock()

    def _why(self, step, loss, norm) -> str:
        return (
            f"step {step}: loss {loss}, gradient norm {norm}: not finite. The last good checkpoint is kept; this step "
            f"changed nothing. Its batch: {self.records_of_step(step)}. Try a lower --learning_rate, --clip_norm 5, "
            "or look at these pictures"
        )


def _line(metrics: dict, epoch_size: int, left: float | None) -> str:
    epoch, in_epoch = divmod(metrics["step"] - 1, epoch_size)
    losses = metrics["tower_losses"]
    spread = f" ({min(losses):.3f}..{max(losses):.3f})" if len(losses) > 1 else ""
    accuracy = f"  accuracy {metrics['accuracy']:.3f}" if "accuracy" in metrics else ""
    if "selected_accuracy" in metrics:
        accuracy = f"  right among the selected {metrics['selected_accuracy']:.3f}"
    loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.3f}"
    line = (
        f"Epoch: [{epoch + 1}][{in_epoch + 1}/{epoch_size}]  loss {loss}{spread}{accuracy}  "
        f"lr {metrics['learning_rate']:.2g}  {metrics['images_per_second']:.0f} images/s  "
        f"waiting for data {100 * metrics['data_wait']:.0f} %"
    )
    if "rows_wait" in metrics:
        line += f", for class weights {100 * metrics['rows_wait']:.0f} %"
    return line if left is None else f"{line}  left {_clock(left)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
