"""TRL's SFTTrainer: python docs/examples/trl_sft.py"""

from datasets import Dataset
from tokenizers import Tokenizer, models
from toy import LEARNING_RATE, MICRO_BATCH, make_model, make_rows
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig

from cwt_ext.integrations import ChunkSFTTrainer

words = {"<pad>": 0, "</s>": 99, **{str(i): i for i in range(1, 99)}}
tokenizer = PreTrainedTokenizerFast(  # yours comes with your model
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
    pad_token="<pad>",
    eos_token="</s>",
)
arguments = SFTConfig(
    "runs/sft",
    per_device_train_batch_size=MICRO_BATCH,
    gradient_accumulation_steps=2,
    num_train_epochs=1,
    learning_rate=LEARNING_RATE,
    lr_scheduler_type="constant",
    max_grad_norm=0.0,
    shuffle_dataset=False,
    train_sampling_strategy="sequential",
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    bf16=False,
    use_cpu=True,
    dataloader_pin_memory=False,
)
rows = Dataset.from_list(make_rows())
trainer = ChunkSFTTrainer(make_model(), arguments, train_dataset=rows, processing_class=tokenizer)
trainer.train()
for row in trainer.state.log_history[:-1]:
    print(f"loss {row['loss']:.5f}, answer {row['chunk_2/loss']:.2f}")
print(trainer.chunk_loss.path)
