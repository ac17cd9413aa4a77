"""The report of a run: one page of charts, tables and examples."""
