"""Inputs of language models: every text that a model reads is built here from its parts, and checked to hold them all.

A model reads four kinds of input: a text by itself, a prompt that is to be continued (perhaps under a system line), the
response that follows a prompt, and a conversation of both. A part can get lost without an error: chat templates pass
over a system line, leave out the last turn or shorten a text, and tokenizers have no token for a character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import UserError
from harness.models.loading import loading_errors_as_user_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template is tried on: phrases that no template contains by itself.
TRIAL_TURNS = {"system": "quiet zebras", "user": "seven walnuts", "assistant": "violet kettles"}
PART_NAMES = {"system": "system line", "user": "prompt", "assistant": "response", "text": "text"}
RARE_CHARACTERS = "Ω日𓀀🦉"  # a tokenizer that has tokens for these is taken to have tokens for every character
VISIBLE_CATEGORIES = "LNPS"  # Unicode's letters, numbers, punctuation and symbols: a reader would miss them
EMPTY_TEXT = "the text is empty"
TEMPLATE_HINT = "correct chat_template in the model's tokenizer files, or use another model"
TOKENIZER_HINT = "remove these characters, or use a model whose tokenizer reads any text"


class LostTextError(UserError):
    """A part of one text would not reach the model; other texts may be fine."""


class BuiltInputs(NamedTuple):
    """Tokens of each text, and the reason why a text cannot be used, or None."""

    tokens: list[list[int]]
    reasons: list[str | None]


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Open the model's tokenizer without running any code from the folder."""
    from transformers import AutoTokenizer

    with loading_errors_as_user_errors(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def render_prompt(tokenizer: PreTrainedTokenizerBase, system: str | None, prompt: str) -> list[int]:
    """Return the tokens of a prompt up to where the model's answer begins.

    The prompt is rendered by the tokenizer's chat template, if any. Without a template, or with one that does not show
    a system line, the system line is put before the prompt. End tokens that the tokenizer adds are left out, because
    nothing follows an ended text. Raises LostTextError where a part of this prompt is lost, and UserError where the
    template shows no prompt or ends it.
    """
    parts = {"system": system, "user": prompt} if system else {"user": prompt}
    alone = f"{system}\n\n{prompt}" if system else prompt
    if tokenizer.chat_template is None:
        check_readable(tokenizer, parts)
        return without_end(tokenizer, f"{alone}\n")
    check_prompt_template(tokenizer)
    turns = parts if not system or shows_system_line(tokenizer) else {"user": alone}
    check_readable(tokenizer, parts)
    return tokenizer(checked_turns(tokenizer, turns, continued=True), add_special_tokens=False)["input_ids"]


def response_tokens(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    """Return the tokens of responses that follow a prompt. Raises LostTextError where a part of a response is lost."""
    for response in responses:
        check_readable(tokenizer, {"assistant": response})
    return tokenizer(list(responses), add_special_tokens=False, verbose=False)["input_ids"]


def text_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, instruction: str = ""
) -> BuiltInputs:
    """Build the tokens of texts by themselves, with the tokenizer's special tokens; texts are cut to `limit` tokens.

    instruction: put before every text.
    """
    tokens = tokenizer([f"{instruction}{text}" for text in texts], truncation=True, max_length=limit)["input_ids"]
    reasons = [why_unreadable(tokenizer, {"text": text}) if text.strip() else EMPTY_TEXT for text in texts]
    return BuiltInputs(tokens, reasons)


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    limit: int,
    as_trained: bool = False,
) -> BuiltInputs:
    """Build the tokens of conversations: the prompt as the user's turn and the response as the assistant's.

    Without a chat template, a blank line joins the two, and the tokenizer adds its special tokens; a template writes its
    own. Conversations are cut at their end to `limit` tokens, which must hold a part of the response. Raises UserError
    where the template does not show both turns.

    as_trained: as reward models were trained: a template keeps a system line of its own, and without a template prompt
    and response are the tokenizer's two parts.
    """
    check_conversation_template(tokenizer)
    plain = tokenizer.chat_template is None
    if as_trained and plain:
        return pair_tokens(tokenizer, prompts, responses, limit)
    texts, reasons = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        turns, text = {"user": prompt, "assistant": response}, f"{prompt}\n\n{response}"
        reason = None if response.strip() else EMPTY_TEXT
        try:
            check_readable(tokenizer, turns)
            if not plain:
                turns = turns if as_trained else without_default_system_line(tokenizer, turns)
                text = checked_turns(tokenizer, turns)
        except LostTextError as error:
            reason = error.message
        texts.append(text)
        reasons.append(reason)
    tokens = tokenizer(texts, add_special_tokens=plain, truncation=True, max_length=limit)["input_ids"]
    for row, (text, response) in enumerate(zip(texts, responses, strict=True)):
        if not reasons[row] and len(tokens[row]) == limit and tokenizer.truncation_side == "right":
            reasons[row] = why_cut_off(tokenizer, text[: text.rindex(response.strip())], limit)
    return BuiltInputs(tokens, reasons)


