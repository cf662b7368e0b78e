"""The command line as such: quick to answer, plain about wrong usage, gone without a trace when told to end."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from softrnic.control.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
SOFTRNIC = [sys.executable, "-c", "import sys; from softrnic.control.cli import main; sys.exit(main())"]


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SOFTRNIC, *words], capture_output=True, text=True, check=False, cwd=ROOT)


def test_help_names_every_command() -> None:
    done = ask("--help")
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(command.help)}$", done.stdout, re.M)


def test_help_is_quick() -> None:
    """150 ms of a processor, imports included; the least of three, as others work here too."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ask("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.15


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from softrnic.control.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    loaded = set(done.stderr.split())
    assert "argparse" in loaded
    assert loaded.isdisjoint({"numba", "numpy", "llvmlite", "pyroute2", "rich", "asyncio", "msgspec"})


def test_version() -> None:
    assert re.fullmatch(r"softrnic \d+\.\d+\.\d+\S*\n", ask("--version").stdout)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["demo", "--wire", "string"], "invalid choice: 'string'"),
        (["demo", "--bytes", "0"], "'0' is not a size from 1 to 1G"),
        (["demo", "--bytes", "2G"], "'2G' is not a size from 1 to 1G"),
        (["demo", "--bytes", "many"], "'many' is not a size from 1 to 1G"),
        (["demo", "--seed", "-1"], "'-1' is no number from 0 on"),
        (["demo", "--json", "/no/such/place/x.json"], "/no/such/place/x.json: cannot be written"),
        (["demo", "--pcap", "/"], "/: cannot be written"),
        (["devinfo", "-l", "-d", "eth0"], "not allowed with argument"),
        (["pcap"], "required: FILE"),
        (["pcap", "-", "-n", "0"], "'0' is no positive number"),
        (["pcap", "-", "--filter", "bth.psn ="], "is neither FIELD, !FIELD nor FIELD==VALUE"),
        (["pcap", "-", "-V", "--json"], "not allowed with argument"),
    ],
)
def test_wrong_usage(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and a sentence, before anything is done."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert complaint in err
    assert "Traceback" not in err
    assert not out


def test_what_fails_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pcap", "/no/such/file"]) == 1
    assert capsys.readouterr().err == "softrnic pcap: /no/such/file: No such file or directory\n"


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """`softrnic pcap FILE | head -1` says nothing on standard error."""
    from tests.cli.captures import many, write

    write(tmp_path / "many.pcap", many(2000))
    command = [*SOFTRNIC, "pcap", str(tmp_path / "many.pcap")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 128 + 13


def test_signals_are_handed_back() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    main(["pcap", os.devnull])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("command", [["daemon"], ["perf", "read_lat"]])
@pytest.mark.parametrize("text", ["-1", "nan", "soon", "1000001"])
def test_no_time_to_spin(command: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, f"--spin={text}"])
    assert end.value.code == 2
    assert f"{text!r} is not a number of microseconds from 0 to 1000000" in capsys.readouterr().err
