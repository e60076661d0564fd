"""The transformers Trainer with chunk_loss."""

from transformers import Trainer

from cwt_ext.integrations.trainer import ChunkTrainerMixin


class ChunkTrainer(ChunkTrainerMixin, Trainer):  # type: ignore[misc]
    """transformers.Trainer trained on chunk_loss; arguments as ChunkTrainerMixin and Trainer.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1,
        ...     intermediate_size=8, num_attention_heads=2, num_key_value_heads=2))
        >>> rows = [{"input_ids": [3, 4, 5, 6], "chunk_ids": [-1, 0, 0, 1]}] * 8
        >>> args = TrainingArguments("runs/out", max_steps=2, use_cpu=True, report_to="none")
        >>> trainer = ChunkTrainer(model, args, train_dataset=rows)
        >>> trainer.data_collator(rows[:1])["chunk_ids"]
        tensor([[-1,  0,  0,  1]])
    """
