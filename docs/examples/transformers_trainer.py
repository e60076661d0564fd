"""transformers.Trainer: python docs/examples/transformers_trainer.py"""

from toy import LEARNING_RATE, MICRO_BATCH, make_model, make_rows
from transformers import TrainingArguments

from cwt_ext.integrations import ChunkTrainer

arguments = TrainingArguments(
    "runs/trainer",
    per_device_train_batch_size=MICRO_BATCH,
    gradient_accumulation_steps=2,
    num_train_epochs=1,
    learning_rate=LEARNING_RATE,
    lr_scheduler_type="constant",
    max_grad_norm=0.0,
    train_sampling_strategy="sequential",
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
    dataloader_pin_memory=False,
)
trainer = ChunkTrainer(make_model(), arguments, train_dataset=make_rows())
trainer.train()
for row in trainer.state.log_history[:-1]:
    print(f"loss {row['loss']:.5f}, answer {row['chunk_2/loss']:.2f}")
print(trainer.chunk_loss.path)
