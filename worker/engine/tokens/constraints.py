"""Constrained output: which tokens may come next, so that a text follows its response format.

llguidance does the work (docs/decisions/0009): it walks the tree of all tokens along a parser, and says for each
whether it may follow. Nothing is computed for states that a text never comes to, so compiling takes about a
millisecond, and what a bad grammar may cost is bounded by counts of the library's, not by a clock.
"""

import json
import re
import threading
from collections import OrderedDict
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidRequest, TandemError
from tandem.specs.response_format import (
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    TextFormat,
)
from worker.engine.tokens.constraint_tokenizer import PARAM, constraint_tokenizer

MAX_COMPILED = 64
"""Formats kept compiled for each model; of more, the one that was not used for longest goes."""
MAX_PARSER_ITEMS = 500
"""States that the parser may be in at once. It bounds a token's time, which all sequences of the batch wait for: a
grammar ambiguous without end then costs 9 ms a token (M), against 260 ms at the library's default of 2,000."""
MAX_STEP_ITEMS = 10_000
"""States that the parser may make while it looks for one mask: some milliseconds."""
MAX_LEXER_STATES = 50_000
"""States that the lexer may keep of one sequence, at 1 to 2 KB by its own account. A string of a schema uses
about five a character (M)."""
MAX_REASON_CHARACTERS = 500
"""Of the library's own words in an error: it may quote the whole grammar."""
WORD_BITS = 32
SERIAL_VALUES = 32_768
"""Values that torch fills without waking its threads. A row's mask takes 70 µs of one thread; threads that wait for
each other on a busy CPU took 20 ms (M)."""

WHITE_SPACE = r" |\n[ \t]{0,64}"
"""Between the parts of JSON: a space, or a line break with an indentation. What JSON writers print fits; but a model
that has nothing to say cannot print white space until its tokens are used up, as it may where any amount is allowed.
"""
NOTHING_FOLLOWS = "NoExtensionBias"
"""The library's name for a text that is stuck."""
REGEX_AS_GRAMMAR = "\n   1 | start: /"
"""Where the library, in an error, begins to quote the grammar that it made of a regular expression."""
FAULTY = re.compile(r"(at )?\d+\(\d+\): |no start rule")
"""How the library begins to tell of what it cannot read, in contrast to what became too complex to follow."""
SYNTAX = {
    "regex": "Rust's regex crate (Python's without look-around and backreferences)",
    "grammar": "Lark, with rules in lower case and terminals in upper case",
}
LIBRARY_OPTIONS_KEY = "x-guidance"
"""The key by which a schema could change the library's options, such as to ignore what it cannot enforce."""


@dataclass(frozen=True)
class _Source:
    """A response format as the library reads it."""

    param: str
    """The field of the request that it came in."""
    grammar: str
    """The library's own form of it, and the key of the cache."""


