"""What a run is: validated settings, read from YAML files and flags. Imports no TensorFlow.

`Config` is a tree of frozen sections, which configs/default.yaml explains. Users name a setting by its dotted key
(`optimizer.learning_rate`); precedence is defaults < YAML file < flags. Every rejected value becomes one line that
names the key.
"""

import functools
import operator
import os
import re
import reprlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mnist_dist import strategies
from mnist_dist.errors import UserError, check_local, nearest, one_line

CONFIGS = Path(__file__).with_name("configs")
MAX_CONFIG_BYTES = 1_000_000
IMAGE_SIZE = 28  # Pixels along each edge.

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Timeout = Annotated[float, Field(gt=0, le=604_800)]  # A week, in seconds; sockets overflow at some length.
MAX_UNITS = 65_536  # Of a layer.
Units = Annotated[int, Field(gt=0, le=MAX_UNITS)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Threads = Annotated[int, Field(ge=0, le=1024)]  # TensorFlow ends the process when it cannot start them all.


def _on_off(value: Any) -> Any:
    """YAML 1.1 reads a bare `on` or `off` as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _as_pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("two whole numbers, such as [3, 5]")
    return tuple(value)


def _check_windows_fit(sizes: tuple[int, int]) -> tuple[int, int]:
    edge = IMAGE_SIZE
    for size in sizes:
        edge = (edge - size + 1) // 2  # A convolution without padding, then pooling of 2 x 2.
        if edge < 1:
            raise ValueError(f"smaller windows: nothing of the {IMAGE_SIZE} pixels is left after two poolings")
    return sizes


SHORT_PRECISIONS = {
    "fp32": "float32",
    **dict.fromkeys(("fp16", "float16"), "mixed_float16"),
    **dict.fromkeys(("bf16", "bfloat16"), "mixed_bfloat16"),
}
Precision = Annotated[
    Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"],
    BeforeValidator(lambda name: SHORT_PRECISIONS.get(name, name) if isinstance(name, str) else name),
]
StrategyName = Annotated[str, BeforeValidator(strategies.check_name)]
StrategySetting = Annotated[str, BeforeValidator(lambda value: strategies.check_name(value, "auto"))]
Switch = Annotated[Literal["on", "off", "auto"], BeforeValidator(_on_off)]
Pair = Annotated[tuple[Units, Units], BeforeValidator(_as_pair)]


class Section(BaseModel):
    """A frozen group of settings that accepts neither unknown keys nor values of another type."""

    # Validators are built when the first value comes, which spares --help a third of its time.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class DataConfig(Section):
    kind: Literal["mnist", "synthetic"] = "mnist"
    path: Annotated[str, AfterValidator(check_local)] | None = None
    shift_pixels: Annotated[int, Field(ge=0, le=8)] = 0
    resident: Switch = "auto"
    holdout_images: NonNegativeInt = 0


class ModelConfig(Section):
    filters: Pair = (32, 64)
    kernel_sizes: Annotated[Pair, AfterValidator(_check_windows_fit)] = (3, 3)
    dense_units: Units = 128
    dropout: Fraction = 0.0
    batch_norm: bool = False


class OptimizerConfig(Section):
    name: Literal["adam", "adamw", "rmsprop", "sgd", "lamb"] = "adam"
    learning_rate: PositiveFloat = 0.004
    beta_1: Fraction = 0.8
    beta_2: Fraction = 0.95
    epsilon: PositiveFloat = 1e-7
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_compression: Literal["none", "float16"] = "none"


class ScheduleConfig(Section):
    name: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    warmup_percent: Annotated[float, Field(ge=0, lt=100)] = 20.0
    scaling: Literal["none", "sqrt", "linear"] = "linear"
    reference_batch_size: PositiveInt = 128


class TrainingConfig(Section):
    epochs: PositiveInt = 3
    steps: PositiveInt | None = None
    measure_seconds: PositiveFloat | None = None
    batch_size: PositiveInt = 128
    accumulation_steps: PositiveInt = 1
    label_smoothing: Fraction = 0.1


class EvaluationConfig(Section):
    every_epochs: Annotated[float, Field(ge=0)] = 1.0
    batch_size: PositiveInt = 1000


class RuntimeConfig(Section):
    strategy: StrategySetting = "auto"
    devices: PositiveInt = 1
    precision: Precision = "auto"
    xla: Switch = "auto"
    kernels: Literal["auto", "plain", "fused"] = "auto"
    tf32: bool = True
    intra_op_threads: Threads = 0
    inter_op_threads: Threads = 0
    deterministic: bool = False
    steps_per_call: PositiveInt = 50
    guard: bool = False
    all_reduce: bool = True
    join_timeout_seconds: Timeout = 120.0
    stall_timeout_seconds: Timeout = 600.0


class CheckpointConfig(Section):
    every_steps: NonNegativeInt = 0
    keep: PositiveInt = 3


class LoggingConfig(Section):
    every_steps: PositiveInt = 50
    tensorboard: bool = True
    profile: bool = False


class Config(Section):
    """All settings of one training run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)


