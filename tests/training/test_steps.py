"""Each compiled step against arithmetic done by hand, or against the same training done another way."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_dist.config import ModelConfig, OptimizerConfig
from mnist_dist.data.dataset import Arrays, Shard, make_eval_dataset, make_train_dataset
from mnist_dist.data.resident import Resident
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.distributed.strategies.single import Single
from mnist_dist.network.forward import Form, decide_kernels
from mnist_dist.network.model import build_model
from mnist_dist.network.optimizers import build_optimizer
from mnist_dist.runtime import find_device
from mnist_dist.training.steps import ALIGNED, make_eval_steps, make_train_steps, reduce_gradients

SMALL = ModelConfig(filters=(3, 4), dense_units=6)
BATCH_SIZE = 8
RATE = 0.05
SGD = OptimizerConfig(name="sgd", momentum=0.0)


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices, and computes as if no test before had been deterministic."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()


@dataclass
class Training:
    """A model, its optimizer, and calls that train it on the same images each time."""

    arrays: Arrays
    config: ModelConfig = SMALL
    optimizer_config: OptimizerConfig = SGD
    precision: str = "float32"
    loss_scaling: bool = False
    strategy: Strategy = field(default_factory=Single)
    batch_size: int = BATCH_SIZE  # Of the loss; the pipeline gives BATCH_SIZE or `images`.
    images: int = BATCH_SIZE
    form: Form | None = None
    resident: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = np.full(1000, RATE, np.float32)
        with self.strategy.scope():
            self.model = build_model(self.config, precision=self.precision, seed=1)
            self.optimizer = build_optimizer(self.optimizer_config, rates, loss_scaling=self.loss_scaling)
            self.optimizer.build(self.model.trainable_variables)
        self.steps = make_train_steps(
            self.model,
            self.optimizer,
            self.strategy,
            batch_size=self.batch_size,
            forward=self.form and self.form.make_forward(self.model),
            **self.options,
            **({"resident": Resident(*self.data, self.strategy.devices)} if self.resident else {}),
        )
        self.batches = self.make_batches()

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        return self.arrays.train_images[:200], self.arrays.train_labels[:200]

    def make_batches(self) -> Iterator[Any]:
        options: dict[str, Any] = {"resident": True} if self.resident else {}
        return iter(make_train_dataset(*self.data, batch_size=self.images, seed=0, **options))

    def take(self, *counts: int) -> np.ndarray:
        """Takes the steps in calls of so many; returns the metrics of all, float32 [steps, 2]."""
        return np.concatenate([self.steps(self.batches, count).numpy() for count in counts])

    @property
    def weights(self) -> list[np.ndarray]:
        return self.model.get_weights()


def assert_same_weights(first: Training, second: Training, tolerance: float) -> None:
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# --- Loss and gradient ---


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.6])
def test_smoothing_changes_the_gradient_and_not_the_reported_loss(arrays: Arrays, label_smoothing: float) -> None:
    import keras

    training = Training(arrays, options={"label_smoothing": label_smoothing})
    model = training.model
    images, labels = (tensor.numpy() for tensor in next(training.make_batches()))
    hidden = np.asarray(keras.Model(model.input, model.get_layer("relu_dense").output)(images), np.float64)
    logits = np.asarray(model(images), np.float64)
    kernel, bias = (weight.numpy() for weight in model.get_layer("logits").weights)

    loss, accuracy = training.take(1)[0]

    one_hot = np.eye(10)[labels]
    probabilities = softmax(logits)
    assert loss == pytest.approx(-np.log((probabilities * one_hot).sum(axis=1)).mean(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == labels).mean())
    target = (1 - label_smoothing) * one_hot + label_smoothing / 10
    gradient = (probabilities - target) / BATCH_SIZE  # Of the mean cross-entropy, with respect to the logits.
    new_kernel, new_bias = (weight.numpy() for weight in model.get_layer("logits").weights)
    np.testing.assert_allclose(new_bias, bias - RATE * gradient.sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(new_kernel, kernel - RATE * hidden.T @ gradient, atol=1e-6)


def test_the_loss_is_that_before_the_update(arrays: Arrays, tf: ModuleType) -> None:
    """Trained twice on one batch, the second step reports what the first has gained."""
    training = Training(arrays)
    batches = tf.data.Dataset.from_tensors(next(training.make_batches())).repeat()
    first, second = training.steps(iter(batches), 2).numpy()[:, 0]
    assert second < first


def test_a_global_batch_is_shared_among_replicas(arrays: Arrays) -> None:
    """One of two replicas with equal images: the sum of both is the gradient of the whole batch."""
    alone = Training(arrays)
    one_of_two = Training(arrays, strategy=TwoReplicas(), batch_size=2 * BATCH_SIZE)
    metrics = [training.take(3) for training in (alone, one_of_two)]
    assert_same_weights(alone, one_of_two, 1e-5)
    np.testing.assert_allclose(2 * metrics[1], metrics[0], rtol=1e-5)


# --- The same training in other parts ---


@pytest.mark.slow
def test_accumulation_gives_the_same_update(arrays: Arrays) -> None:
    whole, parts = Training(arrays), Training(arrays, options={"accumulation_steps": 4})
    metrics = [training.take(3) for training in (whole, parts)]
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-5)
    assert_same_weights(whole, parts, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5, batch_norm=True)])
def test_several_steps_in_one_call_are_several_calls(arrays: Arrays, config: ModelConfig) -> None:
    adam = OptimizerConfig(name="adam")
    together, apart = (Training(arrays, config=config, optimizer_config=adam) for _ in range(2))
    metrics = [together.take(4), apart.take(1, 2, 1)]
    assert metrics[0].shape == (4, 2) and metrics[0].dtype == np.float32
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-5)
    assert_same_weights(together, apart, 1e-5)
    assert int(together.optimizer.iterations) == 4


@pytest.mark.slow
def test_xla_computes_the_same(arrays: Arrays) -> None:
    plain, compiled = Training(arrays), Training(arrays, options={"xla": True})
    metrics = [training.take(2) for training in (plain, compiled)]
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-4)
    assert_same_weights(plain, compiled, 1e-4)


# Of the loop itself: its counters and the list of metrics.
LOOP = {"AddV2", "Const", "Identity", "NoOp", "TensorListSetItem"}
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.1)


def operations_of_a_step(training: Training, tf: ModuleType) -> Counter[str]:
    """Counts, by the graph, what the loop runs in each step; a function that XLA compiles is one operation.

    What depends on constants alone is computed once, when TensorFlow optimizes the graph.
    """
    traced = tf.function(lambda: training.steps(training.batches, 3), autograph=False).get_concrete_function()
    graph = traced.graph.as_graph_def()
    library = {function.signature.name: function for function in graph.library.function}

    def functions_in(nodes: Any) -> Iterator[str]:
        for node in nodes:
            for attribute in node.attr.values():
                yield from (each.name for each in (attribute.func, *attribute.list.func) if each.name in library)

    def varying(nodes: Any) -> list[Any]:
        left, constant = list(nodes), {node.name for node in nodes if node.op == "Const"}
        while True:
            rest = [
                node
                for node in left
                if node.name not in constant
                and not (node.input and all(name.partition(":")[0] in constant for name in node.input))
            ]
            if len(rest) == len(left):
                return rest
            constant |= {node.name for node in left} - {node.name for node in rest}
            left = rest

    def is_compiled(name: str) -> bool:
        return library[name].attr["_XlaMustCompile"].b

    def count(nodes: Any) -> Counter[str]:
        found: Counter[str] = Counter()
        for node in varying(nodes):
            called = list(functions_in([node]))
            if called and all(map(is_compiled, called)):
                found["compiled"] += 1
            elif called:
                found += sum((count(library[name].node_def) for name in called), Counter())
            else:
                found[node.op] += 1
        return found

    loops = [
        node
        for nodes in (graph.node, *(function.node_def for function in library.values()))
        for node in nodes
        if node.op in ("While", "StatelessWhile")
    ]
    (loop,) = loops
    return count(library[loop.attr["body"].func.name].node_def)


@pytest.mark.parametrize(
    ("replicas", "resident", "precision"),
    [(1, True, "float32"), (2, True, "mixed_float16"), (1, False, "mixed_float16"), (2, False, "float32")],
)
def test_xla_compiles_all_of_a_step_but_the_all_reduce(
    arrays: Arrays, tf: ModuleType, replicas: int, resident: bool, precision: str
) -> None:
    """Nothing is left that a GPU would have to wait for, nor an int32, which TensorFlow computes on the host."""
    training = Training(
        arrays,
        config=ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5),
        optimizer_config=ADAMW,
        precision=precision,
        loss_scaling=precision == "mixed_float16",
        strategy=Single() if replicas == 1 else TwoReplicas(),
        resident=resident,
        options={"xla": True, "label_smoothing": 0.1},
    )
    operations = operations_of_a_step(training, tf)
    reduce = {"Mul"} if replicas == 2 else set()  # Of `TwoReplicas`.
    assert set(operations) - LOOP == {"IteratorGetNext", "compiled"} | reduce, operations
    assert operations["compiled"] == replicas and operations["IteratorGetNext"] == 1 and operations["Mul"] < 2
    assert operations["AddV2"] == 2, "more than the counters of the loop"


def without_gpu_kernel(function: Any) -> set[str]:
    """Returns the operations of a function for which the installed TensorFlow has no kernel for GPUs of these types."""
    from tensorflow.python.framework.kernels import get_registered_kernels_for_op

    registered = functools.cache(lambda name: get_registered_kernels_for_op(name).kernel)

    def fits(node: Any, kernel: Any) -> bool:
        def types(name: str) -> set[int]:
            attribute = node.attr[name]
            return set(attribute.list.type) or {attribute.type}

        on_gpu = kernel.device_type in ("GPU", "DEFAULT")
        return on_gpu and all(types(each.name) <= set(each.allowed_values.list.type) for each in kernel.constraint)

    graph = function.get_concrete_function().graph.as_graph_def()
    library = {each.signature.name: each for each in graph.library.function}
    nodes = [*graph.node]
    for each in library.values():  # XLA compiles the others.
        nodes += [] if each.attr["_XlaMustCompile"].b else each.node_def
    return {
        node.op
        for node in nodes
        if node.op not in library and not any(fits(node, kernel) for kernel in registered(node.op))
    }


@pytest.mark.parametrize(
    ("precision", "xla", "resident"),
    [("mixed_bfloat16", True, True), ("float32", True, False), ("mixed_float16", False, True)],
)
def test_a_gpu_has_a_kernel_for_all_that_a_step_runs(
    arrays: Arrays, tf: ModuleType, precision: str, xla: bool, resident: bool
) -> None:
    """Also for its variables, of which the images and the counters are integers: else they would live on the host."""
    if not tf.test.is_built_with_cuda():
        pytest.skip("this TensorFlow knows no CUDA")
    training = Training(
        arrays,
        config=ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5, batch_norm=True),
        optimizer_config=ADAMW,
        precision=precision,
        loss_scaling=precision == "mixed_float16",
        resident=resident,
        options={"xla": xla, "label_smoothing": 0.1},
    )
    steps = tf.function(lambda: training.steps(training.batches, 3), autograph=False)
    assert not without_gpu_kernel(steps)
    kinds = {variable.dtype.base_dtype for variable in steps.get_concrete_function().graph.variables}
    assert tf.float32 in kinds and tf.int64 in kinds and (tf.uint8 in kinds) == resident

    def make_variables(*kinds: Any) -> Any:
        return tf.function(lambda: [tf.raw_ops.VarHandleOp(dtype=kind, shape=[]) for kind in kinds], autograph=False)

    assert not without_gpu_kernel(make_variables(*kinds))
    assert without_gpu_kernel(make_variables(tf.float32, tf.int32)) == {"VarHandleOp"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replicas", "accumulation_steps"),
    [(1, 1), *(pytest.param(*each, marks=pytest.mark.thorough) for each in [(1, 2), (2, 1), (2, 2)])],
)
def test_xla_trains_the_same_on_resident_images(arrays: Arrays, replicas: int, accumulation_steps: int) -> None:
    delivered, resident = (
        Training(
            arrays,
            optimizer_config=ADAMW,
            strategy=Single() if replicas == 1 else TwoReplicas(),
            resident=resident,
            options={"xla": True, "accumulation_steps": accumulation_steps},
        )
        for resident in (False, True)
    )
    metrics = [training.take(3) for training in (delivered, resident)]
    assert np.array_equal(*metrics)
    assert all(np.array_equal(*pair) for pair in zip(delivered.weights, resident.weights, strict=True))


def test_the_learning_rate_is_looked_up_without_an_int32(tf: ModuleType) -> None:
    """Which TensorFlow computes on the host, for which each step of a GPU would wait."""
    optimizer = build_optimizer(SGD, np.full(10, RATE, np.float32), loss_scaling=False)
    graph = tf.function(lambda: optimizer.learning_rate, autograph=False).get_concrete_function().graph
    computed = [each for each in graph.get_operations() if each.type not in ("Const", "Placeholder")]
    assert {tensor.dtype for each in computed for tensor in each.outputs} == {tf.int64, tf.float32}


@pytest.fixture
def fused() -> Callable[[int], Form]:
    """Makes the fused form with so many branches, where this machine's TensorFlow can compute it."""
    decision = decide_kernels("auto", find_device(), "float32", "off")
    if decision.value != "fused":
        pytest.skip(f"there is no fused form here: {decision.reason}")
    return functools.partial(Form, decision)


