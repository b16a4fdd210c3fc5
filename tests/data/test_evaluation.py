import megengine.module as M
import numpy as np

from data.evaluation import Score, evaluate


class Echo(M.Module):
    def forward(self, x):
        return x


def test_counts_and_restored_mode():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((23, 8)).astype(np.float32)
    labels = rng.integers(0, 8, 23).astype(np.int32)
    model = Echo()
    batches = [(logits[i : i + 5], labels[i : i + 5]) for i in range(0, 23, 5)]
    score = evaluate(model, [*batches, (logits[:0], labels[:0])])
    order = np.argsort(-logits, 1)
    assert model.training
    assert score.total == 23
    assert score.correct1 == (order[:, 0] == labels).sum()
    assert score.correct5 == (order[:, :5] == labels[:, None]).any(1).sum()
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(
        score.mean_loss, -log_softmax[np.arange(23), labels].mean(), rtol=1e-5
    )


def test_fewer_than_five_classes():
    score = Score()
    score.add(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([0, 0]), 0.0)
    assert (score.top1, score.top5) == (50, 100)
