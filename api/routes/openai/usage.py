"""How many tokens a request took, as OpenAI counts them."""

from typing import Any

from pydantic import BaseModel


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    """Tokens whose keys and values were there already, from a prompt that began the same."""
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Usage":
        """Of a text-generation job's result."""
        prompt, completion = result["prompt_tokens"], result["completion_tokens"]
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=result.get("reused_tokens", 0)),
        )