@pytest.mark.slow
@pytest.mark.parametrize(("branches", "accumulation_steps"), [(1, 1), (2, 1), (3, 1), (2, 5)])
def test_the_fused_form_trains_to_the_same_weights(
    arrays: Arrays, fused: Callable[[int], Form], branches: int, accumulation_steps: int
) -> None:
    """In parts too, also where the 50 images do not divide into equal ones."""
    plain = Training(arrays, batch_size=50, images=50)
    options = {"accumulation_steps": accumulation_steps}
    other = Training(arrays, batch_size=50, images=50, form=fused(branches), options=options)
    metrics = [training.take(1, 3) for training in (plain, other)]
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-5)
    assert_same_weights(plain, other, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, ModelConfig()], ids=["small", "seed"])  # The latter on tiles, with AMX.
def test_the_fused_form_in_bfloat16(arrays: Arrays, fused: Callable[[int], Form], config: ModelConfig) -> None:
    plain, other = (
        Training(arrays, config=config, precision="mixed_bfloat16", batch_size=64, images=64, form=form)
        for form in (None, fused(2))
    )
    metrics = [training.take(10) for training in (plain, other)]
    np.testing.assert_allclose(metrics[0][:, 0], metrics[1][:, 0], rtol=0.01)
    assert_same_weights(plain, other, 0.01)


