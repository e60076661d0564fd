"""Lightning: python docs/examples/lightning_module.py (needs `pip install pytorch-lightning`)

A batch is a whole optimizer step, a list of micro-batches, because the step's loss is divided once:
`accumulate_grad_batches` would take a mean of means.
"""

import pytorch_lightning as lightning
import torch
from toy import BATCH, LEARNING_RATE, MICRO_BATCH, make_model, make_rows

from cwt_ext.integrations import ChunkCollator, ModelChunkLoss

collate = ChunkCollator(pad_token_id=0)


def collate_step(rows):
    return [collate(rows[i : i + MICRO_BATCH]) for i in range(0, len(rows), MICRO_BATCH)]


class Student(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = make_model()
        self.loss_of = ModelChunkLoss(self.model)
        self.automatic_optimization = False

    def training_step(self, batches, batch_idx):
        optimizer = self.optimizers()
        step = self.loss_of.step(batches)
        losses = [self.loss_of(batch, step).loss for batch in batches]
        for loss in losses:
            self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {sum(losses).item():.5f}")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=0.0)


loader = torch.utils.data.DataLoader(make_rows(), batch_size=BATCH, collate_fn=collate_step)
student = Student()
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(student, loader)
print(student.loss_of.path)
