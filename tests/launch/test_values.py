"""Values of the wrong kind are refused before anything runs."""

import pytest

from engram.kernels.errors import EngramError
from engram.launch.config import choices, compose_settings
from engram.launch.values import conform

WRONG = {
    "num_envs=abc": "num_envs is 'abc'; allowed: whole numbers",
    "num_envs=null": "num_envs is None; allowed: whole numbers",
    "num_envs=2.7": "num_envs is 2.7; allowed: whole numbers",
    "num_envs=true": "num_envs is True; allowed: whole numbers",
    "num_envs=0": "num_envs is 0; allowed: 1 or more",
    "checkpoint_seconds=-1": "checkpoint_seconds is -1.0; allowed: 0 or more",
    "evaluation=5": "evaluation is 5; allowed: keys below it: episodes",
    "evaluation.episodes=0": "evaluation.episodes is 0; allowed: 1 or more",
    "evaluation.num_envs=x": "evaluation.num_envs is 'x'",
    "evaluation.greedy=maybe": "evaluation.greedy is 'maybe'; allowed: true, false",
    "agent.refresh=no": "agent.refresh is 'no'; allowed: true, false",
    "policy.previous_action=0": "policy.previous_action is 0; allowed: true, false",
    "policy.width=0": "policy.width is 0; allowed: 1 or more",
    "agent.epochs=1.5": "agent.epochs is 1.5; allowed: whole numbers",
    "agent.clip=wide": "agent.clip is 'wide'; allowed: numbers",
    "agent.learning_rate=nan": "agent.learning_rate is nan; allowed: finite numbers",
    "agent.final_learning_rate=inf": "agent.final_learning_rate is inf; allowed: finite numbers",
    "env.decks=nan": "env.decks is nan; allowed: finite numbers",
    "budget=nan": "budget is nan; allowed: finite numbers",
    "seeds=[4294967296]": "seeds is [4294967296]; allowed: seeds from 0",
    "memories=3": "memories is 3; allowed: a list",
    "memories=[]": "memories is []; allowed: a list",
    "memories=[gru,gru]": "memories is ['gru', 'gru']; allowed: a list of different",
    "memories=gru": "memories is 'gru'; allowed: a list",
    "memory=[gru,gru]": "memories is ['gru', 'gru']; allowed: a list of different",
    "~evaluation.episodes=1": "'~evaluation.episodes=1' takes a key away; allowed: to set it",
    "~budget=": "'~budget=' takes a key away",
    "+bugdet=5": "'bugdet' does not exist (did you mean budget?)",
    "+policy.widht.x=5": "'widht' does not exist (did you mean width?)",
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_value_of_another_kind_is_refused(argument: str) -> None:
    with pytest.raises(EngramError) as caught:
        compose_settings([argument], several=True)
    assert WRONG[argument] in str(caught.value)


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    settings = compose_settings(["budget=1e6", "agent.epochs=2.0"], several=False)
    assert settings.budget == 1_000_000 and isinstance(settings.budget, int)
    assert isinstance(settings.tree["agent"]["epochs"], int)
    assert compose_settings(["agent.clip=1"], several=False).tree["agent"]["clip"] == 1.0


def test_keys_without_a_default_pass_unless_they_are_not_finite() -> None:
    settings = compose_settings(["env=adapter", "+env.settings.gravity=3"], several=False)
    assert settings.tree["env"]["settings"] == {"gravity": 3}
    with pytest.raises(EngramError, match=r"env\.settings\.gravity is nan"):
        compose_settings(["env=adapter", "+env.settings.gravity=nan"], several=False)
    tree = compose_settings([], several=False).tree
    assert conform(tree, tree) == tree


@pytest.mark.parametrize("preset", choices("preset"))
@pytest.mark.parametrize("memory", choices("memory"))
def test_every_memory_takes_every_preset(preset: str, memory: str) -> None:
    plain = compose_settings([f"memory={memory}"], several=False).tree["memory"]
    settings = compose_settings([f"preset={preset}", f"memory={memory}"], several=False)
    assert settings.tree["memory"] == plain