@pytest.mark.slow
def test_the_fused_form_drops_out_anew_in_each_part_and_step(arrays: Arrays, fused: Callable[[int], Form]) -> None:
    config = ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5)
    together, apart, exact = (
        Training(arrays, config=one, batch_size=64, images=64, form=fused(2)) for one in (config, config, SMALL)
    )
    metrics = [together.take(3), apart.take(1, 2), exact.take(3)]
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-5)
    assert_same_weights(together, apart, 1e-5)
    assert not np.allclose(metrics[0], metrics[2], rtol=1e-3)


@pytest.mark.slow
def test_the_fused_form_on_one_of_two_replicas(arrays: Arrays, fused: Callable[[int], Form]) -> None:
    strategy = TwoReplicas()
    alone = Training(arrays, batch_size=64, images=64)
    one_of_two = Training(arrays, strategy=strategy, batch_size=128, images=64, form=fused(2))
    for training in (alone, one_of_two):
        training.take(2)
    assert_same_weights(alone, one_of_two, 1e-5)
    assert len(strategy.sent) == 1, "more than one message in a step"


def test_it_compiles_once(arrays: Arrays, tf: ModuleType) -> None:
    """A new count of steps, or a new epoch's iterator, must not cost seconds."""
    traces = []

    class Counting(Single):
        def run(self, step: Any, batch: Any, **options: Any) -> Any:
            traces.append(step)  # While tracing only: a compiled call does not come here.
            return super().run(step, batch, **options)

    training = Training(arrays, strategy=Counting())
    training.take(1, 5, 2)
    training.batches = training.make_batches()
    training.take(3)
    assert len(traces) == 1


