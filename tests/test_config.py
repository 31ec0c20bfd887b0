import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_dist.config import (
    CONFIGS,
    MAX_CONFIG_BYTES,
    RESUMABLE_CHANGES,
    Config,
    changed_setting,
    config_to_yaml,
    get_setting,
    load_config,
    names_in,
    parse_assignment,
    parse_config,
    setting_descriptions,
)
from mnist_dist.errors import one_line


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        file = tmp_path / "my.yaml"
        file.write_text(text)
        return str(file)

    return write


# --- Reading, and what wins ---


def test_flags_win_over_the_file_and_the_file_over_the_defaults(yaml_file: Callable[[str], str]) -> None:
    name = yaml_file("seed: 7\ntraining: {epochs: 5, batch_size: 64}")
    config = load_config(name, {"training.epochs": 9, "model.dropout": 0.5})
    assert config.training.epochs == 9
    assert config.model.dropout == 0.5
    assert (config.seed, config.training.batch_size) == (7, 64)
    assert config.training.label_smoothing == Config().training.label_smoothing
    assert load_config(name).training.epochs == 5


def test_an_empty_file_means_the_defaults(yaml_file: Callable[[str], str]) -> None:
    assert load_config(yaml_file("# nothing yet\n")) == Config()


def test_a_shipped_name_is_found_where_a_folder_has_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert load_config("default") == Config()


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").write_text("seed: 3")
    assert load_config("default").seed == 3


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimizer: {learning_rate: 1e-3}", "optimizer.learning_rate", 0.001),
        ("optimizer: {learning_rate: 5E-2}", "optimizer.learning_rate", 0.05),
        ("optimizer: {learning_rate: 2.5e-2}", "optimizer.learning_rate", 0.025),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate", 1.0),
        ("runtime: {xla: on}", "runtime.xla", "on"),
        ("runtime: {xla: off}", "runtime.xla", "off"),
        ("runtime: {xla: 'on'}", "runtime.xla", "on"),
        ("runtime: {xla: auto}", "runtime.xla", "auto"),
        ("model: {filters: [8, 16]}", "model.filters", (8, 16)),
        ("model: {batch_norm: yes}", "model.batch_norm", True),
        ("data: {path: null}", "data.path", None),
        ("data: {path: ~/mnist.npz}", "data.path", str(Path.home() / "mnist.npz")),
        ("data: {path: ../mnist.npz}", "data.path", str(Path.cwd().parent / "mnist.npz")),
        ("training: {steps: 10}", "training.steps", 10),
    ],
)
def test_values_as_people_write_them(yaml_file: Callable[[str], str], text: str, key: str, value: Any) -> None:
    read = get_setting(load_config(yaml_file(text)), key)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "assignment"),
    [
        ("optimizer.beta_2=0.99", ("optimizer.beta_2", 0.99)),
        ("optimizer.epsilon=1e-8", ("optimizer.epsilon", 1e-8)),
        ("model.filters=[8, 16]", ("model.filters", [8, 16])),
        (" data.path = a=b.npz", ("data.path", "a=b.npz")),
        ("data.path=", ("data.path", None)),
        ("runtime.xla=off", ("runtime.xla", False)),
    ],
)
def test_assignments(text: str, assignment: tuple[str, Any]) -> None:
    assert parse_assignment(text) == assignment


@pytest.mark.parametrize("text", ["", "seed", "=3", " =3"])
def test_an_assignment_needs_a_key_and_a_value(text: str, user_error: Callable[..., str]) -> None:
    line = user_error(parse_assignment, text)
    assert line.startswith(f"--set: received '{text}', expected key=value")


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Config().training, "epochs", 5)  # noqa: B010


