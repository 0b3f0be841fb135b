"""What may be asked of a fine-tuning: the methods, what each may say, and what is refused by name."""

import json
import re
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from tandem.adapters import AdapterManifest, ImportedMethod
from tandem.cli.tables import method_text
from tandem.specs import FineTuneSpec, LoraMethod, Task, job_spec_adapter
from tandem.specs.finetune import DpoObjective, FineTuneTask, base_does
from tandem.specs.methods import (
    MAX_VIRTUAL_TOKENS,
    METHODS,
    AnyMethod,
    Ia3Method,
    Method,
    PrefixTuningMethod,
    PromptTuningMethod,
    PTuningMethod,
)

FILE = "file-" + "0" * 24
read_method: TypeAdapter[AnyMethod] = TypeAdapter(Method)


def spec(method: Any = None, **fields: Any) -> FineTuneSpec:
    job: dict[str, Any] = {"kind": "finetune", "model": "tiny", "training_file": FILE, **fields}
    if method is not None:
        job["method"] = method
    read = job_spec_adapter.validate_python(job)
    assert isinstance(read, FineTuneSpec)
    return read


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"type": "lora", "use_dora": True}, LoraMethod(use_dora=True)),
        ({"type": "ia3"}, Ia3Method(type="ia3")),
        ({"type": "prefix-tuning"}, PrefixTuningMethod(type="prefix-tuning", num_virtual_tokens=20)),
        (
            {"type": "prompt-tuning", "num_virtual_tokens": 8},
            PromptTuningMethod(type="prompt-tuning", num_virtual_tokens=8),
        ),
        ({"type": "p-tuning", "encoder_hidden_size": 64}, PTuningMethod(type="p-tuning", encoder_hidden_size=64)),
    ],
)
def test_the_type_chooses_the_method(sent: dict[str, Any], expected: AnyMethod) -> None:
    """And a record of it reads back as the same."""
    read = spec(sent)
    assert read.method == expected
    record = read.model_dump_json(exclude_defaults=True)  # as a job's record keeps it
    assert FineTuneSpec.model_validate_json(record) == read


def test_every_method_has_its_type() -> None:
    assert tuple(get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(AnyMethod)) == METHODS