# --- 16 bits ---


def test_float16_trains_as_float32_does(arrays: Arrays) -> None:
    exact = Training(arrays)
    scaled = Training(arrays, precision="mixed_float16", loss_scaling=True)
    metrics = [training.take(10) for training in (exact, scaled)]
    np.testing.assert_allclose(metrics[1][:, 0], metrics[0][:, 0], rtol=0.02)
    assert_same_weights(exact, scaled, 0.01)


@pytest.mark.slow
def test_scaling_the_loss_changes_nothing_but_lost_digits(arrays: Arrays) -> None:
    plain = Training(arrays, precision="mixed_float16")
    scaled = Training(arrays, precision="mixed_float16", loss_scaling=True)
    start = Training(arrays).weights
    for training in (plain, scaled):
        training.take(3)
    moved = [np.abs(one - other).max() for one, other in zip(plain.weights, start, strict=True)]
    differing = [np.abs(one - other).max() for one, other in zip(plain.weights, scaled.weights, strict=True)]
    assert all(difference < 0.05 * distance for difference, distance in zip(differing, moved, strict=True))


@pytest.mark.slow
def test_small_gradients_survive_in_float16(arrays: Arrays) -> None:
    """A thousandth of a thousandth of a gradient is zero in float16, unless the loss is scaled."""
    gained = []
    for loss_scaling in (False, True):
        training = Training(arrays, precision="mixed_float16", loss_scaling=loss_scaling, batch_size=BATCH_SIZE * 10**6)
        before = training.model.get_layer("conv_1").kernel.numpy()
        training.take(1)
        gained.append(np.abs(training.model.get_layer("conv_1").kernel.numpy() - before).max())
    assert gained[0] == 0 < gained[1]


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_overflow_leaves_the_step_out_and_halves_the_scale(arrays: Arrays, xla: bool) -> None:
    training = Training(arrays, precision="mixed_float16", loss_scaling=True, options={"xla": xla})
    scale = 2.0**100
    training.optimizer.dynamic_scale.assign(scale)
    before = training.weights
    loss = training.take(1)[0, 0]
    assert np.isfinite(loss), "the loss itself is not scaled"
    assert float(training.optimizer.dynamic_scale.numpy()) == scale / 2
    assert int(training.optimizer.inner_optimizer.iterations) == 0
    assert all(np.array_equal(*pair) for pair in zip(before, training.weights, strict=True))
    training.optimizer.dynamic_scale.assign(2.0**10)
    training.take(1)
    assert int(training.optimizer.inner_optimizer.iterations) == 1
    assert not np.array_equal(before[0], training.weights[0])


