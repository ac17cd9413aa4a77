"""Trained models ready for use: network, tokenizer and preprocessing, from a run or a folder."""
