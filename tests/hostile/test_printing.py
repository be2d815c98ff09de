"""What a repository of somebody else can make the command line print."""

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.cli._output import SafeStream, own_lines, safe_output, say
from dvkf_prefect.cli.tables import markdown_table
from dvkf_prefect.pipeline.report.dag import Drawing
from dvkf_prefect.text import printable

ESCAPES = "\x1b]0;PWN\x07\x1b[2J"
HIDDEN = "\u202e\u2066\u200b\u200f\ufeff\u2028\u0085\x9b"
HOSTILE = f"a{ESCAPES}\r{HIDDEN}\nERROR: forged"


def _unsafe(text: str, *, allowed: str = "\n\t") -> set[str]:
    return {c for c in text if c not in allowed and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def test_printable_leaves_nothing_a_terminal_acts_on():
    everything = "".join(map(chr, range(0x30000)))
    assert _unsafe(printable(everything), allowed="") == set()
    assert printable("größe 日本 ok") == "größe 日本 ok"
    assert printable("a\tb\nc", lines=True) == "a\tb\nc"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def _terminal(arguments: list[str], cwd: object) -> str:
    """Run a command on a terminal; return all that came out of it."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "dvkf_prefect.cli", *arguments],
        cwd=str(cwd), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**os.environ, "NO_COLOR": "1"},
    ) as process:  # fmt: skip
        os.close(theirs)
        out = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            out += chunk
        process.wait(60)
    os.close(ours)
    return out.decode(errors="surrogateescape").replace("\r\n", "\n")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A repository with control characters in every name it can have."""
    monkeypatch.chdir(tmp_path)
    make_repo(tmp_path)
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / f"f{HOSTILE}").write_text("1")
    (tmp_path / os.fsdecode(b"bytes\xff")).write_text("1")  # git may track it
    assert main(["add", "-q", "d"]) == 0
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "1"], check=True)
    (folder / os.fsdecode(os.fsencode(f"g{HOSTILE}"))).write_text("2")
    stage = {
        "cmd": f"echo '{HOSTILE}' > o",
        "desc": HOSTILE,
        "outs": [f"o{HOSTILE}"],
    }
    document = {"stages": {f"s{HOSTILE}": stage}}
    (tmp_path / "dvc.yaml").write_text(json.dumps(document))
    (tmp_path / "m.json").write_text(json.dumps({f"m{HOSTILE}": HOSTILE}))
    return tmp_path


@pytest.mark.parametrize(
    "verb",
    [
        "diff HEAD", "list . -R", "list . -R --show-hash", "list . --tree", "status", "stage list", "repro --dry",
        "metrics show m.json", "metrics show m.json --md", "dag", "dag --mermaid", "dag --dot",
        "data status --granular",
        "checkout nowhere", "du .", "check-ignore d", "config -l", "remote list", "repro nowhere", "commit nowhere",
    ],
)  # fmt: skip
def test_nothing_raw_reaches_a_terminal(hostile, verb):
    shown = _terminal(verb.split(), hostile)
    assert _unsafe(shown) == set()
    assert not [line for line in shown.split("\n") if line.startswith("ERROR: forged")]


def test_names_in_a_pipe_stay_as_they_are(hostile):
    """Programs read names out of pipes, as with `ls` and `git`: bytes that are no text too."""
    made = subprocess.run(
        [sys.executable, "-m", "dvkf_prefect.cli", "list", ".", "-R"],
        cwd=hostile, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert os.fsencode(f"d/f{HOSTILE}") in made.stdout
    assert b"bytes\xff\n" in made.stdout


def test_json_stays_json(hostile, capsys):
    assert main(["list", ".", "-R", "--json"]) == 0
    paths = [entry["path"] for entry in json.loads(capsys.readouterr().out)]
    assert f"d/f{HOSTILE}" in paths


def test_errors_are_escaped_and_cannot_forge_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["checkout", f"x{HOSTILE}"]) == 253
    error = capsys.readouterr().err
    assert _unsafe(error) == set()
    assert own_lines("a\nERROR: b") == "a\n  ERROR: b"


def test_a_fault_of_ours_ends_as_an_error(tmp_path, monkeypatch, capsys):
    """The last wall: exit code 255 and one line; the traceback is for -v."""
    monkeypatch.chdir(tmp_path)

    def fail(_: object) -> None:
        raise RuntimeError(f"boom{ESCAPES}")

    monkeypatch.setattr("dvkf_prefect.cli.data.open_repo", fail)
    assert main(["status"]) == 255
    assert capsys.readouterr().err == f"ERROR: unexpected error: RuntimeError: boom{printable(ESCAPES)}\n"
    assert main(["status", "-v"]) == 255
    assert "Traceback" in capsys.readouterr().err


def test_streams_are_as_before_afterwards(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with safe_output():
        say("é\udcff\ud800")
    assert sys.stdout is stream and stream.errors == "strict"
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9\xff\\ud800\n"


def test_a_line_stays_one_line(monkeypatch):
    out = io.StringIO()
    say("a\nb\tc", stream=SafeStream(out))
    assert out.getvalue() == "a\\nb\tc\n"


def test_markdown_tables_hold_text_only():
    cell = "a|b<img src=x>![x](http://x)\n# head"
    text = markdown_table(["h|"], [[cell]])
    assert text.count("\n") == 3
    assert "<img" not in text and "](" not in text
    assert text.splitlines()[2].replace("\\|", "").count("|") == 2
    assert "[1, 2] a_b *" in markdown_table(["h"], [["[1, 2] a_b *"]])  # as DVC writes it


def test_drawings_hold_text_only():
    name = 'a"] --> evil["<img src=x>#60;\n'
    drawing = Drawing({name: ()})
    (line,) = drawing.mermaid().split("\n")[1:]
    assert line == '\tnode1["a#quot;] --> evil[#quot;#lt;img src=x>#35;60;\\n"]'
    assert drawing.dot().split("\n")[1] == '"a\\"] --> evil[\\"<img src=x>#60;\\n";'
    assert drawing.text() == printable(name)


def test_a_safe_stream_may_outlive_the_one_behind_it():
    """Its end flushed the closed stream, which Python 3.13 reports on stderr."""
    behind = io.StringIO()
    stream = SafeStream(behind)
    behind.close()
    stream.close()
    kept = io.StringIO()
    SafeStream(kept).close()
    assert not kept.closed