# --- Reducing ---


class TwoReplicas(Single):
    """The first of two replicas; the other one always has the same gradients."""

    shard = Shard(0, 1, 2)

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def reduce(self, tensor: Any) -> Any:
        self.sent.append(tensor)
        return 2 * tensor


@pytest.mark.parametrize(
    ("compression", "travels", "digits"), [("none", "float32", 1e-7), ("float16", "float16", 1e-3)]
)
def test_gradients_travel_in_one_message(tf: ModuleType, compression: str, travels: str, digits: float) -> None:
    random = np.random.default_rng(0)
    gradients = [tf.constant(random.normal(size=shape), tf.float32) for shape in [(3, 3, 1, 2), (4,), (), (5, 1)]]
    strategy = TwoReplicas()
    reduced = reduce_gradients(strategy, gradients, compression)
    assert [(tensor.dtype.name, tuple(tensor.shape)) for tensor in strategy.sent] == [(travels, (4 * ALIGNED,))]
    for gradient, total in zip(gradients, reduced, strict=True):
        assert total.dtype == tf.float32
        assert total.shape == gradient.shape
        np.testing.assert_allclose(total, 2 * gradient.numpy(), rtol=digits)


class Gathering(TwoReplicas):
    """Two replicas that gather, the other one with given gradients; or with the same."""

    gathers = True

    def __init__(self, other: Any = None) -> None:
        super().__init__()
        self.other = other

    def gather(self, vector: Any) -> Any:
        self.sent.append(vector)
        return [vector, vector if self.other is None else self.other]