def test_without_a_type_it_is_lora() -> None:
    """As it was when LoRA was the only method; so old records and programs mean what they meant."""
    assert spec().method == LoraMethod()
    assert spec({"r": 4, "dropout": 0.1}).method == LoraMethod(r=4, dropout=0.1)
    old = {"type": "lora", "r": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": None}
    assert read_method.validate_json(json.dumps(old)) == LoraMethod()


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ({"type": "lohra"}, "'ia3', 'prefix-tuning', 'prompt-tuning', 'p-tuning'"),
        ({"type": "adalora", "init_r": 4, "target_r": 5}, "above `init_r`"),
        ({"type": "lokr", "decompose_factor": 0}, "at least one row"),
        ({"type": "ia3", "r": 8}, "Extra inputs are not permitted"),
        ({"type": "ia3", "feedforward_modules": ["fc"]}, "name `target_modules` too"),
        ({"type": "ia3", "target_modules": ["k"], "feedforward_modules": ["fc"]}, "has fc, not among"),
        ({"type": "prefix-tuning", "num_virtual_tokens": 0}, "greater than or equal to 1"),
        ({"type": "prefix-tuning", "num_virtual_tokens": MAX_VIRTUAL_TOKENS + 1}, "less than or equal to 512"),
        ({"type": "prefix-tuning", "encoder_hidden_size": 9}, "set `prefix_projection`, or leave it out"),
        ({"type": "prompt-tuning", "prompt_tuning_init": "text"}, "`prompt_tuning_init_text` belongs to"),
        ({"type": "prompt-tuning", "prompt_tuning_init_text": "go"}, "`prompt_tuning_init_text` belongs to"),
        ({"type": "p-tuning", "encoder_num_layers": 3}, "are an LSTM's"),
        (
            {
                "type": "p-tuning",
                "encoder_reparameterization_type": "LSTM",
                "encoder_num_layers": 1,
                "encoder_dropout": 0.1,
            },
            "set `encoder_num_layers` to 2 or more",
        ),
    ],
)
def test_what_does_not_fit_a_method_is_refused(method: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as raised:
        spec(method)
    assert raised.value.errors()[0]["loc"][:2] == ("finetune", "method")


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_virtual_tokens_are_for_text_generation(method: str, task: str) -> None:
    with pytest.raises(ValidationError, match=f"for {task} use lora or ia3"):
        spec({"type": method}, task=task)
    assert spec({"type": "ia3"}, task=task).method == Ia3Method(type="ia3")
    with pytest.raises(ValidationError, match="rotations fit no batch"):
        spec({"type": "oft"}, task=task)


def test_an_encoder_decoder_takes_every_method_that_updates_layers_and_no_virtual_tokens() -> None:
    for method in ("lora", "adalora", "loha", "lokr", "vera", "oft", "ia3"):
        assert spec({"type": method}, task="text2text-generation").method.type == method
    with pytest.raises(ValidationError, match="for text2text-generation use lora or ia3"):
        spec({"type": "prompt-tuning"}, task="text2text-generation")


@pytest.mark.parametrize(
    ("task", "tasks", "learns"),
    [
        ("text2text-generation", ("translation",), True),
        ("text2text-generation", ("text-generation", "feature-extraction"), False),
        ("text-classification", ("feature-extraction",), True),
        ("text-classification", ("text-classification",), False),
        ("text-generation", ("text-generation",), True),
    ],
)
def test_what_a_base_must_do_for_a_task_to_be_learned_on_it(
    task: FineTuneTask, tasks: tuple[Task, ...], learns: bool
) -> None:
    """An encoder-decoder's tasks are all done by one model, whichever of them the catalogue lists."""
    assert base_does(task, tasks) is learns


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (LoraMethod(r=4), "lora r=4"),
        (LoraMethod(use_rslora=True, use_dora=True), "lora r=8, rslora, dora"),
        (Ia3Method(type="ia3"), "ia3"),
        (PrefixTuningMethod(type="prefix-tuning", num_virtual_tokens=12), "prefix-tuning, 12 virtual tokens"),
    ],
)
def test_a_published_adapter_says_how_it_was_trained(method: AnyMethod, text: str) -> None:
    """In its manifest, whatever the method, and in a word in the list of adapters."""
    manifest = AdapterManifest(
        id="ft:tiny:me:adapter:1",
        owner="me",
        base="tiny",
        base_revision=None,
        task="text-generation",
        method=method,
        served="mixed-batch",
        files={},
        created_at=1.0,
    )
    assert AdapterManifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert method_text(manifest.model_dump(mode="json")["method"]) == text


def test_an_imported_adapters_method_is_told_apart() -> None:
    method = ImportedMethod(peft_type="LORA", r=16, num_virtual_tokens=None, target_modules=("q_proj",))
    assert method_text(method.model_dump(mode="json")) == "LORA r=16, imported"


def test_the_objective_is_supervised_unless_another_is_named() -> None:
    assert spec().objective.type == "supervised"
    read = spec(objective={"type": "dpo", "beta": 0.3})
    assert FineTuneSpec.model_validate_json(read.model_dump_json(exclude_defaults=True)) == read
    assert read.objective == DpoObjective(type="dpo", beta=0.3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hyperparameters": {"early_stopping_patience": 2}}, "counts evaluations: set `eval_steps` too"),
        (
            {"hyperparameters": {"early_stopping_patience": 2, "eval_steps": 5}},
            "`hyperparameters.early_stopping_patience` goes by the validation loss: send a `validation_file`",
        ),
        ({"hyperparameters": {"keep": "best"}}, "`hyperparameters.keep` goes by the validation loss"),
        ({"task": "text-classification", "objective": {"type": "dpo"}}, "dpo is for text-generation, not for text-c"),
        (
            {"task": "text-classification", "hyperparameters": {"packing": True}},
            "`hyperparameters.packing` is for text-generation with the supervised objective",
        ),
        ({"objective": {"type": "dpo"}, "hyperparameters": {"packing": True}}, "with the supervised objective"),
        (
            {"method": {"type": "prompt-tuning"}, "hyperparameters": {"packing": True}},
            "leaves no place for the virtual tokens of prompt-tuning before each row",
        ),
        ({"report_to": ["azure"]}, "Input should be 'tensorboard', 'mlflow', 'wandb' or 'trackio'"),
        ({"save_total_limit": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_with_what_to_do(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(reason)):
        spec(**fields)
