"""What a run tells: metrics.jsonl for programs, TensorBoard for eyes, a progress line for the console, train.log."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins import projector
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class RunLog:
    """Writes what happens in a run folder and on the console.

    Args:
      run_dir: the run folder.
      first_step: steps already done; lines of metrics.jsonl and points of TensorBoard after it are dropped, since an
        interrupted run repeats them.
      last_step: the step the run ends at, None where only the schedule knows.
      every_seconds: pause between two lines of the console where it is not a terminal.
      tensorboard: False: no events; one process of several writes them.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        last_step: int | None,
        every_seconds: float = 10.0,
        tensorboard: bool = True,
    ):
        self.run_dir = run_dir
        self.every_seconds = every_seconds
        self._log_file = (run_dir / "train.log").open("a")
        self._metrics = _open_metrics(run_dir / "metrics.jsonl", first_step)
        self._tensorboard = tensorboard
        if first_step and tensorboard:
            _drop_points_after(run_dir / "tensorboard", first_step)
        folder = str(run_dir / "tensorboard")
        self._writer = tf.summary.create_file_writer(folder) if tensorboard else tf.summary.create_noop_writer()
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._last_line = 0.0
        self._progress = None
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._progress.add_task("starting", total=last_step, completed=first_step)
            self._progress.start()

    def text(self, line: str) -> None:
        """A line for the console and train.log."""
        self._console.print(line, markup=False)
        print(line, file=self._log_file, flush=True)

    def train(self, metrics: dict, per_tower: dict[str, np.ndarray], *, line: str) -> None:
        """A logged step.

        Args:
          metrics: step, epoch, loss, learning_rate and so on; the line of metrics.jsonl.
          per_tower: name -> [R]; the curves ``tower_<index>/<name>``.
          line: the same for people.
        """
        self._write({"kind": "train", **metrics})
        step = metrics["step"]
        with self._writer.as_default():
            for name, values in per_tower.items():
                for tower, value in enumerate(values):
                    tf.summary.scalar(f"tower_{tower}/{name}", value, step=step)
            for name, value in metrics.items():
                if isinstance(value, (int, float)) and name not in ("step", "time"):
                    tf.summary.scalar(f"train/{name}", value, step=step)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=line)
        elif time.monotonic() - self._last_line >= self.every_seconds:
            self._last_line = time.monotonic()
            self._console.print(line, markup=False)
        print(line, file=self._log_file, flush=True)

    def validation(self, metrics: dict) -> None:
        """A validation: a line of metrics.jsonl and the curves ``validation/<name>``."""
        self._write({"kind": "validation", **metrics})
        with self._writer.as_default():
            for name, value in metrics.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    tf.summary.scalar(f"validation/{name}", value, step=metrics["step"])
        self._writer.flush()

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Sample pictures, uint8 [b, H, W, 3]."""
        with self._writer.as_default():
            tf.summary.image(name, images, step=step, max_outputs=16)

    def histograms(self, variables: list, step: int) -> None:
        """Histograms of variables that have a ``path``."""
        with self._writer.as_default():
            for variable in variables:
                tf.summary.histogram(variable.path, variable.numpy(), step=step)

    def graph(self, function, *arguments) -> None:
        """The graph of ``function``, traced with ``arguments``."""
        if not self._tensorboard:
            return
        with self._writer.as_default():
            tf.summary.graph(
                tf.function(function, autograph=False).get_concrete_function(*arguments).graph.as_graph_def()
            )
        self._writer.flush()

    def embeddings(self, embeddings: np.ndarray, labels: list[str]) -> None:
        """The newest embeddings [N, D] and their labels [N] for TensorBoard's projector."""
        if not self._tensorboard:
            return
        folder = self.run_dir / "tensorboard"
        np.savetxt(folder / "embeddings.tsv", embeddings, fmt="%.5g", delimiter="\t")
        (folder / "labels.tsv").write_text("".join(f"{label}\n" for label in labels))
        config = projector.ProjectorConfig()
        config.embeddings.add(tensor_name="validation", tensor_path="embeddings.tsv", metadata_path="labels.tsv")
        projector.visualize_embeddings(str(folder), config)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._writer.close()
        self._metrics.close()
        self._log_file.close()

    def _write(self, values: dict) -> None:
        self._metrics.write(json.dumps(values, default=float) + "\n")
        self._metrics.flush()


def highest_before(run_dir: Path, name: str) -> float:
    """The highest value of a metric in the validations of a run folder so far; minus infinity before the first."""
    with (run_dir / "metrics.jsonl").open() as file:
        lines = [json.loads(line) for line in file if '"validation"' in line]
    return max((line[name] for line in lines if name in line), default=-math.inf)


def _open_metrics(path: Path, first_step: int):
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= first_step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break  # the line that a killed process was writing
    path.write_text("".join(kept))
    return path.open("a")


def _drop_points_after(folder: Path, step: int) -> None:
    """Tell TensorBoard to forget the points after ``step``: they are computed again."""
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))
    writer.close()
