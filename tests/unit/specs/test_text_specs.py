"""What may be asked of the tasks on texts: huggingface_hub's own inputs, and what is refused by name."""

from dataclasses import asdict
from typing import Any

import pytest
from huggingface_hub import (
    FillMaskInput,
    FillMaskParameters,
    QuestionAnsweringInput,
    QuestionAnsweringInputData,
    QuestionAnsweringParameters,
    SummarizationInput,
    SummarizationParameters,
    TableQuestionAnsweringInput,
    TableQuestionAnsweringInputData,
    TableQuestionAnsweringParameters,
    Text2TextGenerationInput,
    Text2TextGenerationParameters,
    TextClassificationInput,
    TextClassificationParameters,
    TokenClassificationInput,
    TokenClassificationParameters,
    TranslationInput,
    TranslationParameters,
    ZeroShotClassificationInput,
    ZeroShotClassificationParameters,
)
from huggingface_hub.inference._generated.types import FeatureExtractionInput
from pydantic import ValidationError

from tandem.specs import job_spec_adapter
from tandem.specs.answers import MAX_CELLS, MAX_QUERIES
from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_NEW_TOKENS
from tandem.specs.candidate_labels import MAX_PAIRS
from tandem.specs.encoders import MAX_UNPOOLED_INPUTS

TABLE = {"City": ["Paris", "Rome"], "People": ["2100000", "2800000"]}
NOUL = {"type": "noul", "instructions": "is it so?"}
GENERATE = {"max_new_tokens": 5, "num_beams": 2, "early_stopping": "never"}


def spec(task: str, inputs: Any, parameters: dict[str, Any] | None = None) -> Any:
    return job_spec_adapter.validate_python(
        {"kind": "inference", "task": task, "inputs": inputs, "parameters": parameters or {}}
    )


def refusal(task: str, inputs: Any, parameters: dict[str, Any] | None = None) -> tuple[str, str]:
    """Where the first fault is, as far as the user's own names go, and what is said of it."""
    with pytest.raises(ValidationError) as error:
        spec(task, inputs, parameters)
    first = error.value.errors()[0]
    return ".".join(str(part) for part in first["loc"][2:]), first["msg"]


def given(value: Any) -> Any:
    """As the hub's client sends it: without what is None."""
    if isinstance(value, dict):
        return {name: given(item) for name, item in value.items() if item is not None}
    return value


class TestHuggingfaceHubsInputs:
    @pytest.mark.parametrize(
        ("task", "request_"),
        [
            (
                "token-classification",
                TokenClassificationInput(
                    "Anna", TokenClassificationParameters("simple", ignore_labels=["O"], stride=8)
                ),
            ),
            (
                "zero-shot-classification",
                ZeroShotClassificationInput("yes", ZeroShotClassificationParameters(["a", "b"], "it is {}", True)),
            ),
            (
                "question-answering",
                QuestionAnsweringInput(
                    QuestionAnsweringInputData(context="It is Anna.", question="who?"),
                    QuestionAnsweringParameters(True, 4, True, 5, 6, 64, 3),
                ),
            ),
            (
                "table-question-answering",
                TableQuestionAnsweringInput(
                    TableQuestionAnsweringInputData("who?", TABLE),
                    TableQuestionAnsweringParameters("longest", sequential=False, truncation=True),
                ),
            ),
            ("summarization", SummarizationInput("yes", SummarizationParameters(True, GENERATE, "only_first"))),
            (
                "translation",
                TranslationInput("yes", TranslationParameters(True, GENERATE, "en_XX", "fr_XX", "longest_first")),
            ),
            (
                "text2text-generation",
                Text2TextGenerationInput("yes", Text2TextGenerationParameters(True, GENERATE, "do_not_truncate")),
            ),
            ("fill-mask", FillMaskInput("a [MASK]", FillMaskParameters(["cat"], top_k=2))),
            ("text-classification", TextClassificationInput("yes", TextClassificationParameters("sigmoid", top_k=2))),
        ],
    )
    def test_are_taken_with_every_parameter(self, task: str, request_: Any) -> None:
        sent = given(asdict(request_))
        taken = spec(task, **sent)
        kept = taken.parameters.model_dump(mode="json", exclude_none=True)
        assert kept == sent["parameters"]
        assert job_spec_adapter.validate_json(job_spec_adapter.dump_json(taken)) == taken

    def test_parameters_of_feature_extraction_are_taken(self) -> None:
        """(Its client sends them at the root, where the HTTP door gathers them.)"""
        sent = given(asdict(FeatureExtractionInput(["yes", "no"], True, "query", True, "right")))
        inputs = sent.pop("inputs")
        taken = spec("feature-extraction", inputs, sent)
        assert taken.inputs == ("yes", "no")
        assert {name: getattr(taken.parameters, name) for name in sent} == sent

    def test_the_clients_own_name_of_a_tables_question_is_taken(self) -> None:
        """InferenceClient.table_question_answering sends `query`; the generated type says `question`."""
        assert spec("table-question-answering", {"table": TABLE, "query": "who?"}).inputs.query == "who?"


