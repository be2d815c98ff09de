"""Cards: pure functions, so plain tests."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvkf_prefect import cards
from dvkf_prefect.cards import artifact_key, data_card, diff_card, escape, markdown_table
from dvkf_prefect.cards.upkeep import garbage_card, verification_card
from dvkf_prefect.data.quality.incoming import Incoming, IncomingFile
from dvkf_prefect.data.quality.reports import FailedCheck, QualityReport
from dvkf_prefect.data.tables.frame_profile import ColumnProfile, FrameProfile
from dvkf_prefect.data.transfer.transfer import Transfer
from dvkf_prefect.data.upkeep.gc import GarbageCollection, Removed
from dvkf_prefect.data.upkeep.verify import Problem, Verification
from dvkf_prefect.data.verbs.diff import Diff, DiffEntry
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.kubeflow.registry.mirror import Mirrored, MirrorReport
from dvkf_prefect.models.lineage import Item, Lineage, StageRecord, fact_text
from dvkf_prefect.models.places import Manifest, PublishedFile
from dvkf_prefect.models.publishing import Publication
from dvkf_prefect.models.runtimes import Loaded
from dvkf_prefect.models.unpublishing import PublishedVersion, Unpublished
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.overview import Overview
from dvkf_prefect.pipeline.plan.why import Decision, Reason
from dvkf_prefect.pipeline.report.dag import Drawing
from dvkf_prefect.pipeline.report.metrics import MetricChange
from dvkf_prefect.pipeline.report.plot_files import PlotImage
from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
from dvkf_prefect.promotion.journal import Holder, Record, Step
from dvkf_prefect.promotion.places import ServingState
from dvkf_prefect.serving.endpoint import Endpoint

A, B, DIR = "a" * 32, "b" * 32, "c" * 32 + ".dir"


def rows_of(card: cards.Card) -> list[list[str]]:
    """Return the cells of the last table of a card, without its head."""
    lines = [line for line in card.markdown.split("\n\n")[-1].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("kind", "names", "key"),
    [
        ("data", ("", "data/digits/train"), "data-digits-train"),
        ("data", ("digits", "data/train"), "data-digits-data-train"),
        ("data", ("my-repo", "data/data/x"), "data-my-repo-data-data-x"),
        ("data", ("", "data"), "data"),
        ("model", ("", "models:Digits_v2"), "model-models-digits-v2-DIGEST"),
        ("model", ("", "nlp-ner"), "model-nlp-ner"),
        ("model", ("shop", "nlp-ner"), "model-shop--nlp-ner"),
        ("model", ("", "modelling"), "model-modelling"),
        ("diff", ("--",), "diff-DIGEST"),
        ("stage", ("", "ünïcode/x"), "stage-n-code-x-DIGEST"),
    ],
)
def test_keys_hold_what_prefect_takes(kind: str, names: tuple[str, ...], key: str) -> None:
    pattern = key.replace("DIGEST", "[0-9a-f]{10}")
    assert re.fullmatch(pattern, artifact_key(kind, *names))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("data", [("", "数据"), ("", "測試"), ("", "данные"), ("", "-"), ("", "_")]),
        (
            "data",
            [
                ("", f"data/{name}")
                for name in ("train.csv", "train_csv", "Train-CSV", "train/csv", "train-csv")
            ],
        ),
        (
            "data",
            [("", "train"), ("", "data/train"), ("", "data-train"), ("", "DATA/train"), ("", "data//train")],
        ),
        ("data", [("a", "data/b"), ("", "data/a/data/b"), ("", "a/data/b"), ("a", "b"), ("", "data/a/b")]),
        (
            "data",
            [("a", "data/b/data/c"), ("a-data-b", "data/c"), ("a-data", "data/b"), ("a", "data/data/b")],
        ),
        (
            "model",
            [
                ("", "nlp/ner"),
                ("", "nlp-ner"),
                ("nlp", "ner"),
                ("", "nlp--ner"),
                ("", "NLP-ner"),
                ("", "nlp.ner"),
            ],
        ),
        (
            "model",
            [
                ("", "iris"),
                ("", "model-iris"),
                ("", "model/iris"),
                ("model", "iris"),
                ("", "-iris"),
                ("", "iris-"),
            ],
        ),
        ("model", [("", "model"), ("", ""), ("", "Model")]),
        (
            "stage",
            [("", "x" * 130 + "a"), ("", "x" * 130 + "b"), ("", "x" * 130), ("", "é"), ("", "e\u0301")],
        ),
        ("stage", [("", "a\0b"), ("a", "b"), ("", "a\nb"), ("", "\udcff"), ("", "\udcfe")]),
    ],
)
def test_names_that_differ_have_keys_that_differ(kind: str, names: list[tuple[str, str]]) -> None:
    keys = [artifact_key(kind, *each) for each in names]
    assert len(set(keys)) == len(names), keys
    assert [key for key in keys if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,119}", key)] == []
    assert keys == [artifact_key(kind, *each) for each in names]


def test_a_kind_of_two_words_has_no_key_of_another_kind() -> None:
    """The schedules of a repository had the key of the runs of `schedule-NAME`."""
    keys = [artifact_key("kubeflow", "schedule-digits"), artifact_key("kubeflow-schedule", "digits")]
    assert keys[0] == "kubeflow-schedule-digits" and re.fullmatch(f"{keys[0]}-[0-9a-f]{{10}}", keys[1])


def test_a_name_like_the_key_of_another_has_a_key_of_its_own() -> None:
    made = artifact_key("model", "", "Iris")
    assert artifact_key("model", "", made.removeprefix("model-")) != made


@given(st.lists(st.tuples(st.text("ab-/.A é", max_size=6), st.text("abdt-/.A é", max_size=12)), unique=True))
def test_no_two_names_share_a_key(names: list[tuple[str, str]]) -> None:
    told_apart = {tuple(name for name in each if name) for each in names}
    for kind in ("data", "model"):
        assert len({artifact_key(kind, *each) for each in told_apart}) == len(told_apart)


def test_long_names_give_bounded_keys() -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,120}", artifact_key("data", "x/" * 500))


@pytest.mark.parametrize("text", ["a|b", "<script>", "`x`", "*x*", "[x](y)", "line\nline", "x" * 1000])
def test_cells_stay_one_cell(text: str) -> None:
    row = markdown_table(("path",), [(text,)]).splitlines()[2]
    assert row.startswith("| ")
    assert row.endswith(" |")
    assert len(row) < 250
    assert "<" not in row
    assert len(re.findall(r"(?<!\\)[|*`\[\]]", row[1:-1])) == 0


def test_long_tables_say_how_many_more() -> None:
    table = markdown_table(("n",), [(n,) for n in range(1000)], limit=5)
    assert table.endswith("and 995 more")


def _version(digest: str, rev: str | None, nfiles: int) -> DataVersion:
    return DataVersion("/somewhere/private", rev, "data/train", digest, 1000 * nfiles, nfiles)


def test_data_card_shows_versions_newest_first() -> None:
    card = data_card(_version(DIR, None, 3), "shop", [_version(A, "1" * 40, 2), _version(B, "2" * 40, 1)])
    assert card.key == "data-shop-data-train"
    assert [row[1] for row in rows_of(card)] == ["3", "2", "1"]
    assert [row[3] for row in rows_of(card)] == ["not committed", f"`{'1' * 10}`", f"`{'2' * 10}`"]
    assert "3 files, 3.0 kB, not committed" in card.description
    assert "/somewhere/private" not in str(card)


def test_data_card_of_the_committed_version_lists_it_once() -> None:
    card = data_card(_version(A, None, 2), "shop", [_version(A, "1" * 40, 2), _version(B, "2" * 40, 1)])
    assert [row[3] for row in rows_of(card)] == [f"`{'1' * 10}`", f"`{'2' * 10}`"]
    assert "at commit `1111111111`" in card.description


def test_diff_card_counts_files_and_bytes() -> None:
    diff = Diff(
        "HEAD",
        None,
        added=(DiffEntry("data/train/n.txt", None, A, None, None, 500),),
        deleted=(DiffEntry("data/train/o.txt", B, None, None, 100, None),),
        modified=(DiffEntry("data/train/", A, DIR), DiffEntry("data/train/m.txt", A, B, None, 1000, 3000)),
        renamed=(DiffEntry("data/train/x.txt", A, A, "data/train/y.txt", 10, 10),),
    )
    card = diff_card(diff, "digits")
    assert card.key == "diff-digits"
    assert (
        card.description
        == "**digits** from `HEAD` to `workspace`: 1 added, 1 deleted, 1 modified, 1 renamed, +2.4 kB."
    )
    assert "data/train/y.txt → data/train/x.txt" in card.markdown
    assert "| data/train/ |" not in card.markdown


def test_diff_card_is_bounded() -> None:
    entries = tuple(DiffEntry(f"data/{'long' * 40}/{n}", None, A, None, None, 1) for n in range(50_000))
    card = diff_card(Diff("HEAD", None, added=entries), "digits")
    assert "50,000 added" in card.description
    assert "and 49,980 more" in card.markdown
    assert len(card.markdown) < 10_000


def test_diff_card_of_a_directory_that_is_not_in_the_cache() -> None:
    card = diff_card(Diff("HEAD", None, modified=(DiffEntry("data/train/", DIR, DIR),)), "digits")
    assert "a directory differs" in card.description
    assert "data/train/" in card.markdown


def test_diff_card_without_a_difference() -> None:
    card = diff_card(Diff("HEAD", "main"), "digits")
    assert card.description == "**digits**: nothing differs from `HEAD` to `main`."


def test_transfer_text() -> None:
    assert cards.transfer_text("pushed", Transfer("store", 2, 1500, 3)) == (
        "pushed 2 objects (1.5 kB), 3 already at the destination, remote 'store'"
    )
    assert cards.transfer_text("pushed", Transfer("store", 0, 0, 3)) == (
        "nothing pushed: 3 objects already at the destination"
    )


def test_stage_card_tells_what_changed_from_what_to_what() -> None:
    reasons = (
        Reason("command", "cmd", ["a", "b"], "a"),
        Reason("parameter", "params.yaml:lr", 0.1, 0.2),
        Reason("dependency", "data", DIR, "d" * 32 + ".dir"),
    )
    change = cards.TreeChange(added=("n|w",), modified=tuple(f"{n:03}" for n in range(100)))
    card = cards.stage_card(Decision("train", "run", reasons), "shop", limit=10, files={"data": change})
    assert "| command | cmd | a &amp;&amp; b | a |" in card.markdown
    assert "| parameter | params.yaml:lr | 0.1 | 0.2 |" in card.markdown
    assert f"| dependency | data (1 added, 100 modified) | {DIR[:12]} | {'d' * 12} |" in card.markdown
    assert "### Files of data: 1 added, 100 modified" in card.markdown
    assert r"| added | n\|w |" in card.markdown
    assert "and 91 more" in card.markdown


def _model(version: str, *stages: str, digest: str | None = A) -> ModelVersion:
    moment = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    return ModelVersion(
        "digits",
        version,
        "d" * 40,
        "model.joblib",
        digest,
        10,
        None,
        stages,
        moment,
        "Test",
        f"Register {version}",
    )


def test_model_card_shows_versions_and_stages() -> None:
    card = cards.model_card(
        [_model("v0.0.2", "prod"), _model("v0.0.1")], "digits", "shop", said="Registered v0.0.2."
    )
    assert card.key == "model-shop--digits"
    assert (
        card.description
        == "Registered v0.0.2. **digits** of **shop**: 2 versions, the highest v0.0.2; prod is v0.0.2."
    )
    assert [tuple(row[:2]) for row in rows_of(card)] == [("v0.0.2", "prod"), ("v0.0.1", "")]


def test_endpoint_card_links_to_the_server() -> None:
    endpoint = Endpoint("http://127.0.0.1:8080", "digits", "v0.0.2", A, 42, "/private/digits.log")
    card = cards.endpoint_card(endpoint, "shop", _model("v0.0.2", "prod"))
    assert card.key == "endpoint-shop--digits"
    assert "(http://127.0.0.1:8080/v2/models/digits)" in card.markdown
    assert "prod" in card.description
    assert "/private" not in str(card)
    assert "2 rows: 3, 8" in cards.predictions_card(endpoint, "shop", [3, 8]).description


def test_escape_is_text() -> None:
    assert escape(None) == "None"
    assert escape(1.5) == "1.5"


def _publication() -> Publication:
    files = (PublishedFile("model.joblib", 10, A, "model|a.joblib"),)
    manifest = Manifest(
        "digits", "v0.0.2", "s3://models/digits/v0.0.2/", "sklearn", "sklearn", {"kserve-sklearnserver": ("v1", "v2")},
        "", A, "model.joblib", "d" * 40, "e" * 40, files, "2024-05-01T12:00:00+00:00",
    )  # fmt: skip
    return Publication(manifest, (Loaded("kserve-sklearnserver", ("model.joblib",)),), sent=1)


def _unpublished(doubt: str = "") -> Unpublished:
    names = (("v0.0.2", False, "it is in stage a_b"), ("v0.0.1", True, "withdrawn"))
    rows = [
        PublishedVersion("digits", v, f"s3://models/digits/{v}/", 1, 10, unused, why)
        for v, unused, why in names
    ]
    return Unpublished("s3://models", tuple(rows), True, doubt)


def _verification(*problems: Problem) -> Verification:
    return Verification(3, 2_000, problems)


def _garbage(*names: str) -> GarbageCollection:
    return GarbageCollection((Removed("repo", False, 2, 10, 5, 1, names),), dry=bool(names))


def test_damaged_objects_are_before_repaired_ones() -> None:
    found = _verification(
        Problem(A, ("a",), "cache", "damaged", "it hashes to b", repaired=True),
        Problem(B, (), "store", "lost", "it does not exist"),
    )
    card = verification_card(found, "cache", "shop")
    assert card.description == "**shop**, cache: 3 objects of 2.0 kB read, 2 damaged or missing, 1 repaired."
    assert [row.split(" | ")[2:4] for row in card.markdown.splitlines()[2:]] == [
        ["store", "lost"],
        ["cache", "damaged, repaired"],
    ]
    assert (
        "3 objects of 2.0 kB read, all intact."
        in verification_card(_verification(), "cache", "shop").description
    )


def test_a_dry_run_names_its_objects() -> None:
    card = garbage_card(_garbage("a|b"), "shop")
    assert card.description == "**shop**: 2 objects unused (10 B), 5 kept."
    assert "| cache | 2 | 10 B | 5 | 1 |" in card.markdown and "a\\|b" in card.markdown
    assert garbage_card(_garbage(), "shop").description == "**shop**: 2 objects removed (10 B), 5 kept."


def test_both_layouts_of_a_place_are_one_row_and_objects_have_no_paths() -> None:
    """Rows of one remote once had the same name, and objects the folders of a worker."""
    path = f"/tmp/worker/.dvc/cache/files/md5/{A[:2]}/{A[2:]}"
    places = (
        Removed("repo", False, 1, 4, 2, names=(path,)),
        Removed("legacy", False, 1, 6, 1),
        Removed("store", True, 0, 0, 3),
        Removed("store", True, 0, 0, 0),
    )
    card = garbage_card(GarbageCollection(places, dry=True), "shop")
    assert "| cache | 2 | 10 B | 3 | 0 |\n| store | 0 | 0 B | 3 | 0 |\n" in card.markdown
    assert f"| cache | `{A}` |" in card.markdown and "/tmp" not in card.markdown
    assert card.markdown.startswith("A dry run: nothing was removed.")
    one = GarbageCollection((Removed("repo", False, 1, 4, 2),))
    assert garbage_card(one, "shop").description == "**shop**: 1 object removed (4 B), 2 kept."


def test_findings_fit_into_a_table() -> None:
    found = _verification(Problem(A, ("a",), "cache", "damaged", f"its 7 bytes hash to {B}"))
    assert f"| its 7 bytes hash to {B[:12]}… |" in verification_card(found, "cache", "shop").markdown
    checks = (FailedCheck("id", "greater_than(0)", 1, (1,), ("-2",)), FailedCheck("id", "unique", 2))
    report = QualityReport(A, "s.yaml", B, "csv", "pandera", 3, ("id",), checks, 2, (("1", "-2"),))
    file = IncomingFile("a.csv", Content(A, 9), 0, "failed", report, True, "/q/a.csv")
    text = cards.incoming_card(Incoming("/in", "data", "reports", "s.yaml", "/q", (file,)), "shop").markdown
    assert "| `a.csv` | failed | 3 | 2 | 2 checks of 'id' |" in text
    assert "First rows that failed, counted from 0:\n\n| row | id |" in text


def test_gates_are_a_list_that_wraps() -> None:
    found = [
        {"gate": "metric:f_1>=1", "passed": False, "detail": "it is 0.5_0", "blocks": True},
        {"gate": "smoke", "passed": True, "detail": "", "blocks": False},
    ]
    card = cards.gates_card("digits", "v0.0.2", "shop", found)
    assert card.markdown == "- `metric:f_1>=1`: **failed**: it is 0.5\\_0\n- `smoke`: **passed**"
    assert card.description.endswith(": 1 gate refused it.")
    assert cards.gates_card("digits", "v1", "shop", found, limit=1).markdown.endswith("\n- and 1 more")


def test_a_canary_has_a_card() -> None:
    card = cards.canary_card(ServingState("v0.0.1", "v0.0.2", 20, "http://127.0.0.1:80"), "digits", "shop")
    said = "**digits** of **shop**: the canary v0.0.2 has 20 % of the requests, v0.0.1 the rest."
    assert card.description == said and card.key == artifact_key("endpoint", "shop", "digits")
    assert "| v0.0.2 | canary | 20 % |\n| v0.0.1 | serves | 80 % |" in card.markdown


def test_a_promotion_says_that_it_waits_and_when_it_began() -> None:
    """It once waited for a person with the words "running" and "2026-11-29T10:04:47+00:00"."""
    record = Record(
        "4f", "promote", "digits", "prod", "v0.0.2", "v0.0.1", "", "v0.0.2", "Ann", "",
        "2026-11-29T11:04:47+01:00", "/srv/serving", Holder("host", 1),
        steps=(Step("gate", "2026-11-29T10:04:48+00:00", "no gate"),),
    )  # fmt: skip
    card = cards.promotion_card(record, "shop", waits=True)
    assert card.description == "Promotion of digits v0.0.2 to prod of **shop**: waits for approval."
    assert "| begun | 2026-11-29 10:04:47 UTC by Ann |" in card.markdown
    assert "| 2026-11-29 10:04:48 UTC | gate | no gate |" in card.markdown
    assert "| reason |" not in card.markdown and "| prod before | v0.0.1 |" in card.markdown


def test_a_fact_names_its_place_first() -> None:
    fact = {"kind": "registry", "artifact": "2", "model": "1", "where": "http://registry"}
    assert fact_text(fact) == "http://registry (artifact 2, model 1)"
    assert fact_text({"kind": "note", "where": "here"}) == "here" and fact_text({"a": 1}) == "a 1"


def test_unused_versions_are_first_and_a_doubt_is_shown() -> None:
    card = cards.unpublished_card(_unpublished(), "shop")
    assert ": 1 unused, 1 kept" in card.description
    first, second = card.markdown.splitlines()[-2:]
    assert first == "| digits | v0.0.1 | unused | withdrawn | 10 B |"
    assert second == "| digits | v0.0.2 | kept | it is in stage a\\_b | 10 B |"
    assert "Everything is kept" not in card.markdown
    assert (
        "Everything is kept: no\\_answer."
        in cards.unpublished_card(_unpublished("no_answer"), "shop").markdown
    )


def test_published_files_and_records_are_escaped_once() -> None:
    """Cells once showed `\\|` and the back-ticks of code, since they were escaped twice."""
    text = cards.publication_card(_publication(), "shop").markdown
    assert f"| model.joblib | 10 B | `{A[:12]}` | model\\|a.joblib |" in text
    version = _model("v0.0.2")
    stage = StageRecord("train", "f" * 64, reads=(Item("data/a_b", B, "data"),))
    text = cards.lineage_card([Lineage(version, (stage,), {"m.json:f_1": 0.5})], "digits", "shop").markdown
    assert f"| data | data/a\\_b `{B[:12]}` |" in text and "| metric m.json:f\\_1 | 0.5 |" in text
    records = (Mirrored("di_gits@v1", "7", "created"),)
    assert "| di\\_gits@v1 | 7 | created |" in cards.mirror_card(MirrorReport("h", records), "shop").markdown


def _all_cards(name: str) -> list[cards.Card]:
    """A card of each builder, of equal content in the repository ``name``."""
    endpoint = Endpoint("http://127.0.0.1:8080", "digits", "v0.0.2", A, 42, "/private/digits.log")
    result = ReproResult((Decision("train", "run", ()),), ran=("train",))
    entry = DiffEntry("data/train/1", new_digest=A, new_size=1)
    change = MetricChange("metrics.json", "accuracy", 0.5, 0.6)
    return [
        data_card(_version(A, None, 2), name),
        diff_card(Diff("HEAD", "", (entry,), (), (), (), ()), name),
        diff_card(Diff("HEAD", "", (), (), (), (), ()), name),
        cards.pipeline_card(result, name),
        cards.stage_card(Decision("train", "run", ()), name),
        cards.metrics_card([change], name),
        cards.metrics_card([], name),
        cards.model_card([_model("v0.0.2")], "digits", name),
        cards.history_card([], "digits", name),
        cards.overview_card(Overview((), {}, (), Drawing(), (), (), {}), name),
        cards.plots_card([PlotImage("loss", b"<svg/>")], name),
        cards.lineage_card([Lineage(_model("v0.0.2"))], "digits", name),
        cards.mirror_card(MirrorReport("http://127.0.0.1:8081"), name),
        cards.publication_card(_publication(), name),
        cards.unpublished_card(_unpublished(), name),
        verification_card(_verification(), "cache", name),
        garbage_card(_garbage(), name),
        cards.endpoint_card(endpoint, name),
        cards.gates_card("digits", "v0.0.2", name, []),
        cards.predictions_card(endpoint, name, [1]),
    ]


def test_repositories_share_no_timeline_and_each_card_names_its_own() -> None:
    """Two repositories with a stage ``train`` once shared the timeline ``stage-train``."""
    shop, farm = _all_cards("shop"), _all_cards("farm")
    # Two builders are called twice, and both cards of a published version are on one timeline.
    assert len({card.key for card in shop}) >= len(shop) - 3
    assert not {card.key for card in shop} & {card.key for card in farm}
    for name, made in (("shop", shop), ("farm", farm)):
        assert [card.key for card in made if name not in card.key] == []
        assert [card.description for card in made if f"**{name}**" not in card.description] == []


def test_a_column_without_a_value_is_left_out() -> None:
    assert markdown_table(("a", "b", "c"), [("1", "", "0"), ("2", None or "", "x")]).splitlines() == [
        "| a | c |",
        "| --- | --- |",
        "| 1 | 0 |",
        "| 2 | x |",
    ]
    assert markdown_table(("", "b"), [("", "1")]).splitlines()[-1] == "|  | 1 |"
    assert markdown_table(("a", "b"), []).splitlines()[0] == "| a | b |"


def test_a_first_metric_is_compared_with_nothing_and_a_large_one_is_readable() -> None:
    first = MetricChange("m.json", "loss", None, 2469135.78, None)
    card = cards.metrics_card([first], "shop", before="4f" * 20)
    assert card.description == "**shop**: loss **2,469,136**."
    assert card.markdown.splitlines()[0] == "| metric | new | file |"
    changes = [MetricChange("m.json", "loss", 2e6, 3e6, 1e6), MetricChange("m.json", "same", 0.5, 0.5, 0.0)]
    card = cards.metrics_card(changes, "shop", before="4f" * 20)
    assert "loss 2,000,000 → **3,000,000** (+1,000,000)" in card.description
    assert "| same | 0.5 | 0.5 |  | m.json |" in card.markdown


def test_a_new_stage_says_so_in_its_card() -> None:
    card = cards.stage_card(Decision("train", "run", (Reason("new", "train"),)), "shop")
    assert card.markdown.splitlines()[-1] == "| new | it has no entry in dvc.lock |"


def test_the_command_of_a_failed_stage_is_code() -> None:
    event = StageEvent(
        "train", "fail", message="stage 'train' failed: `python a_b.py` ended with exit code 3."
    )
    card = cards.stage_card(Decision("train", "run", (Reason("new", "train"),)), "shop", event)
    assert "**stage 'train' failed:** `python a_b.py` **ended with exit code 3**" in card.markdown


def test_a_plot_that_a_version_does_not_have_is_no_failure() -> None:
    images = [
        PlotImage("roc.json", b"<svg/>"),
        PlotImage("roc.json of HEAD", error="'roc.json' is not in HEAD", absent=True),
    ]
    card = cards.plots_card(images, "shop", revs=("HEAD", "workspace"))
    assert card.description == "**shop**: 1 plot of `HEAD`, `workspace`."
    assert card.markdown.endswith("Without a file: roc.json of HEAD.")


def test_missing_values_have_their_share() -> None:
    columns = tuple(
        ColumnProfile(name, "str", missing)
        for name, missing in (("none", 0), ("one", 1), ("most", 9999), ("all", 10000))
    )
    version = DataVersion("shop", None, "a.csv", A, 10, 1)
    card = data_card(version, "shop", profile=FrameProfile(10000, columns))
    found = re.findall(r"\| \w+ \| str \| ([^|]*) \|", card.markdown)
    assert found == ["0", "1 (0.1 %)", "9,999 (99.9 %)", "10,000 (100 %)"]


def test_a_column_of_one_value_has_no_histogram() -> None:
    columns = (
        ColumnProfile("same", "int64", 0, 1, "7", "7", (3,)),
        ColumnProfile("some", "int64", 0, 2, "1", "2", (2, 1)),
    )
    card = data_card(DataVersion("shop", None, "a.csv", A, 10, 1), "shop", profile=FrameProfile(3, columns))
    assert "![Histograms of some](" in card.markdown
    assert "| same | int64 | 0 | 1 | 7 |" in card.markdown
