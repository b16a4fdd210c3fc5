import megengine as mge
import numpy as np
import pytest

from training import ema, swap


def random_weights(model, rng):
    for tensor in swap.tensors(model).values():
        tensor[...] = rng.standard_normal(tensor.shape).astype(np.float32)


def test_the_average_is_its_definition_and_covers_every_tensor(tiny, rng):
    model = tiny("se")
    average = ema.WeightAverage(model, decay=0.5)
    expected = {name: t.numpy().astype(np.float64) for name, t in swap.tensors(model).items()}
    for step in range(12):
        random_weights(model, rng)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in swap.tensors(model).items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.numpy()
    assert 1 / 10 < 0.5 < (1 + 11) / (10 + 11)  # both rules were in force
    state = average.state_dict()
    assert state.keys() == expected.keys() and "stage1.0.dense.bn.running_var" in state
    for name, value in expected.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-6)


def test_applied_lends_the_average_and_gives_the_weights_back(tiny, rng, images):
    model = tiny()
    average = ema.WeightAverage(model, decay=0.5)
    random_weights(model, rng)
    average.update(100)
    own = {name: t.numpy().copy() for name, t in swap.tensors(model).items()}
    with pytest.raises(KeyError), average.applied():
        lent = model.state_dict()
        for name, value in average.state_dict().items():
            assert np.array_equal(lent[name].ravel(), value.ravel())
        model.eval()
        model(mge.Tensor(images))
        raise KeyError  # an interruption must not leave the average in place
    for name, tensor in swap.tensors(model).items():
        assert np.array_equal(tensor.numpy(), own[name])


def test_training_after_evaluating_the_average_leaves_it_alone(tiny, rng, images):
    model = tiny()
    average = ema.WeightAverage(model, decay=0.5)
    with average.applied():
        pass
    before = average.state_dict()
    model.train()
    model(mge.Tensor(images))  # moves the running statistics
    random_weights(model, rng)
    after = average.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_it_goes_on_from_its_state_with_the_same_bits(tiny, rng):
    model = tiny()
    straight, resumed = ema.WeightAverage(model, 0.9), ema.WeightAverage(model, 0.9)
    random_weights(model, rng)
    straight.update(7)
    resumed.load_state_dict(straight.state_dict())
    random_weights(model, rng)
    straight.update(8)
    resumed.update(8)
    a, b = straight.state_dict(), resumed.state_dict()
    assert all(np.array_equal(a[name], b[name]) for name in a)
