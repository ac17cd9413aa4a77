"""What a trained encoder knows and how well it reconstructs, measured on examples it never saw; and
the report.
"""