# --- Bad values: one line that names the key, what came and what was expected ---


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (
            "optimizer.learning_rat",
            1,
            "optimizer.learning_rat: no such setting. Did you mean 'optimizer.learning_rate'?",
        ),
        ("optimzer.name", "sgd", "optimzer: no such setting. Did you mean 'optimizer'?"),
        ("learning_rate", 1, "learning_rate: no such setting. Did you mean 'optimizer.learning_rate'?"),
        ("training.dropout", 1, "training.dropout: no such setting. Did you mean 'model.dropout'?"),
        ("qqqq", 1, "qqqq: no such setting. mnist_dist/configs/default.yaml lists them all."),
        ("", 1, ": no such setting. mnist_dist/configs/default.yaml lists them all."),
        ("a\nb", 1, "a\\nb: no such setting."),
        ("training.epochs", "three", "training.epochs: received 'three', expected a whole number."),
        ("training.epochs", True, "training.epochs: received true, expected a whole number."),
        ("training.epochs", 1.0, "training.epochs: received 1.0, expected a whole number."),
        ("training.epochs", 0, "training.epochs: received 0, expected greater than 0."),
        (
            "runtime.join_timeout_seconds",
            1e10,
            "runtime.join_timeout_seconds: received 10000000000.0, expected less than or equal to 604800.",
        ),
        ("training.epochs", None, "training.epochs: received null, expected a whole number."),
        ("training.epochs.x", 1, "training.epochs: received {'x': 1}, expected a whole number."),
        ("training.label_smoothing", 1.0, "training.label_smoothing: received 1.0, expected less than 1."),
        ("optimizer.learning_rate", True, "optimizer.learning_rate: received true, expected a number."),
        ("optimizer.learning_rate", "1e-3", "optimizer.learning_rate: received '1e-3', expected a number."),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate: received nan, expected a finite"),
        ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate: received inf, expected a finite"),
        (
            "optimizer.name",
            "adm",
            "optimizer.name: received 'adm', expected 'adam', 'adamw', 'rmsprop', 'sgd' or 'lamb'. Did you "
            "mean 'adam'?",
        ),
        (
            "runtime.strategy",
            "miror",
            "runtime.strategy: received 'miror', expected 'auto', 'single', 'mirrored', 'multiworker' or 'horovod'. "
            "Did you mean 'mirrored'?",
        ),
        ("runtime.xla", 1, "runtime.xla: received 1, expected 'on', 'off' or 'auto'."),
        ("model.batch_norm", 1, "model.batch_norm: received 1, expected true or false."),
        ("model.filters", [8], "model.filters: received [8], expected two whole numbers, such as [3, 5]."),
        ("model.filters", 8, "model.filters: received 8, expected two whole numbers, such as [3, 5]."),
        ("model.filters", [8, 0], "model.filters.1: received 0, expected greater than 0."),
        ("model.kernel_sizes", [3, 13], "model.kernel_sizes: received [3, 13], expected smaller windows"),
        ("model", 3, "model: received 3, expected a section with settings below it."),
        ("seed", -1, "seed: received -1, expected greater than or equal to 0."),
        ("seed", 2**31, "seed: received 2147483648, expected less than 2147483648."),
        ("runtime.intra_op_threads", 10**6, "runtime.intra_op_threads: received 1000000, expected less than or"),
        ("data.kind", "a\nb", "data.kind: received 'a\\nb', expected 'mnist' or 'synthetic'."),
    ],
)
def test_refused_values(key: str, value: Any, line: str, user_error: Callable[..., str]) -> None:
    assert user_error(load_config, "default", {key: value}).startswith(line)


@pytest.mark.parametrize("value", ["x" * 100_000, ["x" * 100] * 100_000, {str(i): i for i in range(10_000)}])
def test_a_huge_value_is_shown_in_part(value: Any, user_error: Callable[..., str]) -> None:
    assert user_error(load_config, "default", {"data.kind": value}).startswith("data.kind: received ")


@pytest.mark.parametrize(
    "sizes", [(25, 1), (1, 13), (3, 12), (24, 1), (28, 1), (27, 1), (26, 1), (25, 2), (3, 13), (1, 14)]
)
def test_kernel_sizes_fit_when_a_pixel_is_left(sizes: tuple[int, int], user_error: Callable[..., str]) -> None:
    after_first = (28 - sizes[0] + 1) // 2
    left = (after_first - sizes[1] + 1) // 2
    content = {"model": {"kernel_sizes": list(sizes)}}
    if left >= 1:
        assert parse_config(content).model.kernel_sizes == sizes
    else:
        assert "model.kernel_sizes" in user_error(parse_config, content)


