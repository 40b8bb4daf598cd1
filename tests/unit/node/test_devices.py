"""The GPUs of an allocation, as NVIDIA's, AMD's and SLURM's variables name them."""

from __future__ import annotations

import pytest

from launcher.common.errors import AllocationError
from launcher.node.devices import count_gpus, visible_devices


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({"SLURM_GPUS_ON_NODE": "gpu:4"}, 4),
        ({"SLURM_GPUS_ON_NODE": "h100:8(IDX:0-7)"}, 8),
        ({"SLURM_GPUS_ON_NODE": "N/A", "SLURM_STEP_GPUS": "0,1"}, 2),
        ({"SLURM_GPUS_ON_NODE": ""}, None),
        ({"SLURM_JOB_GPUS": "4,5,6"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2a,GPU-11bb"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-8f2a/1/0"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6,7", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({}, None),
    ],
)
def test_how_many_gpus_the_allocation_gives(environ: dict[str, str], gpus: int | None) -> None:
    assert count_gpus(environ) == gpus


@pytest.mark.parametrize(
    ("is_amd", "environ", "expected"),
    [
        (False, {}, {"CUDA_VISIBLE_DEVICES": "1,2"}),
        (False, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, {"CUDA_VISIBLE_DEVICES": "5,6"}),
        (False, {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,MIG-c"}, {"CUDA_VISIBLE_DEVICES": "GPU-b,MIG-c"}),
        # SLURM sets the variables of every vendor where gres.conf names none.
        (
            False,
            {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "ROCR_VISIBLE_DEVICES": "4,5,6,7"},
            {"CUDA_VISIBLE_DEVICES": "5,6"},
        ),
        (
            True,
            {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "ROCR_VISIBLE_DEVICES": "4,5,6,7", "GPU_DEVICE_ORDINAL": "4,5,6,7"},
            {"ROCR_VISIBLE_DEVICES": "5,6", "HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"},
        ),
        (True, {"HIP_VISIBLE_DEVICES": "4,5,6"}, {"HIP_VISIBLE_DEVICES": "5,6", "CUDA_VISIBLE_DEVICES": "5,6"}),
        (True, {}, {"HIP_VISIBLE_DEVICES": "1,2", "CUDA_VISIBLE_DEVICES": "1,2"}),
    ],
)
def test_a_process_sees_its_share_of_them(is_amd: bool, environ: dict[str, str], expected: dict[str, str]) -> None:
    variables, dropped = visible_devices("1,2", environ, is_amd=is_amd)
    assert variables == expected
    assert dropped == (frozenset({"GPU_DEVICE_ORDINAL"}) if is_amd else frozenset())


def test_a_process_without_gpus_sees_none() -> None:
    assert visible_devices("", {"CUDA_VISIBLE_DEVICES": "4,5"}) == ({"CUDA_VISIBLE_DEVICES": ""}, frozenset())


def test_too_few_devices_are_named() -> None:
    with pytest.raises(AllocationError, match=r"`CUDA_VISIBLE_DEVICES` \(4\) gives 1 devices"):
        visible_devices("0,1", {"CUDA_VISIBLE_DEVICES": "4"}, is_amd=False)
