"""Batches as functions of seed and step: what an epoch visits, and what is computed ahead."""

import numpy as np
import pytest

from scoreflow.data import DataError, Split, batch, hold_out, prefetch

RNG = np.random.default_rng(0)


def test_batches_are_functions_of_seed_and_step_and_cover_epochs():
    split = Split(np.arange(10)[:, None], np.arange(10, dtype=np.int32))
    steps = [batch(split, 3, step, 4) for step in range(5)]
    seen = np.concatenate([b["x"][:, 0] for b in steps])
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    np.testing.assert_array_equal(batch(split, 3, 3, 4)["x"], steps[3]["x"])
    assert any((batch(split, 4, s, 4)["x"] != steps[s]["x"]).any() for s in range(3))
    for b in steps:
        np.testing.assert_array_equal(b["x"][:, 0], b["label"])
    whole = np.concatenate([batch(split, 3, step, 5)["x"][:, 0] for step in range(4)])
    np.testing.assert_array_equal(whole, seen)  # the stream does not depend on how it is cut


def test_flips_mirror_half_of_the_images():
    split = Split(np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1).repeat(4, 0))
    flipped = [batch(split, 0, step, 4, flip=True)["x"][:, 0, 0, 0] == 7 for step in range(200)]
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / np.sqrt(800)


def test_hold_out_partitions():
    train, test = hold_out(np.arange(11)[:, None], None, 0.2)
    assert len(test.x) == 3 and sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(11))


def test_prefetch_changes_neither_items_nor_errors():
    produced = []

    def numbers(count, broken=None):
        for i in range(count):
            if i == broken:
                raise DataError("the third is damaged")
            produced.append(i)
            yield i

    assert list(prefetch(numbers(5))) == [0, 1, 2, 3, 4]
    taken = []
    with pytest.raises(DataError, match="damaged"):
        for i in prefetch(numbers(5, broken=3)):
            taken.append(i)
    assert taken == [0, 1, 2]
    produced.clear()
    items = prefetch(numbers(10**9))
    assert next(items) == 0
    items.close()  # as when a run stops: it ends, with one item too many
    assert len(produced) <= 2


@pytest.mark.parametrize("flip", [False, True])
def test_shares_of_a_batch_are_the_batch_and_read_nothing_else(flip):
    """As several hosts take them, together they are what one host takes."""

    class Counted(np.ndarray):
        taken = 0

        def __getitem__(self, index):
            if isinstance(index, np.ndarray):
                Counted.taken += len(index)
            return np.asarray(self)[index]

    x = np.arange(50 * 4 * 4, dtype=np.float32).reshape(50, 4, 4, 1)
    split = Split(x.view(Counted), np.arange(50, dtype=np.int32))
    whole = batch(Split(x, split.label), 3, 5, 24, flip=flip)
    parts = [batch(split, 3, 5, 24, flip=flip, rows=slice(i, i + 8)) for i in (0, 8, 16)]
    for name in ("x", "label"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    assert Counted.taken == 24
