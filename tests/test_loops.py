from types import ModuleType

import pytest

from mnist_dist.loops import repeat


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_tensor_is_carried_along(count: int, tf: ModuleType) -> None:
    run = tf.function(lambda count: repeat(count, lambda index, state: 2 * state + index, tf.constant(3)))
    expected = 3
    for index in range(count):
        expected = 2 * expected + index
    assert int(run(tf.constant(count))) == expected


def test_rows_are_collected(tf: ModuleType) -> None:
    @tf.function(autograph=False)
    def squares(count: object) -> object:
        rows = tf.TensorArray(tf.int32, size=count, element_shape=[])
        return repeat(count, lambda index, rows: rows.write(index, index**2), rows).stack()

    assert squares(tf.constant(4)).numpy().tolist() == [0, 1, 4, 9]
    assert squares(tf.constant(2)).numpy().tolist() == [0, 1]
    assert squares.experimental_get_tracing_count() == 1
