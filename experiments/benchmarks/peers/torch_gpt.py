"""PyTorch's contenders: nanoGPT's module (its folder is the second flag) or Hugging Face's GPT-2 or
Llama, eager or compiled; one model, or Student and TA together as plain PyTorch would do it: two
passes, the Student's with slices of the TA's weights, whole logits, three terms.
"""

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
    dimensions = {field: sizes[name] for field, name in shape.items()}
    model = GPT(GPTConfig(**dimensions, vocab_size=sizes["vocab_size"]))
    for block in model.transformer.h:
        block.mlp.gelu = torch.nn.GELU(approximate="tanh")
        block.mlp.c_fc = torch.nn.Linear(sizes["d_model"], sizes["d_ff"])
        block.mlp.c_proj = torch.nn.Linear(sizes["d_ff"], sizes["d_model"])
    return model, lambda tokens: model(tokens, tokens)[0]


def hugging_face(sizes):
    """Hugging Face's model, without dropout: a Llama where the sizes have heads of keys."""
    if "num_kv_heads" in sizes:
        return hugging_face_llama(sizes)
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_embd": "d_model",
        "n_positions": "max_len",
    }
    dimensions = {field: sizes[name] for field, name in shape.items()}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        **dimensions, **dropout, n_inner=sizes["d_ff"], vocab_size=sizes["vocab_size"]
    )
    model = GPT2LMHeadModel(config)
    return model, lambda tokens: model(tokens, use_cache=False).logits


def hugging_face_llama(sizes):
    """Hugging Face's Llama, with a tied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=sizes["d_model"],
        intermediate_size=sizes["d_ff"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"],
        max_position_embeddings=sizes["max_len"],
        vocab_size=sizes["vocab_size"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    return model, lambda tokens: model(tokens, use_cache=False).logits


def load(model, weights, *, transpose):
    """Takes weights of Hugging Face's names."""
    state = {}
    for name, array in np.load(weights).items():
        if transpose and name.endswith(TRANSPOSED):
            array = array.T
        state[name] = torch.tensor(array)

    missing, unexpected = model.load_state_dict(state, strict=False)
    # Causal masks are no weights, and the head is tied to the table.
    missing = [name for name in missing if not name.endswith((".attn.bias", "lm_head.weight"))]
    assert not missing and not unexpected, (missing, unexpected)


def sliced(model, d_ff):
    """The Student's weights: views of the TA's."""
    views = {}
    for name, weight in model.named_parameters():
        if "mlp.c_fc" in name:
            weight = weight[:d_ff]
        elif name.endswith("mlp.c_proj.weight"):
            weight = weight[:, :d_ff]
        views[name] = weight
    return views


def main():
    """Serves."""
    sizes, weights, (kind, how, folder) = serving.arguments()
    joint = kind == "joint"
    model_sizes = sizes | sizes["ta"] if joint else sizes
    if kind == "hf":
        model, logits = hugging_face(model_sizes)
    else:
        model, logits = nanogpt(model_sizes, folder)
    load(model, weights, transpose=kind != "hf")
    student = nanogpt(sizes, folder)[0] if joint else None

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    batch = torch.tensor(serving.tokens(sizes))
    x, y = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def cross_entropy(z):
        return F.cross_entropy(z.view(-1, z.size(-1)), y.view(-1))

    def terms():
        if not joint:
            loss = cross_entropy(logits(x))
            return loss, loss
        z_ta = model(x, y)[0]
        z = torch.func.functional_call(student, sliced(model, sizes["d_ff"]), (x, y))[0]
        log_p = F.log_softmax(z, -1)
        log_q = F.log_softmax(z_ta.detach(), -1)
        distill = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        student_loss = cross_entropy(z)
        return student_loss + cross_entropy(z_ta) + 0.5 * distill, student_loss

    run = torch.compile(terms) if how == "compiled" else terms

    def step():
        loss, student_loss = run()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "student": student_loss.item()}

    serving.serve(step)


if __name__ == "__main__":
    main()
