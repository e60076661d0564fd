"""DistributedDataParallel: torchrun --nproc-per-node 2 docs/examples/ddp.py"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from toy import BATCH, LEARNING_RATE, make_model, make_rows

from cwt_ext.integrations import ChunkCollator, ModelChunkLoss

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
model = DistributedDataParallel(make_model())
loss_of = ModelChunkLoss(model)
collate = ChunkCollator(pad_token_id=0)
optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)

rows = make_rows()
for start in range(0, len(rows), BATCH):
    batch = collate(rows[start : start + BATCH][rank::ranks])
    step = loss_of.step([batch])  # counts the tokens of all ranks
    loss = loss_of(batch, step).loss
    loss.backward()  # DDP takes the mean of the ranks' gradients, which is the step's
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
