"""Colours and lines of memories in figures."""

from engram.launch.report import COLOURS, GREY, looks


def test_grey_is_for_who_remembers_nothing_wherever_it_stands() -> None:
    for memories in (["none", "gru", "bank"], ["gru", "bank", "none"]):
        found = looks(memories)
        assert [name for name in memories if found[name]["color"] == GREY] == ["none"]
    assert looks(["gru"])["gru"]["color"] != GREY


def test_no_two_memories_look_alike() -> None:
    memories = [f"memory {i}" for i in range(4 * len(COLOURS))]
    found = looks([*memories, "none"])
    assert len({tuple(found[name].values()) for name in found}) == len(memories) + 1
    # The ten of a study are told apart by colour alone, as their bands are.
    assert len({found[name]["color"] for name in memories[:9]}) == 9
