"""Settings: read as ConfigObj reads them, kept with their comments, and refused where DVC refuses them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from configobj import ConfigObj, ConfigObjError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repos import make_repo
from sizes import ALL

from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.formats import ini
from dvkf_prefect.repo import Repo

BLANK = st.sampled_from(["", "", "", " ", "  ", "\t", "    "])
WORD = st.sampled_from(["core", "Core", "cache", "remote", "url", "URL", "a.b", "a-b", "x1", "ü", "_"])
TEXT = st.one_of(
    WORD,
    st.sampled_from(
        [
            "../s1",
            "s3://bucket/pre fix",
            "true",
            "",
            "reflink,copy",
            "a, b",
            ",",
            "a,",
            "it's",
            'say "x"',
            "a#b",
            "a = b",
        ]
    ),
    st.sampled_from(
        ["%(url)s", "50%", "'''", '"""', "[x]", "\x0b", "\u2028", "\xa0", "a;b", "\\", '""', "''"]
    ),
    st.text(st.sampled_from("ab '\"#,=[]%()\t\\;üü"), max_size=8),
)
COMMENT = st.sampled_from(["", "", "", "#", " # why", ' # "x", y', " ; no", " # ] x"])
VALUE = st.one_of(
    TEXT, TEXT.map(lambda t: f'"{t}"'), TEXT.map(lambda t: f"'{t}'"), TEXT.map(lambda t: f'"""{t}"""')
)
NAME = st.one_of(
    WORD,
    st.builds('{0} "{1}"'.format, WORD, TEXT),
    st.builds("'{0} \"{1}\"'".format, WORD, TEXT),
    st.builds('"{0}"'.format, TEXT),
    TEXT,
)
LINE = st.one_of(
    st.builds("{0}[{1}{2}{3}]{4}{5}".format, BLANK, BLANK, NAME, BLANK, BLANK, COMMENT),
    st.builds("{0}{1}{2}={3}{4}{5}".format, BLANK, WORD, BLANK, BLANK, VALUE, COMMENT),
    st.builds("{0}{1}{2}={3}{4}{5}".format, BLANK, VALUE, BLANK, BLANK, VALUE, COMMENT),
    st.sampled_from(["", "   ", "# a comment", "\t# another", "[[nested]]", "no option", "= nothing"]),
)
# Mostly what people write, so that whole files are plain often enough.
USUAL = st.one_of(
    st.builds("[{0}]{1}".format, WORD, st.sampled_from(["", " # x"])),
    st.builds("['remote \"{0}\"']".format, WORD),
    st.builds('[remote "{0}"]'.format, WORD),
    st.builds(
        "{0}{1} = {2}{3}".format,
        BLANK,
        WORD,
        st.sampled_from(["1", '"a, b"', "'x y'", "../s", "", "a'b", '"#"', "x#y"]),
        st.sampled_from(["", " # c", ' # "c", d', "  "]),
    ),
    st.sampled_from(["", "# a comment"]),
)
END = st.sampled_from(["\n", "\n", "\n", "\r\n"])


def by_configobj(text: str) -> object:
    """What DVC makes of a file: the sections with all names lower-cased; None where it fails."""
    try:
        values = ConfigObj(io.StringIO(text)).dict()
    except ConfigObjError:
        return None
    return {
        section.lower(): {key.lower(): value for key, value in options.items()}
        if isinstance(options, dict)
        else options
        for section, options in values.items()
    }


@settings(
    max_examples=3000 if ALL else 500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.one_of(USUAL, USUAL, USUAL, LINE), max_size=7), END, st.booleans())
def test_plain_files_are_read_as_configobj_reads_them(lines: list[str], end: str, headed: bool) -> None:
    text = end.join(["[core]", *lines] if headed else lines)
    found = ini.read_plain(text)
    if found is not None:
        assert found == by_configobj(text)
        assert [*found] == [*by_configobj(text)]  # type: ignore[misc]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(USUAL, max_size=4))
def test_what_people_write_is_read_without_configobj(lines: list[str]) -> None:
    """Without it the test above would pass for a reader that reads nothing."""
    text = "\n".join(["[core]", *lines])
    if (
        by_configobj(text) is not None and ", d" not in text
    ):  # quotes and commas in a comment are a list to ConfigObj
        assert ini.read_plain(text) is not None


