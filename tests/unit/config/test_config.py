"""Composition: defaults, presets, overrides, directories of one's own, and the frozen file."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from launcher.common.paths import conf_dir
from launcher.config import (
    CONFIG_FILE,
    Config,
    LocalClusterConfig,
    SlurmClusterConfig,
    TrainerConfig,
    compose,
    from_yaml,
    load_run_config,
    to_yaml,
)
from launcher.layout import plan
from launcher.submit.validate import check, problems

NEEDED = {
    # What a preset cannot be used without; see the comment in its file.
    "layout/gpu": ["inference=gpu"],
    "layout/gpu_split": ["inference=gpu"],
    "layout/gpu_share": ["inference=gpu_share"],
    "bridge/nccl": ["layout=gpu"],
    "bridge/peer": ["layout=gpu"],
    "bridge/ipc": ["layout=gpu"],
    "inference/gpu": ["layout=gpu"],
    "inference/gpu_share": ["layout=gpu_share"],
    "trainer/grpo": ["model=qwen3_8b"],
}
PRESETS = sorted(str(path.relative_to(conf_dir()).with_suffix("")) for path in conf_dir().glob("*/*.yaml"))


def test_the_default_is_the_tiny_run_on_this_machine() -> None:
    config = compose()

    assert type(config.cluster) is LocalClusterConfig
    assert (config.layout.nodes, config.layout.inference_nodes, config.layout.gpus_per_node) == (2, 1, 1)
    assert config.layout.device == "cpu"
    assert config.model.path is None
    check(config)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_shipped_preset_composes_validates_and_plans(preset: str, model_dir: Path) -> None:
    group, _, name = preset.partition("/")
    plus = "+" if group == "cluster" else ""
    overrides = [f"{plus}{group}={name}", *NEEDED.get(preset, [])]
    config = compose(overrides)
    if config.model.path is not None:
        config = compose([*overrides, f"model.path={model_dir}"])

    check(config)
    assert plan(config).nodes


def test_the_large_experiment_says_how_to_get_its_model() -> None:
    (problem,) = problems(compose(["experiment=qwen3_8b"]))

    assert "hf download Qwen/Qwen3-8B" in problem
    assert "model.path=" in problem


def test_a_cluster_is_added_with_a_plus_sign_and_then_overridden() -> None:
    config = compose(["+cluster=slurm", "cluster.partition=gpu", "cluster.time=01:00:00", "+cluster.sbatch.comment=x"])

    assert isinstance(config.cluster, SlurmClusterConfig)
    assert (config.cluster.kind, config.cluster.partition, config.cluster.time) == ("slurm", "gpu", "01:00:00")
    assert config.cluster.sbatch == {"comment": "x"}
    assert type(compose(["+cluster=local"]).cluster) is LocalClusterConfig


def test_a_group_on_the_command_line_wins_over_the_experiment() -> None:
    config = compose(["experiment=qwen3_8b", "layout=gpu_split", "trainer.steps=7"])

    assert (config.layout.nodes, config.layout.inference_nodes) == (1, 0)
    assert config.trainer.steps == 7
    assert config.model.max_length == 4096


def test_presets_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "ours.yaml").write_text("defaults: [slurm, _self_]\npartition: gpu\n")
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("command: [python, train.py]\noptions: {beta: 0.1}\n")

    config = compose(["+cluster=ours", "trainer=mine"], config_dir=tmp_path)

    assert isinstance(config.cluster, SlurmClusterConfig)
    assert config.cluster.partition == "gpu"
    assert config.trainer.command == ["python", "train.py"]
    assert config.trainer.options == {"beta": 0.1}


@pytest.mark.parametrize("overrides", [[], ["+cluster=slurm", "+cluster.sbatch={requeue: true, nice: 3}"]])
def test_a_frozen_configuration_reads_back_equal(overrides: list[str], tmp_path: Path) -> None:
    config = compose([*overrides, "+trainer.env.NUMBER=1", "+trainer.options.nested={a: [1, null]}"])
    (tmp_path / CONFIG_FILE).write_text(to_yaml(config))

    assert load_run_config(tmp_path) == config
    assert type(load_run_config(tmp_path).cluster) is type(config.cluster)
    assert config.trainer.env["NUMBER"] == "1"


def test_the_schema_alone_makes_a_configuration_too() -> None:
    assert from_yaml(to_yaml(Config())) == Config()


@pytest.mark.parametrize(
    "text", ["1e3", "1_0e3", ".5", "-.inf", "0x1f", "14:00:00", "yes", "~", "2026-01-01", "", " a"]
)
def test_a_text_that_looks_like_something_else_stays_a_text(text: str) -> None:
    config = Config(name=text, trainer=TrainerConfig(command=["python", text], env={"A": text, text: "b: c\n"}))
    assert from_yaml(to_yaml(config)) == config


def test_conf_is_found_in_a_wheel_before_anything_beside_the_package(tmp_path: Path) -> None:
    package = tmp_path / "launcher"
    (package / "common").mkdir(parents=True)
    (tmp_path / "conf").mkdir()
    shutil.copy(Path(__file__).parents[3] / "launcher" / "common" / "paths.py", package / "common")
    spec = importlib.util.spec_from_file_location("installed_paths", package / "common" / "paths.py")
    assert spec is not None
    assert spec.loader is not None
    paths = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paths)

    assert paths.conf_dir() == (tmp_path / "conf").resolve()
    (package / "_data" / "conf").mkdir(parents=True)
    assert paths.conf_dir() == (package / "_data" / "conf").resolve()
    with pytest.raises(FileNotFoundError, match="sbatch_templates"):
        paths.sbatch_templates_dir()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What validation looks at: a model's config.json, and files by name."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "config.json").write_text('{"num_attention_heads": 32, "num_hidden_layers": 36}')
    (directory / "model.safetensors").touch()
    (directory / "tokenizer.json").touch()
    return directory
