"""The project's DPO loss and gradient equal those of TRL's DPOTrainer on the same pairs."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from harness.data import TEXT_SCHEMA, Items
from harness.learning.dpo_training import TrainingStep, accumulate_gradients
from harness.registry import make_instance
from harness.sources.text_world import PROMPTS, write_response
from harness.store.store import Store

PAIRS = 12
BETA = 0.3
TURNS = (("prompt", "user"), ("response", "assistant"))


@pytest.fixture
def base(folder):
    """Return the folder of an untrained small language model."""
    return folder


def trainer(base, model, texts, chosen, rejected, folder):
    """Return TRL's trainer in float32 without dropout."""
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'manyminds[test]'")
    from datasets import Dataset
    from transformers import AutoTokenizer

    said = [[{"role": role, "content": text} for text in texts[name].to_pylist()] for name, role in TURNS]
    rows = [
        {"prompt": [said[0][w]], "chosen": [said[1][w]], "rejected": [said[1][r]]}
        for w, r in zip(chosen, rejected, strict=True)
    ]
    settings = trl.DPOConfig(
        str(folder), beta=BETA, bf16=False, use_cpu=True, report_to="none", activation_checkpointing=False
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    return trl.DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_loss_and_every_gradient_are_trls(base, tmp_path, tune):
    rng = np.random.default_rng(0)
    prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=PAIRS)] * 2
    responses = [write_response(p, int(s)) for p, s in zip(prompts, rng.integers(1 << 30, size=2 * PAIRS), strict=True)]
    items = Items(text=pa.table([prompts, responses], schema=TEXT_SCHEMA))
    left, right, label = np.arange(PAIRS), np.arange(PAIRS, 2 * PAIRS), np.arange(PAIRS) % 2
    made = make_instance("method", "dpo", {"model": f"transformers:{base}", "tune": tune, "rank": 4})
    store = Store(tmp_path / "store").open()
    ours = made.untrained_policy(0, store)
    tokens, reference = made.tokens_and_reference(items, store)

    chosen, rejected = np.where(label, left, right), np.where(label, right, left)
    theirs = trainer(base, made.untrained_policy(0, store).lm, items.text, chosen, rejected, tmp_path / "trl")
    batch = theirs.data_collator(list(theirs.train_dataset))
    assert batch["attention_mask"].sum() == tokens.length.sum()  # TRL renders the same tokens

    torch.manual_seed(0)
    with torch.no_grad():  # move away from the reference, so that no term of the gradient vanishes
        for name, weight in ours.trained_tensors().items():
            weight += 0.02 * torch.randn_like(weight)
            theirs.model.get_parameter(name.removeprefix("lm.")).copy_(weight)
    loss = accumulate_gradients(ours, tokens, reference, TrainingStep(left, right, label.astype(np.float32)), BETA)[0]
    expected = theirs.compute_loss(theirs.model, batch)
    expected.backward()

    assert abs(float(loss) - np.log(2)) > 0.01
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    found, wanted = {}, {}
    for name, weight in ours.trained_tensors().items():
        found[name], wanted[name] = weight.grad, theirs.model.get_parameter(name.removeprefix("lm.")).grad
        assert float((found[name] - wanted[name]).norm()) < 1e-4 * float(wanted[name].norm()), name
    found, wanted = (torch.cat([t.ravel() for t in each.values()]) for each in (found, wanted))
    # In float32 a text's log-probability, hundreds of nats, is known to about 1e-5 of a nat, and with it the gradient:
    # for low-rank terms, TRL's differs by 1.2e-5 of its length from the float64 gradient on some CPUs, ours by 0.2e-5.
    assert float((found - wanted).norm()) <= 3e-5 * float(wanted.norm())
