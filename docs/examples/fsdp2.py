"""FSDP2, every parameter sharded: torchrun --nproc-per-node 2 docs/examples/fsdp2.py"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from toy import BATCH, LEARNING_RATE, make_model, make_rows

from cwt_ext.integrations import ChunkCollator, ModelChunkLoss

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
model = make_model()
for part in (*model.model.layers, model.lm_head, model):
    fully_shard(part, mesh=mesh)
loss_of = ModelChunkLoss(model)  # the head is gathered for the loss, like any other layer
collate = ChunkCollator(pad_token_id=0)
optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)

rows = make_rows()
for start in range(0, len(rows), BATCH):
    batch = collate(rows[start : start + BATCH][rank::ranks])
    step = loss_of.step([batch])  # counts the tokens of all ranks
    loss = loss_of(batch, step).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach() / ranks
    dist.all_reduce(mean)
    if rank == 0:
        print(f"loss {mean.item():.5f}")
if rank == 0:
    print(loss_of.path)
dist.barrier()  # nobody leaves while others still talk
dist.destroy_process_group()
