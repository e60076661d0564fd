"""Trains a small model with ChunkTrainer, alone or as one of several processes, and saves it.

python integration_worker.py OUT ACCUMULATION:KIND...; RANK and WORLD_SIZE in the environment say
how many processes there are. Every optimizer step sees the same 8 rows, however they are divided.
"""

import os
import sys
from pathlib import Path

import torch
from integration_models import batch_for, rows_of, small_model


def options(out, accumulation, **more):
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": 8 // accumulation // ranks,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 3,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **({"ddp_backend": "gloo"} if ranks > 1 else {}),
        **more,
    }


def dataset():
    rows = rows_of(batch_for("llama", rows=24, seed=3))
    for row in rows[::5]:  # texts of unequal weight: means of means would differ
        row["labels"] = [-100] * 6 + row["labels"][6:]
    return rows


KINDS = {
    "token_mean": {},
    "chunk_mean": {"reduction": "chunk_mean", "num_chunks": 3},
    "active": {"active": torch.tensor([0.5, 0.0, 2.0])},
    "logits": {"backend": "logits"},
}


def train(out, accumulation, kind):
    """Returns the lines of the log that have a loss, and the trained weights."""
    from transformers import TrainingArguments

    from cwt_ext.integrations import ChunkTrainer

    arguments = TrainingArguments(**options(out, accumulation))
    model = small_model("llama")
    trainer = ChunkTrainer(model, arguments, train_dataset=dataset(), **KINDS[kind])
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return {"logs": logs, "state": trainer.model.state_dict()}


if __name__ == "__main__":
    folder, *jobs = sys.argv[1:]
    results = {}
    for job in jobs:
        steps, kind_of_job = job.split(":")
        results[job] = train(folder, int(steps), kind_of_job)
    if os.environ["RANK"] == "0":
        torch.save(results, Path(folder) / "results.pt")
    torch.distributed.barrier()  # nobody leaves while others still talk
    torch.distributed.destroy_process_group()