# --- Bad files ---


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nseed: 2", "my.yaml: not valid YAML: the key 'seed' appears twice at line 2, column 1."),
        ("model: {dropout: 0.1, dropout: 0.2}", "the key 'dropout' appears twice at line 1, column 23."),
        ("- seed", "my.yaml: received ['seed'], expected 'section:' lines with settings."),
        ("hello", "my.yaml: received 'hello', expected 'section:' lines with settings."),
        ("seed: [", "my.yaml: not valid YAML: expected the node content"),
        ("seed: \x00", "my.yaml: not valid YAML: unacceptable character #x0000"),
        ("seed: 1\n---\nseed: 2", "my.yaml: not valid YAML: but found another document at line 2"),
        ("? [a]\n: 1", "my.yaml: not valid YAML: a key is not a name at line 1"),
        ("1: 2", "1: no such setting."),
        ("seed: 2020-13-45", "my.yaml: not valid YAML: month must be in 1..12."),
        ("seed: !!timestamp x", "my.yaml: not valid YAML: "),
        ("seed: !!bool x", "my.yaml: not valid YAML: "),
        ("model:", "model: received null, expected a section with settings below it."),
        ("model: 3", "model: received 3, expected a section with settings below it."),
    ],
)
def test_refused_files(yaml_file: Callable[[str], str], text: str, part: str, user_error: Callable[..., str]) -> None:
    name = yaml_file(text)
    line = user_error(load_config, name)
    assert line.startswith(f"{name}: ") and part in line
    assert part in user_error(load_config, name, {"model.dropout": 0.5}), "a flag hides the mistake"


def test_python_objects_are_not_made(
    yaml_file: Callable[[str], str], tmp_path: Path, user_error: Callable[..., str]
) -> None:
    witness = tmp_path / "witness"
    name = yaml_file(f"seed: !!python/object/apply:os.mkdir ['{witness}']")
    assert "could not determine a constructor for the tag" in user_error(load_config, name)
    assert not witness.exists()


def aliases(levels: int) -> str:
    """Ten times as many values at each level: 10**levels of them."""
    lines = ["- &a0 [x]"] + [f"- &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(levels)]
    return "data:\n  path:\n  " + "\n  ".join(lines)


def merges(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 10)}]}}" for n in range(levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (aliases(12), "aliases are not accepted"),
        (merges(12), "aliases are not accepted"),
        ("&a\ndata: *a", "aliases are not accepted"),
        ("[" * 50_000, "nested too deeply"),
        ("{a: " * 50_000 + "}" * 50_000, "nested too deeply"),
        ("a: " + "[" * 200 + "]" * 200, "no such setting"),
    ],
    ids=["aliases", "merges", "recursive", "lists", "mappings", "moderate"],
)
def test_small_files_that_stand_for_huge_values(
    yaml_file: Callable[[str], str], text: str, part: str, user_error: Callable[..., str]
) -> None:
    start = time.process_time()
    assert part in user_error(load_config, yaml_file(text))
    assert time.process_time() - start < 5


def test_a_binary_file(tmp_path: Path, user_error: Callable[..., str]) -> None:
    file = tmp_path / "model.keras"
    file.write_bytes(b"PK\x03\x04\xff\xfe\x00\x80")
    assert user_error(load_config, str(file)).startswith(f"--config: cannot read '{file}' as text: 'utf-8' codec")


def test_a_file_that_is_too_big(tmp_path: Path, user_error: Callable[..., str]) -> None:
    file = tmp_path / "big.yaml"
    file.write_text("#" * MAX_CONFIG_BYTES)
    assert load_config(str(file)) == Config()
    file.write_text("#" * (MAX_CONFIG_BYTES + 1))
    line = user_error(load_config, str(file))
    assert line == f"--config: '{file}' has 1000001 bytes, expected at most 1000000."


@pytest.mark.parametrize("name", ["defalt", "no/such/file.yaml", "", ".", "a\0b", "/dev/null"])
def test_a_missing_file(name: str, user_error: Callable[..., str]) -> None:
    line = user_error(load_config, name)
    assert line.startswith(f"--config: there is no file '{one_line(name)}'; expected a YAML file or one of: ")
    assert ", ".join(names_in(CONFIGS)) in line
    if name == "defalt":
        assert line.endswith("Did you mean 'default'?")


