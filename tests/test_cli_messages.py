"""Warnings of the library on the command line: yellow, once, on standard error; state is restored."""

import logging
import warnings

import pytest
from rich.console import Console
from typer.testing import CliRunner

from correlation_aware._version import __version__
from correlation_aware.cli import app
from correlation_aware.cli._messages import print_messages
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.tracker import TrackerConfig
from correlation_aware.tracking.video import write_image
from correlation_aware.zoo import has_weights

RENAMED = "'sbt_light_track.half' is called 'sbt_light_half_track.video' now"


@pytest.mark.parametrize("command", ["track", "train pairs"])
def test_a_former_name_is_one_line_on_standard_error(command, photos, tmp_path):
    if command == "track":
        for i, (frame, _) in enumerate(draw_clip(2, (96, 128))):
            write_image(tmp_path / f"{i}.png", frame)
        words = ["track", tmp_path, "--box", "20,30,16,14", "--model", "sbt_light_track.half"]
    else:
        settings = ["model.name=sbt_light_track.half", f"data.sources={{{photos}: 1}}", "data.batch_size=1"]
        words = ["train", "pairs", "--output", tmp_path / "pairs.png"]
        words += [word for setting in settings for word in ("--set", setting)]
    filters, show = list(warnings.filters), warnings.showwarning
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code in (0, 3), result.output  # 3: the target is lost
    (line,) = [line for line in result.stderr.splitlines() if "is called" in line]
    assert line.startswith(RENAMED) and RENAMED not in result.stdout
    assert warnings.filters == filters and warnings.showwarning is show


def test_warnings_are_yellow_and_printed_once_and_information_is_plain(capsys):
    logger = logging.getLogger("correlation_aware")
    before = logger.handlers, logger.level, logger.propagate
    console = Console(force_terminal=True, color_system="standard", width=200, soft_wrap=True)
    with print_messages(console, logging.INFO):
        for _ in range(2):
            has_weights("sbt_light_track.half")
            TrackerConfig(window=0.2)
        logging.getLogger("correlation_aware.part").warning("[a] 1")
        logging.getLogger("correlation_aware.part").info("[b] 2")
        logging.getLogger("correlation_aware.part").debug("not printed")
    renamed, field, logged, information = capsys.readouterr().out.splitlines()
    assert field.startswith("\x1b[33mTrackerConfig.window is now called window_weight")
    assert renamed.startswith(f"\x1b[33m{RENAMED}") and renamed.endswith("\x1b[0m")
    assert (logged, information) == ("\x1b[33m[a] 1\x1b[0m", "[b] 2")
    assert (logger.handlers, logger.level, logger.propagate) == before


def test_information_of_the_runtime_is_always_printed(capsys):
    with print_messages(Console(width=200)):
        logging.getLogger("correlation_aware.runtime.export").info("Exporting ...")
        logging.getLogger("correlation_aware.weights").info("not printed")
    assert capsys.readouterr().out == "Exporting ...\n"
    assert logging.getLogger("correlation_aware.runtime").level == logging.NOTSET


def test_without_a_console_nothing_is_printed(capsys):
    with print_messages(None), warnings.catch_warnings(record=True) as others:
        has_weights("sbt_light_track.half")
        logging.getLogger("correlation_aware.part").warning("a")
    assert capsys.readouterr() == ("", "") and len(others) <= 1


def test_warnings_of_other_packages_are_left_to_python():
    with pytest.warns(UserWarning, match="of another package"), print_messages(None):
        warnings.warn("of another package", UserWarning, stacklevel=1)


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")
