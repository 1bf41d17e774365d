"""Configs: what is not understood is refused by name, and nothing is guessed."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

config = script("config")


@dataclass(frozen=True, slots=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    out: Path
    steps: int = 3
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    weights: dict[str, float] = field(default_factory=dict)
    on: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be 1 or more")


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "a.toml").write_text(text)
    return tmp_path / "a.toml"


def test_a_whole_config(tmp_path: Path) -> None:
    text = """
        out = "runs/one"
        steps = 5
        on = true
        [inner]
        rate = 1
        names = ["a", "b"]
        [maybe]
        [weights]
        noise = 0.5
        """
    read = config.read(write(tmp_path, text), Outer)
    out = (tmp_path / "runs/one").resolve()
    assert read == Outer(out, 5, Inner(1.0, ("a", "b")), Inner(), {"noise": 0.5}, True)
    assert isinstance(read.inner.rate, float)
    assert config.read(write(tmp_path, 'out = "x"'), Outer) == Outer((tmp_path / "x").resolve())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('out = "x"\nstep = 3', "there is no key 'step'; the keys are out, steps"),
        ('out = "x"\n[inner]\nrat = 3', "inner: there is no key 'rat'"),
        ("steps = 3", "the key 'out' is missing"),
        ('out = "x"\nsteps = 3.5', "steps must be a whole number, not 3.5"),
        ('out = "x"\nsteps = true', "steps must be a whole number, not True"),
        ('out = "x"\non = 1', "on must be true or false"),
        ('out = "x"\n[inner]\nrate = "fast"', "inner: rate must be a number"),
        ('out = "x"\n[inner]\nnames = "a"', "names must be a list"),
        ('out = "x"\ninner = 3', "inner must be a table"),
        ('out = "x"\n[weights]\nnoise = "much"', "weights.noise must be a number"),
        ("out = 3", "out must be a path"),
        ('out = "x"\nsteps = 0', "steps must be 1 or more"),
        ("out = ", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message) as error:
        config.read(write(tmp_path, text), Outer)
    assert "\n" not in str(error.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="is missing"):
        config.read(tmp_path / "none.toml", Outer)
