"""Direct preference optimisation: one policy for all users, scored by its implicit reward (Rafailov et al. 2023)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from harness import parallel
from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.fields import renamed_field
from harness.learning import policy
from harness.learning.dpo_training import HELD_OUT_PAIRS, TrainingSettings, TrainingStep, train_policy
from harness.learning.policy import Policy
from harness.learning.policy_sampling import write_responses
from harness.method import Method, Predictor, Run, State, TaskFacts, Users
from harness.models.inputs import open_tokenizer
from harness.models.names import LanguageModel
from harness.store.store import Store

# Number of successive steps whose pairs are sorted by length together. It is large enough that the pairs of a step have
# similar lengths, and small enough that the order of the pairs stays random.
LENGTH_SORTED_STEPS = 16


@dataclass(frozen=True)
class Dpo(Method):
    """A policy with reward(x, y) = beta log(pi(y | x) / reference(y | x)), the same for all users; context is ignored.

    Trained on all training users' pairs as if one person had judged them (`BTL-DPO`, the mixture of Few-shot Steerable
    3.2; eq. 25). Soft labels are allowed. The reference's log-probabilities are computed once per task and kept in the
    store. Several workers can train one policy together.
    tune: `lora` trains low-rank terms beside every linear layer but the last, `full` trains all weights.

    Departures: there is no supervised fine-tuning first; the reference is the model as it is. Adam with warm-up, cosine
    and clipped gradients at 1e-3 replaces RMSprop at 1e-6 (Rafailov et al.), Adam at 1e-6 (Few-shot Steerable, C.2.2)
    and AdamW at a constant 1e-5 (Generalization of DPO, appendix D). The default model is this project's small one, and
    LoRA has rank 16, where C.2.2 has gemma-2b and rank 512. Soft labels are allowed.

    State: the trained tensors by their names in the policy. Curves: loss, margin (beta times the log-ratio, preferred
    minus rejected) and accuracy of the training pairs; margin and accuracy of validation pairs.
    """

    family = "language model"
    paper = "Rafailov et al. 2023, DPO"

    trains_model: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    exports: ClassVar[bool] = True

    model: str = field(default="transformers:small", metadata={"identity": policy.canonical_policy_model})
    tune: Literal["lora", "full"] = "lora"
    rank: int = 16  # of `lora`; its alpha is twice the rank, as in C.2.2
    beta: float = 0.05  # C.2.2
    steps: int = 240
    batch: int = 16  # pairs per step
    rate: float = 1e-3
    # Longer training responses are cut; 0 cuts none, and a response longer than the model's context is an error.
    max_response_tokens: int = renamed_field(0, formerly="cut")
    recompute: bool = field(default=False, metadata={"identity": False})  # compute activations twice to save memory
    max_tokens: int = 128  # of a generated response

    def __post_init__(self) -> None:
        super().__post_init__()
        policy.parse_policy_model(self.model)
        least = min(self.rank, self.steps, self.batch, self.max_tokens, self.max_response_tokens + 1)
        if least < 1 or min(self.beta, self.rate) <= 0:
            raise UserError(
                f"{self.name}: rank, steps, batch, max_tokens must be 1 or more, max_response_tokens 0 or more, beta and rate above 0",
                "beta = 0.05, steps = 240, batch = 16",
            )

    def refuses(self, task: TaskFacts) -> str | None:
        return super().refuses(task) if task.has_text else "needs items with text"

    @property
    def language_model(self) -> LanguageModel:
        """The language model that the field `model` names."""
        return policy.parse_policy_model(self.model)

    @property
    def estimated_seconds(self) -> float:
        return 30 + 0.025 * self.steps * self.batch  # measured with the small model, training and scoring

    def prepare_models(self, store: Store) -> None:
        self.language_model.check_available(store)

    def tokens_and_reference(
        self, items: Items, store: Store, needed: np.ndarray | None = None
    ) -> tuple[policy.ItemTokens, torch.Tensor]:
        """Return the items' tokens, and the log-probabilities of their responses under the reference model.

        needed: numbers of the items that are asked about; log-probabilities of others may be NaN.
        """
        tokens = policy.tokenise_items(items, self.language_model, store, self.max_response_tokens)
        return tokens, policy.reference_log_probs(
            items,
            self.language_model,
            store,
            self.max_response_tokens,
            self.weights_dtype,
            () if needed is None else tuple(np.unique(needed).tolist()),
        )

    @property
    def weights_dtype(self) -> torch.dtype:
        """The type of the loaded weights; the reference model uses the same."""
        frozen = self.tune == "lora" and policy.torch_device().type == "cuda"
        return torch.bfloat16 if frozen else torch.float32

    def untrained_policy(self, seed: int, store: Store, n_features: int = 0) -> Policy:
        """Return the policy before training, which equals the reference model.

        n_features: features of a context pair, for subclasses that read the context.
        """
        opened = policy.load_language_model(self.language_model.model_folder(store), self.weights_dtype)
        if self.recompute:
            opened.gradient_checkpointing_enable({"use_reentrant": False})
            for block in policy.transformer_blocks(opened):
                block.training = True  # recomputing needs training mode; other modules stay without dropout
        if self.tune == "lora":
            opened = policy.add_lora(opened, self.rank, seed)
        return Policy(opened).to(policy.torch_device())

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        store = policy.require_run_store(run)
        tokens = policy.tokenise_items(train.items, self.language_model, store, self.max_response_tokens)
        rows, query = self.scheduled_pairs(train, tokens, run).ravel(), validation.query
        scored = query.left[:HELD_OUT_PAIRS], query.right[:HELD_OUT_PAIRS]
        needed = np.concatenate([train.left[rows], train.right[rows], *scored])
        tokens, reference = self.tokens_and_reference(train.items, store, needed)
        opened = self.untrained_policy(run.seed, store)
        return train_policy(
            opened,
            tokens,
            reference,
            self.training_schedule(train, tokens, run),
            TrainingSettings(self.beta, self.steps, {"lm": self.rate}),
            run=run,
            held_out=lambda: validation_curves(opened, tokens, reference, validation.query, self.beta),
        )

    def scheduled_pairs(self, train: Pairs, tokens: policy.ItemTokens, run: Run) -> np.ndarray:
        """Return int64[steps, batch], the pairs of each step: repeated random passes, with pairs of similar lengths in a step."""
        rng = np.random.default_rng([run.seed, 1])
        times = -(-self.steps * self.batch // len(train))
        order = np.concatenate([rng.permutation(len(train)) for _ in range(times)])[: self.steps * self.batch]
        length = np.maximum(tokens.length[train.left], tokens.length[train.right])[order]
        window = np.arange(len(order)) // (LENGTH_SORTED_STEPS * self.batch)
        steps = order[np.lexsort((length, window))].reshape(self.steps, self.batch)
        return steps[np.lexsort((rng.random(self.steps), np.arange(self.steps) // LENGTH_SORTED_STEPS))]

    def training_schedule(self, train: Pairs, tokens: policy.ItemTokens, run: Run):
        """Return a function from step to pairs, those of `scheduled_pairs`."""
        steps = self.scheduled_pairs(train, tokens, run)

        def step_at(step: int) -> TrainingStep:
            rows = steps[step]
            return TrainingStep(
                train.left[rows].astype(np.int64), train.right[rows].astype(np.int64), train.label[rows]
            )

        return step_at

    @contextmanager
    def open_predictor(self, state: State, run: Run) -> Iterator[Predictor]:
        """Load the policy with these weights; free its memory when the context ends."""
        held = LoadedDpo(self, state, policy.require_run_store(run))
        try:
            yield held
        finally:
            held.close()


class LoadedDpo(Predictor):
    """A trained policy in memory, until `close` is called."""

    def __init__(self, method: Dpo, state: State, store: Store) -> None:
        self.method, self.store = method, store
        self.model = set_trained_tensors(method.untrained_policy(0, store, count_context_features(state)), state)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users, 0),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        latent = users[0][torch.from_numpy(np.asarray(user)).long()]
        tokens, reference = self.method.tokens_and_reference(items, self.store, np.asarray(item))
        return self.method.beta * policy_log_ratios(self.model, tokens, reference, latent, np.asarray(item))

    def generate(
        self, state: State, users: Users | None, user: np.ndarray, prompts: Sequence[str], run: Run
    ) -> pa.Table:
        mine = np.arange(len(prompts))[parallel.worker_rank() :: parallel.worker_count()]
        whose = None if users is None else tuple(t[torch.from_numpy(np.asarray(user)[mine]).long()] for t in users)
        seeds = [(run.seed, row) for row in mine.tolist()]
        return parallel.gather_tables(self.responses_for(whose, [prompts[row] for row in mine], seeds))

    def responses_for(self, latent: Users | None, prompts: list[str], seeds: list) -> pa.Table:
        """Sample a response to each prompts[i] for the user with row i of `latent`; seeds[i] seeds its random numbers.

        If `latent` is None, the reference model writes the responses.
        """
        folder = self.method.language_model.model_folder(self.store)
        base = policy.load_language_model(folder, self.method.weights_dtype)
        return write_responses(
            base if latent is None else self.model.lm,
            open_tokenizer(folder),
            prompts,
            seeds,
            max_tokens=self.method.max_tokens,
            policy=None
            if latent is None
            else lambda rows: self.model.acting_for(latent[0][rows].to(policy.torch_device())),
            reference=None if latent is None else lambda ids, mask: base(ids, attention_mask=mask).logits,
        )

    def export(self, state: State, folder: Path) -> str:
        """Write the model for transformers and vLLM into the folder; return instructions for loading it."""
        base = self.method.language_model.model_folder(self.store)
        self.model.lm.save_pretrained(folder)
        open_tokenizer(base).save_pretrained(folder)
        if self.method.tune != "lora":
            return (
                f"transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
                f"vllm: LLM({str(folder)!r})\nmanyminds: generator = {f'transformers:{folder}'!r}"
            )
        return (
            f"transformers: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), {str(folder)!r})\n"
            f"vllm: LLM(BASE, enable_lora=True, max_lora_rank={self.method.rank}), and "
            f"generate(..., lora_request=LoRARequest('policy', 1, {str(folder)!r}))\nBASE is {base}"
        )


def set_trained_tensors(opened: Policy, state: State) -> Policy:
    """Set the policy's trained tensors to those of the state; return the policy."""
    learned = opened.trained_tensors()
    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(state[name])
    return opened


