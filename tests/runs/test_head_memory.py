import subprocess

import pytest

from towers.runs import head_memory as module
from towers.runs.head_memory import describe, head_memory, memory_at_hand, most_identities

INSIGHTFACE = {"num_towers": 8, "batch": 8 * 64, "embedding_size": 512, "slots": 1}
# ResNet-50 (43.6 M values) in five copies, and 64 pictures of 25 M values kept for the backward pass.
R50_BYTES = 43_590_848 * 4 * 5 + 64 * 25_000_000 * 4


def test_bytes_of_each_part():
    memory = head_memory(1_000_000, head="sharded", **INSIGHTFACE)
    assert memory.weights == memory.momentum == 125_000 * 512 * 4
    assert memory.logits == 4 * 125_000 * 512 * 4
    assert memory.total == memory.weights + memory.momentum + memory.rows + memory.logits
    whole = head_memory(1_000_000, head="replicated", **INSIGHTFACE)
    assert whole.weights == 8 * memory.weights
    assert whole.logits == memory.logits
    sampled = head_memory(1_000_000, head="sampled", sample_rate=0.1, **INSIGHTFACE)
    assert sampled.weights == memory.weights
    assert sampled.logits == memory.logits // 10
    chunks = head_memory(1_000_000, head="sharded", chunk=5_000, **INSIGHTFACE)
    assert chunks.logits == memory.logits // 25


@pytest.mark.parametrize("head", ["replicated", "sharded", "sampled"])
def test_the_most_identities_fit_and_one_more_does_not(head):
    settings = {"head": head, "sample_rate": 0.1, **INSIGHTFACE}
    most = most_identities(4_000_000_000, **settings)
    assert head_memory(most, **settings).total <= 4_000_000_000 < head_memory(most + 8, **settings).total


def test_a_million_identities_on_eight_cards_of_11_gb():
    """InsightFace's setting: ResNet-50, batch 8 x 64, 8 x 11 GB."""
    lines = describe(1_000_000, R50_BYTES, 11.0, head="sharded", **INSIGHTFACE)
    assert ": fits; these towers go up to 1," in lines[-1]
    assert "does not fit" in describe(1_000_000, R50_BYTES, 11.0, head="replicated", **INSIGHTFACE)[-1]
    assert "--card_memory" in describe(1_000_000, R50_BYTES, None, head="sharded", **INSIGHTFACE)[-1]


def test_parts_of_a_batch_need_fewer_logits():
    whole = describe(1_000_000, 0, 11.0, head="sharded", **INSIGHTFACE)[0]
    parts = describe(1_000_000, 0, 11.0, 4, head="sharded", **INSIGHTFACE)[0]
    assert "logits 1024 MB" in whole
    assert "logits 256 MB" in parts


def test_memory_at_hand_is_a_share_of_the_machine_or_the_smallest_card(monkeypatch):
    assert memory_at_hand(4) == pytest.approx(memory_at_hand(1) / 4)
    assert memory_at_hand(1) > 0.5
    monkeypatch.setattr(module.tf.config, "list_physical_devices", lambda kind: ["card", "card"])
    answer = subprocess.CompletedProcess([], 0, stdout="24576\n11264\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *arguments, **settings: answer)
    assert memory_at_hand(2) == pytest.approx(11.81, abs=0.01)

    def missing(*arguments, **settings):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(module.subprocess, "run", missing)
    assert memory_at_hand(2) is None
