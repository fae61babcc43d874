"""What the command line refuses, and that it says so in one line with the choices."""

import pytest
import torch

from engram.kernels.errors import EngramError
from engram.launch.config import compose_settings
from engram.launch.main import main

WRONG = {
    "budgt=1": ["budgt", "did you mean budget", "seeds"],
    "learning_rate=1": ["learning_rate", "did you mean agent.learning_rate?", "seeds"],
    "auxiliary.predict=1": ["auxiliary", "did you mean policy.auxiliary.predict?"],
    "episodes=1": ["episodes", "did you mean evaluation.episodes?"],
    "memory=gruu": ["gruu", "gru", "hcam"],
    "env=strete": ["strete", "street", "ballet"],
    "env.grap=x": ["grap", "decks"],
    "env.decks.deeper=1": ["env.decks", "no keys below"],
    "agent.cliip=1": ["cliip", "clip"],
    "policy.auxiliary.predct=1": ["predct", "predict"],
    "budget=abc": ["abc", "whole number"],
    "budget=0": ["0", "1 or more"],
    "budget=1.5": ["1.5", "whole number"],
    "seeds=[1,1]": ["[1, 1]", "different"],
    "seeds=[]": ["[]", "list"],
    "seeds=-1": ["-1", "1 or more"],
    "device=tpu": ["tpu", "cpu"],
    "resume=maybe": ["maybe", "true, false"],
    "workers=0": ["0", "1 or more"],
    "nonsense": ["nonsense", "key=value"],
    "=3": ["=3", "key=value"],
    "agent=sac": ["sac", "ppo"],
    "preset=dem": ["dem", "demo"],
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_named_with_the_choices(argument: str) -> None:
    with pytest.raises(EngramError) as caught:
        compose_settings([argument], several=False)
    message = str(caught.value)
    assert "\n" not in message
    for part in WRONG[argument]:
        assert part in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["memory=hcam", "memory.layer.heads=7"],
        ["memory=hcam", "memory.layer.chunk=wide"],
        ["memory=memo", "memory.segment=0"],
        ["env.decks=0"],
        ["env=ballet", "env.dances=nine"],
        ["agent.chunk=7"],
        ["agent.clip=-1"],
        ["policy.auxiliary.predict=-1"],
    ],
    ids=" ".join,
)
def test_a_value_that_cannot_work_stops_with_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    assert main(["train", *arguments, "seeds=1", "budget=64", f"out={tmp_path}/x"]) == 2
    error = capsys.readouterr().err
    seen = arguments[-1].partition("=")[2]
    assert error.count("\n") == 1 and seen in error


@pytest.mark.parametrize("argument", WRONG)
def test_main_prints_one_line_and_exits_with_2(
    argument: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    assert main(["train", argument, f"out={tmp_path}/x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("engram: ") and captured.err.count("\n") == 1
    assert captured.out == ""


def test_train_takes_one_memory_and_compare_takes_several() -> None:
    settings = compose_settings(["memory=[none,hcam]"], several=True)
    assert settings.memories == ["none", "hcam"]
    with pytest.raises(EngramError, match=r"memory is '\[none,hcam\]'"):
        compose_settings(["memory=[none,hcam]"], several=False)


def test_settings_are_read() -> None:
    settings = compose_settings(
        "env=chain_bit env.length=7 memory=hcam memory.layer.chunk=3 seeds=[4,2] "
        "budget=2_000 device=cpu workers=3".split(),
        several=False,
    )
    assert settings.env == "chain_bit" and settings.tree["env"]["length"] == 7
    assert settings.tree["memory"]["layer"]["chunk"] == 3
    assert settings.seeds == [4, 2] and settings.budget == 2000 and settings.workers == 3
    assert settings.device == torch.device("cpu")
    assert str(settings.out) == "runs/chain_bit-hcam"


def test_an_unknown_command_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err


def test_help_and_info_need_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and main(["--help"]) == 0 and main(["train", "--help"]) == 0
    assert "usage: engram" in capsys.readouterr().out
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "hcam" in out and "street" in out and "cpu" in out
    assert "shell_game" in out and "memoryvla_plus" in out and "streams=" not in out


def test_a_preset_sets_what_the_run_has_defaults_for() -> None:
    settings = compose_settings(["preset=demo"], several=True)
    assert settings.env == "chain_bit" and settings.memories == ["none", "gru", "hcam", "memo"]
    assert settings.tree["agent"]["discount"] < 0.99
    # A control that sees its last answer carries the bit in it.
    assert settings.tree["policy"]["previous_action"] is False
    assert compose_settings(["preset=ballet"], several=False).memories == ["hcam"]
    assert compose_settings(["preset=ballet"], several=False).env == "ballet"
    assert compose_settings(["preset=demo", "budget=7"], several=True).budget == 7