class TestOtherNames:
    @pytest.mark.parametrize(
        ("name", "task"), [("ner", "token-classification"), ("sentiment-analysis", "text-classification")]
    )
    def test_a_task_goes_by_its_alias(self, name: str, task: str) -> None:
        assert spec(name, "yes").task == task

    def test_languages_in_a_translations_name_become_its_parameters(self) -> None:
        taken = spec("translation_en_to_fr", "yes", {"generate_parameters": {"num_beams": 2}})
        assert taken.task == "translation"
        assert (taken.parameters.src_lang, taken.parameters.tgt_lang) == ("en", "fr")
        assert taken.parameters.generate_parameters.num_beams == 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("task", "inputs", "parameters", "place"),
        [
            ("token-classification", "yes", {"strides": 1}, "parameters.strides"),
            ("token-classification", "yes", {"aggregation_strategy": "best"}, "parameters.aggregation_strategy"),
            ("zero-shot-classification", "yes", {}, "parameters.candidate_labels"),
            ("zero-shot-classification", "yes", {"candidate_labels": []}, "parameters.candidate_labels"),
            ("question-answering", {"question": "who?"}, {}, "inputs.QuestionAboutText.context"),
            ("table-question-answering", {"table": {}, "query": "?"}, {}, "inputs.QuestionAboutTable.table"),
            ("table-question-answering", {"table": TABLE}, {}, "inputs.QuestionAboutTable.query"),
            ("summarization", "yes", {"max_length": 4}, "parameters.max_length"),
            ("summarization", "yes", {"src_lang": "en"}, "parameters.src_lang"),
            ("translation", "yes", {"src_lang": "en fr"}, "parameters.src_lang"),
            ("translation", "yes", {"truncation": True}, "parameters.truncation"),
            ("decision", {"state": "a", "questions": {}}, {}, "inputs.DecisionRequest.questions"),
            ("decision", {"state": "a", "questions": {"q": NOUL}}, {"top_k": 1}, "parameters.top_k"),
            ("fill-mask", "yes", {"targets": []}, "parameters.targets"),
            ("fill-mask", "yes", {"top_k": 0}, "parameters.top_k"),
            ("text-classification", {"text": "a"}, {}, "inputs.constrained-str"),
            ("feature-extraction", "yes", {"pooling": "max"}, "parameters.pooling"),
        ],
    )
    def test_name_the_field(self, task: str, inputs: Any, parameters: dict[str, Any], place: str) -> None:
        assert refusal(task, inputs, parameters)[0] == place

    @pytest.mark.parametrize(
        ("asked", "place"),
        [
            ({"max_new_tokens": MAX_NEW_TOKENS + 1}, ".max_new_tokens"),
            ({"temperature": 0}, ".temperature"),
            ({"num_beams": 1000}, ".num_beams"),
            ({"penalty_alpha": 0.6}, ".penalty_alpha"),
            ({"num_beam_groups": 2}, ".num_beam_groups"),
            ({"stopping_criteria": []}, ".stopping_criteria"),
            ({"assistant_model": "x"}, ".assistant_model"),
            ({"max_time": 1.0}, ".max_time"),
        ],
    )
    def test_name_a_generation_parameter(self, asked: dict[str, Any], place: str) -> None:
        assert (
            refusal("summarization", "yes", {"generate_parameters": asked})[0]
            == f"parameters.generate_parameters{place}"
        )

    @pytest.mark.parametrize(
        ("task", "inputs", "parameters", "message"),
        [
            ("ner", "yes", {"stride": 4}, '`stride` needs an `aggregation_strategy` other than "none"'),
            (
                "zero-shot-classification",
                ["yes"] * 2048,
                {"candidate_labels": [str(number) for number in range(33)]},
                rf"`inputs` \(2048\) times `candidate_labels` \(33\) are more than {MAX_PAIRS} pairs",
            ),
            (
                "zero-shot-classification",
                "yes",
                {"candidate_labels": ["a"], "hypothesis_template": "{:>999999999}{}"},
                r"must have `\{\}` once",
            ),
            (
                "table-question-answering",
                {"table": {"a": ["1", "2"], "b": ["1"]}, "query": "?"},
                {},
                r"equally many cells, and have \{'a': 2, 'b': 1\}",
            ),
            (
                "table-question-answering",
                {"table": {"a": ["1"] * (MAX_CELLS + 1)}, "query": "?"},
                {},
                f"has {MAX_CELLS + 1} cells, and at most {MAX_CELLS} are taken",
            ),
            (
                "decision",
                {"state": {"long": "a" * MAX_INPUT_CHARACTERS}, "questions": {"q": NOUL}},
                {},
                f"characters as JSON with the state; at most {MAX_INPUT_CHARACTERS}",
            ),
            (
                "feature-extraction",
                ["yes"] * (MAX_UNPOOLED_INPUTS + 1),
                {"pooling": "none"},
                f"`inputs` are {MAX_UNPOOLED_INPUTS + 1} texts.*at most {MAX_UNPOOLED_INPUTS}",
            ),
            (
                "feature-extraction",
                "yes",
                {"truncate": True, "truncation_direction": "left", "prompt_name": "query"},
                "would cut off the prompt",
            ),
            (
                "summarization",
                "yes",
                {"generate_parameters": {"min_new_tokens": 5, "max_new_tokens": 4}},
                r"`min_new_tokens` \(5\) is more than `max_new_tokens` \(4\)",
            ),
            (
                "summarization",
                "yes",
                {"generate_parameters": {"num_return_sequences": 3, "num_beams": 2}},
                r"`num_return_sequences` \(3\) is more than `num_beams` \(2\)",
            ),
        ],
    )
    def test_say_what_is_wrong_and_what_helps(
        self, task: str, inputs: Any, parameters: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message):
            spec(task, inputs, parameters)


