"""The earlier bridge's names that need no engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from launcher import bridge
from launcher.bridge.compat import vllm_location
from launcher.common.errors import BridgeError, RendezvousTimeout

NAMES = [
    *("init_process_group", "get_inference_urls", "BridgeConfig", "VLLMWeightBridge", "export_param_mappings"),
    *("create_bridge_from_training_config", "broadcast_weights", "broadcast_single_param", "notify_update"),
    *("send_heartbeat", "cleanup"),
]


def test_every_name_is_there_and_importing_the_package_costs_no_torch() -> None:
    program = "import sys, launcher.bridge; assert 'torch' not in sys.modules; print(*dir(launcher.bridge))"
    names = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert set(NAMES) <= set(names)
    for name in NAMES:
        assert getattr(bridge, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bridge.no_such_name


class TestUrls:
    def test_local_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MASTER_PORT", raising=False)
        assert bridge.get_inference_urls() == ("localhost:26756", "localhost:26757", "localhost:26758", ["localhost"])

    def test_the_last_nodes_of_a_job_infer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MASTER_PORT", raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "rack[0-1]n[01-02]")
        assert bridge.get_inference_urls(2) == (
            *(f"rack0n01:{port}" for port in (26756, 26757, 26758)),
            ["rack1n01", "rack1n02"],
        )
        with pytest.raises(ValueError, match="leaves no trainer"):
            bridge.get_inference_urls(4)

    @pytest.mark.seed("D27")
    def test_master_port_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASTER_PORT", "4000")
        assert bridge.get_inference_urls(0)[:3] == ("localhost:4000", "localhost:4001", "localhost:4002")

    def test_nothing_outside_a_job_or_for_a_negative_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
        assert bridge.get_inference_urls(1) == (None, None, None, None)
        assert bridge.get_inference_urls(-1) == (None, None, None, None)


class TestConfig:
    def test_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGDIR", "/logs")
        config = bridge.BridgeConfig()
        assert (config.trainer_rank, config.world_size, config.init_method) == (0, 1, "env://")
        assert (config.timeout_seconds, config.log_dir, config.num_gpus_per_node) == (300.0, "/logs", 8)
        assert config.is_local_mode
        assert config.uses_nccl

    def test_nccl_is_for_gpus_only(self) -> None:
        assert not bridge.BridgeConfig(device="cpu").uses_nccl
        assert not bridge.BridgeConfig(num_inference_nodes=2).is_local_mode

    def test_from_a_training_config(self) -> None:
        class Training:
            def __init__(self) -> None:
                self.trainer_rank, self.timeout_seconds, self.lr = 3, 12.0, 1e-5

        assert bridge.BridgeConfig.from_training_config(Training()).timeout_seconds == 12.0
        assert bridge.BridgeConfig.from_training_config({"trainer_rank": 2, "lr": 1.0}).trainer_rank == 2

    def test_ranks_that_are_not_those_of_torch_are_refused(self) -> None:
        config = bridge.BridgeConfig(trainer_rank=1, world_size=2)
        with pytest.raises(BridgeError, match=r"`trainer_rank` \(1\) of `world_size` \(2\) is not what"):
            bridge.VLLMWeightBridge(config).initialize()

    def test_the_mapping_has_the_name_and_the_place_of_the_configuration(self, tmp_path: Path) -> None:
        config = bridge.BridgeConfig(model_name="tiny", log_dir=str(tmp_path))
        path = bridge.VLLMWeightBridge(config).export_param_mappings(nn.Linear(2, 2))
        assert path.parent == tmp_path
        assert json.loads(path.read_text())["model"] == "tiny"

    def test_a_bridge_that_is_not_initialised_says_so(self) -> None:
        with pytest.raises(BridgeError, match="initialize"):
            bridge.VLLMWeightBridge(bridge.BridgeConfig()).send_heartbeat()


class TestMappings:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("model.layers.3.self_attn.q_proj.weight", ("model.layers.3.self_attn.qkv_proj.weight", 0)),
            ("model.layers.3.self_attn.k_proj.bias", ("model.layers.3.self_attn.qkv_proj.bias", 0)),
            ("model.layers.3.self_attn.v_proj.bias", ("model.layers.3.self_attn.qkv_proj.bias", 0)),
            ("layers.0.attention.wq.weight", ("layers.0.attention.qkv_proj.weight", 0)),
            ("model.layers.0.mlp.gate_proj.weight", ("model.layers.0.mlp.gate_up_proj.weight", 0)),
            ("model.layers.0.mlp.experts.7.up_proj.weight", ("model.layers.0.mlp.experts.w13_weight", 0)),
            ("model.layers.0.mlp.experts.7.down_proj.weight", ("model.layers.0.mlp.experts.w2_weight", 1)),
            ("model.layers.0.mlp.down_proj.weight", ("model.layers.0.mlp.down_proj.weight", 1)),
            ("model.embed_tokens.weight", ("model.embed_tokens.weight", 0)),
            ("model.norm.weight", ("model.norm.weight", None)),
        ],
    )
    @pytest.mark.seed("D10")
    def test_names(self, name: str, expected: tuple[str, int | None]) -> None:
        assert vllm_location(name) == expected

    @pytest.mark.seed("D26")
    def test_the_file(self, tmp_path: Path) -> None:
        model = nn.ModuleDict({"wq": nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)})
        path = bridge.export_param_mappings(nn.ModuleDict({"attention": model}), "tiny", tp_degree=2, log_dir=tmp_path)
        assert path.name == "vllm_bridge_config.json"
        content = json.loads(path.read_text())
        assert (content["model"], content["tp_degree"], content["dp_shard_degree"]) == ("tiny", 2, 1)
        assert content["param_mappings"]["attention.wq.weight"] == {
            "vllm_name": "attention.qkv_proj.weight",
            "shape": [4, 4],
            "local_shape": [4, 4],
            "dtype": "bfloat16",
            "tp_shard_dim": 0,
            "needs_permute": True,
        }
        assert [path.name for path in tmp_path.iterdir()] == ["vllm_bridge_config.json"]

    @pytest.mark.seed("D6")
    def test_an_empty_mapping_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="no parameters"):
            bridge.export_param_mappings(nn.Identity(), "nothing", log_dir=tmp_path)
        monkeypatch.delenv("LOGDIR", raising=False)
        with pytest.raises(ValueError, match="LOGDIR"):
            bridge.export_param_mappings(nn.Linear(1, 1), "nowhere")


class TestGroup:
    @pytest.mark.seed("D2", "D28")
    def test_two_groups_share_a_store_and_one_process(self) -> None:
        from torch import distributed as dist

        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        groups = [
            bridge.init_process_group("gloo", world_size=1, rank=0, store=store, group_name=name, address="127.0.0.1")
            for name in ("one", "two")
        ]
        for value, group in enumerate(groups):
            tensor = torch.full((3,), float(value))
            group.broadcast(tensor, 0).wait()
            assert tensor.tolist() == [value] * 3

    @pytest.mark.seed("D25")
    def test_a_missing_peer_is_a_timeout_that_names_the_group(self) -> None:
        from torch import distributed as dist

        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        with pytest.raises(RendezvousTimeout, match=re.escape("Group 'lonely': rank 0 of 2")):
            bridge.init_process_group(
                "gloo",
                world_size=2,
                rank=0,
                store=store,
                group_name="lonely",
                timeout=timedelta(seconds=1),
                address="127.0.0.1",
            )

    @pytest.mark.parametrize(
        "wrong",
        [{"rank": 2, "world_size": 2}, {"rank": 0, "world_size": 1, "backend": "mpi", "init_method": "tcp://x"}],
    )
    def test_nonsense_is_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises((ValueError, RendezvousTimeout)):
            bridge.init_process_group(**{"timeout": timedelta(seconds=1), **wrong})
