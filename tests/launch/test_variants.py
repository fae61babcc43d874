"""What a study runs beside memories: arguments under a name, compared like one."""

from pathlib import Path

import pytest
from rich.console import Console

from engram.agents.demonstrations import Demonstrations
from engram.kernels.errors import EngramError
from engram.launch.clone import _jobs
from engram.launch.clone_config import compose_clone
from engram.launch.files import read_json

UNASKED = '+variants.unasked=["recollection.cue=0","streams=gru"]'
STEADY = '+variants.steady=["demonstrations.stray=0"]'


def test_what_a_variant_sets_counts_more_than_what_all_share() -> None:
    arguments = [UNASKED, "memory=[bank,unasked]", "recollection.cue=0.5", "recollection.past=0.1"]
    settings = compose_clone(arguments)
    bank, unasked = (settings.trees["remember_color", name] for name in settings.memories)
    assert bank["recollection"]["cue"] == 0.5 and unasked["recollection"]["cue"] == 0
    assert bank["recollection"]["past"] == unasked["recollection"]["past"] == 0.1
    assert "gru" not in str(bank["streams"]).lower() and "GRU" in str(unasked["streams"])


def test_a_study_names_what_makes_a_memory_learn() -> None:
    settings = compose_clone(["study=learning", "memory=[bank,steady,random_frames]"])
    trees = [settings.trees["remember_color", name] for name in settings.memories]
    assert [tree["demonstrations"]["stray"] for tree in trees] == [0.06, 0.0, 0.06]
    assert [tree["batches"]["_target_"].rpartition(".")[2] for tree in trees] == [
        "Streaming",
        "Streaming",
        "Windows",
    ]
    assert list(settings.recordings.values()) == [
        "remember_color",
        "remember_color-steady",
        "remember_color",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["variants=3"], "variants is 3; allowed"),
        (["+variants.bank=[a]", "memory=bank"], "a name in variants is 'bank'"),
        (["+variants.3=[]"], "a name in variants is '3'; allowed: letters"),
        (["++variants={true:[]}"], "a name in variants is True; allowed: letters"),
        (["+variants.mine=3"], "variants.mine is 3; allowed: a list of key=value"),
        (["+variants.mine=[]"], "variants.mine is []; allowed: a list of key=value"),
        (["+variants.mine=[seed]"], "variants.mine is 'seed'"),
        (["+variants.mine=[[a]]"], "variants.mine is ['a']; allowed: key=value"),
        (['+variants.mine=[{a: "b=c"}]'], "variants.mine is {'a': 'b=c'}; allowed: key=value"),
        (['+variants.mine=["seeds=5"]'], "variants.mine is 'seeds=5'; allowed"),
        (['+variants.mine=["++seeds=5"]'], "variants.mine is '++seeds=5'; allowed"),
        (['+variants.mine=["task.name=put_back"]'], "variants.mine is 'task.name=put_back'"),
        (['+variants.mine=["policy.chunk=4","+policy.chunk=8"]'], "allowed: every key once"),
        (['+variants.mine=["streams=null"]'], "variants.mine: streams 'null' does not exist"),
        (['+variants.mine=["batches=nope"]'], "variants.mine: batches 'nope' does not exist"),
        (['+variants.mine=["recollection.cu=1"]', "memory=mine"], "variants.mine: key in recol"),
        (['+variants.mine=["recollection.cue=a"]', "memory=mine"], "variants.mine: recollection"),
        (['+variants.mine=["recollection.cue=1"]'], "variants.mine is not run; allowed: memory=["),
        ([STEADY, "memory=[bank,stead]"], "'stead' does not exist (did you mean steady?)"),
        ([STEADY, "memory=[steady]", "demonstrations.folder=x"], "variants.steady: stray is 0"),
        (["streams=gru"], "argument 'streams=gru' names a memory; allowed: memory=gru"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_variants_that_cannot_be_run_are_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(EngramError) as refused:
        compose_clone(arguments)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "apart"),
    [
        ("demonstrations.noise=0.3", True),
        ("++demonstrations.noise=0.3", True),
        ("task.settings.gap=[1,2]", True),
        ("demonstrations.noise=0.1", False),  # the default
        ("demonstrations.episodes=10", False),
        ("task.gaps=[5]", False),
        ("recollection.cue=0", False),
    ],
)
def test_a_variant_has_demonstrations_of_its_own_if_it_changes_them(
    setting: str, apart: bool
) -> None:
    settings = compose_clone([f'+variants.mine=["{setting}"]', "memory=[mine,bank]"])
    own = "remember_color-mine" if apart else "remember_color"
    assert settings.recordings["remember_color", "mine"] == own
    assert settings.recordings["remember_color", "bank"] == "remember_color"


def test_what_runs_learn_from_is_recorded_once_and_as_long_as_the_longest_needs(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mink", reason="needs engram[manipulation]")
    pytest.importorskip("pyarrow", reason="needs engram[demonstrations]")
    longer = UNASKED.replace("]", ',"demonstrations.episodes=2"]')
    arguments = [longer, STEADY, "memory=[bank,unasked,steady]", "seeds=1", "workers=1"]
    arguments += ["demonstrations.objects=true", "demonstrations.episodes=1", f"out={tmp_path}"]
    jobs = _jobs(compose_clone(arguments), Console(quiet=True))
    folders = [Path(job.tree["demonstrations"]["folder"]) for job in jobs]
    assert [folder.name for folder in folders] == [
        "remember_color",
        "remember_color",
        "remember_color-steady",
    ]
    assert [Demonstrations(folder).count for folder in folders] == [2, 2, 1]
    strays = [read_json(folder / "recording.json")["stray"] for folder in folders]
    assert strays == [0.06, 0.06, 0.0]