class TestDecisions:
    @pytest.mark.parametrize(
        ("question", "place"),
        [
            ({"type": "maybe"}, ""),
            ({"type": "choice"}, ".choice.criteria"),
            ({"type": "choice", "criteria": {}}, ".choice.criteria"),
            ({"type": "score", "criteria": []}, ".score.criteria"),
            ({"type": "noul", "criteria": {"perhaps": "x"}}, ".noul.criteria.perhaps.[key]"),
            ({**NOUL, "kind": "x"}, ".noul.kind"),
        ],
    )
    def test_a_question_of_another_shape_is_refused_by_name(self, question: dict[str, Any], place: str) -> None:
        found, _ = refusal("decision", {"state": "a", "questions": {"q": question}})
        assert found == f"inputs.DecisionRequest.questions.q{place}"

    def test_a_state_is_any_json_and_an_option_may_be_a_name_alone(self) -> None:
        request = {
            "state": {"messages": ["hi", None, 3]},
            "questions": {"tone": {"type": "choice", "criteria": {"calm": None, "pushy": ["x"]}}},
        }
        taken = spec("decision", request)
        assert taken.inputs.state == request["state"]
        assert taken.inputs.questions["tone"].criteria == {"calm": None, "pushy": ["x"]}
        assert job_spec_adapter.validate_json(job_spec_adapter.dump_json(taken)) == taken


class TestManyInputs:
    def test_texts_and_pairs_may_be_mixed(self) -> None:
        taken = spec("text-classification", ["a", {"text": "b", "text_pair": "c"}])
        assert taken.inputs[0] == "a"
        assert (taken.inputs[1].text, taken.inputs[1].text_pair) == ("b", "c")

    def test_several_questions_about_one_table_are_one_input(self) -> None:
        taken = spec("table-question-answering", {"table": TABLE, "query": ["a?", "b?"]})
        assert taken.inputs.query == ("a?", "b?")
        place, _ = refusal("table-question-answering", {"table": TABLE, "query": ["?"] * (MAX_QUERIES + 1)})
        assert place.startswith("inputs.QuestionAboutTable.query")

    def test_vectors_are_scaled_unless_something_else_is_asked_for(self) -> None:
        assert spec("feature-extraction", "yes").parameters.normalize is None
        assert spec("feature-extraction", "yes", {"normalize": False}).parameters.normalize is False
