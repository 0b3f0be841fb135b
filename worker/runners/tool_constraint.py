"""Holds an answer to a call of the tools on offer, or to either a call or the format that is asked for."""

from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidRequest
from tandem.specs import TextGenerationSpec
from tandem.specs.response_format import JsonObjectFormat, JsonSchemaFormat, ResponseFormat, TextFormat
from worker.engine.tokens.call_grammar import arguments_schema, call_form, call_grammar
from worker.engine.tokens.constraints import ConstraintCompiler, GrammarConstraint

PARAM = "tools"


class ToolConstraint:
    def __init__(self, constraints: ConstraintCompiler, tokenizer: PreTrainedTokenizerBase) -> None:
        self._constraints = constraints
        self._form = call_form(tokenizer.get_chat_template())

    def compile(self, spec: TextGenerationSpec) -> GrammarConstraint:
        """Raises InvalidRequest naming the function whose parameters cannot be enforced, or the format."""
        answer = None if spec.must_call else _json_format(spec.parameters.response_format)
        many = spec.parallel_tool_calls is True if spec.must_call else spec.parallel_tool_calls is not False
        grammar = call_grammar(spec.offered_tools, self._form, many=many, answer=answer)
        try:
            return self._constraints.compile_grammar(grammar, param=PARAM)
        except InvalidRequest:
            if answer is not None:
                self._constraints.compile(answer)  # raises, if it is at fault
            for tool in spec.offered_tools:
                # One of these raises, and says more than the grammar's error of all of them.
                schema, lenient = arguments_schema(tool.function)
                param = f"{PARAM}.{spec.tools.index(tool)}.function.parameters"
                self._constraints.check_schema(schema, lenient=lenient, param=param)
            raise


def _json_format(response_format: ResponseFormat | None) -> ResponseFormat:
    if isinstance(response_format, JsonObjectFormat | JsonSchemaFormat):
        return response_format
    kind = None if response_format is None or isinstance(response_format, TextFormat) else response_format.type
    raise InvalidRequest(
        f"`parameters.response_format` of type {kind!r} and `tools` exclude each other, since a call has a form of "
        "its own; leave one of them out, or set `tool_choice` to `none`",
        param="parameters.response_format",
    )
