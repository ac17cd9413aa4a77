"""The paper's experiments, run again: tables of variants, and what trains and compares them."""
