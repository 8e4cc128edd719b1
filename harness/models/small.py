"""The project's own small language model, trained in about three minutes on the text simulator; no download is needed.

The model is a Qwen2 of 0.75 million parameters with its own tokenizer and chat template. Its answers to the prompts of
harness/sources/text_world.py are like that simulator's, with random levels of the traits. A system line such as
"Be formal and brief." shifts them towards the two traits named. The model knows nothing else: its judgements and
vectors of other texts have no meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.models.loading import new_model_folder
from harness.sources.text_world import (
    PROMPTS,
    TOPICS,
    TRAITS,
    draw_phrases,
    plain_sentence,
    trait_scores,
    write_response,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Qwen2Tokenizer

SMALL_MODEL_VERSION = 1  # raise whenever the same steps and seed would give another model
TRAINING_STEPS = 500  # about 145 s of one core
LESSON_SHARE = 0.3  # share of steps on `lesson_conversations`; without them the model ignores system lines at 360 steps
CONVERSATIONS_PER_STEP = 32
LEARNING_RATE = 5e-3  # high, for a small model and few steps
MAX_POSITIONS = 1024  # a judge's question with a few responses fits, though the model was never trained on one
TRAINING_CONTEXT = 192  # tokens; a system line, a prompt and the simulator's longest response (123 tokens) fit
VOCABULARY_SIZE = 1000  # with bytes as tokens, responses are four times as long and take too long to learn

TRAIT_MANNERS = {  # trait -> word of a system line for its positive and for its negative side
    "length": ("long", "brief"),
    "formality": ("formal", "casual"),
    "humour": ("funny", "serious"),
    "elicitation": ("curious", "final"),
    "politeness": ("polite", "rude"),
    "enthusiasm": ("enthusiastic", "bored"),
    "confidence": ("confident", "unsure"),
}

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def system_line(wants: dict[str, int]) -> str:
    """Return the system line that asks for traits: {"formality": 1, "length": -1} gives "Be formal and brief."."""
    return f"Be {' and '.join(TRAIT_MANNERS[trait][sign < 0] for trait, sign in wants.items())}."


def build_small_model(folder: Path, steps: int = TRAINING_STEPS, seed: int = 0) -> None:
    """Build the model and its tokenizer in `folder`, completely or not at all.

    transformers, PEFT and vLLM can load them. Nothing is done where the folder exists. The same steps, seed, library
    versions and processor type give the same files. With 0 steps the model is untrained and built in a second.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    from harness.parallel import one_thread

    if folder.exists():
        return
    tokenizer = train_tokenizer(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=MAX_POSITIONS,
                tie_word_embeddings=True,
                initializer_range=0.08,  # 1 / sqrt(hidden size); the usual 0.02 takes three times the steps
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # Two threads are slower on a busy machine, and change the order of sums.
        with one_thread():
            train_small_model(model, tokenizer, seed, steps)

    logging.disable_progress_bar()
    with new_model_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def train_tokenizer(seed: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer, which can encode any text, with merges learned from the simulator's texts."""
    from transformers import Qwen2Tokenizer

    talk = world_conversations(2000, seed)  # every phrase occurs several times
    return Qwen2Tokenizer(
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        bos_token=BEGIN,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    ).train_new_from_iterator(
        [message["content"] for messages in talk for message in messages],
        VOCABULARY_SIZE,
        new_special_tokens=list(ROLE_TOKENS),
        show_progress=False,
    )


def lesson_conversations(n: int, seed: int) -> list[list[dict[str, str]]]:
    """Write n short conversations for the start of training: responses have the topic and the two traits asked for."""
    rng = np.random.default_rng([seed, 1])
    talk = []
    for prompt in rng.choice(PROMPTS, n):
        wants = {TRAITS[t]: int(rng.choice([1, -1])) for t in rng.choice(len(TRAITS), 2, replace=False)}
        sentences = [f"on {next(topic for topic in TOPICS if topic in prompt)}"]
        for trait, sign in wants.items():
            if trait == "length":
                sentences += [plain_sentence(rng) for _ in range(5 * (sign > 0))]
            else:
                sentences += draw_phrases(rng, trait, 2 * sign)
        rng.shuffle(sentences)
        response = " ".join(s[0].upper() + s[1:] + ("" if s[-1] in "?!" else ".") for s in sentences)
        talk.append(make_conversation(system_line(wants), prompt, response))
    return talk


def world_conversations(n: int, seed: int) -> list[list[dict[str, str]]]:
    """Write n prompts with the simulator's responses, half under a system line that names the two strongest traits."""
    rng = np.random.default_rng(seed)
    prompts = rng.choice(PROMPTS, n)
    responses = [write_response(prompt, int(s)) for prompt, s in zip(prompts, rng.integers(2**31, size=n), strict=True)]
    scores = trait_scores(responses)
    # The noise breaks ties at random.
    strongest = np.abs(scores + rng.normal(0, 1e-3, scores.shape)).argsort(1)[:, :-3:-1]
    talk = []
    for prompt, response, score, pair in zip(prompts, responses, scores, strongest, strict=True):
        wants = {TRAITS[t]: int(np.sign(score[t])) for t in pair if score[t]}
        talk.append(make_conversation(system_line(wants) if wants and rng.random() < 0.5 else None, prompt, response))
    return talk


def make_conversation(system: str | None, prompt: str, response: str) -> list[dict[str, str]]:
    """Return a conversation as chat messages; without a system line if that is None."""
    said = [("system", system), ("user", str(prompt)), ("assistant", response)]
    return [{"role": role, "content": content} for role, content in said if content]


def train_small_model(model: PreTrainedModel, tokenizer: Qwen2Tokenizer, seed: int, steps: int) -> None:
    """Train next-token prediction by AdamW for `steps` steps: first on lessons, then on conversations."""
    import torch
    from rich.console import Console
    from rich.progress import track

    if steps == 0:
        return
    n_lessons = round(LESSON_SHARE * steps)
    batches = []
    for talk in (
        lesson_conversations(n_lessons * CONVERSATIONS_PER_STEP, seed),
        world_conversations((steps - n_lessons) * CONVERSATIONS_PER_STEP, seed),
    ):
        if talk:
            tokens = tokenizer(tokenizer.apply_chat_template(talk, tokenize=False))["input_ids"]
            batches += batches_of_like_length(
                [torch.tensor(row[:TRAINING_CONTEXT]) for row in tokens], tokenizer.pad_token_id
            )
    # Second beta 0.99: with 0.999, the average over squared gradients would forget nothing in 500 steps.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for ids in track(batches, "training", console=Console(stderr=True), transient=True):
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == tokenizer.pad_token_id, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def batches_of_like_length(rows: list[torch.Tensor], pad: int) -> list[torch.Tensor]:
    """Return batches int64[CONVERSATIONS_PER_STEP, longest] in random order.

    Rows of a batch have similar lengths, so that little is padding.
    """
    import torch

    batches = []
    # Rows are sorted within 16 batches: enough for similar lengths, few enough for an almost random order.
    for start in range(0, len(rows), 16 * CONVERSATIONS_PER_STEP):
        near = sorted(rows[start : start + 16 * CONVERSATIONS_PER_STEP], key=len)
        batches += [near[i : i + CONVERSATIONS_PER_STEP] for i in range(0, len(near), CONVERSATIONS_PER_STEP)]
    order = np.random.default_rng(0).permutation(len(batches))
    return [torch.nn.utils.rnn.pad_sequence(batches[i], batch_first=True, padding_value=pad) for i in order]
