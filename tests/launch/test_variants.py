"""What a study runs beside memories: arguments under a name, compared like one."""

from pathlib import Path

import pytest
from rich.console import Console

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
        (["+variants.bank=[]"], "a name in variants is 'bank'"),
        (["+variants.mine=3"], "variants.mine is 3; allowed: a list of key=value"),
        (["+variants.mine=[seed]"], "variants.mine is 'seed'"),
        (['+variants.mine=["seeds=5"]'], "variants.mine is 'seeds=5'; allowed"),
        (['+variants.mine=["recollection.cu=1"]', "memory=mine"], "did you mean cue?"),
        ([STEADY, "memory=[bank,stead]"], "'stead' does not exist (did you mean steady?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_variants_that_cannot_be_run_are_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(EngramError) as refused:
        compose_clone(arguments)
    assert told in str(refused.value)


def test_a_variant_of_the_demonstrations_has_its_own(tmp_path: Path) -> None:
    pytest.importorskip("mink", reason="needs engram[manipulation]")
    pytest.importorskip("pyarrow", reason="needs engram[demonstrations]")
    arguments = [UNASKED, STEADY, "memory=[bank,unasked,steady]", "seeds=1", "workers=1"]
    arguments += ["demonstrations.objects=true", "demonstrations.episodes=1", f"out={tmp_path}"]
    jobs = _jobs(compose_clone(arguments), Console(quiet=True))
    folders = [Path(job.tree["demonstrations"]["folder"]) for job in jobs]
    assert [folder.name for folder in folders] == [
        "remember_color",
        "remember_color",
        "remember_color-steady",
    ]
    strays = [read_json(folder / "recording.json")["stray"] for folder in folders]
    assert strays == [0.06, 0.06, 0.0]
