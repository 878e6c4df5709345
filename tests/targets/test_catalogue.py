"""Names, aliases, files of one's own, and targets that other packages bring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgec.errors import TargetError, UnknownTargetError
from edgec.targets import alias_names, load_target, meanings, resolve_target, target_names

NAMES = [
    "coral-edgetpu",
    "cpu-arm64",
    "cpu-x86_64",
    "ethos-u55-128",
    "ethos-u65-256",
    "ethos-u85-256",
    "intel-cpu",
    "intel-gpu",
    "intel-npu",
    "jetson-agx-orin-jp6",
    "jetson-agx-orin-jp7",
    "jetson-orin-nano-jp6",
    "jetson-thor-jp7",
    "npu-tflite",
    "rpi4",
    "rpi5",
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def as_host(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)


def install(monkeypatch: pytest.MonkeyPatch, site: Path, entry_points: str) -> None:
    """Make a distribution `acme` with these entry points importable from `site`."""
    info = site / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    write(info / "METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    write(info / "entry_points.txt", f"[edgec.targets]\n{entry_points}\n")
    monkeypatch.syspath_prepend(str(site))


def test_the_promised_targets_are_built_in() -> None:
    assert target_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_target_has_the_name_of_its_file_and_needs_no_note(name: str) -> None:
    resolution = resolve_target(name)
    assert resolution.target.name == name
    assert resolution.asked == name
    assert resolution.note is None


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("jetson", "jetson-orin-nano-jp6"),
        ("tensorrt", "jetson-orin-nano-jp6"),
        ("openvino", "intel-cpu"),
        ("tflite", "npu-tflite"),
        ("npu", "npu-tflite"),
        ("raspberry-pi", "rpi5"),
        ("edgetpu", "coral-edgetpu"),
    ],
)
def test_an_alias_resolves_to_its_default_and_says_so(alias: str, name: str) -> None:
    resolution = resolve_target(alias)
    assert resolution.target.name == name
    assert resolution.asked == alias
    assert resolution.note is not None
    assert f"'{alias}' is {name}" in resolution.note


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("x86_64", "cpu-x86_64"),
        ("AMD64", "cpu-x86_64"),
        ("aarch64", "cpu-arm64"),
        ("arm64", "cpu-arm64"),
    ],
)
def test_cpu_is_the_cpu_of_this_host(monkeypatch: pytest.MonkeyPatch, machine: str, name: str) -> None:
    as_host(monkeypatch, machine)
    resolution = resolve_target("cpu")
    assert resolution.target.name == name
    assert resolution.note == f"'cpu' is {name} (the CPU of this host)"
    assert alias_names()["cpu"] == name


def test_a_host_without_a_cpu_target_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    as_host(monkeypatch, "riscv64")
    with pytest.raises(
        TargetError, match=r"a riscv64, for which there is no target.*a \.toml file of your own"
    ):
        load_target("cpu")
    assert "cpu" not in alias_names()


def test_what_an_alias_means_is_the_same_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    as_host(monkeypatch, "riscv64")
    assert meanings("jetson") == (load_target("jetson").name,)
    assert meanings("cpu") == ("cpu-arm64", "cpu-x86_64")
    assert meanings("rpi5") == ()


def test_every_alias_leads_to_a_target_and_hides_none() -> None:
    aliases = alias_names()
    assert set(aliases.values()) <= set(NAMES)
    assert not set(aliases) & set(NAMES)


@pytest.mark.parametrize("name", ["", "jetson-nano", "CPU", "cpu-x86_64.tom", "intel cpu"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownTargetError, match="jetson-orin-nano-jp6") as caught:
        load_target(name)
    assert caught.value.name == name
    assert caught.value.known == NAMES


def test_a_file_extends_a_target_and_changes_only_what_it_names(tmp_path: Path) -> None:
    text = 'name = "gate"\nextends = "cpu-x86_64"\nmemory_mib = 256\n[quantization]\nper_channel = false\n'
    path = write(tmp_path / "gate.toml", text)
    resolution = resolve_target(str(path))
    base = load_target("cpu-x86_64")
    assert resolution.note == f"'{path}' describes the target gate"
    assert resolution.target.name == "gate"
    assert resolution.target.memory_mib == 256
    assert resolution.target.title == base.title
    assert resolution.target.engines == base.engines
    assert resolution.target.quantization is not None
    assert base.quantization is not None
    assert not resolution.target.quantization.per_channel
    assert resolution.target.quantization.weight_dtype == base.quantization.weight_dtype


def test_the_word_none_takes_an_inherited_value_away(tmp_path: Path) -> None:
    text = 'name = "gate"\nextends = "intel-gpu"\nfallback = "none"\n[limits]\nmax_rank = 4\n'
    target = load_target(str(write(tmp_path / "gate.toml", text)))
    assert load_target("intel-gpu").fallback is not None
    assert target.fallback is None
    assert target.limits.max_rank == 4


def test_a_file_extends_an_alias_or_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", 'name = "base"\nextends = "jetson"\nstorage_mib = 7\n')
    path = write(tmp_path / "own.toml", 'name = "own"\nextends = "./base.toml"\nmemory_mib = 9\n')
    target = load_target(str(path))
    assert (target.storage_mib, target.memory_mib) == (7, 9)
    assert target.family == "tensorrt"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\nextends = "own.toml"\n', "goes in a circle"),
        ('name = "x"\nextends = 3\n', "extends: expected the name of a target or a path, not 3"),
        ('name = "x"\nextends = "cpu-x68"\n', "extends: unknown target 'cpu-x68'"),
        ('name = "x"\nextends = "gone.toml"\n', "gone.toml: there is no such file"),
        ('extends = "cpu-x86_64"\n', "name: is missing"),
        ('name = "rpi5"\nextends = "rpi5"\n', "'rpi5' is taken"),
        ('name = "jetson"\nextends = "rpi5"\n', "'jetson' is taken"),
        ("name = ", "not valid TOML"),
        ("", "name: is missing"),
    ],
)
def test_a_wrong_file_names_itself_and_the_fault(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "own.toml", text)
    with pytest.raises(TargetError) as caught:
        load_target(str(path))
    assert said in str(caught.value)
    assert (
        "own.toml" in str(caught.value) or "gone.toml" in str(caught.value) or "cpu-x68" in str(caught.value)
    )


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    (tmp_path / "huge.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    for name, said in [
        ("gone.toml", "there is no such file"),
        ("folder.toml", "cannot be read: Is a directory"),
        ("latin.toml", "not UTF-8 at byte 11"),
        ("huge.toml", "at most 1 MiB"),
    ]:
        with pytest.raises(TargetError, match=said):
            load_target(str(tmp_path / name))


def test_another_package_brings_a_folder_of_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "acme_folder"
    package.mkdir()
    write(package / "__init__.py", "")
    write(package / "acme-cam.toml", 'name = "acme-cam"\nextends = "rpi5"\ntitle = "Acme camera"\n')
    install(monkeypatch, tmp_path, "acme = acme_folder")
    assert target_names() == sorted([*NAMES, "acme-cam"])
    assert load_target("acme-cam").title == "Acme camera"


def test_another_package_brings_a_function_that_returns_toml(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = 'def hub() -> str:\n    return \'name = "acme-hub"\\nextends = "intel-npu"\\n\'\n'
    write(tmp_path / "acme_function.py", code)
    install(monkeypatch, tmp_path, "acme-hub = acme_function:hub")
    assert load_target("acme-hub").engines[0].device == "NPU"


@pytest.mark.parametrize(
    ("code", "entry_point", "said"),
    [
        ("", "acme-a = acme_wrong_a_gone", "cannot be imported"),
        ("", "acme-b = acme_wrong:gone", "cannot be imported"),
        (
            "raise RuntimeError('no licence')\n",
            "acme-e = acme_wrong",
            "cannot be imported: RuntimeError: no lic",
        ),
        ("def f() -> str:\n    return {}['hub']\n", "acme-f = acme_wrong:f", "fails: KeyError: 'hub'"),
        ("def f() -> int:\n    return 3\n", "acme-c = acme_wrong:f", "expected TOML text, not int"),
        ("value = 3\n", "acme-d = acme_wrong:value", "expected a package with .toml files"),
        ("def f() -> str:\n    return ''\n", "rpi5 = acme_wrong:f", "'rpi5' is taken"),
        ("def f() -> str:\n    return ''\n", "jetson = acme_wrong:f", "'jetson' is taken"),
    ],
)
def test_a_package_with_a_wrong_entry_point_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, entry_point: str, said: str
) -> None:
    write(tmp_path / "acme_wrong.py", code)
    monkeypatch.delitem(sys.modules, "acme_wrong", raising=False)
    install(monkeypatch, tmp_path, entry_point)
    with pytest.raises(TargetError, match=entry_point.replace(" = ", ".*")) as caught:
        target_names()
    assert said in str(caught.value)
    assert load_target("rpi5").name == "rpi5"


def test_a_package_that_cannot_be_read_takes_no_target_from_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = 'def hub() -> str:\n    return \'name = "acme-sound"\\nextends = "rpi5"\\n\'\n'
    write(tmp_path / "acme_sound.py", hub + "twice = hub\n")
    write(tmp_path / "acme_unsound.py", "raise RuntimeError('no licence')\n")
    points = ("acme-sound = acme_sound:hub", "acme-broken = acme_unsound", "rpi5 = acme_sound:hub")
    install(monkeypatch, tmp_path, "\n".join(points))
    for _ in range(2):
        assert resolve_target("acme-sound").target.name == "acme-sound"
        with pytest.raises(UnknownTargetError, match="no licence") as caught:
            load_target("acme-broken")
        assert caught.value.known == sorted([*NAMES, "acme-sound"])
        assert len(caught.value.unread) == 2
    told = [record.getMessage() for record in caplog.records]
    assert [sum(said in line for line in told) for said in ("no licence", "'rpi5' is taken")] == [1, 1]


def test_a_name_that_two_packages_offer_is_of_neither(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = 'name = "acme-twice"\nextends = "rpi5"\n'
    for name in ("acme_one", "acme_two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "__init__.py", "")
        write(tmp_path / name / "acme-twice.toml", text)
    install(monkeypatch, tmp_path, "one = acme_one\ntwo = acme_two")
    with pytest.raises(UnknownTargetError, match="'acme-twice' is taken"):
        load_target("acme-twice")


def test_a_target_that_another_package_brings_has_the_name_it_is_offered_as(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = 'def hub() -> str:\n    return \'name = "other"\\nextends = "rpi5"\\n\'\n'
    write(tmp_path / "acme_misnamed.py", code)
    install(monkeypatch, tmp_path, "acme-misnamed = acme_misnamed:hub")
    with pytest.raises(TargetError, match="expected 'acme-misnamed', which it is offered as, not 'other'"):
        load_target("acme-misnamed")


def test_a_built_in_target_is_read_without_looking_at_other_packages() -> None:
    code = (
        "import sys\n"
        "from edgec.targets import load_target\n"
        "load_target('jetson')\n"
        "heavy = {'importlib.metadata', 'importlib.resources', 'numpy', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
