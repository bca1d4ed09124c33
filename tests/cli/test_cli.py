"""The command line: quick to answer, and one clear error for every kind of bad input."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import limbeck
from limbeck.cli.main import SECTIONS, _where_it_stopped, main
from limbeck.training.interruption import Interrupted
from tests.helpers import tiny_llama
from tests.tiny_runs import save_models, write_recipe

IMPORTS_NO_TORCH = """
import sys
{code}
heavy = [name for name in ("torch", "transformers", "numpy", "datasets", "peft") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import limbeck",
        "from limbeck.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from limbeck.cli.main import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass",
        "from limbeck.cli.main import main\ntry:\n    main(['train', 'absent.toml'])\nexcept SystemExit:\n    pass",
    ],
)
def test_imports_no_torch(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS_NO_TORCH.format(code=code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_installed_command_prints_its_version() -> None:
    done = subprocess.run([Path(sys.executable).with_name("limbeck"), "version"], capture_output=True, text=True)
    assert done.stdout.startswith("limbeck 0.")
    assert "torch" in done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.toml", models, steps=2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def failure(*arguments: object) -> str:
    """The message of a command that must fail, with one error and no trace."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.output.count("error: ") == 1
    assert "Traceback" not in result.output
    return result.output.partition("error: ")[2]


class TestTrain:
    def test_trains_resumes_and_says_where_the_model_is(self, recipe: Path, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        first = run("train", recipe)
        assert first.exit_code == 0
        before_training, _, ending = first.output.partition("loading models")
        assert "the run takes at most: this process" in before_training
        for part in (
            "student before",
            "student after",
            f"finished: {tmp_path}/runs/run/model",
            "limbeck eval",
            "--compare",
        ):
            assert part in ending.replace("\n", "")
        more = run("train", recipe, "steps=3")
        assert "resuming after step 2 of 3" in more.output
        AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "run" / "model")

    def test_fewer_steps_than_were_made_change_nothing(self, recipe: Path, tmp_path: Path) -> None:
        run("train", recipe, "--quiet")
        saved = (tmp_path / "runs" / "run" / "recipe.toml").read_bytes()
        less = run("train", recipe, "steps=1")
        assert "no step is left to make: 2 were made, and steps = 1" in less.output
        assert "resuming" not in less.output
        assert (tmp_path / "runs" / "run" / "recipe.toml").read_bytes() == saved

    def test_json_prints_the_lines_of_metrics(self, recipe: Path, tmp_path: Path) -> None:
        result = run("train", recipe, "--json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        saved = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
        assert lines == [json.loads(line) for line in saved]
        assert [line["kind"] for line in lines] == ["eval", "train", "train", "eval"]
        assert {"reverse_kl/exact", "reverse_kl/sampled/se", "entropy/student", "entropy/teacher", "top_k_overlap",
                "response_length/mean", "truncated", "importance/mean", "importance/max",
                "importance/effective_share", "grad_norm", "tokens_per_second/sample", "teacher_share",
                "alarms"} <= lines[1].keys()  # fmt: skip

    def test_quiet_is_quiet(self, recipe: Path) -> None:
        assert run("train", recipe, "--quiet").output == ""

    def test_the_resolved_recipe_is_saved(self, recipe: Path, tmp_path: Path) -> None:
        run("train", recipe, "--quiet", "learner.lr=0.001")
        saved = (tmp_path / "runs" / "run" / "recipe.toml").read_text()
        assert "lr = 0.001" in saved
        assert "importance_cap = 2.0" in saved


def test_help_lists_every_command_once() -> None:
    """In sections, each with its line."""
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(main.commands)
    text = run("--help").output
    for name, command in main.commands.items():
        assert f"{name:<12}{command.get_short_help_str(70)}" in text


class TestEval:
    def test_student_teacher_and_model(self, recipe: Path, models: Path) -> None:
        student = json.loads(run("eval", recipe, "--json").stdout)
        assert 0 <= student["accuracy/low"] <= student["accuracy"] <= student["accuracy/high"] <= 1
        assert student["reverse_kl/exact"] > 0.1
        teacher = json.loads(run("eval", recipe, "--teacher", "--json").stdout)
        assert abs(teacher["reverse_kl/exact"]) < 1e-5
        same = json.loads(run("eval", recipe, "--model", models / "teacher", "--json").stdout)
        assert same["reverse_kl/exact"] == teacher["reverse_kl/exact"]

    def test_the_teacher_is_shown_as_the_teacher(self, recipe: Path) -> None:
        values = json.loads(run("eval", recipe, "--teacher", "--json").stdout)
        assert values["entropy/teacher"] > 0
        assert not [key for key in values if "student" in key]
        shown = run("eval", recipe, "--teacher").output
        assert f"entropy of the teacher   {values['entropy/teacher']:.4f}" in shown
        assert "student" not in shown
        assert "-0.0000" not in shown
        assert "e-" not in shown

    def test_one_model_is_evaluated_at_a_time(self, recipe: Path, models: Path) -> None:
        result = run("eval", recipe, "--teacher", "--model", models / "student")
        assert result.exit_code == 2
        assert "not both" in result.output

    def test_before_after_and_teacher_in_one_table(self, recipe: Path, models: Path) -> None:
        """The three are what `eval` says of each alone."""
        assert "no run folder" in failure("eval", recipe, "--compare").replace("\n", " ")
        run("train", recipe, "--quiet")
        found = json.loads(run("eval", recipe, "--compare", "--json").stdout)
        assert found["student_before"]["accuracy"] == json.loads(run("eval", recipe, "--json").stdout)["accuracy"]
        assert found["student_after"]["reverse_kl/exact"] < found["student_before"]["reverse_kl/exact"]
        assert found["teacher"]["entropy/teacher"] > 0
        same = json.loads(run("eval", recipe, "--compare", "--model", models / "teacher", "--json").stdout)
        assert abs(same["student_after"]["reverse_kl/exact"]) < 1e-5
        shown = run("eval", recipe, "--compare").output
        rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
        assert rows == ["student before", "student after", "teacher"]

    def test_pass_at_k_and_answers(self, recipe: Path) -> None:
        result = run("eval", recipe, "eval.samples_per_prompt=4", "--answers", "2")
        assert "pass@4" in result.output
        assert "reward" in result.output


def test_check_prints_what_was_proven(recipe: Path) -> None:
    assert "temperature" in run("check", recipe).output
    answer = json.loads(run("check", recipe, "--json").stdout)
    assert answer["ok"]
    assert [result["probe"] for result in answer["results"]] == ["tokenizer", "alignment", "temperature"]


class TestBadInput:
    @pytest.mark.parametrize("command", ["view", "serve", "gateway"])
    def test_a_port_that_is_none(self, command: str) -> None:
        result = run(command, ".", "--port", "99999")
        assert (result.exit_code, "99999 is not in the range 0<=x<=65535" in result.output) == (2, True)

    def test_missing_recipe(self) -> None:
        assert "no recipe at absent.toml, and no run's folder" in failure("train", "absent.toml")
        for name in ("demo", "demo.toml"):
            assert "`limbeck init demo` copies the shipped recipe of that name here" in failure("train", name)

    @pytest.mark.parametrize("command", ["train", "sft", "gateway", "eval", "check"])
    def test_a_folder_is_a_run_with_a_recipe(self, command: str, tmp_path: Path) -> None:
        assert f"no recipe at {tmp_path}/recipe.toml: {tmp_path} is no run's folder" in failure(command, tmp_path)

    def test_wrong_key(self, recipe: Path) -> None:
        assert "Did you mean 'temperature'?" in failure("train", recipe, "rollout.temprature=1")

    def test_temperature_zero(self, recipe: Path) -> None:
        assert "rollout.temperature: Input should be greater than or equal to 0.001" in failure(
            "train", recipe, "rollout.temperature=0"
        )

    def test_missing_model_folder(self, recipe: Path) -> None:
        assert "no model folder at './absent'" in failure("train", recipe, "student.model=./absent")

    def test_a_hub_name_that_cannot_be_had(self, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "nobody/nothing" in failure("train", recipe, "teacher.model=nobody/nothing")

    def test_model_folder_without_tokenizer(self, recipe: Path, tmp_path: Path) -> None:
        tiny_llama(1).save_pretrained(tmp_path / "bare")
        message = failure("train", recipe, f"student.model={tmp_path}/bare")
        assert "cannot load a tokenizer" in message
        assert "save_pretrained" in message

    def test_nan_weights(self, recipe: Path, models: Path, tmp_path: Path) -> None:
        shutil.copytree(models / "student", tmp_path / "nan")
        model = tiny_llama(1)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        model.save_pretrained(tmp_path / "nan")
        assert "up_proj.weight' has NaN" in failure("train", recipe, f"student.model={tmp_path}/nan")

    def test_empty_data_set(self, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").write_text("")
        message = failure("train", recipe, f'task={{kind="file", path="{tmp_path}/empty.jsonl"}}')
        assert "empty.jsonl" in message

    def test_missing_data_file(self, recipe: Path) -> None:
        assert "absent.jsonl" in failure("train", recipe, 'task={kind="file", path="absent.jsonl"}')

    def test_prompt_longer_than_the_context(self, recipe: Path, tmp_path: Path) -> None:
        rows = [{"prompt": "1+1="}] * 3 + [{"id": "long-one", "prompt": "1" * 100}]
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        task = f'task={{kind="file", path="{tmp_path}/rows.jsonl", held_out=1}}'
        assert "long-one" in failure("train", recipe, task)

    def test_more_held_out_prompts_than_there_are(self, recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert run("train", recipe, "eval.prompts=9", "eval.sets.cold={prompts=8, temperature=0.5}").exit_code == 0
        warned = [record.getMessage() for record in caplog.records if "all are taken" in record.getMessage()]
        assert warned == [
            "eval.prompts = 9, but 4 held-out prompts exist: all are taken",
            "eval.sets.cold.prompts = 8, but 4 held-out prompts exist: all are taken",
        ]

    def test_a_check_refuses_what_leaves_no_place_for_a_prompt_before_it_counts_memory(self, recipe: Path) -> None:
        message = run("check", recipe, "rollout.max_tokens=64").output
        assert "leaves no place for a prompt in a context of 64" in message
        assert "memory" not in message

    def test_max_tokens_beyond_the_context(self, recipe: Path) -> None:
        assert "leaves no place for a prompt in a context of 64" in failure("train", recipe, "rollout.max_tokens=64")

    def test_a_device_that_is_not_there(self, recipe: Path) -> None:
        assert "device = 'cuda:99'" in failure("train", recipe, "device=cuda:99")
        assert "Did you mean 'cuda'?" in failure("train", recipe, "device=gpu")

    def test_another_tokenizer(self, recipe: Path) -> None:
        assert "different vocabularies" in failure("train", recipe, "teacher.model=demo:teacher")

    def test_an_output_that_is_a_file(self, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "cannot open the run folder" in failure("train", recipe, f"output={tmp_path}/file")

    def test_a_bad_run_leaves_earlier_checkpoints_as_they_were(self, recipe: Path, tmp_path: Path) -> None:
        run("train", recipe, "--quiet")
        checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "step-000002"
        before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
        failure("train", recipe, "student.model=./absent", "steps=4")
        failure("train", recipe, "rollout.temperature=0", "steps=4")
        assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before


def test_serve_says_first_which_package_is_missing() -> None:
    """In a process of its own: here the package has been imported."""
    lines = (
        "import sys; sys.modules['prometheus_client'] = None; from limbeck.cli.main import main; "
        "main(['serve', 'demo:teacher', '--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.stdout + done.stderr == "error: `limbeck serve` needs prometheus_client: pip install 'limbeck[serve]'\n"


def test_serve_refuses_a_device_that_is_none() -> None:
    assert "device = 'gpu' cannot be used" in failure("serve", "demo:teacher", "--port", 0, "--device", "gpu")


def test_view_says_that_it_waits_for_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.view.server.serve", lambda path, host, port, open_it, ready: ready("http://here"))
    assert f"no run in {tmp_path} yet: runs appear here as they begin" in run("view", tmp_path).output
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    assert "no run in" not in run("view", tmp_path).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "RECIPE", "--answers", -3), "-3 is not in the range x>=0"),
        (("eval", "RECIPE", "--compare", "--answers", 2), "leave out --answers\n"),
        (("eval", "RECIPE", "--compare", "--answers", 2, "--teacher"), "leave out --teacher and --answers\n"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[object, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_every_integer_option_has_a_least_value() -> None:
    """Click's, but for one that the report itself refuses."""
    options = [(option, command.name) for command in main.commands.values() for option in command.params]
    open_ended = [(name, option.name) for option, name in options if option.type.name == "integer"]
    assert open_ended == [("report", "rollouts")]
    assert all(option.type.min is not None for option, _ in options if option.type.name == "integer range")


def test_every_command_has_help() -> None:
    for command in main.commands:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 4
    overview = run("--help").output
    assert "..." not in overview.partition("Commands:")[2], "each has a short description of its own"


def test_python_m_limbeck_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "limbeck", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"limbeck {limbeck.__version__}\n")


def test_help_takes_less_than_a_third_of_a_second() -> None:
    """Of processor time, and the best of three: the machine may be busy."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "limbeck", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


def test_where_a_run_stopped_and_the_command_that_goes_on(tmp_path: Path) -> None:
    """The same command would begin again where it had --fresh."""
    stopped = Interrupted(signal.SIGTERM)
    assert _where_it_stopped(stopped) == "stopped by SIGTERM"
    stopped.folder = tmp_path
    assert "no update was made" in _where_it_stopped(stopped)
    stopped.step = 7
    assert _where_it_stopped(stopped).splitlines() == [
        f"stopped by SIGTERM after step 7: the checkpoint is in {tmp_path / 'checkpoints'}.",
        f"To go on from there:  limbeck train {tmp_path / 'recipe.toml'}",
    ]