def pair_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], limit: int
) -> BuiltInputs:
    """Build the tokens of prompts and responses as a tokenizer's two parts; of a long one, the prompt's end is cut."""
    reasons = []
    for prompt, response in zip(prompts, responses, strict=True):
        reason = why_unreadable(tokenizer, {"user": prompt, "assistant": response}) if response.strip() else EMPTY_TEXT
        length = len(tokenizer(response, verbose=False)["input_ids"])
        if reason is None and length >= limit - 2:  # what separates the two parts takes up to two tokens
            reason = f"the response has {length} tokens, and the model reads {limit}: raise max_length"
        reasons.append(reason)
    usable = [
        ("", "") if reason else pair for pair, reason in zip(zip(prompts, responses, strict=True), reasons, strict=True)
    ]
    first, second = ([pair[i] for pair in usable] for i in (0, 1))
    tokens = tokenizer(first, second, truncation="only_first", max_length=limit, verbose=False)["input_ids"]
    return BuiltInputs(tokens, reasons)


def why_cut_off(tokenizer: PreTrainedTokenizerBase, before: str, limit: int) -> str | None:
    """Return why a conversation cut to `limit` tokens holds nothing of its response, which follows `before`, or None."""
    plain = tokenizer.chat_template is None
    length = len(tokenizer(before, add_special_tokens=plain, verbose=False)["input_ids"])
    return (
        f"the prompt has {length} tokens, and the encoder reads {limit}, which leaves no room for the response: raise "
        "max_length or shorten the prompt; with of=response an encoder reads responses alone"
        if length >= limit
        else None
    )


def without_default_system_line(tokenizer: PreTrainedTokenizerBase, turns: dict[str, str]) -> dict[str, str]:
    """Return the turns of a conversation with an empty system line where the template would write one of its own.

    Every item would begin with the same words, which are half of a short one.
    """
    return {"system": "", **turns} if writes_system_line(tokenizer, str(tokenizer.chat_template)) else turns


@lru_cache(8)
def writes_system_line(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Return whether the chat template writes a system line that nobody gave, and an empty one prevents it."""
    user = {"user": TRIAL_TURNS["user"]}
    alone, blank = (_rendered_or_none(tokenizer, turns, False) for turns in (user, {"system": "", **user}))
    return alone is not None and blank is not None and len(blank) < len(alone)


def render_turns(tokenizer: PreTrainedTokenizerBase, turns: dict[str, str], continued: bool = False) -> str:
    """Render turns, role -> text, by the chat template; if `continued`, up to where the assistant's turn begins."""
    messages = [{"role": role, "content": text} for role, text in turns.items()]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=continued))