PLAIN = """\
# kept
[core]
    remote = store  # the lake
    autostage = true
['remote "store"']
    url = ../../s1
    jobs = 8
"""


def test_a_plain_file_does_without_configobj(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(PLAIN)
    code = f"""\
import sys
from pathlib import Path
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.repo import Repo
print(Config(Path({str(tmp_path / ".dvc")!r})).remote(None), "configobj" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{('store', {'url': str(tmp_path.parent / 's1'), 'jobs': '8'})} False\n"


def make(root: Path, text: str = "", local: str = "") -> Config:
    (root / ".dvc").mkdir(exist_ok=True)
    (root / ".dvc/config").write_text(text)
    if local:
        (root / ".dvc/config.local").write_text(local)
    return Config(root / ".dvc")


def test_an_edit_keeps_comments_and_everything_else(tmp_path: Path) -> None:
    config = make(tmp_path, PLAIN)
    with config.edit() as sections:
        sections["cache"]["type"] = "hardlink,copy"
        sections["remote"]["store"]["jobs"] = "4"
        del sections["core"]["autostage"]
    assert (
        (tmp_path / ".dvc/config").read_text()
        == """\
# kept
[core]
    remote = store    # the lake
[cache]
    type = "hardlink,copy"
['remote "store"']
    url = ../../s1
    jobs = 4
"""
    )
    assert config.get("cache", "type") == "hardlink,copy"


def test_names_are_written_in_small_letters_and_the_later_of_two_counts(tmp_path: Path) -> None:
    config = make(tmp_path, "[Core]\n    Remote = a\n[core]\n    Interactive = true\n")
    with config.edit() as sections:
        sections["core"]["autostage"] = "true"
    text = (tmp_path / ".dvc/config").read_text()
    assert text == "[core]\n    interactive = true\n    autostage = true\n"


def test_each_level_counts_more_than_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in ("system", "global"):
        (tmp_path / level).mkdir()
        monkeypatch.setenv(f"DVC_{level.upper()}_CONFIG_DIR", str(tmp_path / level))
    (tmp_path / "system/config").write_text(
        "[core]\nremote=a\ninteractive=true\nautostage=true\n[cache]\ndir=rel\n"
    )
    (tmp_path / "global/config").write_text(
        "[core]\nremote = b\nautostage = false\n['remote \"c\"']\njobs = 3\n"
    )
    config = make(
        tmp_path, "[core]\nremote = C\n['remote \"c\"']\nurl = ~/x\n", "['remote \"c\"']\njobs = 5\n"
    )
    assert config.get("core", "interactive") is True and config.get("core", "autostage") is False
    assert config.remote(None) == ("c", {"jobs": "5", "url": str(Path.home() / "x")})
    assert config.get("cache", "dir") == str(tmp_path / "system/rel")
    assert config.below("repo")["core"]["remote"] == "b"
    assert [*config.files] == ["system", "global", "repo", "local"]


def test_without_variables_the_places_are_those_of_the_desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/h/conf")
    monkeypatch.setenv("XDG_CONFIG_DIRS", "/e/one:/e/two")
    assert [str(file) for file in Config(None).files.values()] == ["/e/one/dvc/config", "/h/conf/dvc/config"]
    monkeypatch.setenv("XDG_CONFIG_HOME", " ")
    monkeypatch.setenv("XDG_CONFIG_DIRS", "")
    assert [str(file) for file in Config(None).files.values()] == [
        "/etc/xdg/dvc/config",
        str(Path.home() / ".config/dvc/config"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[nowhere]\nx = 1\n",
        "[core]\nfoo = 1\n",
        "[core]\nautostage = yes\n",
        "[core]\nchecksum_jobs = 0\n",
        "[cache]\ntype = softlink\n",
        "[cache]\nshared = all\n",
        "[cache]\ndir = a, b\n",
        "['remote \"a\"']\njobs = 3\n",
        "['remote \"a\"']\nurl = s3://b\nport = 22\n",
        "['remote \"a\"']\nurl = http://b/c\nauth = magic\n",
        "['remote \"a\"']\nurl = http://b/c\nread_timeout = -1\n",
        "[hydra]\nconfig_dir = a\nconfig_module = b\n",
        "[parsing]\nbool = maybe\n",
        "[state]\nrow_cleanup_quota = 101\n",
        "['machine \"m\"']\ncloud = moon\n",
        "remote = a\n",
        "[core]\n[[deep]]\nx = 1\n",
        "[core]\nremote = %(nothing)s\n",
        "[core\n",
    ],
)
def test_what_dvc_refuses_is_refused_and_the_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"\.dvc/config: "):
        make(tmp_path, text)


def test_obsolete_and_experimental_options_are_accepted(tmp_path: Path) -> None:
    config = make(
        tmp_path,
        "[core]\nexperiments = true\ncheck_update = false\nanalytics = False\nhardlink_lock = true\nno_scm = TRUE\n"
        "site_cache_dir = rel\nmachine = M\n"
        "[cache]\nlocal = here\ns3 = r\nprotected = true\nslow_link_warning = false\nshared = Group\n"
        "[state]\ndir = x\nrow_limit = 10\nrow_cleanup_quota = 50\n[index]\ndir = y\n"
        "[feature]\nmachine = true\nanything = 3\n[exp]\ncode = src\nauto_push = true\n"
        "['remote \"a\"']\nurl = s3://b/c\nlistobjects = true\nno_traverse = false\nssl_verify = /ca.pem\n"
        "['remote \"sub\"']\nurl = remote://A/d\nport = 22\n",
    )
    assert config.get("core", "no_scm") is True and config.get("core", "site_cache_dir") == "rel"
    assert config.get("cache", "shared") == "group" and config.get("feature", "anything") is None
    assert config.remote("sub")[1]["url"] == "s3://b/c/d"


def test_a_refused_edit_leaves_the_file(tmp_path: Path) -> None:
    config = make(tmp_path, PLAIN)
    with pytest.raises(ConfigError, match="jobs = many"), config.edit() as sections:
        sections["remote"]["store"]["jobs"] = "many"
    with pytest.raises(ConfigError, match="kind, magic://"), config.edit(strict=True) as sections:
        sections["remote"]["other"] = {"url": "magic://x"}
    assert (tmp_path / ".dvc/config").read_text() == PLAIN
    with pytest.raises(ConfigError, match="no repo configuration: "), Config(None).edit():
        pass


def test_a_cache_for_a_group_has_folders_that_all_of_it_may_write_to(tmp_path: Path) -> None:
    """The modes are those that dvc gives: 2775 for each folder of the cache, 0444 for objects."""
    umask = os.umask(0o022)
    try:
        modes = []
        for name in ("real", "ours"):
            root = tmp_path / name
            (root / "d").mkdir(parents=True)
            make_repo(root)
            with Config(root / ".dvc").edit() as sections:
                sections["cache"]["shared"] = "group"
            for file in ("a", "d/b"):
                (root / file).write_text(file)
            if name == "real":
                subprocess.run(["dvc", "add", "-q", "a", "d"], cwd=root, check=True)
            else:
                Repo(root).add(["a", "d"])
            modes.append(
                {
                    path.relative_to(root).as_posix(): oct(path.stat().st_mode & 0o7777)
                    for path in (root, *root.rglob("*"))
                    if ".git" not in path.parts
                    and not path.name.endswith(".tmp")
                    and "tmp" not in path.parts[-2:]
                }
            )
    finally:
        os.umask(umask)
    ours = {name: mode for name, mode in modes[1].items() if name in modes[0]}
    assert ours == modes[0]
    assert ours[".dvc/cache/files/md5"] == oct(0o2775)
    # Whatever else we make there is open, too.
    assert all(
        mode in ("0o2775", "0o444") for name, mode in modes[1].items() if name.startswith(".dvc/cache")
    )


def test_an_old_link_to_a_cache_remote_is_not_followed(tmp_path: Path) -> None:
    """``cache.local`` and its like named remotes for outputs outside the repository, which DVC 3 has no more."""
    make(tmp_path, "[cache]\n    local = here\n    s3 = there\n    dir = ../elsewhere\n")
    assert Repo(tmp_path).cache.root == tmp_path / "elsewhere"
