import json

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from towers import plots
from towers.errors import StorageError, UserError
from towers.evaluation.verification import evaluate_pairs


@pytest.fixture
def drawn(monkeypatch):
    """The figures handed to the canvas, in order."""
    figures = []

    class RecordingCanvas(FigureCanvasAgg):
        def __init__(self, figure):
            figures.append(figure)
            super().__init__(figure)

    monkeypatch.setattr(plots, "FigureCanvasAgg", RecordingCanvas)
    return figures


def verification(noise=1.0, num_pairs=600):
    random = np.random.default_rng(0)
    same = np.arange(num_pairs) % 2 == 0
    people = random.normal(size=(num_pairs, 2, 16))
    people[same, 1] = people[same, 0]
    embeddings = (people + noise * random.normal(size=people.shape)).reshape(-1, 16)
    return evaluate_pairs(embeddings, np.arange(2 * num_pairs).reshape(-1, 2), same)


def train_line(step, towers=2, **changes):
    losses = [5 / (1 + step) + 0.1 * tower for tower in range(towers)]
    record = {"kind": "train", "step": step, "epoch": 0, "loss": float(np.mean(losses)), "tower_losses": losses}
    return json.dumps({**record, "learning_rate": 0.1, "images_per_second": 9.0, "data_wait": 0.0, **changes})


def write_lines(path, lines):
    path.write_text("\n".join(lines))
    return path


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_roc_marks_its_two_points_on_a_log_axis(tmp_path, drawn):
    result = verification()
    plots.roc(result, tmp_path / "roc.png")
    image = cv2.imread(str(tmp_path / "roc.png"))
    assert image.shape[0] >= 400
    assert image.std() > 5
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (1e-3, 1)
    assert legend(axes)[1:] == [
        f"TAR {result.tar_at_far[1e-3]:.4f} at FAR 0.001",
        f"equal error rate {result.equal_error_rate:.4f}",
    ]
    low, high = axes.get_ylim()
    assert low < result.tar_at_far[1e-3] < high


def test_roc_of_a_perfect_model_is_drawn(tmp_path):
    plots.roc(verification(noise=0.0), tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 1000


def test_curves_show_each_tower_the_mean_and_the_validation(tmp_path, drawn):
    lines = [train_line(step) for step in range(1, 6)]
    lines.append(json.dumps({"kind": "validation", "step": 5, "epoch": 0, "lfw_accuracy": 0.9, "val_accuracy": 0.8}))
    plots.curves(write_lines(tmp_path / "metrics.jsonl", lines), tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5
    loss, rate, accuracy = drawn[0].axes
    tower_0, tower_1, mean = loss.lines
    np.testing.assert_allclose(tower_1.get_ydata() - tower_0.get_ydata(), 0.1)
    np.testing.assert_allclose(mean.get_ydata(), (tower_0.get_ydata() + tower_1.get_ydata()) / 2)
    assert mean.get_linewidth() > 2 * tower_0.get_linewidth()
    assert legend(loss)[:2] == ["tower 0", "tower 1"]
    assert rate.get_ylabel() == "learning rate"
    assert legend(accuracy) == ["LFW accuracy, last 0.9000", "validation accuracy, last 0.8000"]


def test_curves_draw_one_tower_once(tmp_path, drawn):
    lines = [train_line(step, towers=1) for step in range(3)]
    plots.curves(write_lines(tmp_path / "metrics.jsonl", lines), tmp_path / "curves.png")
    assert len(drawn[0].axes[0].lines) == 1


def test_curves_stand_cut_lines_missing_keys_and_values_that_are_no_numbers(tmp_path, drawn):
    lines = [
        train_line(1),
        '{"kind": "train", "step": 2}',
        train_line(3, loss=float("nan"), tower_losses=[1.0, None]),
        '{"kind": "validation", "step": 3}',
        "[1, 2]",
        train_line(4)[:40],
    ]
    plots.curves(write_lines(tmp_path / "metrics.jsonl", lines), tmp_path / "curves.png")
    loss, _ = drawn[0].axes
    assert loss.lines[-1].get_xdata().tolist() == [1]
    assert drawn[0].get_suptitle() == "1 unreadable line left out"


def test_curves_of_a_resumed_run_keep_the_last_record_of_a_step(tmp_path, drawn):
    lines = [train_line(step) for step in (1, 2, 3)] + [train_line(step, towers=4, loss=7.0) for step in (2, 3, 4)]
    plots.curves(write_lines(tmp_path / "metrics.jsonl", lines), tmp_path / "curves.png")
    *towers, mean = drawn[0].axes[0].lines
    assert mean.get_xdata().tolist() == [1, 2, 3, 4]
    assert mean.get_ydata()[1:].tolist() == [7, 7, 7]
    assert [np.isfinite(line.get_ydata()).sum() for line in towers] == [4, 4, 3, 3]


def test_curves_of_an_empty_run_say_so(tmp_path, drawn):
    plots.curves(write_lines(tmp_path / "metrics.jsonl", []), tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert axes.texts[0].get_text() == "no training step logged yet"


def test_no_global_state_is_touched(tmp_path):
    backend = matplotlib.rcParams._get_backend_or_none()
    plots.roc(verification(), tmp_path / "roc.png")
    assert matplotlib.rcParams._get_backend_or_none() == backend


def test_files_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: cannot read the metrics"):
        plots.curves(tmp_path / "none.jsonl", tmp_path / "curves.png")
    with pytest.raises(StorageError, match="cannot write the plot"):
        plots.roc(verification(), tmp_path / "none" / "roc.png")
