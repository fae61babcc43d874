"""The package as installed is the tree as it stands: nothing forgotten, nothing too long."""

import fnmatch
import importlib.metadata
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("agents", "configs", "envs", "kernels", "launch", "memory", "policies")
CODE = (".py", ".cpp", ".cu", ".cuh", ".h", ".hpp")
LINE_LIMIT = 400
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def files(*folders: str) -> list[Path]:
    """Files under the folders, relative to the checkout; caches and libraries left out."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    kept = (path for path in found if "__pycache__" not in path.parts and path.suffix != ".so")
    return sorted(path.relative_to(ROOT) for path in kept)


def code() -> list[Path]:
    return [path for path in files(*FOLDERS, "tests", ".ci") if path.suffix in CODE]


def test_packages_are_the_folders_that_hold_code():
    holders = {path.parent for path in files(*FOLDERS) if path.suffix == ".py"}
    modules = {folder for folder in holders if all(part.isidentifier() for part in folder.parts)}
    in_tree = {"engram." + ".".join(folder.parts) for folder in modules}
    in_tree |= {f"engram.{folder}" for folder in FOLDERS}
    assert sorted(SETUPTOOLS["packages"]) == sorted(in_tree)
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


def test_every_root_folder_has_its_line_in_package_dir():
    assert SETUPTOOLS["package-dir"] == {f"engram.{folder}": folder for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_typed(folder: str):
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("folder", FOLDERS)
def test_type_checkers_find_folder_through_its_link(folder: str):
    link = ROOT / "typings" / "engram" / folder
    assert link.is_symlink(), "checked out without links: type checkers will not find engram"
    assert link.resolve() == ROOT / folder


def test_only_folders_are_linked():
    assert {link.name for link in (ROOT / "typings" / "engram").iterdir()} == set(FOLDERS)


def packed(path: Path) -> bool:
    """Whether a glob of package-data takes this file, as setuptools reads the globs."""
    package = max(
        (name for name in SETUPTOOLS["packages"] if path.is_relative_to(folder_of(name))), key=len
    )
    inside = path.relative_to(folder_of(package)).as_posix()
    data = SETUPTOOLS["package-data"]
    globs = data.get("*", []) + data.get(package, [])
    # `**/` also stands for no folder at all.
    return any(
        fnmatch.fnmatchcase(inside, glob) or fnmatch.fnmatchcase(inside, glob.removeprefix("**/"))
        for glob in globs
    )


def folder_of(package: str) -> Path:
    return Path(*package.split(".")[1:])


def test_every_data_file_is_packed():
    data = [path for path in files(*FOLDERS) if path.suffix not in (".py", ".pyc")]
    assert [str(path) for path in data if not packed(path)] == []


@pytest.mark.parametrize(
    "path, expected",
    [
        ("configs/train.yaml", True),
        ("configs/memory/hcam.yaml", True),
        ("memory/py.typed", True),
        ("memory/notes.yaml", False),
    ],
)
def test_packed_reads_globs_as_setuptools_does(path: str, expected: bool):
    assert packed(Path(path)) is expected


def test_launch_is_no_regular_package():
    # With an __init__.py it would hide ROS's own `launch` wherever the root is on the path.
    assert not (ROOT / "launch" / "__init__.py").exists()


def test_no_file_is_too_long():
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in code()}
    assert {path: lines for path, lines in lengths.items() if lines > LINE_LIMIT} == {}


def test_every_file_is_named_after_what_it_holds():
    vague = [str(path) for path in code() if set(path.stem.split("_")) & VAGUE]
    vague += [str(path) for path in code() if path.parent.name in VAGUE]
    assert vague == []


def test_version_is_readable_from_the_installation():
    assert importlib.metadata.version("engram") == PROJECT["project"]["version"]


def test_the_command_line_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="engram")
    assert script.value == PROJECT["project"]["scripts"]["engram"]


def test_extras_and_core_do_not_overlap():
    def names(requirements: list[str]) -> set[str]:
        return {requirement.split("[")[0].split(">")[0].lower() for requirement in requirements}

    core = names(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        assert not core & names(extra)


def test_every_pin_is_a_plain_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        name, _, version = pin.partition("==")
        assert name and version.replace(".", "").isdigit(), f"{pin}: want name==1.2.3"
    names = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    wanted = PROJECT["project"]["dependencies"]
    wanted = wanted + [
        r
        for e in sorted(
            set(PROJECT["project"]["optional-dependencies"]) - {"maniskill", "rerun"}
        )  # which nothing here installs
        for r in PROJECT["project"]["optional-dependencies"][e]
    ]
    unpinned = [r for r in wanted if r.split("[")[0].split(">")[0].lower() not in names]
    assert unpinned == []
