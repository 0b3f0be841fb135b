"""Methods of fine-tuning: what an adapter is made of. Settings have PEFT's names and defaults where it has them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import TypeAliasType

from tandem.specs.base import MAX_INPUT_CHARACTERS, Spec

MAX_LORA_RANK = 256
"""LoRA rank: beyond it the adapter bank's memory grows without measured gain."""
MAX_VERA_RANK = 4096
"""Rank of VeRA's random matrices, which train nothing: the paper has up to 1,024."""
MAX_OFT_BLOCK = 1024
"""Inputs in one rotation: its training inverts a matrix of this size for every block."""
MAX_TARGETS = 64
"""Names of layers in one method: no model has so many kinds of them."""
MAX_VIRTUAL_TOKENS = 512
"""Each request with the adapter pays for its virtual tokens with context and KV memory; the papers have up to 200."""
MAX_ENCODER_WIDTH = 16_384
"""Hidden units of the network that virtual tokens are learned through: twice a 70-billion-parameter model's width."""
MAX_ENCODER_LAYERS = 8
"""Layers of the recurrent one."""

LayerNames = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_TARGETS)]
"""Names of linear layers, or the ends of their paths, such as `q_proj` or `mlp.c_proj`."""


class LoraMethod(Spec):
    """Low-rank adaptation (Hu et al. 2021): W x + (alpha / r) B A x, with A and B trained."""

    type: Literal["lora"] = "lora"
    r: int = Field(default=8, ge=1, le=MAX_LORA_RANK)
    alpha: float = Field(default=16.0, gt=0.0, le=4096.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: LayerNames | None = None
    """Names of the linear layers to adapt, such as `q_proj`; None takes PEFT's choice for the model."""
    use_rslora: bool = False
    """Scale by alpha / √r instead (Kalajdzievski 2023), so that a high rank learns as fast as a low one."""
    use_dora: bool = False
    """Train the length of each output's weights apart from their direction (DoRA, Liu et al. 2024). Each step has to
    measure the adapted weights, so steps take longer."""


class AdaLoraMethod(Spec):
    """AdaLoRA (Zhang et al. 2023): LoRA whose ranks are shared out among the layers while it trains.

    Every layer begins with `init_r`. Between `tinit` steps from the start and `tfinal` from the end, the ranks that
    matter least are taken away, until the layers have `target_r` on average.
    """

    type: Literal["adalora"]
    init_r: int = Field(default=12, ge=1, le=MAX_LORA_RANK)
    target_r: int = Field(default=8, ge=1, le=MAX_LORA_RANK)
    alpha: float = Field(default=16.0, gt=0.0, le=4096.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    tinit: int = Field(default=0, ge=0)
    """Optimizer steps at the start before any rank is taken away."""
    tfinal: int = Field(default=0, ge=0)
    """Optimizer steps at the end in which the ranks stay as they are."""
    delta_t: int = Field(default=1, ge=1)
    """Optimizer steps between two allocations (PEFT's `deltaT`)."""
    beta1: float = Field(default=0.85, gt=0.0, lt=1.0)
    """Of the running mean of a rank's sensitivity."""
    beta2: float = Field(default=0.85, gt=0.0, lt=1.0)
    """Of the running mean of that sensitivity's uncertainty."""
    orth_reg_weight: float = Field(default=0.5, gt=0.0, le=1000.0)
    """How much it costs, in the loss, that the singular vectors are not orthogonal."""
    target_modules: LayerNames | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice for the model."""

    @model_validator(mode="after")
    def _ranks_become_fewer(self) -> Self:
        if self.target_r > self.init_r:
            raise ValueError(f"`target_r` is {self.target_r}, above `init_r` ({self.init_r}): ranks only fall")
        return self


class LohaMethod(Spec):
    """LoHa (Hyeon-Woo et al. 2022, LyCORIS): a Hadamard product of two low-rank updates, of rank up to r² in all."""

    type: Literal["loha"]
    r: int = Field(default=8, ge=1, le=MAX_LORA_RANK)
    alpha: float = Field(default=8.0, gt=0.0, le=4096.0)
    rank_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that an output of the update is left out, in training."""
    module_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that a layer's update is left out, in training."""
    target_modules: LayerNames | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice of LoRA for the model."""


class LokrMethod(Spec):
    """LoKr (LyCORIS, Yeh et al. 2024): the Kronecker product of a small matrix and a larger one of rank `r`."""

    type: Literal["lokr"]
    r: int = Field(default=8, ge=1, le=MAX_LORA_RANK)
    alpha: float = Field(default=8.0, gt=0.0, le=4096.0)
    decompose_both: bool = False
    """Give the small matrix the rank `r` as well."""
    decompose_factor: int = Field(default=-1, ge=-1)
    """The small matrix's size; -1 makes the two as equal in size as the layer's sizes allow."""
    rank_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that an output of the update is left out, in training."""
    module_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that a layer's update is left out, in training."""
    target_modules: LayerNames | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice of LoRA for the model."""

    @field_validator("decompose_factor")
    @classmethod
    def _is_a_size(cls, factor: int) -> int:
        if factor == 0:
            raise ValueError("a matrix has at least one row: use 1 or more, or -1 to leave the choice to PEFT")
        return factor


class VeraMethod(Spec):
    """VeRA (Kopiczko et al. 2024): one pair of random matrices for all layers, and two trained vectors for each.

    It trains some hundred numbers a layer, and needs a learning rate 10 times LoRA's.
    """

    type: Literal["vera"]
    r: int = Field(default=256, ge=1, le=MAX_VERA_RANK)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    d_initial: float = Field(default=0.1, gt=0.0, le=10.0)
    """What the trained vector between the two matrices is at first."""
    projection_prng_key: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the random matrices. They are published with the adapter, so that it does not depend on torch's."""
    target_modules: LayerNames | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice for the model."""


class OftMethod(Spec):
    """Orthogonal fine-tuning (Qiu et al. 2023): each layer's inputs are rotated, in blocks, by trained rotations.

    A rotation is no sum of low rank: such adapters are served apart from the batch.
    """

    type: Literal["oft"]
    oft_block_size: int = Field(default=32, ge=2, le=MAX_OFT_BLOCK)
    """Inputs that are rotated together; it must divide each layer's number of them."""
    module_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that a block is not rotated, in training."""
    coft: bool = False
    """Keep the rotations small (constrained OFT): within `eps`."""
    eps: float = Field(default=6e-5, gt=0.0, le=1.0)
    block_share: bool = False
    """One rotation for all blocks of a layer."""
    target_modules: LayerNames | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice for the model."""


class Ia3Method(Spec):
    """(IA)³ (Liu et al. 2022): one trained factor for each output of a layer, or each input of a feed-forward one.

    Some thousand numbers in all: it needs a learning rate 10 to 100 times LoRA's.
    """

    type: Literal["ia3"]
    target_modules: LayerNames | None = None
    """Names of the linear layers to scale; None takes PEFT's choice for the model."""
    feedforward_modules: tuple[str, ...] | None = Field(default=None, max_length=MAX_TARGETS)
    """Those of the targets whose inputs are scaled instead of their outputs; None takes PEFT's choice among them."""

    @model_validator(mode="after")
    def _feedforward_modules_are_targets(self) -> Self:
        if self.feedforward_modules is not None:
            if self.target_modules is None:
                raise ValueError("`feedforward_modules` are some of the targets: name `target_modules` too")
            if others := set(self.feedforward_modules) - set(self.target_modules):
                raise ValueError(f"`feedforward_modules` has {', '.join(sorted(others))}, not among `target_modules`")
        return self


class PromptLearningMethod(Spec):
    """What the methods have in common that train virtual tokens before the text, and leave the model's layers alone.

    For text-generation. They too need a learning rate 10 to 100 times LoRA's.
    """

    num_virtual_tokens: int = Field(default=20, ge=1, le=MAX_VIRTUAL_TOKENS)
    """PEFT has no default; 20 is what its guides use."""


class PrefixTuningMethod(PromptLearningMethod):
    """Prefix tuning (Li & Liang 2021): trained keys and values before the text's own, in every layer."""

    type: Literal["prefix-tuning"]
    prefix_projection: bool = False
    """Train them through a network of two layers, which is steadier; what it makes is published, not the network."""
    encoder_hidden_size: int | None = Field(default=None, ge=1, le=MAX_ENCODER_WIDTH)
    """The network's hidden units; None takes the size of a layer's keys."""

    @model_validator(mode="after")
    def _width_is_of_a_network(self) -> Self:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError("`encoder_hidden_size` is of the projection: set `prefix_projection`, or leave it out")
        return self


class PromptTuningMethod(PromptLearningMethod):
    """Prompt tuning (Lester et al. 2021): trained embeddings before the text's own."""

    type: Literal["prompt-tuning"]
    prompt_tuning_init: Literal["random", "sample_vocab", "text"] = "random"
    """What they are at first: normal numbers, the embeddings of random tokens, or those of a text."""
    prompt_tuning_init_text: Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)] | None = None
    """The text, which is cut or repeated to as many tokens as there are virtual ones."""

    @model_validator(mode="after")
    def _text_is_given_where_it_is_used(self) -> Self:
        if (self.prompt_tuning_init == "text") != (self.prompt_tuning_init_text is not None):
            raise ValueError('`prompt_tuning_init_text` belongs to `prompt_tuning_init`: "text", and must be there')
        return self


