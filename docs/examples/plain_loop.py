"""A loop of your own, with gradient accumulation: python docs/examples/plain_loop.py"""

import torch
from toy import BATCH, LEARNING_RATE, MICRO_BATCH, make_model, make_rows

from cwt_ext.integrations import ChunkCollator, ModelChunkLoss

model = make_model()
loss_of = ModelChunkLoss(model)
collate = ChunkCollator(pad_token_id=0)
optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)

rows = make_rows()
for start in range(0, len(rows), BATCH):
    parts = range(start, start + BATCH, MICRO_BATCH)
    batches = [collate(rows[part : part + MICRO_BATCH]) for part in parts]
    step = loss_of.step(batches)  # what this optimizer step divides by, once
    total = 0.0
    for batch in batches:
        out = loss_of(batch, step)
        out.loss.backward()
        total += out.loss.item()
    optimizer.step()
    optimizer.zero_grad()
    chunks = [round(nll, 2) for nll in out.stats.nll.tolist()]
    print(f"loss {total:.5f}, last micro-batch by chunk {chunks}")
print(loss_of.path)