def count_context_features(state: State) -> int:
    """Return the number of context features that a state's policy reads; 0 where it reads none."""
    return state["film.weigh.weight"].shape[1] if "film.weigh.weight" in state else 0


def policy_log_ratios(
    opened: Policy, tokens: policy.ItemTokens, reference: torch.Tensor, latent: torch.Tensor, item: np.ndarray
) -> torch.Tensor:
    """Return float64[n]: log pi(y | x) / reference(y | x) of the response of item[i] for a user with latent[i].

    Rows with the same latent and item are computed once.
    """
    who = np.zeros(len(item), dtype=np.int64)
    if latent.shape[1]:
        who = np.unique(latent.numpy(), axis=0, return_inverse=True)[1].ravel()
    asked, first, place = np.unique(np.stack([who, item]), axis=1, return_index=True, return_inverse=True)
    rows = asked[1].astype(np.int64)
    said = policy.response_log_probs(opened, tokens, rows, latent[torch.from_numpy(first)])
    return (said - reference[torch.from_numpy(rows)])[torch.from_numpy(place.ravel())]


def validation_curves(
    opened: Policy, tokens: policy.ItemTokens, reference: torch.Tensor, query: Pairs, beta: float
) -> dict:
    """Return margin and accuracy of the first HELD_OUT_PAIRS validation pairs; {} where there are none."""
    if not len(query):
        return {}
    rows = np.arange(min(HELD_OUT_PAIRS, len(query)))
    items, place = np.unique(np.concatenate([query.left[rows], query.right[rows]]), return_inverse=True)
    items = items.astype(np.int64)
    said = policy.response_log_probs(opened, tokens, items) - reference[torch.from_numpy(items)]
    left, right = said[torch.from_numpy(place)].chunk(2)
    toward = beta * (left - right) * torch.from_numpy(2 * query.label[rows] - 1)
    return {"validation_margin": toward.mean(), "validation_accuracy": ((toward.sign() + 1) / 2).mean()}