# What may change between a run and its resumption: where and how it runs, not what it computes.
# (The checkpoint holds the precision that `auto` decided, and the trainer compares with that.)
RESUMABLE_CHANGES = {
    "data.resident",
    *(f"runtime.{name}" for name in RuntimeConfig.model_fields if name != "all_reduce"),
    *(f"checkpoint.{name}" for name in CheckpointConfig.model_fields),
    *("logging.every_steps", "logging.tensorboard", "training.accumulation_steps", "optimizer.gradient_compression"),
}


@functools.cache
def setting_descriptions() -> dict[str, tuple[str, str]]:
    """Returns every dotted key with its default, "null" for none, and the sentence that explains it in default.yaml."""
    section, found = "", {}
    for line in (CONFIGS / "default.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+):", line):
            section = f"{match[1]}."
        elif match := re.fullmatch(r"( *)(\w+): (.*?) +# (.*)", line):
            found[f"{section if match[1] else ''}{match[2]}"] = match[3], match[4]
    return found


@functools.cache
def names_in(folder: Path) -> list[str]:
    """Returns the names of the YAML files in a folder of the package."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def load_config(name: str = "default", overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a configuration: defaults < file < overrides.

    Args:
        name: path of a YAML file, or the name of a shipped configuration.
        overrides: values by dotted key, as they come from flags.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is not accepted.
    """
    content = dict(_read_config(text_of(name, CONFIGS, "--config"), name))
    for key, value in (overrides or {}).items():
        _assign(content, key, value)
    config = parse_config(content)
    if config.data.path is None:
        return config
    # What reads the run's configuration later may run in another folder.
    path = os.path.abspath(os.path.expanduser(config.data.path))  # noqa: PTH100, PTH111
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


@functools.lru_cache(maxsize=8)
def _read_config(text: str, source: str) -> Mapping[str, Any]:
    """Reads a configuration's text; kept, as a study of thousands of cases asks for the same one again and again."""
    content = read_yaml(text, source)
    try:
        parse_config(content)  # An override must not hide a mistake in the file.
    except UserError as error:
        raise UserError(f"{one_line(source)}: {error}") from None
    return content


def parse_config(content: Mapping[str, Any]) -> Config:
    """Validates nested settings; see `load_config` for the errors."""
    try:
        return Config.model_validate(dict(content))
    except ValidationError as error:
        raise UserError(explain(error)) from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits `key=value` as given to --set; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set: received '{text}', expected key=value, for example optimizer.beta_2=0.99.")
    return key.strip(), _load_yaml(value, source=f"--set {text}")


