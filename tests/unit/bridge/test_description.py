"""What trainer ranks say that they hold: put together over all of them, or refused with names, ranks and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.bridge.plan import Box, Sharding
from launcher.bridge.plan.sharding import hsdp, shards_of
from launcher.bridge.plan.tensor_map import TensorMap
from launcher.bridge.trainer.description import (
    HeldPart,
    HeldTensor,
    decoded,
    digest_of,
    encoded,
    named_ranks,
    replicated_shards,
    union,
)
from launcher.common.errors import BridgeError


def held(name: str = "w", **part: Any) -> HeldTensor:
    return HeldTensor(name=name, shape=(6, 2), dtype="bfloat16", parts=(HeldPart(**{"shape": (6, 2), **part}),))


WHOLE = held()


def on_mesh(*ranks: int) -> HeldTensor:
    return held(sharding=Sharding.parse((len(ranks),), ("S(0)",), ranks))


def test_a_description_survives_its_way_to_another_rank() -> None:
    turned = (TensorMap(start=(0, 0), shape=(3, 2), target=(1, 0)),)
    description = (
        replace(WHOLE, name="a"),
        on_mesh(2, 3),
        held(box=Box((0, 0), (3, 2)), maps=turned),
    )
    assert decoded(encoded(description)) == description
    assert digest_of(decoded(encoded(description))) == digest_of(description) != digest_of(description[:2])


def test_ranks_of_one_mesh_hold_what_the_mesh_says() -> None:
    found = union([((held(sharding=hsdp(2, 3)),), range(6))], 6)
    assert shards_of(found.placements["w"], (6, 2)) == shards_of(hsdp(2, 3), (6, 2))


def test_stages_hold_different_tensors_and_each_knows_its_holders() -> None:
    found = union([((replace(WHOLE, name="a"),), [0, 1]), ((replace(WHOLE, name="b"),), [2, 3])], 4)
    holders = {e.name: shards_of(found.placements[e.name], e.shape)[0].ranks for e in found.manifest}
    assert holders == {"a": (0, 1), "b": (2, 3)}


def test_meshes_of_some_ranks_hold_the_same() -> None:
    found = union([((on_mesh(0, 1),), [0, 1]), ((on_mesh(2, 3),), [2, 3])], 4)
    assert [shard.ranks for shard in shards_of(found.placements["w"], (6, 2))] == [(0, 2), (1, 3)]
    assert [shard.ranks for _n, _s, shard in replicated_shards(found)] == [(0, 2), (1, 3)]


def test_parts_that_ranks_hold_on_their_own_make_up_a_tensor() -> None:
    parts = [held(box=Box((start, 0), (start + 2, 2))) for start in (0, 2, 4)]
    found = union([((part,), [rank]) for rank, part in enumerate(parts)], 3)
    assert [shard.ranks for shard in shards_of(found.placements["w"], (6, 2))] == [(0,), (1,), (2,)]
    with pytest.raises(BridgeError, match=r"4 of 12 elements .* written by nobody \(held on ranks 0-1\)"):
        union([((part,), [rank]) for rank, part in enumerate(parts[:2])], 3)


def test_a_rank_without_what_its_mesh_places_there_is_named() -> None:
    with pytest.raises(BridgeError, match=r"`w` lies on ranks 0-3 by its mesh on ranks 0-2, but rank 3 does not hold"):
        union([((on_mesh(0, 1, 2, 3),), [0, 1, 2]), ((), [3])], 4)


def test_a_tensor_that_is_tied_on_some_ranks_only_is_sent_as_its_own() -> None:
    tied = (replace(WHOLE, name="a"), replace(WHOLE, name="b", alias_of="a"))
    apart = (replace(WHOLE, name="b"),)
    found = union([(tied, [0]), (apart, [1])], 2)
    assert [entry.alias_of for entry in found.manifest] == [None, None]
    assert shards_of(found.placements["b"], (6, 2))[0].ranks == (0, 1)
    assert [entry.alias_of for entry in union([(tied, [0, 1])], 2).manifest] == [None, "a"]


def test_what_is_most_common_is_named_first() -> None:
    odd = replace(WHOLE, dtype="float16")
    text = r"type of `w`: bfloat16 on ranks 0-2, 4; float16 on rank 3"
    with pytest.raises(BridgeError, match=text):
        union([((odd,), [3]), ((WHOLE,), [0, 1, 2, 4])], 5)


def test_ranks_are_listed_shortly() -> None:
    assert named_ranks([4]) == "rank 4"
    assert named_ranks([0, 1, 2, 7, 5]) == "ranks 0-2, 5, 7"
    assert named_ranks(range(8), 8) == "all 8 ranks"
    assert named_ranks(range(0, 40, 2)) == "ranks 0, 2, 4, 6, 8, 10, 12, 14 and 12 more"
