"""PyTorch's contenders: nanoGPT's module (its folder is the second flag) or Hugging Face's GPT-2,
eager or compiled; one model, or Student and TA together as plain PyTorch would do it: two passes,
the Student's with slices of the TA's weights, whole logits, three terms."""

import sys

import numpy as np
import serving
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def nanogpt(sizes, folder):
    """nanoGPT's model, with GPT-2's approximation of GELU."""
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    shape = {
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_embd": "d_model",
        "block_size": "max_len",
    }
    model = GPT(
        GPTConfig(
            **{theirs: sizes[ours] for theirs, ours in shape.items()},
            vocab_size=sizes["vocab_size"],
        )
    )
    for block in model.transformer.h:
        block.mlp.gelu = torch.nn.GELU(approximate="tanh")
        block.mlp.c_fc = torch.nn.Linear(sizes["d_model"], sizes["d_ff"])
        block.mlp.c_proj = torch.nn.Linear(sizes["d_ff"], sizes["d_model"])
    return model, lambda tokens: model(tokens, tokens)[0]


def hugging_face(sizes):
    """Hugging Face's model, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_embd": "d_model",
        "n_positions": "max_len",
    }
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    own = {theirs: sizes[ours] for theirs, ours in shape.items()}
    model = GPT2LMHeadModel(
        GPT2Config(**own, **none, n_inner=sizes["d_ff"], vocab_size=sizes["vocab_size"])
    )
    return model, lambda tokens: model(tokens, use_cache=False).logits


def load(model, weights, *, transpose):
    """Takes GPT-2's weights."""
    found = dict(np.load(weights))
    state = {
        name: torch.tensor(value.T if transpose and name.endswith(TRANSPOSED) else value)
        for name, value in found.items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [name for name in missing if not name.endswith((".attn.bias", "lm_head.weight"))]
    assert not left and not unexpected, (left, unexpected)


def sliced(model, d_ff):
    """The Student's weights: views of the TA's."""
    own = {}
    for name, weight in model.named_parameters():
        if "mlp.c_fc" in name:
            weight = weight[:d_ff]
        elif name.endswith("mlp.c_proj.weight"):
            weight = weight[:, :d_ff]
        own[name] = weight
    return own


def main():
    """Serves."""
    sizes, weights, (kind, how, folder) = serving.arguments()
    joint = kind == "joint"
    whole = sizes | sizes["ta"] if joint else sizes
    model, logits = hugging_face(whole) if kind == "hf" else nanogpt(whole, folder)
    load(model, weights, transpose=kind != "hf")
    student = nanogpt(sizes, folder)[0] if joint else None
    decayed, rest = (
        [p for p in model.parameters() if (p.dim() > 1) == many] for many in (True, False)
    )
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    batch = torch.tensor(serving.tokens(sizes))
    x, y = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def cross_entropy(z):
        return F.cross_entropy(z.view(-1, z.size(-1)), y.view(-1))

    def terms():
        if not joint:
            own = cross_entropy(logits(x))
            return own, own
        z_ta = model(x, y)[0]
        z = torch.func.functional_call(student, sliced(model, sizes["d_ff"]), (x, y))[0]
        log_p, log_q = (F.log_softmax(each, -1) for each in (z, z_ta.detach()))
        distill = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        own = cross_entropy(z)
        return own + cross_entropy(z_ta) + 0.5 * distill, own

    run = torch.compile(terms) if how == "compiled" else terms

    def step():
        loss, own = run()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "student": own.item()}

    serving.serve(step)


if __name__ == "__main__":
    main()
