"""Students: everything that touches a model goes through the `Student` protocol.

student    the protocol, and passes over many sequences in batches
chat       how a student is asked, by a template of its own or the tokenizer's for chats
tokenized  an example in tokens; the rows and batches that are made of it
pretrained what the students of the transformers library share
causal     the student that is a causal language model
seq2seq    the student that is an encoder-decoder
prefix_cache  rows read in pieces; what two rows begin with is read once
load       opens `tiny`, a Hugging Face or GGUF folder, or a hub name as a student
tiny/      the embedded student
"""
