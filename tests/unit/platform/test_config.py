"""The recipe loader: every mistake at once, in words, with the line where it stands."""

import json
import pickle
import textwrap
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt, Le
from hypothesis import example, given
from hypothesis import strategies as st

from tubelet import config
from tubelet.config import ConfigError
from tubelet.schema import keys_of


@dataclass(frozen=True)
class Model:
    preset: Literal["vit_s", "vit_b"] = "vit_b"
    frames: int = 16
    """Frames of a clip."""
    tubelet_size: int = 2

    def __post_init__(self) -> None:
        if self.frames % self.tubelet_size:
            raise ValueError(
                f"model.frames ({self.frames}) is not divisible by "
                f"model.tubelet_size ({self.tubelet_size})"
            )


@dataclass(frozen=True)
class Optim:
    lr: Annotated[float, Gt(0)] = 1.5e-4
    """Rate per 256 visits."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: Annotated[float, Gt(0), Le(10)] | None = None


@dataclass(frozen=True)
class Source:
    uri: str
    weight: float = 1.0


@dataclass(frozen=True)
class Run:
    name: str | None = None
    note: str = field(default="", metadata={"resume": "free"})


@dataclass(frozen=True)
class Elastic:
    min_workers: int = 1
    max_workers: int = 2


@dataclass(frozen=True)
class Recipe:
    epochs: str
    """How long to train, as 800ep."""
    run: Run = Run()
    model: Model = Model()
    optim: Optim = Optim()
    elastic: Elastic = field(default=Elastic(), metadata={"resume": "free"})
    sources: list[Source] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    videos: str = "videos"
    port: int | str = 80
    pool: Source | None = None


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "r.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return name

    return write


def problems(*arguments: str, schema: type = Recipe, needs_recipe: bool = True) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.from_command_line(schema, arguments, needs_recipe=needs_recipe)
    return list(caught.value.problems)


def test_later_files_win_and_the_command_line_wins_over_files(write: Write) -> None:
    first = write(
        "epochs: 800ep\noptim: {lr: 3e-4}\nmodel: {frames: 8}\ntags: {a: x, b: y}\n", "a.yaml"
    )
    second = write("optim:\n  betas: [0.8, 0.9]\nmodel:\n  frames: 4\ntags: {b: z}\n", "b.yaml")
    recipe = config.from_command_line(
        Recipe, [first, second, "model.tubelet_size=1", "optim.clip=2"]
    )
    assert recipe == Recipe(
        epochs="800ep",
        run=Run(name="a"),
        model=Model(frames=4, tubelet_size=1),
        optim=Optim(lr=3e-4, betas=(0.8, 0.9), clip=2.0),
        tags={"a": "x", "b": "z"},
    )
    with pytest.raises(FrozenInstanceError):
        recipe.epochs = "1ep"  # pyright: ignore[reportAttributeAccessIssue]


def test_every_mistake_is_reported_at_once_with_its_place(write: Write) -> None:
    base = write("epochs: 8ep\noptim:\n  betas: [0.9, x]\nmodel:\n  frames: sixteen\n")
    more = write("elastic:\n  max_workers: yes\nsources:\n  - uri: a\n    wieght: 2\n", "more.yaml")
    found = problems(base, more, "oops", "optim.lrr=1", "model.preset=vit_xxl", "--verbose")
    assert found == [
        "command line: '--verbose': unknown option; options are --print, --schema, --help",
        "command line: 'oops' is not of the form key.path=value",
        "command line: optim.lrr: unknown key; did you mean 'lr'?",
        "more.yaml:5: sources.0.wieght: unknown key; did you mean 'weight'?",
        "command line: model.preset: must be 'vit_s' or 'vit_b', got 'vit_xxl'",
        "r.yaml:5: model.frames: must be a valid integer, got 'sixteen'",
        "r.yaml:3: optim.betas.1: must be a valid number, got 'x'",
        "more.yaml:2: elastic.max_workers: must be a valid integer, got 'yes'",
    ]


def test_a_check_across_fields_names_the_lines_of_the_keys_it_names(write: Write) -> None:
    file = write("epochs: 8ep\nmodel:\n  tubelet_size: 2\n")
    assert problems(file, "model.frames=15") == [
        "command line, r.yaml:3: model.frames (15) is not divisible by model.tubelet_size (2)"
    ]


def test_a_check_across_fields_of_defaults_alone_still_says_where_it_looked(write: Write) -> None:
    file = write("epochs: 8ep\nmodel:\n  frames: 15\n")
    assert problems(file) == [
        "r.yaml:3: model.frames (15) is not divisible by model.tubelet_size (2)"
    ]


def test_a_required_key_that_is_missing_is_named(write: Write) -> None:
    file = write("sources:\n- uri: a\n- weight: 2\n")
    assert problems(file) == [
        "r.yaml: epochs: must be set",
        "r.yaml:3: sources.1.uri: must be set",
    ]


def test_one_problem_reads_as_one_line_and_many_as_a_list() -> None:
    assert str(ConfigError(["a: b"])) == "a: b"
    assert str(ConfigError(["a: b", "c: d"])) == "2 problems\na: b\nc: d"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 8ep\nlr: 3\n", "r.yaml:2: lr: unknown key; did you mean 'optim.lr'?"),
        ("epochs: 8ep\nelastik: {}\n", "r.yaml:2: elastik: unknown key; did you mean 'elastic'?"),
        (
            "epochs: 8ep\nrun: {zzz: 1}\n",
            "r.yaml:2: run.zzz: unknown key; expected one of name, note",
        ),
        (
            "epochs: 8ep\noptim.lr: 1.0\n",
            "r.yaml:2: optim.lr: unknown key; in a file, sections are nested: "
            "write the dots as indented lines",
        ),
        ("epochs: 8\n", "r.yaml:1: epochs: must be a valid string, got 8; for a text write '8'"),
        ("epochs: 8ep\noptim: 3\n", "r.yaml:2: optim: must be a section of keys and values, got 3"),
        ("epochs: 8ep\nsources: {}\n", "r.yaml:2: sources: must be a list, got {}"),
        ("epochs: 8ep\noptim: {lr: -1}\n", "r.yaml:2: optim.lr: must be greater than 0, got -1"),
        ("epochs: 8ep\noptim: {lr: '1'}\n", "r.yaml:2: optim.lr: must be a valid number, got '1'"),
        (
            "epochs: 8ep\nmodel: {frames: true}\n",
            "r.yaml:2: model.frames: must be a valid integer, got True",
        ),
        (
            "epochs: 8ep\noptim:\n  lr: 1\n  clip: 2\n  lr: 2\n",
            "r.yaml:5: optim.lr: given twice; it already stands at r.yaml:3",
        ),
        ("epochs: 8ep\n? [a]\n: 1\n", "r.yaml:2: a key must be plain text"),
        (
            "epochs: !!python/name:os.system ''\n",
            "r.yaml:1: epochs: '' does not fit the tag 'python/name:os.system'",
        ),
        ("epochs: [1\nrun: 2\n", "r.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("epochs: \x00", "r.yaml: not valid YAML: unacceptable character #x0000: special"),
        ("- epochs\n", "r.yaml:1: a recipe is a mapping of sections to values"),
        ("epochs: 8ep\n---\nepochs: 9ep\n", "r.yaml:2: not valid YAML: but found another document"),
        (
            "epochs: &e 8ep\nrun: {note: *e}\n",
            "r.yaml:2: not valid YAML: aliases (*name) are not read in recipes; write the value",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_clear_line(write: Write, text: str, expected: str) -> None:
    found = problems(write(text))
    assert len([line for line in found if "must be set" not in line]) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("=3", "command line: '=3' is not of the form key.path=value"),
        ("optim..lr=3", "command line: 'optim..lr=3' is not of the form key.path=value"),
        ("--optim.lr=3", "command line: '--optim.lr=3': values have no dashes; write optim.lr=3"),
        (
            "optim.betas=[1,",
            "command line: optim.betas: '[1,' is not valid YAML: "
            "expected the node content, but found '<stream end>'; put it in quotes",
        ),
        (
            "run.name=2026",
            "command line: run.name: must be a valid string, got 2026; for a text write '\"2026\"'",
        ),
        ("optim.lr.x=3", "command line: optim.lr: must be a valid number, got {'x': 3}"),
        (
            "tags={a: 1, a: 2}",
            "command line: tags.a: given twice; it already stands at command line",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(
    write: Write, argument: str, expected: str
) -> None:
    file = write("epochs: 8ep\noptim: {lr: 1.0}\n")
    assert problems(file, argument) == [expected]


def test_a_missing_file_names_those_that_are_alike_and_hides_no_other_mistake(write: Write) -> None:
    write("epochs: 8ep\n", "jobs/recipes/demo/pretrain.yaml")
    write("epochs: 8ep\n", "jobs/recipes/demo/finetune.yaml")
    assert problems("demo/pretrain.yaml", "optim.lr=fast") == [
        "demo/pretrain.yaml: no such file; did you mean jobs/recipes/demo/pretrain.yaml?",
        "command line: optim.lr: must be a valid number, got 'fast'",
    ]
    assert problems("jobs/recipes/demo/finetun.yaml")[0].startswith(
        "jobs/recipes/demo/finetun.yaml: no such file; did you mean jobs/recipes/demo/finetune.yaml"
    )
    assert problems("zzz.yaml") == [
        "zzz.yaml: no such file; "
        "recipes: jobs/recipes/demo/finetune.yaml, jobs/recipes/demo/pretrain.yaml"
    ]
    assert problems("model.frames=15") == [
        "command line: no recipe file is named; "
        "recipes: jobs/recipes/demo/finetune.yaml, jobs/recipes/demo/pretrain.yaml"
    ]


def test_a_folder_or_a_binary_file_in_place_of_a_recipe_is_said_so(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"a\xff\xfe")
    assert problems("folder.yaml", "binary.yaml") == [
        "folder.yaml: is a directory; a recipe is a YAML file",
        "binary.yaml: is not UTF-8 text (byte 1)",
    ]


def test_a_section_whose_lines_are_commented_out_changes_nothing(write: Write) -> None:
    first = write("epochs: 8ep\noptim: {lr: 2.0}\n", "a.yaml")
    second = write("optim:\n#  lr: 3.0\n", "b.yaml")
    assert config.from_command_line(Recipe, [first, second]).optim.lr == 2.0


def test_an_optional_section_can_be_switched_off(write: Write) -> None:
    file = write("pool: {uri: a}\n")
    assert config.load(Files, [file]).pool == Source("a")
    assert config.load(Files, [file], ["pool=null"]).pool is None


def test_a_value_that_may_be_of_two_types_is_explained_once() -> None:
    assert problems("port=1.5", schema=Files, needs_recipe=False) == [
        "command line: port: must be a valid integer or a valid string, got 1.5; "
        "for a text write '\"1.5\"'"
    ]


@dataclass(frozen=True)
class OneOrMore:
    model: str | list[str]

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model names no model")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model=3", "model: must be a valid string or a list, got 3; for a text write '\"3\"'"),
        ("model={a: 1}", "model: must be a valid string or a list, got {'a': 1}"),
        ("model=[run, 7]", "model.1: must be a valid string, got 7; for a text write '\"7\"'"),
        ("model=", "model: must be a valid string or a list, got None"),
        ("model=[]", "model names no model"),
    ],
)
def test_a_text_or_a_list_of_texts_is_explained_where_it_is_wrong(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(OneOrMore, [], [given])
    assert str(caught.value).startswith(f"command line: {message}")
    assert len(caught.value.problems) == 1


@given(st.text(st.characters(codec="utf-8")))
@example("/data/my #1: [videos]/\U0001f3ac/a b.mp4")
def test_a_setting_gives_back_any_text(text: str) -> None:
    assert config.load(Source, [], [config.setting("uri", text)]).uri == text


def test_a_file_name_that_is_not_utf_8_is_refused_by_name() -> None:
    with pytest.raises(config.UserError) as caught:
        config.setting("source", b"film\xff.mp4".decode(errors="surrogateescape"))
    assert str(caught.value) == "source: 'film\\udcff.mp4' is not UTF-8; rename it"


def test_a_job_without_recipe_takes_overrides_alone() -> None:
    found = config.from_command_line(Files, ["videos=s3://bucket/a=b"], needs_recipe=False)
    assert found == Files(videos="s3://bucket/a=b")


def test_the_default_recipe_is_read_when_none_is_named(write: Write) -> None:
    write("epochs: 1ep\n", "default.yaml")
    other = write("epochs: 2ep\n", "other.yaml")
    read = [
        config.from_command_line(Recipe, arguments, default_recipe="default.yaml")
        for arguments in ([], [other])
    ]
    assert [(recipe.epochs, recipe.run.name) for recipe in read] == [
        ("1ep", "default"),
        ("2ep", "other"),
    ]


def test_the_run_is_named_after_the_first_file_unless_a_name_is_given(write: Write) -> None:
    file = write("epochs: 8ep\n", "vit_b.yaml")
    assert config.load(Recipe, [file]).run.name == "vit_b"
    assert config.load(Recipe, [file], ["run.name=mine"]).run.name == "mine"


def test_print_shows_the_whole_recipe_and_it_can_be_fed_back(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 60  # is not broken into lines that YAML would read otherwise
    file = write(
        f"epochs: 8ep\nsources: [{{uri: '3e-4'}}, {{uri: 'no'}}, {{uri: '{long}'}}]\n"
        'run: {note: "tab\\t[bold]\\e"}\nmodel: {frames: 8}\n'
    )
    with pytest.raises(SystemExit) as stop:
        config.from_command_line(Recipe, [file, "optim.lr=1e-5", "--print"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "\n  betas: [0.9, 0.95]\n" in printed
    again = config.from_command_line(Recipe, [write(printed, "again.yaml")])
    assert again == config.load(Recipe, [file], ["optim.lr=1e-5"])


def test_flatten_spells_keys_as_overrides_do() -> None:
    recipe = Recipe(epochs="8ep", tags={"team": "x"})
    flat = config.flatten(recipe)
    assert flat["optim.lr"] == 1.5e-4
    assert flat["optim.betas"] == [0.9, 0.95]
    assert flat["tags.team"] == "x"
    overrides = [
        f"{key}={json.dumps(value)}" for key, value in flat.items() if not key.startswith("tags.")
    ]
    assert config.load(Recipe, overrides=[*overrides, "tags.team=x"]) == recipe


def test_only_fixed_fields_that_changed_are_a_difference() -> None:
    old = Recipe(epochs="8ep", optim=Optim(lr=1e-3), tags={"a": "x"})
    new = Recipe(
        epochs="8ep",
        run=Run(note="new"),
        optim=Optim(lr=2e-3),
        elastic=Elastic(max_workers=8),
        model=Model(frames=8),
    )
    assert [str(change) for change in config.difference(old, new)] == [
        "model.frames: 16 -> 8",
        "optim.lr: 0.001 -> 0.002",
        "tags.a: 'x' -> None",
    ]
    assert config.difference(old, old) == []


def test_help_lists_every_key_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        config.from_command_line(Recipe, ["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert "  epochs (required)   # How long to train, as 800ep." in printed
    assert "  optim.lr = 0.00015   # Rate per 256 visits." in printed
    assert '  model.preset = "vit_b" (vit_s | vit_b)' in printed
    assert len([line for line in printed if line.startswith("  ")]) == len(keys_of(Recipe))


def test_schema_for_editors_knows_docstrings_bounds_and_refuses_unknown_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        config.from_command_line(Recipe, ["--schema"])
    printed = json.loads(capsys.readouterr().out)
    optim = printed["$defs"]["Optim"]
    assert optim["properties"]["lr"]["description"] == "Rate per 256 visits."
    assert optim["properties"]["lr"]["exclusiveMinimum"] == 0
    assert optim["additionalProperties"] is False


def test_config_errors_survive_the_way_through_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a: b", "c: d"])))
    assert error.problems == ("a: b", "c: d")
