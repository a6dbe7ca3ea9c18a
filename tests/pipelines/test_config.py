"""A recipe is checked as a whole, and every error says what is wrong, where, and how to mend it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jsonschema
import pytest
import yaml

from components.steps.run_key import run_key
from pipelines.config import field_docs, json_schema
from pipelines.loading import RECIPES, RecipeError, find_recipe, load_recipe
from ssl_core.data.decode import Limits
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks import TASKS
from ssl_core.train.run import Optim, Runtime, Train

GOOD = """\
name: tiny
corpus:
  name: photos
  size: 64
task:
  name: rotation
  canvas: 64
encoder:
  name: resnet18
optim:
  lr: 0.1
train:
  batch_size: 64
"""


DERIVED = """\
base: tiny.yaml
name: derived
train:
  steps: 7
"""


def write(folder: Path, text: str) -> str:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return str(path)


def derive(folder: Path, text: str = DERIVED, base: str = GOOD) -> str:
    write(folder, base)
    path = folder / "derived.yaml"
    path.write_text(text)
    return str(path)


def complaint(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value)


def test_a_good_recipe_builds_the_run_it_describes(tmp_path: Path) -> None:
    run = load_recipe(write(tmp_path, GOOD)).run()
    assert type(run.task) is TASKS["rotation"]
    assert run.encoder == EncoderSpec(name="resnet18")
    assert (run.optim.lr, run.train.batch_size) == (0.1, 64)


def test_the_recorded_recipe_holds_no_password(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["tracking.uri=https://anna:secret@tracker.example/mlflow"])
    assert recipe.tracking.uri == "https://anna:secret@tracker.example/mlflow"
    assert recipe.plain()["tracking"]["uri"] == "https://tracker.example/mlflow"


@pytest.mark.parametrize("recipe", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_every_recipe_of_the_package_is_valid_and_says_how_to_run_it(recipe: str) -> None:
    load_recipe(recipe)
    head = [line for line in find_recipe(recipe).read_text().splitlines() if line.startswith("#")]
    assert any(f"pretext run {recipe}" in line for line in head), "the header gives the command"
    assert any("time" in line.lower() for line in head), "the header gives the expected time"


@pytest.mark.parametrize(
    ("old", "new", "line", "hint"),
    [
        ("batch_size", "bach_size", 13, "did you mean `train.batch_size`?"),
        ("  canvas", "  canvass", 7, "did you mean `task.canvas`?"),
        ("  size: 64", "  batch_size: 64", 4, "did you mean `train.batch_size`?"),
        ("name: rotation", "name: rotaton", 6, "did you mean rotation?"),
        ("optim:", "optimizer:", 10, "did you mean `optim`?"),
    ],
)
def test_a_wrong_key_names_the_nearest_right_one_with_file_and_line(
    tmp_path: Path, old: str, new: str, line: int, hint: str
) -> None:
    text = complaint(tmp_path, GOOD.replace(old, new))
    assert f"tiny.yaml:{line}: " in text
    assert hint in text


def test_a_refused_value_names_its_own_line(tmp_path: Path) -> None:
    assert "tiny.yaml:11: optim.lr is 0" in complaint(tmp_path, GOOD.replace("lr: 0.1", "lr: 0"))
    assert "tiny.yaml:13: " in complaint(tmp_path, GOOD.replace("batch_size: 64", "batch_size: many"))


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = complaint(tmp_path, GOOD.replace("lr:", "lrr:").replace("batch_size", "bach_size"))
    assert len(text.splitlines()) == 2


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "tiny.yaml:14: `batch_size` is given a second time (first at" in complaint(
        tmp_path, GOOD + "  batch_size: 32\n"
    )


def test_text_that_is_not_yaml_names_the_line(tmp_path: Path) -> None:
    assert "tiny.yaml:2: not valid YAML" in complaint(tmp_path, "name: x\ncorpus: ] 1\n")
    assert "a recipe is a mapping" in complaint(tmp_path, "- just\n- a list\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [*a]\n", "tiny.yaml:1: nested too deep"),
        ("a: " + "[" * 3000 + "]" * 3000, "tiny.yaml: not a recipe: its brackets are nested too deep"),
        (
            "a: &a [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]\n" for i in range(1, 40)),
            "aliases",
        ),
        ("name: !tag x\n", "tiny.yaml:1: `x` is not a value of the type it looks like; quote it"),
        ("name: x\nday: 2024-13-45\n", "tiny.yaml:2: `2024-13-45` is not a value"),
        ("? [a, b]\n: 1\n", "tiny.yaml:1: a key is a word"),
        ("corpus: &c {name: x}\ntask:\n  <<: *c\n", "tiny.yaml:3: merge keys (`<<`) are not supported; write the keys"),
        ("name: \x07\n", "tiny.yaml: not a YAML text file"),
    ],
    ids=["cycle", "depth", "bomb", "tag", "date", "key", "merge", "control"],
)
def test_a_trap_of_yaml_is_answered_by_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    answer = complaint(tmp_path, text)
    assert expected in answer
    assert len(answer.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seed=yes", "--set train.seed=yes: seed is true, a boolean; write a number"),
        ("corpus.sources=photos", "`corpus.sources` is 'photos': write a list, [a, b]"),
        ("corpus.sources=", "`corpus.sources` is empty: write a list, [a, b]"),
        ("train=5", "`train` is 5: write its keys below it, indented"),
        ("train.batch_size=6e1", "`train.batch_size` is '6e1': write a whole number"),
        ("name=2024", "`name` is 2024: write text, in quotes"),
        ("corpus.name=a b", "--set corpus.name=a b: name: 'a b' cannot name a corpus"),
        ("corpus.size=9000", "`corpus.size` is 9000: input should be less than or equal to 8192"),
        ("corpus.limits.max_bytes=0", "--set corpus.limits.max_bytes=0: limits.max_bytes must be above 0"),
        ("task.name=rotatoin", "--set task.name=rotatoin: `task.name` is 'rotatoin'; did you mean rotation?"),
        ("train.seed=2024-13-45", "the value is not valid YAML; quote it"),
    ],
)
def test_the_error_for_a_value_of_the_wrong_type_says_how_to_write_it(
    tmp_path: Path, override: str, expected: str
) -> None:
    assert expected in complaint(tmp_path, GOOD, override)


def test_set_overrides_a_value_and_is_blamed_for_a_bad_one(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD), ["optim.lr=1e-3", "train.seed=7"]).run().optim.lr == 1e-3
    assert "--set train.sed=7: `train.sed` is not a key" in complaint(tmp_path, GOOD, "train.sed=7")
    assert "write it as section.key=value" in complaint(tmp_path, GOOD, "train.seed")


def test_a_canvas_larger_than_the_stored_images_is_refused_before_anything_runs(tmp_path: Path) -> None:
    text = complaint(tmp_path, GOOD.replace("canvas: 64", "canvas: 96"))
    assert "tiny.yaml:7: task.canvas asks for image of 96x96" in text


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    assert "cannot be cut into 3 equal parts" in complaint(tmp_path, GOOD, "cluster.workers=3")


def test_a_recipe_starts_from_its_base_and_changes_it_key_by_key(tmp_path: Path) -> None:
    recipe = load_recipe(derive(tmp_path))
    assert (recipe.name, recipe.corpus.name, recipe.task.canvas) == ("derived", "photos", 64)  # type: ignore[attr-defined]
    assert (recipe.train.steps, recipe.train.batch_size) == (7, 64)  # type: ignore[attr-defined]
    assert load_recipe(derive(tmp_path), ["train.steps=9"]).run().train.steps == 9


def test_another_task_or_encoder_leaves_nothing_of_the_one_in_the_base(tmp_path: Path) -> None:
    base = GOOD.replace("canvas: 64", "canvas: 64\n  flip: false").replace("resnet18", "resnet18\n  zero_init: false")
    same = derive(tmp_path, "base: tiny.yaml\ntask: {canvas: 32}\nencoder: {width: 0.5}\n", base)
    assert load_recipe(same).run().task == TASKS["rotation"](canvas=32, flip=False)  # type: ignore[call-arg]
    assert load_recipe(same).run().encoder == EncoderSpec(width=0.5, zero_init=False)
    other = derive(tmp_path, "base: tiny.yaml\ntask: {name: simclr, canvas: 32}\nencoder: {name: vit_tiny}\n", base)
    assert load_recipe(other).run().task == TASKS["simclr"](canvas=32)  # type: ignore[call-arg]
    assert load_recipe(other).run().encoder == EncoderSpec(name="vit_tiny")


def test_a_list_of_the_base_is_replaced_whole(tmp_path: Path) -> None:
    base = GOOD.replace("name: photos", "name: photos\n  sources: [/a, /b]")
    assert load_recipe(derive(tmp_path, DERIVED + "corpus: {sources: [/c]}\n", base)).corpus.sources == ("/c",)


def test_bases_stand_on_bases_in_other_folders_and_on_built_in_recipes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "middle.yaml").write_text("base: digits\nname: middle\noptim: {lr: 0.5}\n")
    top = tmp_path / "deep" / "top.yaml"
    top.write_text("base: ../middle.yaml\nname: top\n")
    recipe = load_recipe(str(top))
    assert (recipe.task_name, recipe.run().optim.lr) == ("simclr", 0.5)
    assert recipe.register_ is not None and recipe.register_.model == "top-encoder"


def test_a_complaint_names_file_and_line_of_the_key_whichever_file_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"derived.yaml:4: `train.stepps` is not a key"):
        load_recipe(derive(tmp_path, DERIVED.replace("steps", "stepps")))
    with pytest.raises(RecipeError, match=r"tiny.yaml:11: optim.lr is 0"):
        load_recipe(derive(tmp_path, base=GOOD.replace("lr: 0.1", "lr: 0")))
    with pytest.raises(RecipeError, match=r"--set train.steps=many: `train.steps` is 'many'"):
        load_recipe(derive(tmp_path), ["train.steps=many"])
    replaced = DERIVED + "task:\n  name: simclr\n  canvas: 96\n"
    with pytest.raises(RecipeError, match=r"derived.yaml:7: task.canvas asks for image of 96x96"):
        load_recipe(derive(tmp_path, replaced))
    with pytest.raises(RecipeError, match=r"derived.yaml:5: `task.chromatic` is not a key"):
        load_recipe(derive(tmp_path, DERIVED + "task: {name: simclr, chromatic: 1}\n"))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (
            "derived.yaml",
            r"derived.yaml:1: a recipe cannot be its own base: .*derived.yaml, whose base is .*derived.yaml$",
        ),
        ("digit", "derived.yaml:1: base: digit: no such recipe file, .*did you mean digits"),
        ("[tiny.yaml]", "derived.yaml:1: `base` is .'tiny.yaml'.: write the name of a built-in recipe, or a file"),
        ("", "derived.yaml:1: `base` is None"),
    ],
)
def test_an_impossible_base_is_refused_in_one_sentence(tmp_path: Path, base: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(derive(tmp_path, DERIVED.replace("tiny.yaml", base)))


def test_bases_that_go_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tiny.yaml:14: a recipe cannot be its own base: .*derived.*tiny.*derived"):
        load_recipe(derive(tmp_path, base=GOOD + "base: derived.yaml\n"))


def test_a_base_cannot_be_set_and_a_misspelt_one_is_corrected(tmp_path: Path) -> None:
    assert "--set base=digits: only a recipe file can name a `base`" in complaint(tmp_path, GOOD, "base=digits")
    assert "tiny.yaml:14: `bases` is not a key of a recipe; did you mean `base`?" in complaint(
        tmp_path, GOOD + "bases: x\n"
    )


def test_the_registered_model_may_be_named_after_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + 'register: {model: "best-{name}-encoder"}\n')
    for overrides, model in (([], "best-tiny-encoder"), (["name=other"], "best-other-encoder")):
        register = load_recipe(path, overrides).register_
        assert register is not None and register.model == model
    assert "`register.model` is '{nam}'" in complaint(tmp_path, GOOD, "register={model: '{nam}'}")


def test_an_unknown_recipe_names_the_nearest_built_in_one() -> None:
    with pytest.raises(RecipeError, match="did you mean digits"):
        load_recipe("digit")


def test_every_field_of_a_mirrored_dataclass_is_documented() -> None:
    for cls in (*TASKS.values(), EncoderSpec, Optim, Train, Runtime, Limits):
        missing = {f.name for f in dataclasses.fields(cls)} - set(field_docs(cls))
        assert not missing, f"{cls.__name__}: no text for {missing}"


def test_the_schema_accepts_the_recipes_and_refuses_a_wrong_key() -> None:
    schema = json_schema()
    for path in RECIPES.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    for text in (
        GOOD.replace("canvas", "canvass"),
        DERIVED.replace("steps", "stepps"),
        DERIVED.replace("base", "bass"),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(text), schema)
    jsonschema.validate(yaml.safe_load(DERIVED + "task: {canvas: 32}\nregister: {margin: 1}\n"), schema)


def key_of(path: str, *overrides: str, corpus: str = "data", code: str = "code") -> str:
    return run_key(load_recipe(path, overrides).spec().learning, corpus=corpus, code=code)


def test_the_key_depends_on_what_decides_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    changes = ["optim.lr=0.2", "task.canvas=32", "train.seed=1", "cluster.workers=2", "cluster.gpus=true"]
    keys = {key_of(path, change) for change in changes}
    keys |= {key_of(path, corpus="other data"), key_of(path, code="other code")}
    assert len(keys) == 7 and key_of(path) not in keys


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "runtime.log_every=1",
        "runtime={keep: 9, checkpoint_every: 7, reader_threads: 1}",
        "evaluate.draws=5",
        "register.model=other",
        "tracking.experiment=other",
        "tracking.uri=https://tracker.example",
        "cluster.address=ray://head:10001",
        "cluster.storage=/shared",
        "cluster.max_failures=9",
        "corpus.sources=[/elsewhere]",
    ],
)
def test_the_key_depends_on_nothing_else_of_a_recipe(tmp_path: Path, change: str) -> None:
    path = write(tmp_path, GOOD)
    assert load_recipe(path, [change]) != load_recipe(path)
    assert key_of(path, change) == key_of(path)


def test_the_key_of_a_derived_recipe_is_that_of_the_same_recipe_written_out(tmp_path: Path) -> None:
    whole = write(tmp_path, GOOD + "  steps: 7\n")
    written_out = key_of(whole)
    assert key_of(derive(tmp_path)) == written_out


MOVED = "checkpoint_every keep log_every check_every collapse_std collapse_rank collapse_checks reader_threads"


@pytest.mark.parametrize("name", MOVED.split())
def test_a_key_that_has_moved_is_answered_with_its_new_place(tmp_path: Path, name: str) -> None:
    expected = f"`train.{name}` is now `runtime.{name}`"
    assert complaint(tmp_path, GOOD + f"  {name}: 3\n").endswith(f"tiny.yaml:14: {expected}")
    assert complaint(tmp_path, GOOD, f"train.{name}=3") == f"--set train.{name}=3: {expected}"
    with pytest.raises(RecipeError, match=f"derived.yaml:5: {expected}$"):
        load_recipe(derive(tmp_path, DERIVED + f"  {name}: 3\n"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD + f"  {name}: 3\n"), json_schema())


def test_the_runtime_of_a_recipe_is_that_of_the_run(tmp_path: Path) -> None:
    text = GOOD + "runtime: {log_every: 3, keep: 5}\n"
    jsonschema.validate(yaml.safe_load(text), json_schema())
    assert load_recipe(write(tmp_path, text), ["runtime.keep=4"]).run().runtime == Runtime(log_every=3, keep=4)
    assert load_recipe(write(tmp_path, GOOD)).run().runtime == Runtime()
    assert "tiny.yaml:14: runtime.log_every is 0" in complaint(tmp_path, GOOD + "runtime: {log_every: 0}\n")
    assert "did you mean `runtime.log_every`?" in complaint(tmp_path, GOOD + "runtime: {log_evry: 1}\n")