def without_end(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that goes on, with the special tokens added before it but not those added after it."""
    found = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    n_added = next((n for n, added in enumerate(reversed(found["special_tokens_mask"])) if not added), 0)
    return found["input_ids"][: len(found["input_ids"]) - n_added]


def checked_turns(tokenizer: PreTrainedTokenizerBase, turns: dict[str, str], continued: bool = False) -> str:
    """Render turns as `render_turns` does. Raises LostTextError where the text does not hold all of them.

    Spaces around a turn do not count: many templates strip them, and their models were trained so.
    """
    if (text := _rendered_or_none(tokenizer, turns, continued)) is None:
        raise LostTextError(f"the chat template of {tokenizer.name_or_path} refuses this text", TEMPLATE_HINT)
    if lost := [PART_NAMES[role] for role, part in turns.items() if part.strip() not in text]:
        raise LostTextError(
            f"the chat template of {tokenizer.name_or_path} leaves out a part of the {lost[0]}", TEMPLATE_HINT
        )
    return text


def check_readable(tokenizer: PreTrainedTokenizerBase, parts: dict[str, str]) -> None:
    """Raise LostTextError where the tokenizer has no token for a character of a part."""
    if reason := why_unreadable(tokenizer, parts):
        raise LostTextError(reason, TOKENIZER_HINT)


def why_unreadable(tokenizer: PreTrainedTokenizerBase, parts: dict[str, str]) -> str | None:
    """Return why a part cannot be read, a character that has no token, or None."""
    for role, part in parts.items():
        if can_lose_characters(tokenizer) and (lost := lost_characters(tokenizer, part)):
            return f"the tokenizer of {tokenizer.name_or_path} has no token for {lost[0]!r} in the {PART_NAMES[role]}"
    return None


@lru_cache(8)
def can_lose_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer maps some characters to nothing."""
    return bool(lost_characters(tokenizer, RARE_CHARACTERS))


def lost_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the visible characters of a text for which no token stands."""
    if not tokenizer.is_fast:  # tokenizers in Python do not say where a token stands
        return "" if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] else text
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if not found["input_ids"]:
        return text
    held = {place for start, end in found["offset_mapping"] for place in range(start, end)}
    return "".join(
        c for place, c in enumerate(text) if place not in held and unicodedata.category(c)[0] in VISIBLE_CATEGORIES
    )


def shows_system_line(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template shows a system line before a prompt."""
    return not template_losses(tokenizer, str(tokenizer.chat_template), ("system", "user"), True)


def check_prompt_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the chat template does not show a prompt, or ends it so that nothing can follow."""
    if tokenizer.chat_template is None:
        return
    _check_template(tokenizer, ("user",), continued=True)
    if ends_prompt(tokenizer, str(tokenizer.chat_template)):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} ends a prompt with {tokenizer.eos_token}, so no response "
            "can follow",
            TEMPLATE_HINT,
        )


@lru_cache(8)
def ends_prompt(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Return whether the chat template puts an end token at the end of a prompt. template: see `template_losses`."""
    text = render_turns(tokenizer, {"user": TRIAL_TURNS["user"]}, continued=True)
    return bool(tokenizer.eos_token) and text.rstrip().endswith(tokenizer.eos_token)


def check_conversation_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the chat template does not show a prompt and its response."""
    if tokenizer.chat_template is not None:
        _check_template(tokenizer, ("user", "assistant"), continued=False)


def _check_template(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...], continued: bool) -> None:
    """Raise UserError where the chat template does not show turns of these roles."""
    if losses := template_losses(tokenizer, str(tokenizer.chat_template), roles, continued):
        lost = " and the ".join(PART_NAMES[role] for role in losses)
        raise UserError(f"the chat template of {tokenizer.name_or_path} does not show the {lost}", TEMPLATE_HINT)


@lru_cache(32)
def template_losses(
    tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...], continued: bool
) -> tuple[str, ...]:
    """Return the roles whose turns the chat template leaves out, all of them where it refuses them.

    template: the tokenizer's template, which tells apart the states of a tokenizer whose template is exchanged.
    """
    turns = {role: TRIAL_TURNS[role] for role in roles}
    text = _rendered_or_none(tokenizer, turns, continued)
    return roles if text is None else tuple(role for role in roles if turns[role] not in text)


def _rendered_or_none(tokenizer: PreTrainedTokenizerBase, turns: dict[str, str], continued: bool) -> str | None:
    """Render turns; return None where the template refuses them or has a fault."""
    from jinja2 import TemplateError

    try:
        return render_turns(tokenizer, turns, continued)
    except (TemplateError, TypeError, ValueError, LookupError):
        return None


def changed_inputs(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the kinds of input that this module builds otherwise than its first version, which checked nothing.

    "prompt": a prompt was ended, or could not be shown. "system": a prompt lost its system line. "conversation": the
    template lost a turn or wrote a system line of its own, or special tokens were left out. Models whose inputs are as before keep their results.
    """
    found = set()
    if tokenizer.chat_template is None:
        added = tokenizer(TRIAL_TURNS["user"], return_special_tokens_mask=True)["special_tokens_mask"]
        found = {"prompt"} if added[-1] else set()
        return found | ({"conversation"} if any(added) else set())
    turns = {role: TRIAL_TURNS[role] for role in ("system", "user")}
    if _rendered_or_none(tokenizer, turns, continued=True) is not None and not shows_system_line(tokenizer):
        found.add("system")
    if writes_system_line(tokenizer, str(tokenizer.chat_template)):
        found.add("conversation")
    for kind, check in (("prompt", check_prompt_template), ("conversation", check_conversation_template)):
        try:
            check(tokenizer)
        except UserError:
            found.add(kind)
    return found
