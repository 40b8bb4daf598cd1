"""Validation: each kind of mistake is named with its setting, its value and a remedy, all of them at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.common.errors import ConfigError
from launcher.config import Config, LayoutConfig, SlurmClusterConfig
from launcher.layout.environment import PROTECTED
from launcher.layout.plan import engine_args
from launcher.slurm.states import parse_limit
from launcher.submit.rules.engines import OWNED
from launcher.submit.rules.slurm import OWNED_SBATCH
from launcher.submit.rules.values import AT_LEAST, AT_MOST, POSITIVE, WORDS
from launcher.submit.validate import check, problems


def local(**settings: Any) -> Config:
    """A configuration without problems but for ``settings``, given as ``layout__nodes=3``."""
    config = Config(layout=LayoutConfig(device="cpu", gpus_per_node=8))
    return _set(config, settings)


def slurm(**settings: Any) -> Config:
    config = Config(layout=LayoutConfig(device="cpu", gpus_per_node=8), cluster=SlurmClusterConfig())
    return _set(config, settings)


def _set(config: Config, settings: dict[str, Any]) -> Config:
    for path, value in settings.items():
        *groups, name = path.split("__")
        owner: Any = config
        for group in groups:
            owner = getattr(owner, group)
        assert hasattr(owner, name), path
        setattr(owner, name, value)
    return config


def test_the_starting_points_have_no_problems() -> None:
    assert problems(local()) == []
    assert problems(slurm()) == []


# Each: how to make it, and what its one message must say.
WRONG: list[tuple[Callable[..., Config], dict[str, Any], list[str]]] = [
    # roles
    (local, {"layout__nodes": 2, "layout__inference_nodes": 3}, ["`layout.inference_nodes` (3)", "`layout.nodes` (2)"]),
    (local, {"layout__nodes": 2, "layout__inference_nodes": 2}, ["leaves no node", "layout.nodes=3"]),
    (local, {"layout__nodes": 0}, ["`layout.nodes` (0)"]),
    (local, {"layout__inference_nodes": -1}, ["`layout.inference_nodes` (-1)"]),
    (local, {"layout__hostnames": ["a"]}, ["`layout.hostnames` (1 names)", "`layout.nodes` (2)"]),
    (local, {"layout__hostnames": ["a", "a"]}, ["more than once"]),
    # preflight
    (local, {"preflight__skip": ["smh"]}, ["`preflight.skip` (smh)", "shm"]),
    # sweeps
    (local, {"sweep__metric": "reward.best"}, ["`sweep.metric` (reward.best)", "sweep.metric=reward.max"]),
    (local, {"sweep__name": "a/b"}, ["`sweep.name` (a/b)"]),
    (local, {"sweep__parallel": 0}, ["`sweep.parallel` (0)"]),
    # local mode
    (local, {"layout__colocate_inference_gpus": 2}, ["has no meaning", "layout.inference_nodes=0"]),
    (local, {"layout__inference_nodes": 0, "layout__colocate_inference_gpus": 8}, ["leaves no GPU"]),
    (local, {"layout__inference_nodes": 0, "layout__gpus_per_node": 1}, ["cannot divide", "layout.colocate=share"]),
    (
        local,
        {"layout__inference_nodes": 0, "layout__colocate": "share", "layout__colocate_inference_gpus": 2},
        ["contradicts `layout.colocate` (share)"],
    ),
    # sizes
    (local, {"trainer__workers_per_node": 9}, ["`trainer.workers_per_node` (9)", "8 GPUs"]),
    (local, {"inference__tensor_parallel_size": 16}, ["does not fit in the 8 GPUs", "layout.inference_nodes=2"]),
    (local, {"inference__tensor_parallel_size": 12}, ["does not fit", "multiple of 8"]),
    (local, {"inference__tensor_parallel_size": 3}, ["does not divide", "2 would idle", "replicas_per_node=2"]),
    (local, {"inference__tensor_parallel_size": 2, "inference__pipeline_parallel_size": 3}, ["= 6 does not divide"]),
    (local, {"inference__tensor_parallel_size": 4, "inference__replicas_per_node": 3}, ["(3) * ", "=2` or less"]),
    (
        local,
        {"layout__nodes": 6, "layout__inference_nodes": 3, "inference__tensor_parallel_size": 16},
        ["span 2 nodes", "does not divide the 3", "layout.inference_nodes=2"],
    ),
    (
        local,
        {
            "layout__nodes": 3,
            "layout__inference_nodes": 2,
            "inference__tensor_parallel_size": 16,
            "inference__replicas_per_node": 2,
        },
        ["`inference.replicas_per_node` (2) contradicts"],
    ),
    # ports
    (local, {"inference__base_port": 80}, ["need root"]),
    (local, {"inference__base_port": 70000}, ["above 65535"]),
    (local, {"inference__base_port": 65530}, ["8 engines", "65537", "inference.base_port=65528"]),
    # words and numbers
    (local, {"layout__device": "tpu"}, ["`layout.device` (tpu)", "cuda, cpu"]),
    (local, {"bridge__transport": "pigeon"}, ["`bridge.transport` (pigeon)"]),
    (
        local,
        {
            **{"bridge__transport": "nccl", "layout__device": "cuda", "layout__inference_nodes": 0},
            **{"layout__colocate": "share", "inference__gpu_memory_utilization": 0.4},
        },
        ["refuses two processes on one GPU", "`bridge.transport=auto`"],
    ),
    (slurm, {"bridge__transport": "shm"}, ["`bridge.transport` (shm) works within one host"]),
    (local, {"bridge__transport": "nccl"}, ["needs GPUs", "`layout.device` is cpu"]),
    (local, {"bridge__update": "diff"}, ["`bridge.update` (diff)", "full, delta"]),
    (local, {"bridge__update": "delta", "bridge__verify": False}, ["`bridge.update` (delta)", "`bridge.verify=true`"]),
    (local, {"model__dtype": "int8"}, ["`model.dtype` (int8)"]),
    (local, {"model__dtype": "float16"}, ["`model.dtype` (float16)", "bfloat16"]),
    (local, {"trainer__lr": float("nan")}, ["`trainer.lr` (nan)"]),
    (local, {"bridge__timeout_s": float("inf")}, ["`bridge.timeout_s` (inf)"]),
    (local, {"inference__gpu_memory_utilization": 1.5}, ["is above 1"]),
    (local, {"trainer__samples_per_prompt": 1}, ["advantage of zero"]),
    (local, {"trainer__max_new_tokens": 64}, ["leaves no room"]),
    (local, {"trainer__task": "chess"}, ["`trainer.task` (chess)", "addition"]),
    # names, commands, environments
    (local, {"name": "a/b"}, ["`name` (a/b)"]),
    (local, {"output_dir": " "}, ["`output_dir`"]),
    (local, {"output_dir": __file__ + "/runs"}, ["is a file"]),
    (local, {"output_dir": "~/runs"}, ["not expanded"]),
    (local, {"trainer__command": []}, ["names no program"]),
    (local, {"trainer__command": [""]}, ["names no program"]),
    (local, {"trainer__command": ["python train.py"]}, ["no shell splits it", "[python,train.py]"]),
    (local, {"trainer__command": ["torchrun", "train.py"]}, ["already starts one per rank"]),
    (local, {"trainer__env": {"RANK": "0"}}, ["`trainer.env.RANK` (0)"]),
    (local, {"inference__env": {"LAUNCHER_TOKEN": "x"}}, ["`inference.env.LAUNCHER_TOKEN`"]),
    (local, {"inference__env": {"VLLM_SERVER_DEV_MODE": "1"}}, ["VLLM_SERVER_DEV_MODE"]),
    (local, {"cluster__env": {"A-B": "x"}}, ["`cluster.env` (A-B)"]),
    # vLLM's arguments
    (local, {"inference__args": ["--port", "1"]}, ["(--port)", "inference.base_port"]),
    (local, {"inference__args": ["--tensor_parallel_size=2"]}, ["(--tensor_parallel_size)"]),
    (local, {"inference__args": ["-tp", "2"]}, ["(-tp)"]),
    (local, {"inference__args": ["--data-parallel-size=2"]}, ["more replicas"]),
    (local, {"inference__args": ["swap"]}, ["no option of vLLM"]),
    # the cluster
    (local, {"cluster__setup": ["module load x"]}, ["SLURM only", "+cluster=slurm"]),
    (local, {"cluster__kind": "k8s"}, ["`cluster.kind` (k8s)"]),
    (slurm, {"cluster__time": "4 hours"}, ["`cluster.time` (4 hours)"]),
    (slurm, {"cluster__time": "00:00:00"}, ["`cluster.time` (00:00:00)"]),
    (slurm, {"cluster__time": "43200"}, ["30 days", "quote"]),
    (slurm, {"cluster__mem": "lots"}, ["`cluster.mem` (lots)"]),
    (slurm, {"cluster__cpus_per_task": 0}, ["`cluster.cpus_per_task` (0)"]),
    (slurm, {"cluster__gpu_request": "all"}, ["`cluster.gpu_request` (all)"]),
    (
        slurm,
        {"cluster__gpu_request": "none", "cluster__gpu_type": "h100"},
        ["contradicts `cluster.gpu_request` (none)"],
    ),
    (slurm, {"cluster__partition": ""}, ["`cluster.partition`"]),
    (slurm, {"cluster__partition": "a\n#SBATCH --wrap=x"}, ["several lines"]),
    (slurm, {"cluster__container_mounts": "/a:/b"}, ["`cluster.container`"]),
    (slurm, {"cluster__sbatch": {"nodes": 3}}, ["`cluster.sbatch.nodes` (3)", "layout.nodes"]),
    (slurm, {"cluster__sbatch": {"N": 3}}, ["`cluster.sbatch.N` (3)"]),
    (slurm, {"cluster__sbatch": {"--comment": "x"}}, ["without dashes"]),
    (slurm, {"cluster__sbatch": {"comment": "a\nb"}}, ["not one line"]),
    (slurm, {"cluster__sbatch": {"requeue": False}}, ["leave it out"]),
    (slurm, {"cluster__sbatch": {"mem-per-cpu": "2G"}}, ["`cluster.mem` (0)", "cluster.mem=null"]),
    (slurm, {"cluster__gpu_request": "gres", "cluster__sbatch": {"gres": "x"}}, ["`cluster.gpu_request` (gres)"]),
    (slurm, {"cluster__srun_args": ["--ntasks=3"]}, ["(--ntasks)"]),
    (slurm, {"cluster__srun_args": ["-n3"]}, ["(-n3)"]),
]


@pytest.mark.parametrize(
    ("make", "settings", "says"), WRONG, ids=lambda value: str(getattr(value, "__name__", value))[:60]
)
def test_one_mistake_is_one_message(make: Callable[..., Config], settings: dict[str, Any], says: list[str]) -> None:
    found = problems(make(**settings))

    assert len(found) == 1, found
    for part in [*says, "HINT: "]:
        assert part in found[0]


def test_all_mistakes_are_named_at_once() -> None:
    config = slurm(
        layout__inference_nodes=5,
        inference__args=["--port=1"],
        trainer__env={"RANK": "1"},
        cluster__time="x",
        model__path="/nowhere",
        name="",
    )

    with pytest.raises(ConfigError) as caught:
        check(config)

    assert len(caught.value.problems) == 6
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("6 problems in the configuration")


@pytest.mark.parametrize("time", ["30", "30:00", "04:00:00", "2-12", "2-12:30", "2-12:30:00"])
def test_every_time_format_of_slurm_is_taken(time: str) -> None:
    assert problems(slurm(cluster__time=time)) == []


def test_further_sbatch_options_are_free() -> None:
    sbatch = {"comment": "x", "nice": 3, "spread_job": True, "gres": "tmpdisk:10", "mail_type": "END"}

    assert problems(slurm(cluster__sbatch=sbatch)) == []


def test_gpus_that_are_shared_need_room() -> None:
    config = local(layout__device="cuda", layout__inference_nodes=0, layout__colocate="share")

    assert [problem.split()[0] for problem in problems(config)] == ["`inference.gpu_memory_utilization`"]


def test_every_table_names_settings_that_exist() -> None:
    known = _paths(Config(cluster=SlurmClusterConfig()), "")

    assert {*AT_LEAST, *AT_MOST, *POSITIVE, *WORDS} <= known


def test_every_argument_that_the_layout_gives_an_engine_is_owned() -> None:
    config = local(inference__max_num_seqs=8, inference__enforce_eager=True, inference__gpu_memory_utilization=0.5)
    given = {argument for argument in engine_args(config) if argument.startswith("--")}

    assert given <= set(OWNED)
    for name in OWNED:
        assert len(problems(local(inference__args=[name]))) == 1


def test_owned_options_and_names_are_all_refused() -> None:
    for name in OWNED_SBATCH:
        assert len(problems(slurm(cluster__sbatch={name: "x"}))) == 1
        assert len(problems(slurm(cluster__sbatch={name.replace("-", "_"): "x"}))) == 1
    for name in PROTECTED:
        assert len(problems(local(cluster__env={name: "x"}))) == 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    described = {"num_attention_heads": 12, "num_hidden_layers": 2, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    return tmp_path


def test_a_model_that_is_there(model: Path) -> None:
    assert problems(local(model__path=str(model))) == []


@pytest.mark.parametrize(
    ("path", "says"),
    [("/nowhere", "does not exist"), ("org/name", "hf download org/name"), ("~/m", "not expanded"), ("", "is empty")],
)
def test_a_model_that_is_not_there(path: str, says: str) -> None:
    (problem,) = problems(local(model__path=path))

    assert says in problem
    assert problems(local(model__path=path), model_is_here=False) == []


@pytest.mark.parametrize(
    ("file", "says"), [("config.json", "no config.json"), ("model.safetensors", "weights"), ("tokenizer.json", "token")]
)
def test_a_model_that_lacks_a_file(model: Path, file: str, says: str) -> None:
    (model / file).unlink()

    (problem,) = problems(local(model__path=str(model)))

    assert says in problem


def test_a_model_whose_config_is_damaged(model: Path) -> None:
    (model / "config.json").write_text("{")

    (problem,) = problems(local(model__path=str(model)))

    assert "cannot be read" in problem


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inference__tensor_parallel_size": 8}, "12 attention heads"),
        ({"inference__pipeline_parallel_size": 4}, "2 layers"),
        ({"model__max_length": 129}, "128 positions"),
    ],
)
def test_a_model_that_cannot_be_used_as_asked(model: Path, settings: dict[str, Any], says: str) -> None:
    (problem,) = problems(local(model__path=str(model), **settings))

    assert says in problem


def _paths(value: Any, prefix: str) -> set[str]:
    found: set[str] = set()
    for field in fields(value):
        found.add(prefix + field.name)
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            found |= _paths(inner, f"{prefix}{field.name}.")
    return found


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:00:00", 3600),
        ("2-3", 2 * 86400 + 3 * 3600),
        ("1-00:30", 86400 + 1800),
        ("1-02:03:04", 86400 + 7384),
        ("x", None),
        ("1:2:3:4", None),
    ],
)
def test_time_limits_in_parse_limit(time: str, expected: int | None) -> None:
    assert parse_limit(time) == expected


def test_stopping_must_fit_before_the_time_limit() -> None:
    assert problems(slurm(cluster__time="3", cluster__signal_s=179)) == []
    (problem,) = problems(slurm(cluster__time="3", cluster__signal_s=180))
    assert problem.startswith("`cluster.signal_s` (180) is not less than `cluster.time` (3, 180 s)")
    (problem,) = problems(slurm(cluster__signal_s=60))
    assert problem.startswith("`checkpoint.stop_timeout_s` (60) is not less than `cluster.signal_s` (60)")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--enable-eplb", "experts move"),
        ("--calculate_kv_scales", "scales of keys and values"),
        ("--quantization=fp8", "on a CPU"),
    ],
)
def test_options_that_leave_engines_that_cannot_be_updated(argument: str, words: str) -> None:
    found = problems(local(inference__args=[argument]))
    assert [problem for problem in found if words in problem and "HINT: leave it out" in problem]