class ConstraintCompiler:
    """Makes constraints for one model. Its methods may be called from any thread, and are meant for the jobs'."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: frozenset[int]) -> None:
        """`vocabulary`: the model's logits, of which those beyond the tokenizer's tokens are never allowed.

        `end_tokens` may follow a text that is complete; without any, the tokenizer's own end token may.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._limits = LLParserLimits(
            max_items_in_row=MAX_PARSER_ITEMS,
            step_max_items=MAX_STEP_ITEMS,
            max_lexer_states=MAX_LEXER_STATES,
            verbose_errors=False,  # they would quote the text, and go into logs
        )
        self._tokens: LLTokenizer | None = None
        self._tokens_lock = threading.Lock()
        self._compiled: OrderedDict[str, GrammarConstraint] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def cached(self) -> int:
        """Formats that are kept compiled."""
        return len(self._compiled)

    def compile(self, response_format: ResponseFormat) -> "GrammarConstraint | None":
        """A new constraint at the beginning of a text, for one sequence; None where any text will do.

        Raises InvalidRequest, with the library's reason, for a format that cannot be followed: it is faulty, uses
        what the library does not have, grows too large, or cannot be spelt in the model's tokens.
        """
        if isinstance(response_format, TextFormat):
            return None
        return self._fresh(_source(response_format))

    def compile_grammar(self, grammar: str, *, param: str) -> "GrammarConstraint":
        """The same for a grammar in Lark that was made here, of the request's field `param`."""
        return self._fresh(_Source(param, _wrapped(grammar)))

    def check_schema(self, schema: dict[str, JsonValue], *, lenient: bool, param: str) -> None:
        """Raises InvalidRequest naming `param` if JSON cannot be held to a schema."""
        self._fresh(_Source(param, _json(schema, lenient=lenient)))

    def _fresh(self, source: _Source) -> "GrammarConstraint":
        with self._lock:
            compiled = self._compiled.get(source.grammar)
            if compiled is not None:
                self._compiled.move_to_end(source.grammar)
                return compiled.fresh()
        # Outside the lock: others go on meanwhile. Two that compile the same format at once do it twice.
        compiled = self._new(source)
        with self._lock:
            self._compiled[source.grammar] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return compiled.fresh()

    def _new(self, source: _Source) -> "GrammarConstraint":
        with self._tokens_lock:
            if self._tokens is None:
                self._tokens = constraint_tokenizer(self._tokenizer, self._vocabulary, self._end_tokens)
            tokens = self._tokens
        matcher = LLMatcher(tokens, source.grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            reason = _reason(matcher)
            raise InvalidRequest(
                f"`{source.param}` cannot be followed: {reason}{_advice(source.param, reason)}", param=source.param
            )
        return GrammarConstraint(matcher, _words(tokens.vocab_size), source.param)


class GrammarConstraint:
    """Where one text stands in its format. Belongs to one thread at a time; never goes back."""

    def __init__(self, matcher: LLMatcher, allowed: npt.NDArray[np.uint32], param: str) -> None:
        """`allowed` is room for one bit a token; raises InvalidRequest if the format has no first token."""
        self._matcher = matcher
        self._allowed = allowed
        self._param = param
        self._accepted = 0
        self._look_ahead()

    def fresh(self) -> "GrammarConstraint":
        """The same format from where this one stands, for another sequence. Takes 0.1 ms."""
        constraint = copy(self)
        constraint._matcher = self._matcher.deep_copy()
        constraint._allowed = self._allowed.copy()
        return constraint

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and cannot go on: only an end token may follow."""
        return self._matcher.is_stopped()

    def mask(self, logits: torch.Tensor) -> None:
        """Set to -inf, in place, the logits ([vocabulary], of any device) of all tokens that may not follow.

        It computes nothing new and cannot fail, since all rows of a batch depend on it; nor does it wait for a GPU.
        """
        bits = np.unpackbits((~self._allowed).view(np.uint8), count=len(logits), bitorder="little")
        forbidden = torch.from_numpy(bits.view(np.bool_))
        if logits.is_cuda:
            # The pinned memory is torch's, which keeps it until the copy is over.
            forbidden = forbidden.pin_memory().to(logits.device, non_blocking=True)
        size = len(logits) if logits.is_cuda else SERIAL_VALUES
        for values, out in zip(logits.split(size), forbidden.split(size), strict=True):
            values.masked_fill_(out, -torch.inf)

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed, an end token included, and find out which may follow it.

        Raises InvalidRequest if the grammar has become too complex to follow, or nothing may follow it: the
        sequence must fail, since to end it would pass off a piece of the format as the whole. Raises TandemError
        for a token that was not allowed.
        """
        if not (int(self._allowed[token // WORD_BITS]) >> (token % WORD_BITS)) & 1:
            raise TandemError(f"token {token} was chosen against the constraint: its mask was not applied")
        if not self._matcher.consume_token(token):
            raise self._lost()
        self._accepted += 1
        self._look_ahead()

    def _look_ahead(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._allowed.ctypes.data, self._allowed.nbytes)
        if self._matcher.is_error():
            raise self._lost()

    def _lost(self) -> InvalidRequest:
        reason = _reason(self._matcher)
        return InvalidRequest(
            f"`{self._param}` cannot be followed beyond {self._accepted} tokens: {reason}"
            f"{_advice(self._param, reason)}",
            param=self._param,
        )


def _source(response_format: ResponseFormat) -> _Source:
    match response_format:
        case JsonObjectFormat():
            return _Source(PARAM, _json({"type": "object"}, lenient=False))
        case JsonSchemaFormat(json_schema=wrapped):
            param = f"{PARAM}.json_schema.schema"
            if LIBRARY_OPTIONS_KEY in wrapped.schema_:
                raise InvalidRequest(f"`{param}`: unsupported key `{LIBRARY_OPTIONS_KEY}`; leave it out", param=param)
            return _Source(param, _json(wrapped.schema_, lenient=wrapped.strict is False))
        case RegexFormat(regex=regex):
            return _Source(f"{PARAM}.regex", LLMatcher.grammar_from_regex(regex))
        case GrammarFormat(grammar=grammar):
            return _Source(f"{PARAM}.grammar", _wrapped(grammar))
        case _:
            raise TypeError(f"{type(response_format).__name__} has no grammar")


def _json(schema: dict[str, JsonValue], *, lenient: bool) -> str:
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
    )


def _wrapped(grammar: str) -> str:
    """A grammar in Lark as the library's own form, for which it takes what begins with a brace."""
    return json.dumps({"grammars": [{"lark_grammar": grammar}]})


def _reason(matcher: LLMatcher) -> str:
    """The library's words without its state, which is for its developers, and without what it made of a regex."""
    reason = matcher.get_error().split("<non-verbose/>")[0].split("<state>")[0].split(REGEX_AS_GRAMMAR)[0].strip()
    if reason == NOTHING_FOLLOWS:
        return "no token can come next, and the text is not complete"
    return reason if len(reason) <= MAX_REASON_CHARACTERS else f"{reason[:MAX_REASON_CHARACTERS]}…"


def _advice(param: str, reason: str) -> str:
    if param.endswith(".schema") or param.startswith("tools"):
        return ". Say it by other keywords, make more properties required, or set `strict` to false"
    if FAULTY.match(reason):
        # It says the place: the expression is broken, or has what the library does not.
        return f". Mend what it points at; the syntax is that of {SYNTAX[param.rsplit('.', 1)[-1]]}"
    return ". Simplify it"


def _words(vocabulary: int) -> npt.NDArray[np.uint32]:
    return np.zeros(-(-vocabulary // WORD_BITS), dtype=np.uint32)