def config_to_yaml(config: Config, *, changed_only: bool = False) -> str:
    """Returns a file of all settings, or of those alone that are not the defaults, which other versions know, too."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=changed_only), sort_keys=False)


def changed_setting(before: Config, after: Config) -> tuple[str, Any, Any] | None:
    """Returns the first setting that differs and must not differ when a run resumes, with both values."""
    for key in setting_descriptions():
        old, new = get_setting(before, key), get_setting(after, key)
        if old != new and key not in RESUMABLE_CHANGES:
            return key, old, new
    return None


def get_setting(config: Config, key: str) -> Any:
    return operator.attrgetter(key)(config)


def text_of(name: str, folder: Path, argument: str) -> str:
    """Returns the text of a YAML file, or of that which a folder of the package has under this name.

    Raises:
        UserError: there is neither, or it is no text, or too long; names the argument that it was given to.
    """
    path = Path(name)
    try:
        if not path.is_file():
            known = names_in(folder)
            if name not in known:
                raise UserError(
                    f"{argument}: there is no file '{one_line(name)}'; expected a YAML file or one of: "
                    f"{', '.join(known)}." + nearest(name, known)
                )
            path = folder / f"{name}.yaml"
        elif path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(
                f"{argument}: '{name}' has {path.stat().st_size} bytes, expected at most {MAX_CONFIG_BYTES}."
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{argument}: cannot read '{one_line(name)}' as text: {reason}.") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, and a repeated key or an alias an error."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # A few lines of aliases can stand for billions of values.
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a name", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' appears twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 demands a dot in a float, so PyYAML reads 1e-3 as a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _load_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader.
    except Exception as error:  # PyYAML lets through whatever the constructors of its tags raise.
        raise UserError(f"{source}: not valid YAML: {_yaml_problem(error)}.") from None


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} at line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Reads the mapping that a YAML text holds; an empty text is an empty one.

    Raises:
        UserError: it is not YAML, or something else than a mapping; `source` is its name there.
    """
    content = _load_yaml(text, source)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{source}: received {_shown.repr(content)}, expected 'section:' lines with settings.")
    return content


def _assign(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        child = content.get(section)
        child = dict(child) if isinstance(child, dict) else {}
        content[section] = child
        content = child
    content[name] = value


_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60
TYPES = {"integer": "a whole number", "boolean": "true or false", "string": "text"}  # As users call them.


def explain(error: ValidationError) -> str:
    """Turns the first of pydantic's findings into one line: the key, what came, what was expected."""
    finding = error.errors(include_url=False)[0]
    key = _shown.repr(".".join(str(part) for part in finding["loc"]))[1:-1]  # A file's key can hold anything.
    value = finding["input"]
    received = "null" if value is None else str(value).lower() if isinstance(value, bool) else _shown.repr(value)
    if finding["type"] in ("extra_forbidden", "invalid_key"):
        return f"{key}: no such setting.{_suggestion(key)}"
    if finding["type"] == "model_type":
        return f"{key or 'configuration'}: received {received}, expected a section with settings below it."
    expected = re.sub(r"^(Input should be|Value error,|\w+ should have) ", "", finding["msg"])
    expected = expected.replace("String should match", "to match")
    expected = re.sub(r"^a valid (\w+)", lambda match: TYPES.get(match[1], f"a {match[1]}"), expected)
    hint = (
        nearest(value, re.findall(r"'([^']*)'", expected))
        if isinstance(value, str) and expected.startswith("'")
        else ""
    )
    return f"{key}: received {received}, expected {expected}.{hint}"


def _suggestion(key: str) -> str:
    """Proposes the same name in another section, a similar one in this section, or a similar key."""
    section, dot, name = key.rpartition(".")
    valid = list(setting_descriptions())
    same_name = [other for other in valid if other.rpartition(".")[2] == name]
    below = {other.removeprefix(section + dot).split(".")[0] for other in valid if other.startswith(section + dot)}
    hint = nearest(key, same_name) or nearest(name, below).replace("'", f"'{section}{dot}", 1) or nearest(key, valid)
    return hint or " mnist_dist/configs/default.yaml lists them all."
