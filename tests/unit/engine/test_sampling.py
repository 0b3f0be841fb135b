"""The state of one sequence's choices: its ends, its random stream, what it refuses. No model, no torch."""

import pytest
from pydantic import ValidationError

from tandem.errors import InvalidRequest
from tandem.specs import GenerationParameters
from tests.unit.engine.samplings import OnlyThese, sampling


def test_the_models_end_tokens_and_stop_tokens_end_it() -> None:
    row = sampling(end_tokens={7}, stop_token_ids=[9])

    assert [row.is_end(token) for token in (7, 8, 9)] == [True, False, True]


def test_ignore_eos_leaves_stop_tokens_in_force() -> None:
    row = sampling(end_tokens={7}, stop_token_ids=[9], ignore_eos=True)

    assert [row.is_end(token) for token in (7, 8, 9)] == [False, False, True]


def test_ends_are_forbidden_until_min_new_tokens_were_chosen() -> None:
    row = sampling(end_tokens={7}, min_new_tokens=2)
    forbidden = []
    for _ in range(3):
        forbidden.append(set(row.forbidden))
        row.accept(1)

    assert forbidden == [{7}, {7}, set()]


def test_only_a_greedy_row_that_nothing_changes_takes_the_largest_logit() -> None:
    assert sampling().takes_the_largest
    assert sampling(end_tokens={7}, min_new_tokens=1, generated=[1]).takes_the_largest
    for change in (
        {"temperature": 0.1},
        {"logit_bias": {1: 1.0}},
        {"presence_penalty": -0.1},
        {"min_new_tokens": 1, "end_tokens": {7}},
        {"constraint": OnlyThese({1})},
    ):
        assert not sampling(**change).takes_the_largest


def test_it_is_complete_when_its_constraint_is() -> None:
    row = sampling(constraint=OnlyThese({1}, {2}))
    complete = []
    for token in (1, 2):
        row.accept(token)
        complete.append(row.is_complete)

    assert complete == [False, True]
    assert not sampling().is_complete


def test_a_seed_repeats_its_draws_and_no_seed_does_not() -> None:
    def draws(seed: int | None) -> list[float]:
        row = sampling(temperature=1.0, seed=seed)
        return [row.draw() for _ in range(5)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("parameters", [{"logit_bias": {99: 1.0, 100: 1.0}}, {"stop_token_ids": [3, 100]}], ids=str)
def test_a_token_that_the_model_does_not_have_is_refused_by_name(parameters: dict) -> None:
    (field,) = parameters
    with pytest.raises(InvalidRequest, match=f"`{field}` names token 100; the model's tokens are 0 to 99") as refused:
        sampling(vocabulary=100, **parameters)
    assert refused.value.param == f"parameters.{field}"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "`min_new_tokens` .9. is more than `max_new_tokens` .8."),
        ({"n": 17, "temperature": 1.0}, "less than or equal to 16"),
        ({"top_logprobs": 2}, "`top_logprobs` needs `logprobs: true`"),
        ({"top_logprobs": 21, "logprobs": True}, "less than or equal to 20"),
        ({"logprobs": True, "top_logprobs": 20, "max_new_tokens": 100_000}, "at most 131072 are told"),
        ({"logit_bias": {5: 101}}, "less than or equal to 100"),
        ({"logit_bias": {"-1": 1}}, "greater than or equal to 0"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "at most 1024 items"),
        ({"stop_token_ids": range(65)}, "at most 64 items"),
        ({"presence_penalty": 2.1}, "less than or equal to 2"),
        ({"frequency_penalty": -2.1}, "greater than or equal to -2"),
        ({"repetition_penalty": 0}, "greater than or equal to 0.01"),
        ({"min_p": 1.1}, "less than or equal to 1"),
        ({"top_k": 10**400}, "less than or equal to 1000000"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_values_out_of_their_limits_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerationParameters.model_validate(parameters)


def test_biases_come_through_json_with_their_tokens_as_names() -> None:
    parameters = GenerationParameters.model_validate_json('{"logit_bias": {"50256": -100}}')

    assert parameters.logit_bias == {50256: -100.0}
    assert GenerationParameters.model_validate_json(parameters.model_dump_json()) == parameters