def test_a_name_that_no_file_can_have(user_error: Callable[..., str]) -> None:
    assert "File name too long" in user_error(load_config, "x" * 256)


# --- The shipped files ---


def test_the_default_file_equals_the_defaults_of_the_code() -> None:
    assert load_config("default") == Config() == parse_config({})


def test_the_default_file_lists_and_explains_every_setting() -> None:
    listed = setting_descriptions()
    content = Config().model_dump()
    sections = {name: value for name, value in content.items() if isinstance(value, dict)}
    keys = [name for name in content if name not in sections]
    keys += [f"{section}.{name}" for section, values in sections.items() for name in values]
    assert list(listed) == keys, "other settings, or another order"
    assert all(text.endswith(".") and not text.startswith(("#", " ")) for _, text in listed.values())
    assert listed["seed"] == ("0", "Seed of the initial weights, the order of images, augmentation and dropout.")


@pytest.mark.parametrize("name", names_in(CONFIGS))
def test_shipped_files_load_and_say_what_to_expect(name: str) -> None:
    load_config(name)
    heading = "".join(
        line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#")
    )
    assert "# Command:  mnist-dist train" in heading and "# Expected: " in heading


def test_the_default_is_shipped() -> None:
    assert "default" in names_in(CONFIGS)


# --- Writing, and comparing with a later start ---


def test_a_written_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(
        "default",
        {
            "seed": 2**31 - 1,
            "data.path": "with: colon # and 'quote'\nand line.npz",
            "model.filters": [3, 3],
            "model.kernel_sizes": [3, 3],
            "optimizer.epsilon": 1e-12,
            "optimizer.learning_rate": 1 / 3,
            "runtime.xla": "on",
            "training.steps": 10,
        },
    )
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(config))
    assert load_config(str(file)) == config
    assert list(yaml.safe_load(file.read_text())) == list(Config.model_fields), (
        "not all sections, or not in their order"
    )
    file.write_text(config_to_yaml(Config()))
    assert load_config(str(file)) == Config()
    for each in (config, Config()):
        file.write_text(config_to_yaml(each, changed_only=True))
        assert load_config(str(file)) == each
    assert yaml.safe_load(config_to_yaml(config, changed_only=True))["runtime"] == {"xla": "on"}


ANOTHER = {
    "runtime.strategy": "single",
    "runtime.devices": 2,
    "runtime.xla": "on",
    "runtime.intra_op_threads": 2,
    "runtime.steps_per_call": 7,
    "checkpoint.every_steps": 5,
    "checkpoint.keep": 9,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
}


@pytest.mark.parametrize("key", ANOTHER)
def test_a_run_may_resume_elsewhere(key: str) -> None:
    assert changed_setting(Config(), load_config("default", {key: ANOTHER[key]})) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("data.path", "/other.npz"),
        ("data.shift_pixels", 1),
        ("data.holdout_images", 5),
        ("model.filters", (8, 8)),
        ("model.batch_norm", True),
        ("optimizer.name", "sgd"),
        ("schedule.warmup_percent", 0.0),
        ("training.epochs", 4),
        ("training.batch_size", 64),
        ("evaluation.batch_size", 10),
    ],
)
def test_a_run_cannot_resume_as_another_experiment(key: str, value: Any) -> None:
    default, other = Config(), load_config("default", {key: value})
    assert changed_setting(default, other) == (key, get_setting(default, key), value)
    assert changed_setting(other, default) == (key, value, get_setting(default, key))
    assert changed_setting(other, other) is None


def test_the_first_change_is_named() -> None:
    other = load_config("default", {"training.epochs": 9, "model.dropout": 0.5, "logging.every_steps": 1})
    assert changed_setting(Config(), other) == ("model.dropout", 0.0, 0.5)


def test_what_may_change_exists() -> None:
    assert set(RESUMABLE_CHANGES) <= set(setting_descriptions())


@pytest.mark.parametrize(
    ("short", "name"),
    [("bf16", "mixed_bfloat16"), ("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16"), ("fp32", "float32")],
)
def test_what_others_call_a_precision(short: str, name: str) -> None:
    assert load_config("default", {"runtime.precision": short}).runtime.precision == name