class PTuningMethod(PromptLearningMethod):
    """P-tuning (Liu et al. 2021): embeddings before the text's own, trained through a small network.

    What the network makes is published, not the network.
    """

    type: Literal["p-tuning"]
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: int | None = Field(default=None, ge=1, le=MAX_ENCODER_WIDTH)
    """The network's hidden units; None takes the model's hidden size."""
    encoder_num_layers: int = Field(default=2, ge=1, le=MAX_ENCODER_LAYERS)
    """Layers of an LSTM; an MLP has three."""
    encoder_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Between the layers of an LSTM."""

    @model_validator(mode="after")
    def _settings_of_an_lstm(self) -> Self:
        is_default = (self.encoder_num_layers, self.encoder_dropout) == (2, 0.0)
        if self.encoder_reparameterization_type == "MLP" and not is_default:
            raise ValueError(
                "`encoder_num_layers` and `encoder_dropout` are an LSTM's: leave them out, or set "
                '`encoder_reparameterization_type`: "LSTM"'
            )
        if self.encoder_dropout and self.encoder_num_layers == 1:
            raise ValueError("`encoder_dropout` acts between layers: set `encoder_num_layers` to 2 or more")
        return self


# Only LoRA's `type` has a default. A job's record leaves out what is a default: of the others it keeps the type.
AnyMethod = (
    LoraMethod
    | AdaLoraMethod
    | LohaMethod
    | LokrMethod
    | VeraMethod
    | OftMethod
    | Ia3Method
    | PrefixTuningMethod
    | PromptTuningMethod
    | PTuningMethod
)

METHODS = ("lora", "adalora", "loha", "lokr", "vera", "oft", "ia3", "prefix-tuning", "prompt-tuning", "p-tuning")
"""Their types."""


def _lora_unless_it_says(method: Any) -> Any:
    """Once LoRA was the only method, and its type could be left out."""
    return {"type": "lora", **method} if isinstance(method, dict) and "type" not in method else method


# A named type: one schema of the OpenAPI document.
Method = TypeAliasType(
    "Method",
    Annotated[Annotated[AnyMethod, Field(discriminator="type")], BeforeValidator(_lora_unless_it_says)],
)
"""A method as a field of a spec or record, chosen by its `type`."""