@pytest.mark.parametrize("length", [4, 32, 67])
def test_gradients_in_bfloat16_travel_as_such_and_are_summed_in_float32(tf: ModuleType, length: int) -> None:
    random = np.random.default_rng(0)

    def draw() -> list[Any]:
        types = {(2, 3): tf.float32, (length,): tf.bfloat16, (): tf.float32, (3, 2): tf.bfloat16}
        return [tf.cast(random.normal(size=shape), dtype) for shape, dtype in types.items()]

    one, two = draw(), draw()
    sender = Gathering()
    reduce_gradients(sender, two, "none")
    strategy = Gathering(sender.sent[0])
    reduced = reduce_gradients(strategy, one, "none")
    floats, halves = 2 * ALIGNED, ALIGNED + ALIGNED * -(-length // ALIGNED)
    assert [tuple(tensor.shape) for tensor in strategy.sent] == [(floats + halves // 2,)]
    for total, *of_replicas in zip(reduced, one, two, strict=True):
        exact = sum(np.asarray(tf.cast(gradient, tf.float64)) for gradient in of_replicas)
        assert total.dtype == tf.float32
        assert np.array_equal(total, exact.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_gathered_gradients_train_the_same(arrays: Arrays, precision: str, accumulation_steps: int) -> None:
    """Bit for bit; and only with one part of the batch and bfloat16 is there anything to gather."""
    summed, gathered = (
        Training(arrays, precision=precision, strategy=strategy, options={"accumulation_steps": accumulation_steps})
        for strategy in (TwoReplicas(), Gathering())
    )
    for training in (summed, gathered):
        training.take(3)
    assert all(np.array_equal(*pair) for pair in zip(summed.weights, gathered.weights, strict=True))
    (all_floats,), (message,) = summed.strategy.sent, gathered.strategy.sent
    assert (message.shape[0] < all_floats.shape[0]) == (precision == "mixed_bfloat16" and accumulation_steps == 1)


def test_the_fused_form_gathers_what_the_dense_layer_computes(arrays: Arrays, fused: Callable[[int], Form]) -> None:
    strategy = Gathering()
    Training(arrays, precision="mixed_bfloat16", strategy=strategy, form=fused(1)).take(1)
    convolutions, logits = [9 * 3, 3, 9 * 3 * 4, 4], [6 * 10, 10]
    dense = [5 * 5 * 4 * 6, 6]
    floats, halves = (ALIGNED * sum(-(-each // ALIGNED) for each in group) for group in (convolutions + logits, dense))
    assert [tuple(tensor.shape) for tensor in strategy.sent] == [(floats + halves // 2,)]


@pytest.mark.parametrize("compression", ["none", "float16"])
def test_an_overflow_on_one_replica_reaches_all(tf: ModuleType, compression: str) -> None:
    reduced = reduce_gradients(TwoReplicas(), [tf.constant([1.0, np.inf]), tf.constant([2.0])], compression)
    assert [tensor.numpy().tolist() for tensor in reduced] == [[2.0, np.inf], [4.0]]


@pytest.mark.slow
def test_compressed_gradients_train_nearly_the_same(arrays: Arrays) -> None:
    exact, compressed = (
        Training(arrays, strategy=TwoReplicas(), options={"gradient_compression": compression})
        for compression in ("none", "float16")
    )
    for training in (exact, compressed):
        training.take(3)
    assert_same_weights(exact, compressed, 1e-3)
    assert not all(np.array_equal(*pair) for pair in zip(exact.weights, compressed.weights, strict=True))


# --- Evaluation ---


def test_an_evaluation_counts_each_image_once(arrays: Arrays) -> None:
    images, labels = arrays.test_images[:25], arrays.test_labels[:25]
    model = build_model(ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5, batch_norm=True), seed=1)
    eval_steps = make_eval_steps(model, Single())
    before = model.get_weights()
    logits = np.asarray(model(images[..., np.newaxis]), np.float64)
    expected = [-np.log(softmax(logits)[np.arange(25), labels]).sum(), (logits.argmax(axis=1) == labels).sum(), 25]
    for batch_size, steps in ((25, 1), (10, 3), (1000, 1)):
        dataset = make_eval_dataset(images, labels, batch_size=batch_size)
        np.testing.assert_allclose(eval_steps(iter(dataset), steps), expected, rtol=1e-4)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True)), "it trained"


@pytest.mark.parametrize("branches", [1, 3])
def test_the_fused_form_evaluates_the_same(arrays: Arrays, fused: Callable[[int], Form], branches: int) -> None:
    images, labels = arrays.test_images[:130], arrays.test_labels[:130]
    model = build_model(ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5), seed=1)
    plain = make_eval_steps(model, Single())
    other = make_eval_steps(model, Single(), fused(branches).make_forward(model))
    sums = [steps(iter(make_eval_dataset(images, labels, batch_size=70)), 2) for steps in (plain, other)]
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-5)


def test_images_that_fill_up_the_last_batch_do_not_count(arrays: Arrays, tf: ModuleType) -> None:
    model = build_model(SMALL, seed=1)
    images = arrays.test_images[:4, ..., np.newaxis]
    labels = np.asarray(model(images)).argmax(axis=1).astype(np.int32)  # All correct: each would count.

    def sums(images: np.ndarray, weights: list[float]) -> np.ndarray:
        batch = (images, labels[: len(images)], np.asarray(weights, np.float32))
        return np.asarray(make_eval_steps(model, Single())(iter(tf.data.Dataset.from_tensors(batch)), 1))

    whole = sums(images[:3], [1, 1, 1])
    np.testing.assert_allclose(sums(images, [1, 1, 1, 0]), whole, rtol=1e-5)
    np.testing.assert_allclose(2 * sums(images[:3], [0.5, 0.5, 0.5]), whole, rtol=1e-5)
