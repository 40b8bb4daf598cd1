"""A trainer's float32 masters in an engine's bfloat16: whole, one by one and as changes, wherever they are received."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from launcher.bridge.compat import BridgeConfig, VLLMWeightBridge
from launcher.bridge.settings import MODES, UPDATES, BridgeSettings
from launcher.bridge.trainer.api import Bridge
from launcher.common.env import LAUNCHER_TOKEN
from launcher.common.errors import BridgeError, TransferError
from tests.integration.bridge.plain_replica import PlainReplica, State, serving

TOKEN = "a token of the tests"
ROWS, COLUMNS = 48, 64


class Trained(nn.Module):
    """Two matrices that the engine fuses, and one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(ROWS, COLUMNS))
        self.gate = nn.Parameter(torch.randn(ROWS, COLUMNS))
        self.embed = nn.Parameter(torch.randn(ROWS, COLUMNS))
        self.head = self.embed

    def step(self, share: float = 1.0) -> None:
        """Changes a share of all elements by so much that the engine's type shows it."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter[torch.rand(parameter.shape) < share] += 0.5

    def served(self) -> State:
        """What an engine must hold."""
        return {"gate_up": torch.cat([self.gate, self.up]).detach().bfloat16(), "head": self.head.detach().bfloat16()}


@pytest.fixture
def replica() -> PlainReplica:
    live = {name: torch.zeros_like(tensor) for name, tensor in Trained().served().items()}
    return PlainReplica(live, {"gate": ("gate_up", 0), "up": ("gate_up", ROWS)})


@pytest.fixture
def url(replica: PlainReplica) -> Iterator[str]:
    with serving(replica, TOKEN) as found:
        yield found


def check(replica: PlainReplica, wanted: State) -> None:
    for name, tensor in wanted.items():
        assert torch.equal(replica.live[name].view(torch.int16), tensor.view(torch.int16)), name


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_takes_versions_parts_and_what_follows_a_failure(
    replica: PlainReplica, url: str, mode: str, update: str
) -> None:
    bridge = Bridge(BridgeSettings(urls=(url,), token=TOKEN, mode=mode, update=update, timeout_s=20.0))
    model = Trained()
    whole = bridge.publish(model, 1)
    check(replica, model.served())
    assert (whole.bytes, whole.density) == (3 * 2 * ROWS * COLUMNS, None)

    # One parameter; the engine knows the same bytes by another name.
    before = model.served()
    model.step()
    part = bridge.publish(model, 2, names=["embed"])
    check(replica, {**before, "head": model.served()["head"]})
    assert part.bytes < whole.bytes / 2
    bridge.publish(model, 3)
    check(replica, model.served())

    # What the engine's type does not show is not sent.
    with torch.no_grad():
        model.up *= 1 + 2**-20
    model.step(0.01)
    report = bridge.publish(model, 4)
    check(replica, model.served())
    if update == "delta":
        assert report.density is not None and 0 < report.density < 0.03
        assert report.bytes < whole.bytes / 8
    else:
        assert (report.bytes, report.density) == (whole.bytes, None)

    # The engine does not hold what it is believed to hold.
    before = model.served()
    replica.received["gate_up"][3, 5] += 1
    model.step(0.01)
    if update == "delta":
        with pytest.raises(TransferError, match="the weights that arrived are not those sent"):
            bridge.publish(model, 5)
        (info,) = bridge.info()
        assert (info.version, info.state) == (4, "quarantined" if mode == "inplace" else "serving")
        if mode != "inplace":
            check(replica, before)
        report = bridge.publish(model, 6)
        assert report.density is None, "who joins again gets everything"
    else:
        bridge.publish(model, 6)
    check(replica, model.served())
    assert bridge.info()[0].state == "serving"
    model.step(0.01)
    report = bridge.publish(model, 7)
    check(replica, model.served())
    assert (report.density is not None) == (update == "delta")
    bridge.close()


def test_changes_go_on_in_the_background_and_count_from_what_was_committed(replica: PlainReplica, url: str) -> None:
    bridge = Bridge(BridgeSettings(urls=(url,), token=TOKEN, update="delta", timeout_s=20.0))
    model = Trained()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    bridge.guard(optimizer)
    for version in range(1, 6):
        update = bridge.publish_async(model, version)
        served = model.served()
        for parameter in model.parameters():
            parameter.grad = torch.where(torch.rand(parameter.shape) < 0.01, 0.5, 0.0)
        # It waits until the version has been read, and so compared with the one before, too.
        optimizer.step()
        report = update.result()
        check(replica, served)
        assert (report.density is None) == (version == 1)
        assert report.density is None or 0 < report.density < 0.03
    bridge.close()


def test_the_earlier_names_send_one_parameter(replica: PlainReplica, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_TOKEN, TOKEN)
    bridge = VLLMWeightBridge(BridgeConfig(init_method="http", vllm_api_url=url, device="cpu", timeout_seconds=20.0))
    bridge.initialize()
    model = Trained()
    # The first one is no part of anything yet, so all of them go.
    bridge.broadcast_single_param(model, "up")
    check(replica, model.served())
    before = model.served()
    model.step()
    bridge.broadcast_single_param(model, "head")
    check(replica, {**before, "head": model.served()["head"]})
    with pytest.raises(ValueError, match="has a weight named 'down'"):
        bridge.broadcast_single_param(model, "down")
    assert bridge.update_count == 2
    bridge.config.device = "cuda"
    with pytest.raises(BridgeError, match=r"`device` \(cuda\) is not where the weights are \(cpu\)"):
        bridge.broadcast_weights(model)
    bridge.cleanup()


def test_a_head_that_the_engine_lacks_is_left_out_by_a_pattern(replica: PlainReplica, url: str) -> None:
    bridge = Bridge(BridgeSettings(urls=(url,), token=TOKEN, timeout_s=20.0))
    model = Trained()
    model.v_head = nn.Linear(4, 1)
    bridge.publish_async(model, 1, exclude=["v_head.*"]).result(60)
    check(replica, model.served())
    assert bridge.rejoin(model) == 0
    bridge.close()
